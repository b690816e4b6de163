//! What a snapshot has released is never read again: a copy that lost something of it is lost, and says so.

mod common;

use std::fs::{self, File};

use common::daemon::{Daemon, Fault};
use common::{
    COMPLETE, MIB, Place, UNFINISHED, assert_sentence, backup, backup_interrupted, content, damage, doubt, is_doubted,
    journal, partial, reboot, verify,
};
use tzero_api::Exit;
use tzero_copy::{BackupOutcome, BackupRequest, Cancel, Error, Event, Notice, Phase, StopCause};

const SIZE: usize = 45 * MIB + 512;
const RECORDS_AT: u64 = 16_384;
const RECORD: u64 = 80;

/// A copy that was interrupted while the host went on, `done` bytes of it captured or at least copied.
struct Interrupted {
    daemon: std::sync::Arc<Daemon>,
    place: Place,
    request: BackupRequest,
}

impl Interrupted {
    fn new(seed: u64, fault: Fault) -> Self {
        let (daemon, place) = (Daemon::start(content(seed, SIZE)), Place::new());
        *daemon.fault.lock().unwrap() = fault;
        let mut request = place.request(daemon.source());
        let error = backup_interrupted(&request, 12 * MIB as u64).unwrap_err();
        assert_eq!(error.exit(), Exit::Incomplete, "{error}");
        // From here on every byte of the base is another one, and released ranges are not saved any more.
        let runtime = tzero_io::Runtime::new(tzero_io::Backend::Auto).unwrap();
        for grain in 0..(SIZE as u64).div_ceil(common::daemon::GRAIN) {
            daemon.host_write(&runtime, grain, 0xEE);
        }
        *daemon.fault.lock().unwrap() = Fault { lose_at_capture: None, ..fault };
        request.resume = true;
        Self { daemon, place, request }
    }

    /// Resumes it; tells how many chunks were copied again.
    fn resume(&self) -> (Result<BackupOutcome, Error>, u64) {
        let mut recopied = 0;
        let observer = &mut |event: &Event| {
            if let Event::Notice(Notice::Recopied { chunks }) = event {
                recopied = *chunks;
            }
        };
        let outcome = tzero_copy::backup(&self.request, observer, &Cancel::new());
        (outcome, recopied)
    }

    /// It says that it is lost, which command begins a new copy, and leaves nothing.
    fn is_lost(&self) {
        let error = self.resume().0.unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        assert_eq!(error.exit(), Exit::Failed);
        assert_sentence(&error);
        let again = format!("`tzero backup vm --to {}` starts over", self.place.image().display());
        assert!(error.to_string().ends_with(&again), "{error}");
        assert_eq!(self.place.names(), [""; 0]);
        assert!(!self.daemon.stands(), "its snapshot is given up");
    }

    fn is_t0(&self) {
        assert!(fs::read(self.place.image()).unwrap() == *self.daemon.t0(), "the image is not T0's");
        assert!(verify(&self.place.copy()).is_good());
        assert_eq!(self.place.names(), COMPLETE);
    }
}

/// Connections that end at the first report: what was copied is in the journal and not released.
const UNREPORTED: Fault = Fault {
    durability: tzero_api::control::Durability::Process,
    lose_at_capture: Some(1),
    broken_at_check: false,
    stopping_at_capture: false,
    direct: false,
    keeps: false,
    lose_at_recorded: false,
    short_of_space: false,
    silent_of_released: false,
};

#[test]
fn a_journal_that_lost_a_released_chunk_is_not_filled_up_from_later_bytes() {
    for seed in 1..=2 {
        let copy = Interrupted::new(seed, Fault::default());
        let file = File::options().read(true).write(true).open(journal(&copy.place)).unwrap();
        if seed == 1 {
            // Cut off after the first record.
            file.set_len(RECORDS_AT + RECORD).unwrap();
        } else {
            // Torn in the second one.
            std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF; 8], RECORDS_AT + RECORD + 16).unwrap();
        }
        copy.is_lost();
    }
}

#[test]
fn an_image_that_lost_a_released_chunk_with_the_machine_is_not_filled_up_from_later_bytes() {
    let copy = Interrupted::new(3, Fault::default());
    reboot(&journal(&copy.place));
    damage(&partial(&copy.place), 5 * MIB);
    copy.is_lost();
}

#[test]
fn an_image_that_somebody_changed_in_a_released_chunk_is_not_filled_up_from_later_bytes() {
    let copy = Interrupted::new(10, Fault::default());
    damage(&partial(&copy.place), 5 * MIB);
    copy.is_lost();
}

#[test]
fn an_image_that_lost_a_released_chunk_in_a_flush_is_not_filled_up_from_later_bytes() {
    let copy = Interrupted::new(4, Fault::default());
    doubt(&journal(&copy.place));
    damage(&partial(&copy.place), 5 * MIB);
    copy.is_lost();
}

#[test]
fn what_is_lost_and_was_not_released_is_copied_again() {
    let kept = Fault { keeps: true, ..Fault::default() };
    for (seed, fault) in [(5, kept), (6, UNREPORTED)] {
        for by_flush in [false, true] {
            let copy = Interrupted::new(seed, fault);
            if by_flush {
                doubt(&journal(&copy.place));
            } else {
                reboot(&journal(&copy.place));
            }
            damage(&partial(&copy.place), 5 * MIB);
            let (outcome, recopied) = copy.resume();
            outcome.unwrap();
            assert_eq!(recopied, 1);
            copy.is_t0();
        }
    }
}

#[test]
fn a_doubt_that_proves_wrong_is_over() {
    let copy = Interrupted::new(7, Fault::default());
    doubt(&journal(&copy.place));
    let error = {
        let cancel = Cancel::new();
        let stop = cancel.clone();
        // It has compared what is there when it begins to copy, and stops soon after.
        let observer = &mut |event: &Event| {
            if let Event::Progress { phase: Phase::Copy, .. } = event {
                stop.cancel();
            }
        };
        tzero_copy::backup(&copy.request, observer, &cancel).unwrap_err()
    };
    assert!(matches!(&error, Error::Incomplete(why) if matches!(why.cause, StopCause::Cancelled)), "{error}");
    assert!(!is_doubted(&journal(&copy.place)));
    let (outcome, recopied) = copy.resume();
    outcome.unwrap();
    assert_eq!(recopied, 0);
    copy.is_t0();
}

#[test]
fn what_was_released_is_not_reported_again() {
    let copy = Interrupted::new(8, Fault::default());
    let before: u64 = copy.daemon.heard.lock().unwrap().captured.iter().map(|range| range.len()).sum();
    assert!(before >= 12 * MIB as u64);
    copy.resume().0.unwrap();
    let all: u64 = copy.daemon.heard.lock().unwrap().captured.iter().map(|range| range.len()).sum();
    assert_eq!(all, SIZE as u64, "every byte is reported once");
    copy.is_t0();
}

#[test]
fn a_daemon_that_does_not_say_what_it_released_is_no_help() {
    let copy = Interrupted::new(9, Fault { silent_of_released: true, ..Fault::default() });
    let error = copy.resume().0.unwrap_err();
    assert_eq!(error.exit(), Exit::Failed);
    assert_sentence(&error);
    assert_eq!(copy.place.names(), UNFINISHED, "it goes on with another daemon");
    *copy.daemon.fault.lock().unwrap() = Fault::default();
    copy.resume().0.unwrap();
    copy.is_t0();
}

#[test]
fn the_daemon_hears_where_the_copy_goes_and_when_it_can_be_resumed() {
    let (daemon, place) = (Daemon::start(content(10, SIZE)), Place::new());
    daemon.fault.lock().unwrap().lose_at_recorded = true;
    let mut request = place.request(daemon.source());
    let mut begun = false;
    let error =
        tzero_copy::backup(&request, &mut |event| begun |= matches!(event, Event::Begun { .. }), &Cancel::new());
    assert_eq!(error.unwrap_err().exit(), Exit::Incomplete);
    assert!(!begun, "who hears that it began may count on its snapshot");
    assert_eq!(place.names(), UNFINISHED);

    *daemon.fault.lock().unwrap() = Fault::default();
    request.resume = true;
    backup(&request).unwrap();
    request.resume = false;
    request.replace = true;
    backup(&request).unwrap();
    let heard = daemon.heard.lock().unwrap();
    assert_eq!((heard.begun, heard.resumed, heard.recorded), (2, 1, 1), "a resumed one is known");
    let destination = heard.destination.as_ref().unwrap();
    assert_eq!(destination.path, place.image().to_str().unwrap());
    assert_eq!(destination.unfinished, partial(&place).to_str().unwrap());
}
