use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use tzero_block::{BlockDevice, Fault, Zeroes};
use tzero_io::Buffer;

use super::*;
use crate::executor::{Chaos, CrashPlan, Executor, Ran, spawn};

const LATENCY: Latency = Latency { usual_ns: 20_000, slow_percent: 5, slow_ns: 1_000_000 };

fn disk(seed: u64) -> Disk {
    let options = DiskOptions {
        name: "base",
        size: 16 * SECTOR + 100,
        alignment: 1,
        latency: LATENCY,
        limit: None,
        fast_zeroes: true,
        logged: true,
    };
    Disk::new(seed, options)
}

fn finish(executor: &Executor) {
    assert_eq!(executor.run(100_000).expect("not stuck"), Ran::Finished);
}

#[test]
fn what_completed_is_read() {
    let executor = Executor::new(1, Chaos::default());
    let disk = disk(1);
    let handle = disk.open(Process::start());
    spawn(Process::WORLD, "test".into(), true, async move {
        handle.write(100, Buffer::copy_of(&[7; 3000]), false).await.1.expect("no fault is armed");
        let (read, result) = handle.read(99, Buffer::zeroed(3002)).await;
        result.expect("no fault is armed");
        assert_eq!((read[0], read[3001]), (0, 0));
        assert!(read[1..3001].iter().all(|byte| *byte == 7));
        let zeroes = Zeroes { may_unmap: true, fast: true, fua: false };
        handle.write_zeroes(ByteRange::new(512, 1024), zeroes).await.expect("no fault is armed");
        let extents = handle.extents(ByteRange::new(0, 8 * SECTOR)).await.expect("no fault is armed");
        let found: Vec<_> =
            extents.iter().map(|extent| (extent.range.start(), extent.range.end(), extent.hole)).collect();
        assert_eq!(found, [(0, 512, false), (512, 1536, true), (1536, 3584, false), (3584, 4096, true)]);
        let past = handle.read(16 * SECTOR, Buffer::zeroed(101)).await.1.expect_err("past the end");
        assert!(matches!(past.fault, Fault::OutOfRange));
    });
    finish(&executor);
}

#[test]
fn readers_see_torn_writes_but_no_torn_sector() {
    let torn = (0..40)
        .filter(|seed| {
            let executor = Executor::new(*seed, Chaos::default());
            let disk = disk(*seed);
            let process = Process::start();
            let (writer, reader) = (disk.open(process), disk.open(process));
            spawn(Process::WORLD, "writer".into(), true, async move {
                writer.write(0, Buffer::copy_of(&[1; 4096]), false).await.1.expect("no fault is armed");
            });
            let torn = Rc::new(Cell::new(false));
            let seen = Rc::clone(&torn);
            spawn(Process::WORLD, "reader".into(), true, async move {
                let bytes = reader.read(0, Buffer::zeroed(4096)).await.0;
                assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
                seen.set(bytes.contains(&0) && bytes.contains(&1));
            });
            finish(&executor);
            torn.get()
        })
        .count();
    assert!(torn > 3, "{torn} of 40 reads were torn");
}

#[test]
fn a_kill_keeps_what_completed_and_loses_only_what_did_not() {
    let mut landed = [0; 3];
    for seed in 0..60 {
        let executor = Executor::new(seed, Chaos::default());
        let disk = disk(seed);
        let process = Process::start();
        let handle = disk.open(process);
        // The first write's completion is seen; the second one's is the moment of death, or its submission is.
        let plan = if seed % 2 == 0 { (Crash::Submit, 4) } else { (Crash::Submit, 3) };
        process.plan_crash(Some(CrashPlan { at: plan.0, number: plan.1 }));
        let acknowledged = Rc::new(RefCell::new(Vec::new()));
        let told = Rc::clone(&acknowledged);
        spawn(process, "writer".into(), true, async move {
            for value in [1, 2, 3] {
                let place = u64::from(value) * 2048;
                handle.write(place, Buffer::copy_of(&[value; 2048]), false).await.1.expect("no fault is armed");
                told.borrow_mut().push(value);
            }
        });
        assert_eq!(executor.run(100_000).expect("not stuck"), Ran::Killed(process));
        executor.drift(seed / 2 % 2).expect("nothing panics");
        disk.settle();
        let settled = disk.peek(ByteRange::new(0, 16 * SECTOR));
        executor.drift(10_000).expect("nothing panics");
        assert_eq!(disk.peek(ByteRange::new(0, 16 * SECTOR)), settled, "nothing lands after settling");
        assert_eq!(*acknowledged.borrow(), [1]);
        assert!(settled[2048..4096].iter().all(|byte| *byte == 1));
        assert!(settled[6144..8192].iter().all(|byte| *byte == 0), "submitted by a dead process");
        let second = settled[4096..6144].iter().filter(|byte| **byte == 2).count();
        assert!(seed % 2 == 0 || second == 0, "killed before it was submitted");
        if seed % 2 == 0 {
            landed[match second {
                0 => 0,
                2048 => 2,
                _ => 1,
            }] += 1;
        }
    }
    assert!(landed.iter().all(|count| *count > 2), "not, in part, wholly: {landed:?}");
}

#[test]
fn faults_come_when_they_are_due() {
    let executor = Executor::new(5, Chaos::default());
    let disk = disk(5);
    let handle = disk.open(Process::start());
    disk.inject(Injection { action: Action::Write, skip: 1, times: 2, effect: Effect::Fail });
    disk.limit(Some(4));
    let theirs = disk.clone();
    spawn(Process::WORLD, "test".into(), true, async move {
        for (number, fails) in [(0, false), (1, true), (2, true), (3, false)] {
            let result = handle.write(number * 512, Buffer::copy_of(&[9; 512]), false).await.1;
            assert_eq!(result.is_err(), fails, "write {number}");
        }
        theirs.limit(Some(theirs.allocated()));
        let full = handle.write(4096, Buffer::copy_of(&[9; 512]), false).await.1.expect_err("it is full");
        assert!(full.is_no_space());
        handle.write(0, Buffer::copy_of(&[8; 512]), false).await.1.expect("an overwrite needs no space");
    });
    finish(&executor);
    assert_eq!(disk.failures(Action::Write), 3);
}

#[test]
fn a_dropped_request_still_lands() {
    let executor = Executor::new(5, Chaos::default());
    let disk = disk(5);
    let handle = disk.open(Process::start());
    spawn(Process::WORLD, "test".into(), true, async move {
        let mut write = Box::pin(handle.write(0, Buffer::copy_of(&[3; 512]), false));
        let polled = poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx).is_pending())).await;
        assert!(polled);
    });
    finish(&executor);
    executor.drift(1000).expect("nothing panics");
    assert_eq!(disk.peek(ByteRange::new(0, 512)), [3; 512]);
    assert_eq!(disk.state().requests.len(), 0);
}

/// Writes a sector of each, has `between` happen, writes another, loses the power; gives what is left.
fn left_by_loss<F: Future<Output = ()> + 'static>(
    seed: u64,
    fua: bool,
    between: impl FnOnce(DiskHandle, Disk) -> F + 'static,
) -> [u8; 3] {
    let executor = Executor::new(seed, Chaos::default());
    let disk = disk(seed);
    let (handle, other) = (disk.open(Process::start()), disk.open(Process::start()));
    let lost = disk.clone();
    spawn(Process::WORLD, "test".into(), true, async move {
        handle.write(0, Buffer::copy_of(&[1; 1024]), fua).await.1.expect("no fault is armed");
        between(other, lost).await;
        handle.write(1024, Buffer::copy_of(&[2; 512]), false).await.1.expect("no fault is armed");
    });
    finish(&executor);
    disk.lose_power(&Cut::sampled(seed));
    assert!(disk.logged().is_empty());
    [0, 512, 1024].map(|at| disk.peek(ByteRange::new(at, 1))[0])
}

#[test]
fn a_loss_of_power_takes_sectors_that_were_not_flushed() {
    let outcomes = |fua, flush: bool, fail: bool| -> std::collections::BTreeSet<[u8; 3]> {
        (0..200)
            .map(|seed| {
                left_by_loss(seed, fua, move |handle, disk| async move {
                    if fail {
                        disk.inject(Injection { action: Action::Flush, skip: 0, times: 1, effect: Effect::Fail });
                        handle.flush().await.expect_err("a fault is armed");
                    }
                    if flush {
                        handle.flush().await.expect("no fault is armed");
                    }
                })
            })
            .collect()
    };
    let any: std::collections::BTreeSet<[u8; 3]> =
        (0..8_u8).map(|bits| [bits & 1, bits >> 1 & 1, 2 * (bits >> 2)]).collect();
    assert_eq!(outcomes(false, false, false), any, "torn within a write, and in any order");
    assert_eq!(outcomes(false, true, false), [[1, 1, 0], [1, 1, 2]].into());
    assert_eq!(outcomes(true, false, false), [[1, 1, 0], [1, 1, 2]].into());
    assert_eq!(outcomes(false, true, true), any, "a flush after one that failed covers nothing older");
}
