use std::fs;

use super::*;
use crate::durable::{Step, steps};
use crate::manifest::tests::example;
use crate::{CopyId, durable};

const OLD: &[u8] = b"the last good copy";
const NEW: &[u8] = b"the copy that is being made";

struct Fixture {
    _root: tempfile::TempDir,
    site: Site,
    old: Manifest,
    new: Manifest,
}

/// A manifest for an image that is at `path` now.
fn manifest_for(path: &Path) -> Manifest {
    let metadata = fs::metadata(path).unwrap();
    let mut manifest = example();
    manifest.id = CopyId::random();
    manifest.volumes[0].size = metadata.len();
    manifest.digests = std::iter::once(crate::ChunkDigest::Data([1; 32])).collect();
    manifest.image = Some(ImageRecord { inode: metadata.ino(), size: metadata.len() });
    manifest
}

/// A good copy at the place, and a finished image beside it.
fn fixture(with_old: bool) -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("vol.img");
    let site = Site::of_image(&path, root.path()).unwrap();
    fs::write(&site.partial, OLD).unwrap();
    let old = manifest_for(&site.partial);
    site.declare(&old, false).unwrap();
    if !with_old {
        fs::remove_file(&site.image).unwrap();
        fs::remove_file(&site.manifest).unwrap();
    }
    fs::write(&site.partial, NEW).unwrap();
    let new = manifest_for(&site.partial);
    Fixture { _root: root, site, old, new }
}

/// The steps of a declaration, one by one, as `declare` makes them.
fn step(fixture: &Fixture, number: usize) {
    let site = &fixture.site;
    match number {
        0 => {
            let bytes = fixture.new.encode();
            fs::write(site.fresh(), &bytes[..bytes.len() / 2]).unwrap();
        }
        1 => durable::write(&site.fresh(), &fixture.new.encode()).unwrap(),
        2 => durable::rename(&site.partial, &site.image).unwrap(),
        3 => durable::rename(&site.fresh(), &site.manifest).unwrap(),
        _ => unreachable!(),
    }
}

#[test]
fn a_crash_after_any_step_leaves_the_old_copy_or_the_new() {
    for crash_after in 0..=4 {
        let fixture = fixture(true);
        (0..crash_after).for_each(|number| step(&fixture, number));
        let declared = crash_after >= 3;
        let (id, bytes) = if declared { (fixture.new.id, NEW) } else { (fixture.old.id, OLD) };
        for _ in 0..2 {
            let loaded = fixture.site.load().unwrap().unwrap();
            assert_eq!((loaded.id, fs::read(&fixture.site.image).unwrap()), (id, bytes.to_vec()), "{crash_after}");
        }
        assert_eq!(read_manifest(&fixture.site.manifest).unwrap().unwrap().id, id, "loading repairs");
        assert_eq!(fixture.site.fresh().exists(), (1..3).contains(&crash_after));
    }
}

#[test]
fn a_crash_before_the_first_copy_leaves_none_or_a_whole_one() {
    for crash_after in 0..=4 {
        let fixture = fixture(false);
        (0..crash_after).for_each(|number| step(&fixture, number));
        let loaded = fixture.site.load().unwrap();
        assert_eq!(loaded.map(|manifest| manifest.id), (crash_after >= 3).then_some(fixture.new.id), "{crash_after}");
        assert_eq!(fixture.site.image.exists(), crash_after >= 3);
    }
}

#[test]
fn a_crash_between_link_and_unlink_is_a_whole_copy() {
    let fixture = fixture(false);
    step(&fixture, 1);
    fs::hard_link(&fixture.site.partial, &fixture.site.image).unwrap();
    assert_eq!(fixture.site.load().unwrap().unwrap().id, fixture.new.id);
    fixture.site.discard_partial().unwrap();
    assert_eq!(fs::read(&fixture.site.image).unwrap(), NEW);
    assert_eq!(fixture.site.load().unwrap().unwrap().id, fixture.new.id);
}

#[test]
fn a_failed_declaration_harms_nothing_and_can_be_repeated() {
    let fixture = fixture(true);
    assert!(matches!(
        fixture.site.declare(&fixture.new, false),
        Err(Undeclared::Before(Error::Refused { refusal: Refusal::NoCopyOfIt, .. }))
    ));
    assert_eq!(fixture.site.load().unwrap().unwrap().id, fixture.old.id);
    assert_eq!(fs::read(&fixture.site.image).unwrap(), OLD);
    fixture.site.declare(&fixture.new, true).unwrap();
    assert_eq!(fixture.site.load().unwrap().unwrap().id, fixture.new.id);
    assert!(!fixture.site.partial.exists() && !fixture.site.fresh().exists());
}

#[test]
fn whichever_step_fails_there_is_a_copy_with_its_manifest() {
    for (with_old, replace) in [(true, true), (false, true), (false, false)] {
        let mut after = 0;
        for count in 0.. {
            let fixture = fixture(with_old);
            let site = &fixture.site;
            steps::fail_after(Step::Name, count, io::ErrorKind::Other);
            let declared = site.declare(&fixture.new, replace);
            if !steps::failed() {
                declared.unwrap();
                break;
            }
            let before = match declared {
                Err(Undeclared::Before(_)) => true,
                Err(Undeclared::After(_)) => false,
                // A file system without links is dealt with.
                Ok(()) => {
                    assert!(!replace);
                    false
                }
            };
            after += u64::from(!before);
            // Whatever the run does then, and whether somebody looks first.
            for look in [false, true] {
                if look {
                    let _ = site.load().unwrap();
                }
                site.discard_partial().unwrap();
                let loaded = site.load().unwrap().map(|manifest| manifest.id);
                let there = fs::read(&site.image).ok();
                let case = format!("step {count}, old {with_old}, replace {replace}, before {before}");
                match (before, with_old) {
                    (false, _) => assert_eq!((loaded, there.as_deref()), (Some(fixture.new.id), Some(NEW)), "{case}"),
                    (true, true) => assert_eq!((loaded, there.as_deref()), (Some(fixture.old.id), Some(OLD)), "{case}"),
                    (true, false) => assert_eq!((loaded, there), (None, None), "{case}"),
                }
                assert!(!site.fresh().exists() && !site.partial.exists(), "{case}");
            }
        }
        assert!(after >= 2, "steps after the image took its place: {after}");
    }
}

#[test]
fn a_device_s_manifest_that_may_not_be_durable_is_not_taken_back() {
    let root = tempfile::tempdir().unwrap();
    let device = DeviceRecord { path: root.path().join("device"), key: "key".into() };
    let site = Site::of_known_device(device.clone(), root.path());
    site.prepare().unwrap();
    let mut manifest = example();
    (manifest.image, manifest.device) = (None, Some(device));
    let mut kinds = String::new();
    for count in 0.. {
        steps::fail_after(Step::Name, count, io::ErrorKind::Other);
        let declared = site.declare(&manifest, false);
        if !steps::failed() {
            declared.unwrap();
            break;
        }
        let stands = site.load().unwrap().is_some();
        match declared.unwrap_err() {
            Undeclared::Before(_) => assert!(!stands),
            Undeclared::After(_) => assert!(stands),
        }
        kinds.push(if stands { 'a' } else { 'b' });
    }
    assert_eq!(kinds, "bbba", "written, its name flushed, renamed, that flushed");
}

#[test]
fn paths_of_unfinished_copies() {
    let state = Path::new("/state");
    let site = Site::of_file("/x/vol.img".into());
    assert_eq!(Site::of_unfinished(&site.partial, state).unwrap(), site);
    assert_eq!(Site::of_unfinished(&site.journal, state).unwrap(), site);
    assert_eq!(Site::of_unfinished(&site.image, state), None);
    assert_eq!(Site::of_unfinished(&site.manifest, state), None);
}
