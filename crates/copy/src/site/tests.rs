use std::fs;

use super::*;
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
        Err(Error::Refused { refusal: Refusal::NoCopyOfIt, .. })
    ));
    assert_eq!(fixture.site.load().unwrap().unwrap().id, fixture.old.id);
    assert_eq!(fs::read(&fixture.site.image).unwrap(), OLD);
    fixture.site.declare(&fixture.new, true).unwrap();
    assert_eq!(fixture.site.load().unwrap().unwrap().id, fixture.new.id);
    assert!(!fixture.site.partial.exists() && !fixture.site.fresh().exists());
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
