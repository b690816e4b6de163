//! Restores of ranges and of what differs, to files and exports, and what is left of them when they are interrupted.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::export::Exported;
use common::{MIB, Place, assert_sentence, backup, content, restoring};
use tzero_api::Exit;
use tzero_api::restores::{RestoreRecord, RestoreState};
use tzero_block::ByteRange;
use tzero_copy::{Cancel, Copy, Error, Event, Phase, RangeFault, Refusal, RestoreRequest, RestoreTarget, Restored};

const SIZE: usize = 21 * MIB + 512;
const CHUNK: u64 = 4 << 20;

/// A place with a copy of `content(seed, SIZE)`.
fn copied(seed: u64) -> (Place, Copy, Vec<u8>) {
    let (place, bytes) = (Place::new(), content(seed, SIZE));
    let source = place.write("source", &bytes);
    backup(&place.plain(&source)).unwrap();
    let copy = place.copy();
    (place, copy, bytes)
}

fn run(request: &RestoreRequest) -> Result<Restored, Error> {
    tzero_copy::restore(request, &mut |_| {}, &Cancel::new())
}

/// Stops once so many bytes are written.
fn interrupted(request: &RestoreRequest, after: u64) -> Error {
    let cancel = Cancel::new();
    let stop = cancel.clone();
    let observer = &mut |event: &Event| {
        if matches!(event, Event::Progress { phase: Phase::Copy, done, .. } if *done >= after) {
            stop.cancel();
        }
    };
    tzero_copy::restore(request, observer, &cancel).unwrap_err()
}

fn notes(place: &Place) -> Vec<RestoreRecord> {
    let entries = fs::read_dir(place.state().join("restores")).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "json"));
    files.map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
}

fn ranges(ranges: &[(u64, u64)]) -> Vec<ByteRange> {
    ranges.iter().map(|(offset, len)| ByteRange::new(*offset, *len)).collect()
}

/// `old` with the ranges of `new`.
fn patched(old: &[u8], new: &[u8], ranges: &[ByteRange]) -> Vec<u8> {
    let mut patched = old.to_vec();
    for range in ranges {
        let range = range.start() as usize..range.end() as usize;
        patched[range.clone()].copy_from_slice(&new[range]);
    }
    patched
}

fn refusal(error: &Error) -> Refusal {
    assert_sentence(error);
    match error {
        Error::Refused { refusal, .. } => *refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn ranges_are_restored_in_place_and_nothing_else() {
    let (place, copy, bytes) = copied(1);
    // In any order, off every unit, over the edge of a chunk, up to the last byte, and two that touch.
    let wanted = ranges(&[(CHUNK - 3, 700), (SIZE as u64 - 5, 5), (1, 1), (9 * MIB as u64, 2 << 20), (2, 4095)]);
    let old = content(2, SIZE + 77);
    let target = place.write("target", &old);
    let request = RestoreRequest { ranges: wanted.clone(), ..restoring(&place, copy, &target, false) };
    assert_eq!(refusal(&run(&request).unwrap_err()), Refusal::NotBlankTarget);
    assert!(fs::read(&target).unwrap() == old);
    let restored = run(&RestoreRequest { force: true, ..request }).unwrap();
    assert_eq!(restored.bytes_restored, wanted.iter().map(|range| range.len()).sum::<u64>());
    assert_eq!(restored.ranges.unwrap().len(), 4);
    assert!(fs::read(&target).unwrap() == patched(&old, &bytes, &wanted));
    assert!(notes(&place).is_empty());
}

#[test]
fn ranges_of_a_file_that_is_not_there_make_one_of_the_copy_s_size() {
    let (place, copy, bytes) = copied(3);
    let wanted = ranges(&[(CHUNK + 1, 100_000)]);
    let target = place.path("target");
    run(&RestoreRequest { ranges: wanted.clone(), ..restoring(&place, copy, &target, false) }).unwrap();
    assert!(fs::read(&target).unwrap() == patched(&vec![0; SIZE], &bytes, &wanted));
    assert!(common::allocated(&target) <= 128 << 10);
    assert!(!place.path("target.tzero-restore").exists() && notes(&place).is_empty());
}

#[test]
fn ranges_that_cannot_be() {
    let (place, copy, _) = copied(4);
    let target = place.write("target", &vec![0; SIZE]);
    let fault = |wanted: &[(u64, u64)]| {
        let request = RestoreRequest { ranges: ranges(wanted), ..restoring(&place, copy.clone(), &target, true) };
        let error = run(&request).unwrap_err();
        assert_sentence(&error);
        assert_eq!(error.exit(), Exit::Usage);
        match error {
            Error::Range { fault, .. } => fault,
            other => panic!("{other}"),
        }
    };
    assert_eq!(fault(&[(5, 0)]), RangeFault::Empty);
    assert_eq!(fault(&[(0, 1), (SIZE as u64, 1)]), RangeFault::PastEnd { size: SIZE as u64 });
    assert_eq!(fault(&[(u64::MAX - 1, 1)]), RangeFault::PastEnd { size: SIZE as u64 });
    assert_eq!(fault(&[(0, 10), (100, 10), (9, 1)]), RangeFault::Overlaps);
    let many: Vec<_> = (0..1025).map(|index| (2 * index, 1)).collect();
    assert_eq!(fault(&many), RangeFault::TooMany);
    assert!(fs::read(&target).unwrap() == vec![0; SIZE]);
    // What the target does not have cannot be written there.
    let short = place.write("short", &vec![0; MIB]);
    let request = |wanted: &[(u64, u64)]| RestoreRequest {
        ranges: ranges(wanted),
        ..restoring(&place, copy.clone(), &short, true)
    };
    let error = run(&request(&[(0, 1), (MIB as u64, 1)])).unwrap_err();
    assert!(matches!(refusal(&error), Refusal::TooShort { .. }));
    run(&request(&[(MIB as u64 - 1, 1)])).unwrap();
    let itself = RestoreRequest { ranges: ranges(&[(0, 1)]), ..restoring(&place, copy.clone(), copy.image(), true) };
    assert_eq!(refusal(&run(&itself).unwrap_err()), Refusal::HoldsCopy);
}

#[test]
fn a_damaged_chunk_is_not_restored_from_however_little_is_wanted() {
    let (place, copy, bytes) = copied(5);
    let at = bytes[5 * MIB..].iter().position(|byte| *byte != 0).unwrap() + 5 * MIB;
    fs::File::options().write(true).open(copy.image()).unwrap().write_all_at(&[0], at as u64).unwrap();
    let old = vec![0; SIZE];
    let target = place.write("target", &old);
    // The wanted bytes themselves are good, for all that anybody knows.
    let wanted = ranges(&[(4 << 20, 16)]);
    let request = RestoreRequest { ranges: wanted, ..restoring(&place, copy.clone(), &target, true) };
    let error = run(&request).unwrap_err();
    assert!(matches!(&error, Error::Halted(halted) if matches!(halted.cause, Error::Damaged { .. })), "{error}");
    assert_eq!(error.exit(), Exit::Failed);
    assert!(fs::read(&target).unwrap() == old);
    // It is on record until somebody says that this is how it stays.
    let note = notes(&place).pop().unwrap();
    assert_eq!((note.state, note.target.as_str()), (RestoreState::Stopped, target.to_str().unwrap()));
    let path = place.state().join("restores").join(format!("{}.json", note.id));
    place.catalogue().remove_named(path.to_str().unwrap()).unwrap();
    assert!(notes(&place).is_empty());
    run(&RestoreRequest { ranges: ranges(&[(0, 16)]), ..restoring(&place, copy, &target, true) }).unwrap();
}

#[test]
fn only_what_differs_is_written() {
    let (place, copy, bytes) = copied(6);
    let mut old = bytes.clone();
    // A byte in each of two chunks, zeroes where there is data, data where there are zeroes, and the last byte.
    let zero = bytes.windows(8192).position(|window| window.iter().all(|byte| *byte == 0)).unwrap();
    let changed = [100, 9 * MIB + 1, zero, SIZE - 1];
    changed.iter().for_each(|at| old[*at] ^= 0x55);
    let target = place.write("target", &old);
    let request = RestoreRequest { differing: true, ..restoring(&place, copy, &target, false) };
    assert_eq!(refusal(&run(&request).unwrap_err()), Refusal::NotBlankTarget);
    assert!(fs::read(&target).unwrap() == old && notes(&place).is_empty());
    let request = RestoreRequest { force: true, ..request };
    let restored = run(&request).unwrap();
    assert!(fs::read(&target).unwrap() == bytes);
    assert!(restored.bytes_written <= 4 * 4096, "{}", restored.bytes_written);
    let equal = restored.bytes_equal.unwrap();
    assert!(equal < SIZE as u64 && equal >= SIZE as u64 - 5 * 4096, "{equal}");
    // Again there is nothing to do, and nothing to be asked for.
    let restored = run(&RestoreRequest { force: false, ..request.clone() }).unwrap();
    assert_eq!((restored.bytes_written, restored.bytes_equal), (0, Some(SIZE as u64)));
    // Ranges of it.
    fs::write(&target, &old).unwrap();
    let wanted = ranges(&[(0, 101), (9 * MIB as u64, 1)]);
    let restored = run(&RestoreRequest { ranges: wanted.clone(), ..request.clone() }).unwrap();
    assert!(fs::read(&target).unwrap() == patched(&old, &bytes, &wanted));
    assert_eq!((restored.bytes_restored, restored.bytes_equal), (102, Some(1)));
    // A file of another length is no such thing.
    fs::write(&target, &old[1..]).unwrap();
    assert!(matches!(refusal(&run(&request).unwrap_err()), Refusal::OtherLength { .. }));
    // One that is not there is made.
    fs::remove_file(&target).unwrap();
    run(&RestoreRequest { force: false, ..request }).unwrap();
    assert!(fs::read(&target).unwrap() == bytes);
}

#[test]
fn zeroes_and_what_is_of_the_copy_are_overwritten_unasked() {
    let (place, copy, bytes) = copied(7);
    let mut half = bytes.clone();
    half[10 * MIB..].fill(0);
    half[MIB..2 * MIB].fill(0);
    let target = place.write("target", &half);
    let whole = ranges(&[(0, SIZE as u64)]);
    for differing in [false, true] {
        let request =
            RestoreRequest { differing, ranges: whole.clone(), ..restoring(&place, copy.clone(), &target, false) };
        run(&request).unwrap();
        assert!(fs::read(&target).unwrap() == bytes);
        half[15 * MIB] = bytes[15 * MIB] ^ 0x80 | 1;
        fs::write(&target, &half).unwrap();
        assert_eq!(refusal(&run(&request).unwrap_err()), Refusal::NotBlankTarget);
        assert!(fs::read(&target).unwrap() == half);
        half[15 * MIB] = 0;
        fs::write(&target, &half).unwrap();
    }
}

#[test]
fn an_interrupted_restore_is_on_record_and_goes_on() {
    let (place, copy, bytes) = copied(8);
    let target = place.write("target", &vec![0; SIZE]);
    let whole = ranges(&[(0, SIZE as u64)]);
    let request = RestoreRequest { ranges: whole, ..restoring(&place, copy.clone(), &target, false) };
    let error = interrupted(&request, CHUNK);
    assert_sentence(&error);
    let text = error.to_string();
    assert_eq!(error.exit(), Exit::Incomplete);
    let note = notes(&place).pop().unwrap();
    assert!(text.contains(&format!("`{}` goes on", note.again())), "{text}");
    assert!(text.contains(&format!("`{}` leaves it at that", note.dismissal(&place.state()))), "{text}");
    assert_eq!((note.copy.clone(), note.state), (copy.id().to_string(), RestoreState::Stopped));
    assert!(note.reason.is_some_and(|reason| reason.contains("interrupted")));
    // What is half done is neither; the same command goes on, and needs no more leave than before.
    assert!(fs::read(&target).unwrap() != bytes);
    interrupted(&request, CHUNK);
    assert_eq!(notes(&place).len(), 1, "one restore has one note");
    run(&request).unwrap();
    assert!(fs::read(&target).unwrap() == bytes && notes(&place).is_empty());
}

fn export(place: &Place, copy: Copy, exported: &Exported) -> RestoreRequest {
    let target = RestoreTarget::Export(exported.uri("vol"));
    RestoreRequest { target, ..restoring(place, copy, Path::new(""), false) }
}

#[test]
fn an_export_is_restored_to_as_a_device_is() {
    let (place, copy, bytes) = copied(9);
    let exported = Exported::new(&place.path("s"), vec![0; SIZE + 4096]);
    let request = export(&place, copy, &exported);
    let restored = run(&request).unwrap();
    assert!(exported.bytes()[..SIZE] == bytes);
    assert_eq!(restored.target, Path::new(&exported.uri("vol").to_string()));
    // Unaligned ranges, through a server that takes sectors; what is beside them stays.
    let old = content(10, SIZE + 4096);
    let exported = Exported::new(&place.path("t"), old.clone());
    let wanted = ranges(&[(7, 1), (511, 2), (CHUNK - 1, 2), (SIZE as u64 - 700, 700)]);
    let request =
        RestoreRequest { ranges: wanted.clone(), target: RestoreTarget::Export(exported.uri("vol")), ..request };
    assert_eq!(refusal(&run(&request).unwrap_err()), Refusal::NotBlankTarget);
    let request = RestoreRequest { force: true, ..request };
    for differing in [false, true] {
        run(&RestoreRequest { differing, ..request.clone() }).unwrap();
        assert!(exported.bytes() == patched(&old, &bytes, &wanted));
    }
    let before = exported.written();
    let restored = run(&RestoreRequest { differing: true, ranges: Vec::new(), ..request.clone() }).unwrap();
    assert_eq!(exported.written() - before, restored.bytes_written);
    assert!(exported.bytes()[..SIZE] == bytes && exported.bytes()[SIZE..] == old[SIZE..]);
    let restored = run(&RestoreRequest { differing: true, ranges: Vec::new(), ..request.clone() }).unwrap();
    assert_eq!((restored.bytes_written, restored.bytes_equal), (0, Some(SIZE as u64)));
    // What cannot be.
    let read_only = RestoreRequest { target: RestoreTarget::Export(exported.uri("vol@ro")), ..request.clone() };
    assert_eq!(refusal(&run(&read_only).unwrap_err()), Refusal::ReadOnlyExport);
    let small = Exported::new(&place.path("u"), vec![0; SIZE - 512]);
    let error =
        run(&RestoreRequest { target: RestoreTarget::Export(small.uri("vol")), ..request.clone() }).unwrap_err();
    assert!(matches!(refusal(&error), Refusal::TooSmall { .. }));
    let gone = RestoreRequest { target: RestoreTarget::Export(small.uri("nothing")), ..request };
    let error = run(&gone).unwrap_err();
    assert!(matches!(error, Error::Export { .. }), "{error}");
    assert_sentence(&error);
}

#[test]
fn a_cut_link_is_a_pause_and_a_lasting_one_can_be_repeated() {
    let (place, copy, bytes) = copied(11);
    let mut exported = Exported::new(&place.path("s"), vec![0; SIZE]);
    // Asked to, it reads nothing of the target before it writes.
    let request = RestoreRequest { force: true, ..export(&place, copy, &exported) };
    // The server goes away in the middle of a write, and nobody comes back.
    exported.hold(12 * MIB as u64, 1 << 20);
    let (cut, error) = std::thread::scope(|scope| {
        let restoring = scope.spawn(|| run(&request).unwrap_err());
        while !exported.has_changed_at(11 * MIB as u64) {
            std::thread::yield_now();
        }
        exported.kill();
        (exported.bytes(), restoring.join().unwrap())
    });
    assert_eq!(error.exit(), Exit::Incomplete, "{error}");
    assert_sentence(&error);
    assert!(cut != bytes && notes(&place).len() == 1);
    exported.start();
    run(&request).unwrap();
    assert!(exported.bytes() == bytes && notes(&place).is_empty());
}
