//! Both backends of the runtime do the same.

use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tzero_io::{
    Backend, Buffer, File, Listener, Notify, Runtime, Stream, blocking, channel, sleep, spawn, timeout, yield_now,
};

fn on_both(test: impl Fn(&Runtime)) {
    for backend in [Backend::Ring, Backend::Threads] {
        let runtime = Runtime::new(backend).unwrap_or_else(|error| panic!("{backend:?}: {error}"));
        assert_eq!(runtime.has_ring(), backend == Backend::Ring);
        test(&runtime);
    }
}

#[test]
fn tasks_timers_and_threads() {
    on_both(|runtime| {
        let sum = runtime.block_on(async {
            let tasks: Vec<_> = (0..100u64)
                .map(|n| {
                    spawn(async move {
                        sleep(Duration::from_millis(n % 3)).await;
                        blocking(move || n).await
                    })
                })
                .collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        });
        assert_eq!(sum, 4950);
    });
}

#[test]
fn a_timeout_drops_what_is_late() {
    on_both(|runtime| {
        let begun = Instant::now();
        let result = runtime.block_on(timeout(Duration::from_millis(20), std::future::pending::<()>()));
        assert_eq!(result, None);
        assert!(begun.elapsed() >= Duration::from_millis(20));
        assert_eq!(runtime.block_on(timeout(Duration::from_secs(60), async { 7 })), Some(7));
    });
}

#[test]
fn other_threads_wake_and_spawn() {
    on_both(|runtime| {
        let handle = runtime.handle();
        let notify = Arc::new(Notify::default());
        let seen = Arc::new(AtomicUsize::new(0));
        let (sender, mut receiver) = channel::<usize>();
        let others: Vec<_> = (0..4)
            .map(|number| {
                let (handle, sender, seen, notify) = (handle.clone(), sender.clone(), seen.clone(), notify.clone());
                thread::spawn(move || {
                    for _ in 0..250 {
                        let (sender, seen, notify) = (sender.clone(), seen.clone(), notify.clone());
                        handle.spawn(move || async move {
                            seen.fetch_add(1, Ordering::SeqCst);
                            notify.notify_all();
                            sender.send(number).expect("the receiver is there");
                        });
                    }
                })
            })
            .collect();
        drop(sender);
        let count = runtime.block_on(async {
            let mut count = 0;
            while receiver.recv().await.is_some() {
                count += 1;
            }
            loop {
                let listen = notify.listen();
                if seen.load(Ordering::SeqCst) == 1000 {
                    break;
                }
                listen.await;
            }
            count
        });
        assert_eq!(count, 1000);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn files_read_back_what_was_written() {
    on_both(|runtime| {
        let file = File::new(tempfile::tempfile().unwrap(), false);
        runtime.block_on(async {
            for (offset, len) in [(0, 10), (5000, 100_000), (1 << 20, 3 << 20)] {
                let bytes: Vec<u8> = (0..len).map(|n: usize| (n * 7 + offset) as u8).collect();
                let (_, written) = file.write_at(offset as u64, Buffer::copy_of(&bytes), offset == 5000).await;
                written.unwrap();
                let (buffer, read) = file.read_at(offset as u64, Buffer::uncleared(len)).await;
                assert_eq!(read.unwrap(), len);
                assert_eq!(&buffer[..], &bytes[..]);
            }
            file.sync_data().await.unwrap();
            let end = (1 << 20) + (3 << 20);
            let (_, read) = file.read_at(end - 5, Buffer::uncleared(10)).await;
            assert_eq!(read.unwrap(), 5, "the file ends");
            file.zero_range(5000, 4096, true).await.unwrap();
            let (buffer, _) = file.read_at(5000, Buffer::uncleared(4096)).await;
            assert!(buffer.is_zero());
        });
    });
}

#[test]
fn many_requests_at_once() {
    on_both(|runtime| {
        let file = File::new(tempfile::tempfile().unwrap(), false);
        runtime.block_on(async {
            let tasks: Vec<_> = (0..1000u64)
                .map(|n| {
                    let file = file.clone();
                    spawn(async move {
                        let (buffer, result) =
                            file.write_at(n * 65536, Buffer::copy_of(&[n as u8; 65536]), false).await;
                        result.unwrap();
                        let (buffer, result) = file.read_at(n * 65536, buffer).await;
                        result.unwrap();
                        assert!(buffer.iter().all(|byte| *byte == n as u8));
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
    });
}

#[test]
fn sockets_carry_large_messages_both_ways() {
    on_both(|runtime| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = Listener::unix(&path).unwrap();
        runtime.block_on(async {
            let server = spawn(async move {
                let stream = listener.accept().await.unwrap();
                let mut bytes = vec![0; 5 << 20];
                stream.recv_exact(&mut bytes).await.unwrap();
                stream
                    .send_all(&[IoSlice::new(&bytes[..3]), IoSlice::new(&[]), IoSlice::new(&bytes[3..])])
                    .await
                    .unwrap();
            });
            let stream = Stream::connect_unix(&path).await.unwrap();
            let bytes: Vec<u8> = (0..5 << 20).map(|n: u32| (n / 3) as u8).collect();
            stream.send_all(&[IoSlice::new(&bytes)]).await.unwrap();
            let mut back = vec![0; bytes.len()];
            stream.recv_exact(&mut back).await.unwrap();
            assert!(back == bytes);
            server.await;
            assert_eq!(stream.recv(&mut back).await.unwrap(), 0);
        });
    });
}

#[test]
fn a_dropped_wait_frees_the_socket() {
    on_both(|runtime| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = Listener::unix(&path).unwrap();
        runtime.block_on(async {
            let client = Stream::connect_unix(&path).await.unwrap();
            let server = listener.accept().await.unwrap();
            assert!(timeout(Duration::from_millis(5), server.recv(&mut [0; 8])).await.is_none());
            drop(server);
            let end = timeout(Duration::from_secs(20), client.recv(&mut [0; 8])).await;
            assert_eq!(end.expect("the end of the stream is seen").unwrap(), 0);
        });
    });
}

#[test]
fn who_yields_lets_every_other_task_run_once() {
    on_both(|runtime| {
        runtime.block_on(async {
            let ran = Rc::new(Cell::new(0));
            let others: Vec<_> = (0..200)
                .map(|_| {
                    let ran = Rc::clone(&ran);
                    spawn(async move { ran.set(ran.get() + 1) })
                })
                .collect();
            yield_now().await;
            assert_eq!(ran.get(), 200);
            for other in others {
                other.await;
            }
        });
    });
}

#[test]
fn who_yields_in_a_loop_starves_no_completion() {
    on_both(|runtime| {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::unix(&directory.path().join("socket")).unwrap();
        runtime.block_on(async {
            let client = Stream::connect_unix(&directory.path().join("socket")).await.unwrap();
            let server = listener.accept().await.unwrap();
            let received = Rc::new(Cell::new(false));
            let seen = Rc::clone(&received);
            let waiter = spawn(async move {
                server.recv(&mut [0; 1]).await.unwrap();
                seen.set(true);
            });
            yield_now().await;
            client.send_all(&[IoSlice::new(b"x")]).await.unwrap();
            // Readiness is there: the reactor's very next turns must find it.
            let mut rounds = 0;
            while !received.get() {
                rounds += 1;
                assert!(rounds < 10, "completions wait behind a task that yields");
                yield_now().await;
            }
            waiter.await;
        });
    });
}

#[test]
fn what_comes_later_is_received_into_a_buffer_that_comes_back() {
    on_both(|runtime| {
        runtime.block_on(async {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
            let (ours, theirs) = (Stream::from_unix(ours).expect("ours"), Stream::from_unix(theirs).expect("theirs"));
            let later = spawn(async move {
                let (buffer, result) = ours.recv_later(Buffer::zeroed(4096), 100..4096).await;
                (ours, buffer, result)
            });
            sleep(Duration::from_millis(5)).await;
            theirs.send_all(&[IoSlice::new(b"late")]).await.expect("sent");
            let (ours, buffer, result) = later.await;
            assert_eq!((result.expect("received"), &buffer[98..106]), (4, &b"\0\0late\0\0"[..]));
            let dropped = timeout(Duration::from_millis(5), ours.recv_later(buffer, 0..4096)).await;
            assert!(dropped.is_none());
            drop(theirs);
            let (_, result) = ours.recv_later(Buffer::zeroed(4096), 0..4096).await;
            assert_eq!(result.expect("the end"), 0);
        });
    });
}
