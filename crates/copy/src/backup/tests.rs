//! Failures of the destination, at every step.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::durable::{Step, steps};
use crate::error::StopCause;
use crate::{Copy, Event, Notice, verify};

const MIB: usize = 1 << 20;

struct Place {
    root: tempfile::TempDir,
    request: BackupRequest,
}

impl Place {
    /// A source of so many bytes, none of them zero.
    fn new(size: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("source");
        fs::write(&source, vec![0x5A; size]).unwrap();
        let request = BackupRequest {
            source: BackupSource::Path(source),
            destination: root.path().join("vol.img"),
            state: root.path().join("state"),
            mode: ModeAsked::Auto,
            outboard: None,
            scope: Vec::new(),
            on_full: None,
            hurries: true,
            restraint: Restraint::default(),
            replace: false,
            resume: false,
            verify: false,
        };
        Self { root, request }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(&self, request: &BackupRequest) -> (Result<BackupOutcome, Error>, u64) {
        let mut recopied = 0;
        let observer = &mut |event: &Event| {
            if let Event::Notice(Notice::Recopied { chunks }) = event {
                recopied = *chunks;
            }
        };
        (backup(request, observer, &Cancel::new()), recopied)
    }

    /// The copy that stands is good; its bytes are told.
    fn good(&self) -> Vec<u8> {
        let copy = Copy::open(&self.request.destination, &self.request.state).unwrap();
        assert!(verify(&copy, &mut |_| {}, &Cancel::new()).unwrap().is_good());
        fs::read(&self.request.destination).unwrap()
    }
}

#[test]
fn after_a_flush_without_room_nothing_that_had_landed_is_taken_on_trust() {
    // Behind the writing, and at the end.
    for count in 0..2 {
        let place = Place::new(150 * MIB);
        steps::fail_after(Step::Flush, count, io::ErrorKind::StorageFull);
        let (outcome, _) = place.run(&place.request);
        assert!(steps::failed());
        let error = outcome.unwrap_err();
        assert!(matches!(&error, Error::Incomplete(why) if matches!(why.cause, StopCause::Full)), "{error}");
        // A page that the kernel could not write is not there any more, and nobody is told a second time.
        let partial = fs::File::options().write(true).open(place.path("vol.img.tzero-partial")).unwrap();
        partial.write_all_at(&[0; 4096], 5 * MIB as u64).unwrap();
        let (outcome, recopied) = place.run(&BackupRequest { resume: true, ..place.request.clone() });
        outcome.unwrap();
        assert_eq!(recopied, 1);
        assert!(place.good() == fs::read(place.path("source")).unwrap(), "a page is lost");
    }
}

#[test]
fn a_flush_that_fails_for_good_ends_the_copy() {
    for count in 0..2 {
        let place = Place::new(150 * MIB);
        steps::fail_after(Step::Flush, count, io::ErrorKind::Other);
        let (outcome, _) = place.run(&place.request);
        assert!(steps::failed());
        assert_eq!(outcome.unwrap_err().exit(), Exit::Failed);
        assert!(!place.path("vol.img.tzero-partial").exists() && !place.path("vol.img.tzero-journal").exists());
    }
}

#[test]
fn a_flush_that_failed_on_the_way_to_a_stop_is_not_forgotten() {
    let place = Place::new(150 * MIB);
    steps::fail_after(Step::Flush, 0, io::ErrorKind::StorageFull);
    let (cancel, mut done) = (Cancel::new(), 0);
    let stop = cancel.clone();
    let observer = &mut |event: &Event| {
        if let Event::Progress { done: now, .. } = event {
            done = *now;
            // The first flush is on its way, and nobody asks for its end before the run's own.
            if done >= 68 * MIB as u64 {
                stop.cancel();
            }
        }
    };
    let error = backup(&place.request, observer, &cancel).unwrap_err();
    assert!(steps::failed() && done < 140 * MIB as u64);
    assert!(matches!(&error, Error::Incomplete(why) if matches!(why.cause, StopCause::Full)), "{error}");
    let head = fs::read(place.path("vol.img.tzero-journal")).unwrap();
    assert_ne!(head[16_376..16_384], [0; 8]);
}

#[test]
fn whichever_name_cannot_be_given_there_is_a_good_copy_or_a_way_on() {
    for replace in [false, true] {
        let mut resumed = 0;
        for count in 0.. {
            let place = Place::new(5 * MIB + 512);
            if replace {
                place.run(&place.request).0.unwrap();
                fs::write(place.path("source"), vec![0xA5; 5 * MIB + 512]).unwrap();
            }
            let old = replace.then(|| fs::read(&place.request.destination).unwrap());
            let request = BackupRequest { replace, ..place.request.clone() };
            steps::fail_after(Step::Name, count, io::ErrorKind::Other);
            let (outcome, _) = place.run(&request);
            if !steps::failed() {
                outcome.unwrap();
                break;
            }
            let new = fs::read(place.path("source")).unwrap();
            match outcome {
                // What comes after the declaration makes no copy worse.
                Ok(_) => assert!(place.good() == new, "step {count}"),
                Err(error) if error.exit() == Exit::Failed => match &old {
                    Some(old) => assert!(place.good() == *old, "step {count}: {error}"),
                    None => assert!(!request.destination.exists(), "step {count}: {error}"),
                },
                Err(error) => {
                    assert_eq!(error.exit(), Exit::Incomplete, "step {count}: {error}");
                    assert!(error.to_string().contains("--resume"), "step {count}: {error}");
                    place.run(&BackupRequest { resume: true, ..request }).0.unwrap();
                    assert!(place.good() == new, "step {count}");
                    resumed += 1;
                }
            }
            // Nothing is in the way of the next one.
            place.run(&BackupRequest { replace: true, ..place.request.clone() }).0.unwrap();
            assert!(place.good() == new, "step {count}");
        }
        assert!(resumed >= 2, "{resumed}");
    }
}
