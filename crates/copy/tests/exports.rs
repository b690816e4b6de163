//! Copies on exports of NBD servers.

mod common;

use std::fs;

use common::daemon::Daemon;
use common::export::Exported;
use common::{MIB, Place, assert_sentence, backup, content, restore, verify};
use tzero_api::Exit;
use tzero_copy::{BackupRequest, Copy, Error, Refusal, Removed, StopCause};

const SIZE: usize = 21 * MIB + 512;

fn to(exported: &Exported, request: BackupRequest) -> BackupRequest {
    BackupRequest { destination: exported.uri("vol").to_string().into(), ..request }
}

fn refusal(error: &Error) -> Refusal {
    assert_sentence(error);
    match error {
        Error::Refused { refusal, .. } => *refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn a_copy_on_an_export_is_one_like_any_other() {
    let (daemon, place) = (Daemon::start(content(1, SIZE)), Place::new());
    let exported = Exported::new(&place.path("s"), vec![0; SIZE + MIB]);
    let request = BackupRequest { verify: true, ..to(&exported, place.request(daemon.source())) };
    let outcome = backup(&request).unwrap();
    assert_eq!((outcome.exit(), outcome.verified), (Exit::AsAsked, true));
    assert!(exported.bytes()[..SIZE] == *daemon.t0() && !daemon.stands());
    // By its URI, its id, its manifest, and from the manifests alone.
    let copy = Copy::open(&request.destination, &place.state()).unwrap();
    assert!(verify(&copy).is_good() && copy.is_export());
    assert_eq!(place.catalogue().find(&copy.id().to_string()).unwrap().image(), request.destination);
    assert_eq!(Copy::open(copy.manifest_path(), &place.state()).unwrap().id(), copy.id());
    fs::remove_dir_all(place.state().join("catalogue")).unwrap();
    assert_eq!(place.catalogue().rebuild(&[]).unwrap().found, [copy.id()]);
    let target = place.path("restored");
    restore(&place, copy.clone(), &target, false).unwrap();
    assert!(fs::read(&target).unwrap() == *daemon.t0());
    // What stands there is not overwritten unasked.
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::CompleteCopy);
    backup(&BackupRequest { replace: true, ..request.clone() }).unwrap();
    let again = Copy::open(&request.destination, &place.state()).unwrap();
    assert_ne!(again.id(), copy.id());
    let removed = place.catalogue().remove_named(&again.id().to_string()).unwrap();
    assert_eq!(removed, Removed::Copy(again.id()));
    assert!(exported.bytes()[..SIZE] == *daemon.t0(), "an export keeps its bytes");
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::NotBlank);
}

#[test]
fn exports_that_are_refused() {
    let (place, bytes) = (Place::new(), content(2, SIZE));
    let source = place.write("source", &bytes);
    let small = Exported::new(&place.path("s"), vec![0; SIZE - 512]);
    let request = to(&small, place.plain(&source));
    assert!(matches!(refusal(&backup(&request).unwrap_err()), Refusal::TooSmall { .. }));
    let exported = Exported::new(&place.path("t"), vec![0; SIZE]);
    let read_only = BackupRequest { destination: exported.uri("vol@ro").to_string().into(), ..request.clone() };
    assert_eq!(refusal(&backup(&read_only).unwrap_err()), Refusal::ReadOnlyExport);
    for (name, exit) in [
        ("nbd+unix:///none?socket=/no/such", Exit::Failed),
        ("nbd+unix:///x", Exit::Usage),
        ("nbds://host/x", Exit::Usage),
    ] {
        let error = backup(&BackupRequest { destination: name.into(), ..request.clone() }).unwrap_err();
        assert_eq!(error.exit(), exit, "{error}");
        assert_sentence(&error);
    }
    assert!(exported.bytes().iter().all(|byte| *byte == 0));
    let journals = fs::read_dir(place.state().join("journals")).unwrap();
    assert_eq!(journals.count(), 0, "nothing is left of what was refused");
}

#[test]
fn a_link_that_stays_cut_leaves_a_copy_that_goes_on() {
    let (daemon, place) = (Daemon::start(content(3, SIZE)), Place::new());
    let mut exported = Exported::new(&place.path("s"), vec![0; SIZE]);
    let request = BackupRequest { replace: true, ..to(&exported, place.request(daemon.source())) };
    exported.hold(12 * MIB as u64, 1 << 20);
    let error = std::thread::scope(|scope| {
        let running = scope.spawn(|| backup(&request).unwrap_err());
        while !exported.has_changed_at(11 * MIB as u64) {
            std::thread::yield_now();
        }
        exported.kill();
        running.join().unwrap()
    });
    let Error::Incomplete(incomplete) = &error else { panic!("{error}") };
    assert!(matches!(incomplete.cause, StopCause::Link(_)) && incomplete.done > 0, "{error}");
    assert_sentence(&error);
    assert!(matches!(Copy::open(&request.destination, &place.state()), Err(Error::NoCopy { .. })));
    // A server that lost what it had acknowledged: the run that goes on finds out.
    let lost = exported.bytes()[..4096].iter().any(|byte| *byte != 0);
    exported.overwrite(0, &[0; 4096]);
    exported.start();
    let mut recopied = 0;
    let resumed = BackupRequest { resume: true, verify: true, ..request.clone() };
    let observer = &mut |event: &tzero_copy::Event| {
        if let tzero_copy::Event::Notice(tzero_copy::Notice::Recopied { chunks }) = event {
            recopied += chunks;
        }
    };
    let outcome = tzero_copy::backup(&resumed, observer, &tzero_copy::Cancel::new());
    match outcome {
        // What is lost and was released is gone for good.
        Err(error) => assert!(lost && matches!(error, Error::Lost { .. }), "{error}"),
        Ok(_) => assert!(exported.bytes() == *daemon.t0() && (!lost || recopied == 1)),
    }
    exported.let_go();
    backup(&request).unwrap();
    assert!(exported.bytes() == *daemon.t0());
}

#[test]
fn an_unfinished_copy_on_an_export_can_be_given_up() {
    let (daemon, place) = (Daemon::start(content(4, SIZE)), Place::new());
    let exported = Exported::new(&place.path("s"), vec![0; SIZE]);
    let request = to(&exported, place.request(daemon.source()));
    let error = common::backup_interrupted(&request, 5 << 20).unwrap_err();
    let Error::Incomplete(incomplete) = &error else { panic!("{error}") };
    let text = error.to_string();
    assert!(text.contains(&format!("--to '{}' --resume`", request.destination.display())), "{text}");
    let target = place.path("copies/plain.img");
    fs::write(place.path("source"), content(5, SIZE)).unwrap();
    backup(&BackupRequest { destination: target.clone(), ..place.plain(&place.path("source")) }).unwrap();
    // Nobody restores over it, or the unfinished copy would go on there.
    let onto = tzero_copy::RestoreRequest {
        target: tzero_copy::RestoreTarget::Export(exported.uri("vol")),
        ..common::restoring(&place, Copy::open(&target, &place.state()).unwrap(), &target, true)
    };
    let restored = tzero_copy::restore(&onto, &mut |_| {}, &tzero_copy::Cancel::new());
    assert!(matches!(restored, Err(Error::Unfinished { .. })));
    std::os::unix::fs::symlink(&daemon.socket, place.state().join("mover.sock")).unwrap();
    place.catalogue().remove_named(incomplete.unfinished.to_str().unwrap()).unwrap();
    assert!(!daemon.stands());
    tzero_copy::restore(&onto, &mut |_| {}, &tzero_copy::Cancel::new()).unwrap();
    assert!(exported.bytes() == content(5, SIZE));
}
