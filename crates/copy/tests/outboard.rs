//! Outboard and reconciled copies of a volume while its host goes on writing.

mod common;

use std::fs;

use common::daemon::{Daemon, Fault};
use common::{COMPLETE, MIB, Place, UNFINISHED, assert_sentence, backup, content, doubt, partial, reboot, verify};
use tzero_api::Exit;
use tzero_copy::{
    BackupOutcome, BackupRequest, Boundary, Cancel, Engine, Error, Event, Layout, ModeAsked, ModeUsed, Notice,
    Outboard, Phase, ResumeFault,
};

const SIZE: usize = 45 * MIB + 512;

fn outboard(place: &Place, daemon: &Daemon, boundary: Boundary) -> BackupRequest {
    let outboard = Outboard { layout: Layout::Overwrite, boundary };
    BackupRequest {
        mode: ModeAsked::Outboard,
        outboard: Some(outboard),
        verify: true,
        ..place.request(daemon.source())
    }
}

/// Stops once a phase is under way.
fn interrupted_in(request: &BackupRequest, phase: Phase, after: u64) -> Result<BackupOutcome, Error> {
    let cancel = Cancel::new();
    let stop = cancel.clone();
    let mut watch = |event: &Event| {
        if let Event::Progress { phase: this, done, .. } = event
            && *this == phase
            && *done >= after
        {
            stop.cancel();
        }
    };
    tzero_copy::backup(request, &mut watch, &cancel)
}

#[test]
fn whatever_the_boundary_the_copy_is_t0s() {
    for boundary in [Boundary::All, Boundary::Marker, Boundary::Terminate] {
        let (daemon, place) = (Daemon::start(content(7, SIZE)), Place::new());
        let stop = Cancel::new();
        let host = daemon.host(3, stop.clone());
        let outcome = backup(&outboard(&place, &daemon, boundary)).unwrap();
        stop.cancel();
        host.join().unwrap();
        assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "{boundary:?}: the image is not T0's");
        assert!(daemon.now() != *daemon.t0(), "the host went on");
        assert_eq!(place.names(), COMPLETE);
        let copy = outcome.copy;
        assert_eq!((copy.mode_asked, copy.mode_used), (ModeAsked::Outboard, ModeUsed::Outboard));
        let record = copy.outboard.unwrap();
        assert_eq!((record.layout, record.boundary), (Layout::Overwrite, boundary));
        assert!(copy.boundary.unwrap() > 0 && copy.bytes_changed > 0);
        assert!(verify(&place.copy()).is_good());
        let heard = daemon.heard.lock().unwrap();
        assert_eq!((heard.captures, heard.finished), (0, 1), "nothing is released: {boundary:?}");
        let asked = (heard.markers, heard.terminated);
        assert_eq!(
            asked,
            (u64::from(boundary == Boundary::Marker) as usize, usize::from(boundary == Boundary::Terminate))
        );
    }
}

/// Without this, the other tests would prove nothing.
#[test]
fn the_base_alone_is_of_no_moment() {
    let (daemon, place) = (Daemon::start(content(8, SIZE)), Place::new());
    let stop = Cancel::new();
    let host = daemon.host(5, stop.clone());
    let error = interrupted_in(&outboard(&place, &daemon, Boundary::Marker), Phase::Originals, 1).unwrap_err();
    assert_eq!(error.exit(), Exit::Incomplete);
    stop.cancel();
    host.join().unwrap();
    let base = fs::read(partial(&place)).unwrap();
    assert!(base != *daemon.t0(), "it is T0's by itself");
    assert!(base != daemon.now(), "it is the base's of now");
}

#[test]
fn interrupted_anywhere_it_goes_on_to_the_same_t0() {
    for boundary in [Boundary::All, Boundary::Marker, Boundary::Terminate] {
        for (phase, after) in [(Phase::Copy, 9 << 20), (Phase::Originals, 1), (Phase::Originals, 17 << 20)] {
            let (daemon, place) = (Daemon::start(content(9, SIZE)), Place::new());
            let stop = Cancel::new();
            let host = daemon.host(6, stop.clone());
            let request = outboard(&place, &daemon, boundary);
            let error = interrupted_in(&request, phase, after).unwrap_err();
            assert_eq!(error.exit(), Exit::Incomplete, "{error}");
            assert_sentence(&error);
            assert_eq!(place.names(), UNFINISHED);
            // Another boundary is not taken for this one; none is.
            let others =
                [Boundary::All, Boundary::Marker, Boundary::Terminate].into_iter().filter(|it| *it != boundary);
            for other in others {
                let refused = BackupRequest { resume: true, ..outboard(&place, &daemon, other) };
                let refused = backup(&refused).unwrap_err().to_string();
                assert!(refused.contains("another boundary"), "{refused}");
            }
            let outcome = backup(&BackupRequest { resume: true, outboard: None, ..request }).unwrap();
            stop.cancel();
            host.join().unwrap();
            assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "{boundary:?}, {phase} from {after}");
            assert_eq!((outcome.copy.mode_used, outcome.verified), (ModeUsed::Outboard, true));
        }
    }
}

#[test]
fn a_chunk_that_was_lost_is_copied_again_while_copy_on_write_goes_on() {
    for (boundary, phase) in [(Boundary::All, Phase::Originals), (Boundary::Marker, Phase::Originals)] {
        let (daemon, place) = (Daemon::start(content(10, SIZE)), Place::new());
        let stop = Cancel::new();
        let host = daemon.host(7, stop.clone());
        let request = outboard(&place, &daemon, boundary);
        interrupted_in(&request, phase, 13 << 20).unwrap_err();
        // One with originals over it, and one without yet.
        common::damage(&partial(&place), MIB);
        common::damage(&partial(&place), 41 * MIB);
        backup(&BackupRequest { resume: true, ..request }).unwrap();
        stop.cancel();
        host.join().unwrap();
        assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "{boundary:?}");
    }
}

/// As a server does that crashes and comes back between the two copies, with less than it has acknowledged.
#[test]
fn what_is_lost_between_base_and_originals_is_never_laid_over() {
    for boundary in [Boundary::All, Boundary::Marker, Boundary::Terminate] {
        let (daemon, place) = (Daemon::start(content(17, SIZE)), Place::new());
        let stop = Cancel::new();
        let host = daemon.host(10, stop.clone());
        let mut damaged = false;
        let mut watch = |event: &Event| {
            if matches!(event, Event::Progress { phase: Phase::Originals, .. }) && !damaged {
                damaged = true;
                for chunk in (8..44).step_by(4) {
                    common::damage(&partial(&place), chunk * MIB + 4096);
                }
            }
        };
        let result = tzero_copy::backup(&outboard(&place, &daemon, boundary), &mut watch, &Cancel::new());
        stop.cancel();
        host.join().unwrap();
        match result {
            Ok(_) => assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "{boundary:?}"),
            Err(error) => {
                assert!(matches!(error, Error::Lost { .. }), "{error}");
                assert_eq!(boundary, Boundary::Terminate, "the base can be had again");
            }
        }
        assert!(damaged, "{boundary:?}");
    }
}

#[test]
fn after_the_end_of_copy_on_write_nothing_is_read_from_the_base() {
    let (daemon, place) = (Daemon::start(content(11, SIZE)), Place::new());
    let stop = Cancel::new();
    let host = daemon.host(8, stop.clone());
    let request = outboard(&place, &daemon, Boundary::Terminate);
    interrupted_in(&request, Phase::Originals, 13 << 20).unwrap_err();
    common::damage(&partial(&place), 41 * MIB);
    let error = backup(&BackupRequest { resume: true, ..request }).unwrap_err();
    stop.cancel();
    host.join().unwrap();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Failed);
    assert_sentence(&error);
    assert!(place.names().is_empty(), "{:?}", place.names());
    assert_eq!(daemon.heard.lock().unwrap().abandoned, 1);
}

#[test]
fn what_was_laid_is_laid_again_on_another_boot_and_in_doubt() {
    for spoil in [reboot, doubt] {
        let (daemon, place) = (Daemon::start(content(12, SIZE)), Place::new());
        let stop = Cancel::new();
        let host = daemon.host(9, stop.clone());
        let request = outboard(&place, &daemon, Boundary::Terminate);
        interrupted_in(&request, Phase::Originals, 21 << 20).unwrap_err();
        spoil(&common::journal(&place));
        backup(&BackupRequest { resume: true, ..request }).unwrap();
        stop.cancel();
        host.join().unwrap();
        assert!(fs::read(place.image()).unwrap() == *daemon.t0());
    }
}

#[test]
fn a_cache_short_of_space_ends_copy_on_write_once_the_base_is_copied() {
    let (daemon, place) = (Daemon::start(content(13, 3 * SIZE)), Place::new());
    daemon.fault.lock().unwrap().short_of_space = true;
    let stop = Cancel::new();
    let host = daemon.host(10, stop.clone());
    let mut early = false;
    let mut watch = |event: &Event| early |= matches!(event, Event::Notice(Notice::EndedEarly));
    let request = outboard(&place, &daemon, Boundary::All);
    let outcome = tzero_copy::backup(&request, &mut watch, &Cancel::new()).unwrap();
    stop.cancel();
    host.join().unwrap();
    assert!(early, "nobody ended it");
    assert_eq!(daemon.heard.lock().unwrap().terminated, 1);
    assert_eq!(outcome.exit(), Exit::AsAsked);
    assert!(fs::read(place.image()).unwrap() == *daemon.t0());
}

#[test]
fn what_moved_the_base_is_on_record() {
    let (daemon, place) = (Daemon::start(content(14, SIZE)), Place::new());
    let outcome = backup(&outboard(&place, &daemon, Boundary::All)).unwrap();
    assert!(fs::read(place.image()).unwrap() == *daemon.t0());
    // Both are in the temporary directory's file system, whichever that is.
    let engine = outcome.copy.outboard.unwrap().engine;
    assert!(matches!(engine, Engine::CopyFileRange | Engine::Reflink), "{engine:?}");
    assert!(common::allocated(&place.image()) < SIZE as u64, "holes stay holes");

    // A run that goes on finds things in the image, so it does not leave holes to the kernel.
    let again = Place::new();
    let request = outboard(&again, &daemon, Boundary::All);
    interrupted_in(&request, Phase::Copy, 1).unwrap_err();
    let outcome = backup(&BackupRequest { resume: true, ..request }).unwrap();
    assert!(fs::read(again.image()).unwrap() == *daemon.t0());
    assert_eq!(outcome.copy.outboard.unwrap().engine, Engine::Read);
}

#[test]
fn a_snapshot_that_releases_cannot_be_copied_outboard() {
    let (daemon, place) = (Daemon::start(content(15, 5 * MIB)), Place::new());
    let source = tzero_copy::BackupSource::Volume {
        mover_socket: daemon.socket.clone(),
        volume: "vm".into(),
        snapshot: Some("monday".into()),
    };
    let request = BackupRequest { source, ..outboard(&place, &daemon, Boundary::All) };
    let error = backup(&request).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    assert!(error.to_string().contains("keeps"), "{error}");
    assert!(place.names().is_empty());
}

#[test]
fn a_reconciled_copy_reports_what_was_delivered_and_releases_nothing() {
    let (daemon, place) = (Daemon::start(content(16, SIZE)), Place::new());
    let stop = Cancel::new();
    let host = daemon.host(11, stop.clone());
    let request = BackupRequest { mode: ModeAsked::Reconciled, verify: true, ..place.request(daemon.source()) };
    let outcome = backup(&request).unwrap();
    stop.cancel();
    host.join().unwrap();
    assert!(fs::read(place.image()).unwrap() == *daemon.t0());
    assert_eq!(outcome.copy.mode_used, ModeUsed::Reconciled);
    let heard = daemon.heard.lock().unwrap();
    assert_eq!(heard.captures, 0);
    assert_eq!(heard.delivered.iter().map(|range| range.len()).sum::<u64>(), SIZE as u64);
}

#[test]
fn going_on_in_another_mode_is_refused() {
    let (daemon, place) = (Daemon::start(content(17, SIZE)), Place::new());
    let request = outboard(&place, &daemon, Boundary::All);
    interrupted_in(&request, Phase::Copy, 1).unwrap_err();
    let other = BackupRequest { resume: true, mode: ModeAsked::TimeZero, ..request.clone() };
    let error = backup(&other).unwrap_err();
    assert!(matches!(error, Error::Resume { fault: ResumeFault::OtherMode, .. }), "{error}");
    assert_sentence(&error);
    assert_eq!(place.names(), UNFINISHED, "nothing is lost by it");
    let outcome = backup(&BackupRequest { resume: true, mode: ModeAsked::Auto, ..request }).unwrap();
    assert_eq!(outcome.copy.mode_used, ModeUsed::Outboard);
    *daemon.fault.lock().unwrap() = Fault::default();
}

#[test]
fn a_mode_of_something_that_is_no_volume_is_not_what_was_asked_for() {
    let place = Place::new();
    let source = place.write("plain", &content(18, 5 * MIB));
    let request = BackupRequest { mode: ModeAsked::Outboard, ..place.plain(&source) };
    let outcome = backup(&request).unwrap();
    assert_eq!((outcome.exit(), outcome.copy.mode_used), (Exit::NotAsAsked, ModeUsed::Plain));
    assert!(outcome.copy.reason.is_some());
}
