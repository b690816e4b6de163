//! Copies of a volume while its host goes on writing.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::daemon::{Daemon, Fault};
use common::{
    COMPLETE, MIB, Place, UNFINISHED, allocated, assert_sentence, backup, backup_interrupted, content, restore, verify,
};
use tzero_api::Exit;
use tzero_block::ByteRange;
use tzero_copy::{Cancel, Error, Event, ModeUsed, Notice, Phase, Refusal, ResumeFault, StopCause};

const SIZE: usize = 45 * MIB + 512;

#[test]
fn a_copy_under_writes_is_the_t0_image() {
    let (daemon, place) = (Daemon::start(content(1, SIZE)), Place::new());
    let stop = Cancel::new();
    let host = daemon.host(3, stop.clone());
    let mut request = place.request(daemon.source());
    request.verify = true;
    let mut events = Vec::new();
    let outcome = tzero_copy::backup(&request, &mut |event| events.push(event.clone()), &Cancel::new()).unwrap();
    stop.cancel();
    assert!(host.join().unwrap() > 0);

    assert!(fs::read(place.image()).unwrap() == outcome_t0(&daemon), "the image is not T0's");
    assert_eq!(place.names(), COMPLETE);
    assert_eq!(fs::metadata(place.image()).unwrap().mode() & 0o777, 0o600);
    assert_eq!((outcome.exit(), outcome.verified), (Exit::AsAsked, true));
    let copy = outcome.copy;
    assert_eq!((copy.mode_used, copy.pause_us, copy.reason.as_deref()), (ModeUsed::TimeZero, 42, None));
    assert_eq!(copy.t0.to_string(), "2023-11-14T22:13:20.000000001Z");
    assert_eq!((copy.volumes[0].name.as_str(), copy.volumes[0].size), ("vm", SIZE as u64));
    assert!(copy.bytes_changed > 0 && copy.bytes_read > 0 && copy.bytes_written > 0);

    let heard = daemon.heard.lock().unwrap();
    assert_eq!((heard.begun, heard.finished, heard.abandoned), (1, 1, 0));
    assert_eq!(heard.captured.iter().map(|range| range.len()).sum::<u64>(), SIZE as u64);
    assert_eq!(place.catalogue().list().unwrap().copies[0].id, copy.id);

    assert!(matches!(&events[0], Event::Begun { volume, size, .. } if volume == "vm" && *size == SIZE as u64));
    for phase in [Phase::Copy, Phase::Flush, Phase::Verify] {
        let done: Vec<u64> = events
            .iter()
            .filter_map(|event| match event {
                Event::Progress { phase: this, done, .. } if *this == phase => Some(*done),
                _ => None,
            })
            .collect();
        assert!(done.is_sorted() && done.last() == Some(&(SIZE as u64)), "{phase}: {done:?}");
    }
}

fn outcome_t0(daemon: &Daemon) -> Vec<u8> {
    assert!(daemon.now() != *daemon.t0(), "the host went on");
    daemon.t0().to_vec()
}

#[test]
fn a_direct_base_is_read_past_the_page_cache() {
    let (daemon, place) = (Daemon::start(content(21, SIZE)), Place::new());
    daemon.fault.lock().unwrap().direct = true;
    let stop = Cancel::new();
    let host = daemon.host(4, stop.clone());
    backup(&place.request(daemon.source())).unwrap();
    stop.cancel();
    host.join().unwrap();
    assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "the image is not T0's");
}

#[test]
fn holes_stay_holes() {
    let mut t0 = vec![0; 40 * MIB];
    t0[17 * MIB..17 * MIB + 5000].fill(7);
    let (daemon, place) = (Daemon::start(t0), Place::new());
    let outcome = backup(&place.request(daemon.source())).unwrap();
    assert_eq!(fs::read(place.image()).unwrap(), *daemon.t0());
    assert!(allocated(&place.image()) <= 64 << 10, "{}", allocated(&place.image()));
    assert!(outcome.copy.bytes_read <= MIB as u64);
    assert!(outcome.copy.bytes_written <= 8192);
    assert!(fs::metadata(place.copy().manifest_path()).unwrap().len() < 3000, "zero chunks are short in the manifest");
}

#[test]
fn resumed_after_the_daemon_was_lost_it_is_still_t0_and_reads_nothing_twice() {
    let (daemon, place) = (Daemon::start(content(2, 3 * SIZE)), Place::new());
    daemon.fault.lock().unwrap().lose_at_capture = Some(3);
    let stop = Cancel::new();
    let host = daemon.host(5, stop.clone());
    let mut request = place.request(daemon.source());
    let error = backup(&request).unwrap_err();
    assert_eq!(error.exit(), Exit::Incomplete);
    assert_sentence(&error);
    let text = error.to_string();
    assert!(text.contains("--resume") && text.contains("tzero copy remove"), "{text}");
    let Error::Incomplete(incomplete) = error else { panic!("{text}") };
    assert!(matches!(incomplete.cause, StopCause::Daemon(_)));
    assert!(incomplete.done > 0 && incomplete.done < incomplete.total);
    assert_eq!(place.names(), UNFINISHED);

    *daemon.fault.lock().unwrap() = Fault::default();
    request.resume = true;
    let mut already = 0;
    let outcome = tzero_copy::backup(
        &request,
        &mut |event| {
            if let Event::Begun { resumed, already: bytes, .. } = event {
                assert!(*resumed);
                already = *bytes;
            }
        },
        &Cancel::new(),
    );
    stop.cancel();
    host.join().unwrap();
    let outcome = outcome.unwrap();
    // What was captured was not saved any more: reading any of it again would have shown the host's later bytes.
    assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "the image is not T0's");
    assert_eq!(already, incomplete.done);
    assert_eq!(place.names(), COMPLETE);
    assert!(verify(&place.copy()).is_good());
    assert_eq!(outcome.copy.t0.to_string(), "2023-11-14T22:13:20.000000001Z");
    let heard = daemon.heard.lock().unwrap();
    assert_eq!((heard.begun, heard.resumed, heard.finished), (1, 1, 1));
}

#[test]
fn interrupted_again_and_again_it_gets_there() {
    let (daemon, place) = (Daemon::start(content(3, 3 * SIZE)), Place::new());
    let stop = Cancel::new();
    let host = daemon.host(7, stop.clone());
    let mut request = place.request(daemon.source());
    let mut runs = 0;
    loop {
        // Every run gets a little further than the one before.
        let outcome = backup_interrupted(&request, 1 + runs * 8 * MIB as u64);
        runs += 1;
        request.resume = true;
        match outcome {
            Ok(_) => break,
            Err(error) => assert_eq!(error.exit(), Exit::Incomplete, "{error}"),
        }
        assert!(runs < 100, "no progress");
    }
    stop.cancel();
    host.join().unwrap();
    assert!(runs > 2);
    assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "the image is not T0's");
    assert!(verify(&place.copy()).is_good());
}

#[test]
fn a_stopping_daemon_leaves_the_copy_resumable() {
    let (daemon, place) = (Daemon::start(content(4, SIZE)), Place::new());
    daemon.fault.lock().unwrap().stopping_at_capture = true;
    assert_eq!(backup(&place.request(daemon.source())).unwrap_err().exit(), Exit::Incomplete);
    assert_eq!(place.names(), UNFINISHED);
    assert!(daemon.stands());
}

#[test]
fn a_broken_snapshot_is_never_a_copy_and_harms_none() {
    let (daemon, place) = (Daemon::start(content(5, SIZE)), Place::new());
    let mut request = place.request(daemon.source());
    backup(&request).unwrap();
    let (before, id) = (fs::read(place.image()).unwrap(), place.copy().id());
    request.replace = true;
    daemon.fault.lock().unwrap().broken_at_check = true;
    let error = backup(&request).unwrap_err();
    assert_eq!(error.exit(), Exit::Failed);
    assert!(error.to_string().contains("broken"), "{error}");
    assert_eq!(place.names(), COMPLETE);
    assert!(fs::read(place.image()).unwrap() == before && place.copy().id() == id);
    assert_eq!(daemon.heard.lock().unwrap().abandoned, 1);

    // Broken in the table that the mover itself reads, in the middle of the copy.
    *daemon.fault.lock().unwrap() = Fault::default();
    let breaking = tzero_copy::backup(
        &request,
        &mut |event| {
            if matches!(event, Event::Begun { .. }) {
                daemon.break_snapshot();
            }
        },
        &Cancel::new(),
    );
    let error = breaking.unwrap_err();
    assert_eq!(error.exit(), Exit::Failed);
    assert!(matches!(error, Error::Source { .. }), "{error}");
    assert_eq!(place.names(), COMPLETE);
    assert!(verify(&place.copy()).is_good());
}

#[test]
fn a_snapshot_that_is_gone_cannot_be_resumed_and_a_new_copy_can_begin() {
    let (daemon, place) = (Daemon::start(content(6, SIZE)), Place::new());
    let mut request = place.request(daemon.source());
    backup_interrupted(&request, 1).unwrap_err();
    daemon.delete_snapshot();
    request.resume = true;
    let error = backup(&request).unwrap_err();
    assert!(matches!(error, Error::Resume { fault: ResumeFault::SnapshotGone, .. }), "{error}");
    assert_eq!(error.exit(), Exit::Failed);
    request.resume = false;
    let mut notices = Vec::new();
    let observer = &mut |event: &Event| {
        if let Event::Notice(notice) = event {
            notices.push(notice.clone());
        }
    };
    tzero_copy::backup(&request, observer, &Cancel::new()).unwrap();
    assert!(matches!(&notices[..], [Notice::Discarded { .. }]), "{notices:?}");
    assert_eq!(fs::read(place.image()).unwrap(), *daemon.t0());
    assert_eq!(place.names(), COMPLETE);
}

#[test]
fn beginning_anew_gives_up_the_interrupted_copys_snapshot() {
    let (daemon, place) = (Daemon::start(content(7, SIZE)), Place::new());
    let request = place.request(daemon.source());
    backup_interrupted(&request, 1).unwrap_err();
    let first = daemon.heard.lock().unwrap().begun;
    // This daemon has one snapshot at a time: the second begin replaces it, so the first is unknown by then.
    backup(&request).unwrap();
    let heard = daemon.heard.lock().unwrap();
    assert_eq!((first, heard.begun, heard.resumed), (1, 2, 1));
    assert!(!daemon.stands());
}

#[test]
fn giving_up_removes_everything() {
    let (daemon, place) = (Daemon::start(content(8, SIZE)), Place::new());
    let request = place.request(daemon.source());
    let Err(Error::Incomplete(incomplete)) = backup_interrupted(&request, 1) else { panic!() };
    // The catalogue asks the daemon of its state directory.
    fs::create_dir_all(place.state()).unwrap();
    symlink(&daemon.socket, place.state().join("mover.sock")).unwrap();
    place.catalogue().remove_named(incomplete.unfinished.to_str().unwrap()).unwrap();
    assert!(place.names().is_empty());
    assert!(!daemon.stands());
    assert_eq!(daemon.heard.lock().unwrap().abandoned, 1);
    let again = place.catalogue().remove_named(incomplete.unfinished.to_str().unwrap());
    assert!(matches!(again, Err(Error::NothingUnfinished { .. })));
}

#[test]
fn resuming_something_else_is_refused() {
    let (daemon, place) = (Daemon::start(content(9, SIZE)), Place::new());
    let mut request = place.request(daemon.source());
    request.resume = true;
    let error = backup(&request).unwrap_err();
    assert!(matches!(error, Error::Resume { fault: ResumeFault::Nothing, .. }), "{error}");
    assert!(place.names().is_empty(), "a refusal leaves nothing");

    request.resume = false;
    backup_interrupted(&request, 1).unwrap_err();
    let plain = place.write("plain", b"other");
    let mut other = place.plain(&plain);
    other.resume = true;
    let error = backup(&other).unwrap_err();
    assert!(matches!(error, Error::Resume { fault: ResumeFault::OtherSource, .. }), "{error}");
    other.resume = false;
    let error = backup(&other).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::OtherUnfinished, .. }), "{error}");
    assert_eq!(place.names(), UNFINISHED, "it can still go on");

    // The unfinished image was exchanged for another file.
    let partial = place.path("copies/vol.img.tzero-partial");
    let bytes = fs::read(&partial).unwrap();
    fs::rename(&partial, place.path("kept")).unwrap();
    fs::write(&partial, bytes).unwrap();
    request.resume = true;
    let error = backup(&request).unwrap_err();
    assert!(matches!(error, Error::Resume { fault: ResumeFault::ImageGone, .. }), "{error}");
    fs::rename(place.path("kept"), &partial).unwrap();
    backup(&request).unwrap();
    assert_eq!(fs::read(place.image()).unwrap(), *daemon.t0());
}

#[test]
fn the_source_is_no_destination() {
    let (daemon, place) = (Daemon::start(content(11, 8 * MIB)), Place::new());
    let (hard, soft) = (daemon.directory.path().join("hard"), place.path("copies/soft"));
    fs::hard_link(&daemon.base, &hard).unwrap();
    symlink(&daemon.base, &soft).unwrap();
    for path in [&daemon.base, &hard, &soft] {
        let mut request = place.request(daemon.source());
        request.destination = path.clone();
        request.replace = true;
        let error = backup(&request).unwrap_err();
        assert!(matches!(error, Error::Refused { refusal: Refusal::IsSource, .. }), "{error}");
        assert_sentence(&error);
    }
    assert!(!daemon.stands(), "no snapshot is left behind");
    assert_eq!(daemon.now(), *daemon.t0());
}

#[test]
fn a_daemon_that_is_down_or_says_no_is_told_in_a_sentence() {
    let (daemon, place) = (Daemon::start(vec![1; MIB]), Place::new());
    let unknown = tzero_copy::BackupSource::Volume {
        mover_socket: daemon.socket.clone(),
        volume: "other".into(),
        snapshot: None,
    };
    let error = backup(&place.request(unknown)).unwrap_err();
    assert!(matches!(error, Error::Daemon { .. }) && error.exit() == Exit::Failed, "{error}");
    fs::remove_file(&daemon.socket).unwrap();
    let error = backup(&place.request(daemon.source())).unwrap_err();
    assert!(error.to_string().contains("tzero serve"), "{error}");
    assert_eq!(error.exit(), Exit::Failed);
    assert!(place.names().is_empty());
}

#[test]
fn restored_it_is_t0_again() {
    let (daemon, place) = (Daemon::start(content(12, SIZE)), Place::new());
    backup(&place.request(daemon.source())).unwrap();
    let target = place.path("restored");
    let restored = restore(&place, place.copy(), &target, false).unwrap();
    assert!(restored.verified && !restored.device);
    assert_eq!(restored.bytes_restored, SIZE as u64);
    assert_eq!(fs::read(&target).unwrap(), *daemon.t0());
    assert_eq!(ByteRange::new(0, SIZE as u64).len(), fs::metadata(&target).unwrap().len());
}
