//! Places that nothing is written to, and files beside a place that are somebody else's.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    COMPLETE, MIB, Place, UNFINISHED, assert_sentence, backup, backup_interrupted, content, journal, partial, restore,
    verify,
};
use tzero_api::Exit;
use tzero_copy::{Copy, Error, ManifestFault, Refusal};

const SIZE: usize = 9 * MIB + 777;

/// A copy at `copies/vol.img`.
fn copied(place: &Place, seed: u64) -> tzero_copy::BackupRequest {
    let request = place.plain(&place.write("source", &content(seed, SIZE)));
    backup(&request).unwrap();
    request
}

/// A volume on record, as a daemon leaves it.
fn register(place: &Place, name: &str, base: &Path) {
    let directory = place.state().join("volumes").join(name);
    fs::create_dir_all(&directory).unwrap();
    let record = format!(r#"{{"version":1,"id":"1a","name":"{name}","base":"{}"}}"#, base.display());
    fs::write(directory.join("volume.json"), record).unwrap();
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn no_copy_takes_the_name_of_what_stands_beside_another() {
    let place = Place::new();
    let mut request = copied(&place, 1);
    let (id, names) = (place.copy().id(), place.names());
    request.replace = true;
    for suffix in [".tzero", ".tzero.new", ".tzero-partial", ".tzero-journal", ".tzero-restore"] {
        let path = place.path(&format!("copies/vol.img{suffix}"));
        request.destination = path.clone();
        for error in [backup(&request).unwrap_err(), restore(&place, place.copy(), &path, true).unwrap_err()] {
            assert_sentence(&error);
            assert!(matches!(error, Error::Reserved { .. }) && error.exit() == Exit::Usage, "{error}");
        }
    }
    assert_eq!(place.names(), names);
    assert!(place.copy().id() == id && verify(&place.copy()).is_good());
}

#[test]
fn nothing_goes_into_the_state_directory() {
    let place = Place::new();
    let mut request = copied(&place, 2);
    request.replace = true;
    let entry = fs::read_dir(place.state().join("catalogue")).unwrap().next().unwrap().unwrap().path();
    let link = place.path("link");
    symlink(place.state(), &link).unwrap();
    for path in [entry.clone(), place.state().join("new"), link.join("catalogue/new"), place.state().join("no/such")] {
        request.destination = path.clone();
        for error in [backup(&request).unwrap_err(), restore(&place, place.copy(), &path, true).unwrap_err()] {
            assert_sentence(&error);
            assert!(matches!(error, Error::InState { .. }) && error.exit() == Exit::Usage, "{error}");
        }
    }
    assert_eq!(place.catalogue().list().unwrap().copies.len(), 1);
    assert_eq!(fs::read_dir(place.state()).unwrap().count(), 1);
}

#[test]
fn a_registered_base_is_spared_without_a_daemon() {
    let place = Place::new();
    let mut request = copied(&place, 3);
    let base = place.write("base", &content(4, SIZE));
    register(&place, "vm", &base);
    let (hard, soft) = (place.path("hard"), place.path("soft"));
    fs::hard_link(&base, &hard).unwrap();
    symlink(&base, &soft).unwrap();
    request.replace = true;
    for path in [&base, &hard, &soft] {
        request.destination = path.clone();
        for error in [backup(&request).unwrap_err(), restore(&place, place.copy(), path, true).unwrap_err()] {
            assert_sentence(&error);
            let said = error.to_string();
            assert!(said.contains("volume vm") && said.contains("`tzero volume remove vm`"), "{said}");
            assert_eq!(error.exit(), Exit::Failed);
        }
    }
    assert!(fs::read(&base).unwrap() == content(4, SIZE));
    // It became one while the copy was made.
    let late = place.write("late", b"somebody's");
    request.destination = late.clone();
    let outcome = tzero_copy::backup(&request, &mut |_| register(&place, "late", &late), &tzero_copy::Cancel::new());
    assert!(matches!(outcome, Err(Error::Registered { .. })));
    assert_eq!(fs::read(&late).unwrap(), b"somebody's");
}

#[test]
fn files_of_somebody_else_beside_a_place_stop_a_copy() {
    let place = Place::new();
    let mut request = place.plain(&place.write("source", &content(5, SIZE)));
    for suffix in [".tzero", ".tzero.new", ".tzero-partial", ".tzero-journal"] {
        let foreign = place.path(&format!("copies/vol.img{suffix}"));
        for replace in [false, true] {
            fs::write(&foreign, b"precious").unwrap();
            request.replace = replace;
            let error = backup(&request).unwrap_err();
            assert_sentence(&error);
            assert!(matches!(&error, Error::Foreign { beside, .. } if *beside == foreign), "{error}");
            assert_eq!(error.exit(), Exit::Failed);
            assert_eq!(fs::read(&foreign).unwrap(), b"precious");
            assert_eq!(place.names(), [foreign.file_name().unwrap().to_str().unwrap()]);
            fs::remove_file(&foreign).unwrap();

            // What is no file at all, nobody waits for.
            mkfifo(&foreign);
            let error = backup(&request).unwrap_err();
            assert!(matches!(&error, Error::Foreign { beside, .. } if *beside == foreign), "{error}");
            assert_eq!(place.names().len(), 1);
            fs::remove_file(&foreign).unwrap();
        }
    }
    backup(&request).unwrap();
    assert_eq!(place.names(), COMPLETE);
}

#[test]
fn a_file_of_somebody_else_that_comes_while_a_copy_is_made_is_spared() {
    let place = Place::new();
    let request = place.plain(&place.write("source", &content(6, SIZE)));
    let manifest = place.path("copies/vol.img.tzero");
    let error =
        tzero_copy::backup(&request, &mut |_| fs::write(&manifest, b"precious").unwrap(), &tzero_copy::Cancel::new());
    assert!(matches!(error, Err(Error::Foreign { .. })));
    assert_eq!(place.names(), ["vol.img.tzero"]);
    assert_eq!(fs::read(&manifest).unwrap(), b"precious");
}

#[test]
fn files_of_somebody_else_beside_a_target_stop_a_restore() {
    let place = Place::new();
    copied(&place, 7);
    for suffix in [".tzero", ".tzero.new", ".tzero-journal", ".tzero-restore"] {
        let (target, foreign) = (place.path("target"), place.path(&format!("target{suffix}")));
        for (force, existing) in [(false, false), (true, false), (true, true)] {
            fs::write(&foreign, b"precious").unwrap();
            if existing {
                fs::write(&target, b"old").unwrap();
            }
            let error = restore(&place, place.copy(), &target, force).unwrap_err();
            assert_sentence(&error);
            assert!(matches!(&error, Error::Foreign { beside, .. } if *beside == foreign), "{error}");
            assert_eq!(fs::read(&foreign).unwrap(), b"precious");
            assert_eq!(target.exists(), existing);
        }
        fs::remove_file(&foreign).unwrap();
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn an_unfinished_image_is_known_by_its_journal() {
    let place = Place::new();
    let mut request = place.plain(&place.write("source", &content(8, SIZE)));
    backup_interrupted(&request, 1).unwrap_err();
    assert_eq!(place.names(), UNFINISHED);
    // Somebody has put another file in its place.
    let bytes = fs::read(partial(&place)).unwrap();
    fs::rename(partial(&place), place.path("kept")).unwrap();
    fs::write(partial(&place), b"precious").unwrap();
    let unfinished = partial(&place).display().to_string();
    assert!(matches!(backup(&request), Err(Error::Foreign { .. })));
    assert!(matches!(place.catalogue().remove_named(&unfinished), Err(Error::Foreign { .. })));
    assert_eq!(fs::read(partial(&place)).unwrap(), b"precious");
    // A damaged journal is a journal still, and what is beside it goes with it.
    fs::rename(place.path("kept"), partial(&place)).unwrap();
    assert!(fs::read(partial(&place)).unwrap() == bytes);
    File::options().write(true).open(journal(&place)).unwrap().set_len(100).unwrap();
    request.resume = true;
    assert!(matches!(backup(&request), Err(Error::Resume { .. })));
    request.resume = false;
    backup(&request).unwrap();
    assert_eq!(place.names(), COMPLETE);
    // Without a journal nothing tells whose it is.
    fs::write(partial(&place), b"precious").unwrap();
    request.replace = true;
    assert!(matches!(backup(&request), Err(Error::Foreign { .. })));
    assert!(matches!(place.catalogue().remove_named(&unfinished), Err(Error::Foreign { .. })));
    assert_eq!(fs::read(partial(&place)).unwrap(), b"precious");
    assert!(verify(&place.copy()).is_good());
}

#[test]
fn there_is_nothing_to_give_up_where_nothing_is() {
    let place = Place::new();
    for name in [partial(&place), journal(&place)] {
        let error = place.catalogue().remove_named(name.to_str().unwrap()).unwrap_err();
        assert_sentence(&error);
        let text = error.to_string();
        assert!(matches!(error, Error::NothingUnfinished { .. }) && !text.contains("resume"), "{text}");
    }
    mkfifo(&journal(&place));
    let error = place.catalogue().remove_named(journal(&place).to_str().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert_eq!(place.names(), ["vol.img.tzero-journal"]);
}

#[test]
fn nobody_waits_for_a_fifo() {
    let place = Place::new();
    let fifo = place.path("copies/vol.img");
    mkfifo(&fifo);
    let kind = |error: Error| {
        assert_sentence(&error);
        assert!(matches!(error, Error::WrongKind { .. }) && !error.to_string().contains("written"), "{error}");
    };
    for source in [&fifo, &place.path("copies"), &PathBuf::from("/dev/zero")] {
        let mut request = place.plain(source);
        request.destination = place.path("copies/other");
        kind(backup(&request).unwrap_err());
        kind(Copy::open(source, &place.state()).unwrap_err());
    }
    fs::remove_file(&fifo).unwrap();
    copied(&place, 9);
    fs::remove_file(place.path("copies/vol.img.tzero")).unwrap();
    mkfifo(&place.path("copies/vol.img.tzero"));
    let error = Copy::open(&place.image(), &place.state()).unwrap_err();
    assert_sentence(&error);
    assert!(matches!(error, Error::Manifest { fault: ManifestFault::NoFile, .. }), "{error}");
}

#[test]
fn who_is_about_to_let_go_is_waited_for() {
    let place = Place::new();
    let mut request = place.plain(&place.write("source", &content(10, SIZE)));
    backup_interrupted(&request, 1).unwrap_err();
    // As long as requests of a killed process may stay in the kernel.
    let release = |path: &Path| {
        let mut holder = Command::new("flock");
        holder.arg(path).args(["sh", "-c", "echo; sleep 0.3"]).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        holder
    };
    let mut holder = release(&journal(&place));
    request.resume = true;
    backup(&request).unwrap();
    assert!(holder.wait().unwrap().success());

    let (target, beside) = (place.path("target"), place.path("target.tzero-restore"));
    fs::write(&beside, b"").unwrap();
    let mut holder = release(&beside);
    restore(&place, place.copy(), &target, false).unwrap();
    assert!(holder.wait().unwrap().success());

    fs::write(&beside, b"").unwrap();
    let held = File::open(&beside).unwrap();
    held.lock().unwrap();
    let begun = Instant::now();
    let error = restore(&place, place.copy(), &target, true).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Busy, .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}
