//! Connecting, names, and sending what fits.

use std::io::{ErrorKind, IoSlice, Read};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use tzero_io::{Backend, Listener, Runtime, Stream, resolve, spawn, timeout, together, yield_now};

fn on_both(test: impl AsyncFn()) {
    for backend in [Backend::Ring, Backend::Threads] {
        Runtime::new(backend).unwrap().block_on(test());
    }
}

#[test]
fn a_connection_over_tcp() {
    on_both(async || {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = Listener::tcp(address.parse().unwrap()).unwrap();
            let client = Stream::connect_tcp(listener.local_addr().unwrap()).await.unwrap();
            client.watch_peer(Duration::from_secs(20)).unwrap();
            let server = listener.accept().await.unwrap();
            client.send_all(&[IoSlice::new(b"hello")]).await.unwrap();
            server.readable().await.unwrap();
            let mut bytes = [0; 5];
            server.recv_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"hello");
        }
    });
}

#[test]
fn nobody_listens() {
    on_both(async || {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = Stream::connect_tcp(free).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(Stream::connect_unix(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(Stream::connect_unix(&path).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        for bad in ["", "a\0b", &"x".repeat(108)] {
            assert_eq!(Stream::connect_unix(Path::new(bad)).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let longest = directory.path().join("y".repeat(107 - directory.path().as_os_str().len() - 1));
        let _listener = UnixListener::bind(&longest).unwrap();
        Stream::connect_unix(&longest).await.unwrap();
    });
}

#[test]
fn a_listener_whose_queue_is_full_is_waited_for() {
    on_both(async || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        loop {
            match timeout(Duration::from_millis(20), Stream::connect_unix(&path)).await {
                Some(connected) => waiting.push(connected.unwrap()),
                None => break,
            }
            assert!(waiting.len() < 100_000, "the queue has no end");
        }
        let (late, place) = (
            spawn({
                let path = path.clone();
                async move { Stream::connect_unix(&path).await }
            }),
            listener.accept(),
        );
        place.unwrap();
        late.await.unwrap();
    });
}

#[test]
fn names_and_numbers() {
    on_both(async || {
        let found = resolve("127.0.0.1", 7).await.unwrap();
        assert_eq!(
            found.iter().map(|address| (address.ip(), address.port())).collect::<Vec<_>>(),
            [(IpAddr::V4(Ipv4Addr::LOCALHOST), 7)]
        );
        assert_eq!(resolve("::1", 7).await.unwrap().len(), 1);
        let names = together(["localhost", "localhost"].map(|name| resolve(name, 9))).await;
        assert!(names.into_iter().all(|found| found.unwrap().iter().all(|address| address.ip().is_loopback())));
    });
}

#[test]
fn what_fits_is_sent_and_no_more() {
    on_both(async || {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = Stream::from_unix(ours).unwrap();
        let bytes: Vec<u8> = (0..1 << 22).map(|n: u32| (n / 5) as u8).collect();
        let mut sent = stream.send(&[IoSlice::new(&bytes[..7]), IoSlice::new(&bytes[7..])]).await.unwrap();
        assert!(sent < bytes.len());
        loop {
            match stream.try_send(&[IoSlice::new(&bytes[sent..])]) {
                Ok(count) => sent += count,
                Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        while sent < bytes.len() {
            sent += stream.send(&[IoSlice::new(&bytes[sent..])]).await.unwrap();
            yield_now().await;
        }
        stream.shutdown();
        assert!(reader.join().unwrap() == bytes);
    });
}
