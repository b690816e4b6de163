//! Serves a file, a block device or memory to NBD clients, without any of tzero's engine: for trying clients against the
//! server alone. `device SOCKET THREADS (FILE [direct] | SIZE_IN_BYTES)`; exports `vol` and `vol@ro`.

#[path = "../tests/support/device.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod device;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use device::{DeviceExports, TestDevice};
use tzero_block::{BlockDevice, FileDevice};
use tzero_io::{Backend, Handle, Listener, Runtime};
use tzero_nbd::{Limits, Server};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, threads, what, options @ ..] = arguments.as_slice() else {
        eprintln!("device SOCKET THREADS (FILE [direct] | SIZE_IN_BYTES)");
        return ExitCode::from(2);
    };
    let threads = threads.parse().expect("a number of threads");
    if let Ok(size) = what.parse() {
        serve(Path::new(socket), threads, TestDevice::new(vec![0; size]));
    } else {
        let direct = options.iter().any(|option| option == "direct");
        let flags = if direct { 0o40000 } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(what).expect("the file opens");
        serve(Path::new(socket), threads, FileDevice::from_file(file, direct).expect("a device"));
    }
    ExitCode::SUCCESS
}

fn thread() -> Handle {
    let (ready, handle) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = Runtime::new(Backend::Auto).expect("a runtime");
        ready.send(runtime.handle()).expect("main waits");
        runtime.block_on(std::future::pending::<()>());
    });
    handle.recv().expect("the runtime starts")
}

fn serve<D: BlockDevice>(socket: &Path, threads: usize, device: D) {
    let minimum_block = device.geometry().alignment;
    let server = Arc::new(Server::new(DeviceExports { device: Arc::new(device), minimum_block }, Limits::default()));
    let threads: Vec<Handle> = (0..threads).map(|_| thread()).collect();
    let runtime = Runtime::new(Backend::Auto).expect("a runtime");
    runtime.block_on(async {
        let listener = Listener::unix(socket).expect("the socket can be made");
        for thread in threads.iter().cycle() {
            let stream = listener.accept().await.expect("a connection");
            let server = Arc::clone(&server);
            thread.spawn(move || async move {
                match server.serve_connection(stream).await {
                    Ok(end) => eprintln!("a client ended: {end:?}"),
                    Err(error) => eprintln!("a client was cut: {error}"),
                }
            });
        }
    });
}
