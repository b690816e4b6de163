//! Copies of plain files: destination rules, catalogue, verify, restore. No daemon.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use common::{
    COMPLETE, MIB, Place, UNFINISHED, allocated, assert_sentence, backup, backup_interrupted, content, restore,
    restoring, verify,
};
use tzero_api::Exit;
use tzero_copy::{
    Cancel, Copy, DamageKind, Error, ManifestFault, ModeUsed, Refusal, Removed, ResumeFault, Shortfall, StopCause,
    Verification,
};

const SIZE: usize = 13 * MIB + 777;

fn refusal(error: &Error) -> Refusal {
    assert_sentence(error);
    match error {
        Error::Refused { refusal, .. } => *refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn nothing_protected_it_unless_nobody_can_write() {
    let place = Place::new();
    let bytes = content(1, SIZE);
    let source = place.write("source", &bytes);
    let mut request = place.plain(&source);
    request.verify = true;
    let outcome = backup(&request).unwrap();
    assert_eq!((outcome.exit(), outcome.shortfall), (Exit::NotAsAsked, Some(Shortfall::Unprotected)));
    assert_eq!(outcome.copy.mode_used, ModeUsed::Plain);
    assert!(outcome.copy.reason.is_some());
    assert!(fs::read(place.image()).unwrap() == bytes);
    assert_eq!(place.names(), COMPLETE);

    fs::set_permissions(&source, fs::Permissions::from_mode(0o444)).unwrap();
    request.replace = true;
    let outcome = backup(&request).unwrap();
    assert_eq!((outcome.exit(), outcome.copy.reason), (Exit::AsAsked, None));
}

#[test]
fn a_change_while_it_is_read_is_told() {
    let place = Place::new();
    let source = place.write("source", &content(2, SIZE));
    let mut once = true;
    let outcome = tzero_copy::backup(
        &place.plain(&source),
        &mut |_| {
            if std::mem::take(&mut once) {
                let file = File::options().write(true).open(&source).unwrap();
                file.set_times(fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH)).unwrap();
            }
        },
        &tzero_copy::Cancel::new(),
    );
    assert_eq!(outcome.unwrap().shortfall, Some(Shortfall::Changed));
}

#[test]
fn what_stands_there_is_replaced_only_when_asked() {
    let place = Place::new();
    let source = place.write("source", &content(3, SIZE));
    let mut request = place.plain(&source);
    fs::write(place.image(), b"precious").unwrap();
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::NoCopyOfIt);
    assert_eq!(fs::read(place.image()).unwrap(), b"precious");
    assert_eq!(place.names(), ["vol.img"]);
    request.replace = true;
    backup(&request).unwrap();
    let first = place.copy().id();
    request.replace = false;
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::CompleteCopy);
    assert_eq!(place.copy().id(), first);
    request.replace = true;
    fs::write(&source, content(4, SIZE / 2)).unwrap();
    backup(&request).unwrap();
    assert!(fs::read(place.image()).unwrap() == content(4, SIZE / 2));
    assert_ne!(place.copy().id(), first);
    let listed = place.catalogue().list().unwrap().copies;
    assert_eq!(listed.iter().map(|entry| entry.id).collect::<Vec<_>>(), [place.copy().id()]);

    // A served volume's base is locked and never replaced.
    let locked = File::open(place.image()).unwrap();
    locked.lock().unwrap();
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::Locked);
    drop(locked);

    // An interrupted replacement leaves the good copy good.
    fs::write(&source, content(5, SIZE)).unwrap();
    let error = backup_interrupted(&request, 1).unwrap_err();
    assert!(matches!(&error, Error::Incomplete(incomplete) if matches!(incomplete.cause, StopCause::Cancelled)));
    assert_eq!(place.names(), [&COMPLETE[..], &UNFINISHED[..]].concat());
    assert!(verify(&place.copy()).is_good());
    request.replace = false;
    request.resume = true;
    backup(&request).unwrap();
    assert!(fs::read(place.image()).unwrap() == content(5, SIZE), "what was asked for at first still holds");
    assert_eq!(place.names(), COMPLETE);
}

#[test]
fn something_that_appears_meanwhile_is_not_overwritten() {
    let place = Place::new();
    let source = place.write("source", &content(6, SIZE));
    let image = place.image();
    let error = tzero_copy::backup(
        &place.plain(&source),
        &mut |_| fs::write(&image, b"precious").unwrap(),
        &tzero_copy::Cancel::new(),
    );
    assert_eq!(refusal(&error.unwrap_err()), Refusal::NoCopyOfIt);
    assert_eq!(fs::read(&image).unwrap(), b"precious");
    assert_eq!(place.names(), ["vol.img"]);
}

#[test]
fn destinations_that_are_none() {
    let place = Place::new();
    let source = place.write("source", &content(7, MIB));
    let with = |path: std::path::PathBuf| {
        let mut request = place.plain(&source);
        request.destination = path;
        request.replace = true;
        backup(&request).unwrap_err()
    };
    assert_eq!(refusal(&with(place.path("copies"))), Refusal::NotAFile);
    assert_eq!(refusal(&with("/dev/null".into())), Refusal::NotAFile);
    assert_eq!(refusal(&with(source.clone())), Refusal::IsSource);
    symlink(place.path("nowhere"), place.path("copies/dangling")).unwrap();
    assert_eq!(refusal(&with(place.path("copies/dangling"))), Refusal::NotAFile);
    let error = with(place.path("no/such/directory/vol.img"));
    assert!(matches!(error, Error::File { .. }), "{error}");
    let missing = backup(&place.plain(&place.path("missing"))).unwrap_err();
    assert_sentence(&missing);
    assert!(matches!(missing, Error::File { .. }));
    assert_eq!(fs::read(&source).unwrap(), content(7, MIB));
}

#[test]
fn two_runs_do_not_write_one_destination() {
    let place = Place::new();
    let source = place.write("source", &content(8, SIZE));
    let request = place.plain(&source);
    let mut second = None;
    tzero_copy::backup(
        &request,
        &mut |_| {
            second.get_or_insert_with(|| backup(&request).unwrap_err());
        },
        &tzero_copy::Cancel::new(),
    )
    .unwrap();
    assert_eq!(refusal(&second.unwrap()), Refusal::Busy);
    assert_eq!(place.names(), COMPLETE);
}

#[test]
fn resuming_a_source_that_changed_is_refused() {
    let place = Place::new();
    let source = place.write("source", &content(9, SIZE));
    let mut request = place.plain(&source);
    backup_interrupted(&request, 1).unwrap_err();
    fs::write(&source, content(10, SIZE)).unwrap();
    request.resume = true;
    let error = backup(&request).unwrap_err();
    assert!(matches!(error, Error::Resume { fault: ResumeFault::SourceChanged, .. }), "{error}");
    request.resume = false;
    backup(&request).unwrap();
    assert!(fs::read(place.image()).unwrap() == content(10, SIZE));
}

#[test]
fn copies_of_nothing_and_of_little() {
    let place = Place::new();
    for (index, bytes) in [&b""[..], b"x", &[0; 5000]].into_iter().enumerate() {
        let source = place.write("source", bytes);
        let mut request = place.plain(&source);
        request.destination = place.path(&format!("copies/{index}"));
        request.verify = true;
        let copy = backup(&request).unwrap().copy;
        assert_eq!(fs::read(&copy.image).unwrap(), bytes);
        let copy = Copy::open(&copy.image, &place.state()).unwrap();
        assert!(verify(&copy).is_good());
        restore(&place, copy, &place.path("restored"), true).unwrap();
        assert_eq!(fs::read(place.path("restored")).unwrap(), bytes);
    }
}

#[test]
fn damage_is_found_told_and_never_restored() {
    let place = Place::new();
    let bytes = content(11, SIZE);
    let source = place.write("source", &bytes);
    backup(&place.plain(&source)).unwrap();
    let image = File::options().write(true).open(place.image()).unwrap();
    let old = bytes[9 * MIB + 5];
    image.write_all_at(&[!old], 9 * MIB as u64 + 5).unwrap();
    let found: Verification = verify(&place.copy());
    assert_eq!((found.is_good(), found.exit(), found.damaged_chunks), (false, Exit::Failed, 1));
    assert_eq!((found.damage[0].offset, found.damage[0].kind), (8 * MIB as u64, DamageKind::Altered));
    assert!(found.to_string().contains(&format!("{}+{}", 8 * MIB, 4 * MIB)), "{found}");
    let target = place.write("target", b"old");
    let error = restore(&place, place.copy(), &target, true).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert_sentence(&error);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert!(!place.path("target.tzero-restore").exists());

    image.write_all_at(&[old], 9 * MIB as u64 + 5).unwrap();
    assert!(verify(&place.copy()).is_good());
    image.set_len(9 * MIB as u64).unwrap();
    let found = verify(&place.copy());
    assert_eq!((found.size_found, found.damaged_chunks), (9 * MIB as u64, 2));
    assert_eq!(found.damage.last().unwrap().kind, DamageKind::Missing);
    assert!(matches!(restore(&place, place.copy(), &target, true), Err(Error::WrongSize { .. })));
    image.set_len(SIZE as u64 + 1).unwrap();
    assert!(!verify(&place.copy()).is_good());
    fs::remove_file(place.image()).unwrap();
    let missing = tzero_copy::verify(&place.copy(), &mut |_| {}, &tzero_copy::Cancel::new()).unwrap_err();
    assert_eq!(missing.exit(), Exit::Failed);
}

#[test]
fn a_bad_manifest_is_refused_everywhere() {
    let place = Place::new();
    let source = place.write("source", &content(12, MIB));
    let mut request = place.plain(&source);
    backup(&request).unwrap();
    let manifest = place.path("copies/vol.img.tzero");
    let mut bytes = fs::read(&manifest).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    fs::write(&manifest, &bytes).unwrap();
    let error = Copy::open(&place.image(), &place.state()).unwrap_err();
    assert!(matches!(error, Error::Manifest { fault: ManifestFault::Seal, .. }));
    assert!(error.to_string().contains("tampered or truncated"), "{error}");
    assert_eq!(error.exit(), Exit::Failed);
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::NoCopyOfIt);
    request.replace = true;
    backup(&request).unwrap();
    assert!(verify(&place.copy()).is_good());
}

#[test]
fn restore_replaces_only_by_force_and_keeps_what_a_file_had() {
    let place = Place::new();
    let mut bytes = vec![0; 8 * MIB];
    bytes[5 * MIB] = 9;
    let source = place.write("source", &bytes);
    backup(&place.plain(&source)).unwrap();
    let target = place.write("target", b"old");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(refusal(&restore(&place, place.copy(), &target, false).unwrap_err()), Refusal::Exists);
    let link = place.path("link");
    symlink(&target, &link).unwrap();
    restore(&place, place.copy(), &link, true).unwrap();
    assert_eq!(fs::read(&target).unwrap(), bytes);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o640);
    assert!(allocated(&target) <= 64 << 10);

    let locked = File::open(&target).unwrap();
    locked.lock().unwrap();
    assert_eq!(refusal(&restore(&place, place.copy(), &target, true).unwrap_err()), Refusal::Locked);
    drop(locked);
    assert_eq!(refusal(&restore(&place, place.copy(), &place.image(), true).unwrap_err()), Refusal::HoldsCopy);
    assert_eq!(refusal(&restore(&place, place.copy(), &place.path("copies"), true).unwrap_err()), Refusal::NotAFile);
    let fresh = place.path("fresh");
    restore(&place, place.copy(), &fresh, false).unwrap();
    assert_eq!(fs::metadata(&fresh).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn an_interrupted_restore_changes_nothing() {
    let place = Place::new();
    let source = place.write("source", &content(13, SIZE));
    backup(&place.plain(&source)).unwrap();
    let target = place.write("target", b"old");
    let cancel = tzero_copy::Cancel::new();
    cancel.cancel();
    let request = restoring(&place, place.copy(), &target, true);
    let error = tzero_copy::restore(&request, &mut |_| {}, &cancel).unwrap_err();
    assert_eq!(error.exit(), Exit::Incomplete);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert!(!place.path("target.tzero-restore").exists());
    // What a run that died may leave beside: nothing yet, a part with the mark at its end, or all of it.
    let beside = place.path("target.tzero-restore");
    let mut marked = vec![3; 2 * SIZE];
    marked.extend_from_slice(b"TZERO: an image to be restored\r\n");
    for left in [Vec::new(), marked, content(13, SIZE)] {
        fs::write(&beside, left).unwrap();
        restore(&place, place.copy(), &target, true).unwrap();
        assert!(fs::read(&target).unwrap() == content(13, SIZE));
        assert!(!beside.exists());
    }
}

#[test]
fn copies_are_found_listed_rebuilt_and_removed() {
    let place = Place::new();
    let source = place.write("source", &content(14, MIB));
    let mut ids = Vec::new();
    for index in 0..20 {
        let mut request = place.plain(&source);
        request.destination = place.path(&format!("copies/{index}.img"));
        ids.push(backup(&request).unwrap().copy.id);
    }
    let catalogue = place.catalogue();
    let list = catalogue.list().unwrap();
    assert_eq!(list.copies.iter().map(|entry| entry.id).collect::<Vec<_>>(), ids, "by T0");
    assert!(list.unreadable.is_empty() && list.copies.iter().all(|entry| entry.present));
    assert_eq!(catalogue.find(&ids[3].to_string()).unwrap().id(), ids[3]);
    let image = place.path("copies/3.img");
    for path in [image.clone(), place.path("copies/3.img.tzero")] {
        assert_eq!(catalogue.find(path.to_str().unwrap()).unwrap().id(), ids[3]);
    }
    // Of 20 ids two begin with the same digit.
    let ambiguous = ids
        .iter()
        .map(|id| id.to_string()[..1].to_owned())
        .find(|digit| ids.iter().filter(|id| id.to_string().starts_with(digit.as_str())).count() > 1);
    let ambiguous = ambiguous.unwrap();
    assert!(matches!(catalogue.remove_named(&ambiguous), Err(Error::AmbiguousCopy { .. })));
    for name in ["", "feedfacefeedface", "no-such-copy"] {
        assert!(matches!(catalogue.find(name), Err(Error::UnknownCopy { .. })), "{name}");
    }
    assert!(matches!(catalogue.find(source.to_str().unwrap()), Err(Error::NoCopy { .. })));

    fs::remove_dir_all(place.state()).unwrap();
    assert_eq!(catalogue.find(image.to_str().unwrap()).unwrap().id(), ids[3], "a path needs no catalogue");
    assert!(catalogue.list().unwrap().copies.is_empty());
    fs::write(place.path("copies/broken.tzero"), b"{}").unwrap();
    let rebuilt = catalogue.rebuild(&[place.path("copies")]).unwrap();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!((rebuilt.found, rebuilt.bad), (sorted, vec![place.path("copies/broken.tzero")]));
    assert_eq!(catalogue.list().unwrap().copies.len(), 20);

    let prefix = ids[3].to_string()[..20].to_owned();
    assert_eq!(catalogue.remove_named(&prefix).unwrap(), Removed::Copy(ids[3]));
    assert!(!image.exists() && !place.path("copies/3.img.tzero").exists());
    assert!(!place.path("copies/3.img.tzero-journal").exists());
    fs::write(place.path("copies/4.img"), b"something else").unwrap();
    assert!(matches!(catalogue.remove_named(&ids[4].to_string()), Err(Error::NotItsImage { .. })));
    // A copy that someone removed by hand.
    fs::remove_file(place.path("copies/5.img")).unwrap();
    fs::remove_file(place.path("copies/5.img.tzero")).unwrap();
    assert!(!catalogue.list().unwrap().copies.iter().find(|entry| entry.id == ids[5]).unwrap().present);
    assert_eq!(catalogue.remove_named(&ids[5].to_string()).unwrap(), Removed::Copy(ids[5]));
    assert_eq!(catalogue.list().unwrap().copies.len(), 18);
    // An interrupted removal is repeated.
    fs::remove_file(place.path("copies/6.img")).unwrap();
    assert_eq!(catalogue.remove_named(&ids[6].to_string()).unwrap(), Removed::Copy(ids[6]));
}

#[test]
fn a_copy_moves_with_its_manifest() {
    let place = Place::new();
    let bytes = content(15, SIZE);
    let source = place.write("source", &bytes);
    backup(&place.plain(&source)).unwrap();
    fs::create_dir(place.path("elsewhere")).unwrap();
    for name in COMPLETE {
        fs::copy(place.path(&format!("copies/{name}")), place.path(&format!("elsewhere/{name}"))).unwrap();
    }
    let moved = Copy::open(&place.path("elsewhere/vol.img"), &place.state()).unwrap();
    assert!(verify(&moved).is_good());
    restore(&place, moved, &place.path("restored"), false).unwrap();
    assert!(fs::read(place.path("restored")).unwrap() == bytes);
}

#[test]
fn a_restore_over_a_copy_leaves_no_manifest_that_speaks_of_it() {
    let place = Place::new();
    let (old, new) = (content(31, 5 * MIB), content(32, 6 * MIB));
    let mut request = place.plain(&place.write("old", &old));
    backup(&request).unwrap();
    let overwritten = place.copy();
    request = place.plain(&place.write("new", &new));
    request.destination = place.path("copies/new.img");
    backup(&request).unwrap();
    let copy = Copy::open(&request.destination, &place.state()).unwrap();

    let error = restore(&place, copy.clone(), &place.image(), false).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Exists, .. }), "{error}");
    // A restore that does not come to its end leaves the copy that it would have replaced.
    let cancel = Cancel::new();
    cancel.cancel();
    let cancelled = restoring(&place, copy.clone(), &place.image(), true);
    tzero_copy::restore(&cancelled, &mut |_| {}, &cancel).unwrap_err();
    assert!(verify(&place.copy()).is_good());

    restore(&place, copy.clone(), &place.image(), true).unwrap();
    assert!(fs::read(place.image()).unwrap() == new);
    assert!(matches!(Copy::open(&place.image(), &place.state()), Err(Error::NoCopy { .. })));
    let listed: Vec<_> = place.catalogue().list().unwrap().copies.iter().map(|entry| entry.id).collect();
    assert_eq!(listed, [copy.id()], "{} is gone", overwritten.id());
    assert_eq!(place.names(), ["new.img", "new.img.tzero", "vol.img"]);
}

#[test]
fn a_manifest_without_its_image_speaks_of_nothing_that_is_restored_there() {
    let place = Place::new();
    let bytes = content(33, 5 * MIB);
    let mut request = place.plain(&place.write("source", &bytes));
    backup(&request).unwrap();
    request.destination = place.path("copies/other.img");
    backup(&request).unwrap();
    let copy = Copy::open(&request.destination, &place.state()).unwrap();
    fs::remove_file(place.image()).unwrap();
    let error = restore(&place, copy.clone(), &place.image(), false).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Declared, .. }), "{error}");
    assert_sentence(&error);
    assert!(!place.image().exists());
    // A manifest that is damaged is one too.
    let manifest = place.path("copies/vol.img.tzero");
    let bytes_of_it = fs::read(&manifest).unwrap();
    fs::write(&manifest, &bytes_of_it[..bytes_of_it.len() / 2]).unwrap();
    let error = restore(&place, copy.clone(), &place.image(), false).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Declared, .. }), "{error}");
    restore(&place, copy, &place.image(), true).unwrap();
    assert!(fs::read(place.image()).unwrap() == bytes);
    assert!(matches!(Copy::open(&place.image(), &place.state()), Err(Error::NoCopy { .. })));
    assert_eq!(place.catalogue().list().unwrap().copies.len(), 1);
}
