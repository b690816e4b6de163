//! A file system that hangs keeps what it was given, and nothing of what other files need.

mod support;

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use support::Mounted;
use tzero_io::{Backend, Buffer, File, Runtime, spawn, timeout, yield_now};

/// Far more than a file may keep busy.
const REQUESTS: u64 = 100;
const LARGE: usize = 128 << 10;

fn open(path: &Path) -> File {
    File::new(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap(), false)
}

async fn use_fully(file: &File, number: u64) {
    let bytes = Buffer::copy_of(&vec![number as u8 + 1; LARGE]);
    file.write_at(number * LARGE as u64, bytes, number.is_multiple_of(2)).await.1.unwrap();
    file.sync_data().await.unwrap();
    file.zero_range(number * LARGE as u64, 4096, true).await.unwrap();
    let (buffer, result) = file.read_at(number * LARGE as u64, Buffer::uncleared(LARGE)).await;
    assert_eq!(result.unwrap(), LARGE);
    assert!(buffer[..4096].iter().all(|byte| *byte == 0));
    assert!(buffer[4096..].iter().all(|byte| *byte == number as u8 + 1));
}

#[test]
fn a_file_system_that_hangs_stops_no_other() {
    let mounted = Mounted::new(&["mkfs.ext4", "-q"]);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for backend in [Backend::Ring, Backend::Threads] {
        let stuck = [open(&mounted.path().join("one")), open(&mounted.path().join("two"))];
        let live = open(&directory.path().join("live"));
        Runtime::new(backend).unwrap().block_on(async {
            let frozen = mounted.freeze();
            let mut tasks = Vec::new();
            for number in 0..REQUESTS {
                for file in stuck.clone() {
                    tasks.push(spawn(async move { use_fully(&file, number).await }));
                }
            }
            for _ in 0..100 {
                yield_now().await;
            }
            let used = async {
                for number in 0..4 {
                    use_fully(&live, number).await;
                }
            };
            let in_time = timeout(Duration::from_secs(15), used).await;
            drop(frozen);
            assert!(in_time.is_some(), "{backend:?}: another file system waits for the one that hangs");
            for task in tasks {
                task.await;
            }
        });
    }
}
