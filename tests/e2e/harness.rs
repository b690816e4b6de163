//! The tests' own tools, tried on servers that are not ours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use e2e::nbd::{Client, Command, EPERM, FUA, Failure};
use e2e::scratch::{bytes, read};
use e2e::stamps::{Stray, UNIT, identify, stamp};
use e2e::{History, MIB, Process, Program, Scratch, Writers};

/// A server of somebody else's.
fn nbdkit(scratch: &Scratch, options: &[&str], file: &std::path::Path) -> (Process, std::path::PathBuf) {
    let socket = scratch.join("kit.sock");
    let mut process = Program::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--threads", "4", "--unix"])
        .arg(&socket)
        .args(options)
        .arg("file")
        .arg(file)
        .start();
    process.until(|| Client::connect(&socket, "").is_ok());
    (process, socket)
}

#[test]
fn our_client_agrees_with_another_server() {
    let scratch = Scratch::new();
    let file = scratch.random("file", MIB, 1);
    let before = read(&file);
    let (_process, socket) = nbdkit(&scratch, &[], &file);
    let mut client = Client::connect(&socket, "").expect("nbdkit is there");
    assert_eq!(client.size(), MIB);
    assert!(!client.is_read_only());
    assert_eq!(client.read_all().expect("reading works"), before);
    let new = bytes(1536, 2);
    client.write(512, &new).expect("writing works");
    client.order(Command::WriteZeroes, FUA, 4096, 4096).expect("zeroing works");
    client.order(Command::Flush, 0, 0, 0).expect("flushing works");
    let mut expected = before;
    expected[512..2048].copy_from_slice(&new);
    expected[4096..8192].fill(0);
    assert_eq!(read(&file), expected);
}

#[test]
fn our_client_hears_a_refusal() {
    let scratch = Scratch::new();
    let file = scratch.random("file", MIB, 1);
    let (_process, socket) = nbdkit(&scratch, &["--readonly"], &file);
    let mut client = Client::connect(&socket, "").expect("nbdkit is there");
    assert!(client.is_read_only());
    match client.write(0, &[1; 512]) {
        Err(Failure::Refused(number)) => assert_eq!(number, EPERM),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stamp_says_where_it_belongs() {
    let bytes = stamp(7, 2, 3);
    let (first, second) = bytes.split_at(UNIT as usize);
    assert_eq!(identify(7, first), Ok(3));
    assert_eq!(identify(8, second), Ok(3));
    assert_eq!(identify(9, second), Err(Stray::Displaced { unit: 9, found: 8 }));
    let torn = [&stamp(7, 1, 3)[..256], &stamp(7, 1, 4)[256..]].concat();
    assert_eq!(identify(7, &torn), Err(Stray::Torn { unit: 7, write: 3 }));
    assert_eq!(identify(7, &[0; 512]), Err(Stray::Zeroes { unit: 7 }));
    assert_eq!(identify(0, &stamp(0, 1, 0)), Ok(0));
}

#[test]
fn a_history_accepts_the_present_and_nothing_else() {
    let history = History::new(4 * UNIT);
    let image = |writes: [u64; 4]| -> Vec<u8> {
        writes.iter().zip(0..).flat_map(|(write, unit)| stamp(unit, 1, *write)).collect()
    };
    let accepts = |writes: [u64; 4], instant| {
        catch_unwind(AssertUnwindSafe(|| history.prove("image", &image(writes), instant))).is_ok()
    };
    let a = history.sent(0, 2);
    history.answered(a);
    let (instant, (b, c)) = history.instant(|| {
        let b = history.sent(2, 1);
        history.answered(b);
        let c = history.sent(3, 1);
        history.answered(c);
        (b, c)
    });
    let d = history.sent(0, 1);
    history.answered(d);
    assert!(accepts([a, a, 0, 0], instant), "the instant may be before b");
    assert!(accepts([a, a, b, 0], instant), "between b and c");
    assert!(accepts([a, a, b, c], instant), "after c");
    assert!(!accepts([a, a, 0, c], instant), "c was sent when b had been answered");
    assert!(!accepts([0, 0, b, c], instant), "a was answered before");
    assert!(!accepts([a, 0, b, c], instant), "half of a");
    assert!(!accepts([d, a, b, c], instant), "d came after");
    assert!(!accepts([a, a, a, c], instant), "a was never sent there");
    assert!(accepts([d, a, b, c], history.now()));
}

#[test]
fn writers_leave_what_their_history_says() {
    let scratch = Scratch::new();
    let file = scratch.stamped("file", MIB);
    let (_process, socket) = nbdkit(&scratch, &[], &file);
    let history = Arc::new(History::new(MIB));
    history.prove("before", &read(&file), history.now());
    let writers = Writers::start(&socket, "", &history, 3, 1);
    writers.progress(2000);
    writers.stop();
    assert!(history.count() >= 2000);
    history.prove("after", &read(&file), history.now());
}
