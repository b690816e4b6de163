//! Mappings, descriptors and locks over real files.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use tzero_io::{Directory, LockError, MappedFile, Mapping, Storage, descriptors, lock_exclusive};

#[test]
fn a_mapping_is_seen_by_another_opener_and_survives() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Directory::new(directory.path());
    let mapping = storage.open("state", 100).unwrap();
    assert_eq!(mapping.len(), 104);
    mapping.store(8, 7).unwrap();
    mapping.publish(0, 1).unwrap();
    let reader = MappedFile::from_file(File::open(directory.path().join("state")).unwrap(), false).unwrap();
    assert_eq!((reader.load(0), reader.load(8)), (1, 7));
    assert!(reader.store(0, 2).is_err());
    mapping.grow(1 << 20).unwrap();
    mapping.publish((1 << 20) - 8, 9).unwrap();
    assert_eq!(reader.len(), 104);
    reader.grow(1 << 20).unwrap();
    assert_eq!(reader.load((1 << 20) - 8), 9);
    assert!(reader.grow(2 << 20).is_err(), "the file is not as long");
    mapping.sync().unwrap();
    drop(mapping);
    assert_eq!(storage.open("state", 8).unwrap().load(8), 7);
    assert_eq!(storage.names().unwrap(), ["state"]);
    storage.remove("state").unwrap();
    storage.remove("state").unwrap();
    assert!(!storage.exists("state").unwrap());
}

#[test]
fn descriptors_pass_through_a_socket() {
    let (here, there) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    assert_eq!(descriptors::send(&here, b"x", &[file.as_fd(), there.as_fd()]).unwrap(), 1);
    let mut bytes = [0; 8];
    let (count, files) = descriptors::recv(&there, &mut bytes).unwrap();
    assert_eq!((count, files.len()), (1, 2));
    File::from(files.into_iter().next().unwrap()).set_len(5).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    drop(here);
    assert_eq!(descriptors::recv(&there, &mut bytes).unwrap().0, 0);
}

#[test]
fn a_lock_is_one_openers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
    let first = open();
    lock_exclusive(&first).unwrap();
    assert!(matches!(lock_exclusive(&open()), Err(LockError::Held)));
    drop(first);
    lock_exclusive(&open()).unwrap();
}
