use std::rc::Rc;
use std::time::{Duration, Instant};
use std::cell::Cell;
use tzero_block::BlockDevice;
use tzero_io::{Backend, Buffer, Runtime, together};
use tzero_nbd::{ClientOptions, NbdDevice};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let uri = arguments[0].parse().expect("uri");
    let block: u64 = arguments[1].parse().unwrap();
    let depth: u64 = arguments[2].parse().unwrap();
    let write = arguments[3] == "write";
    let backend = if arguments.get(4).is_some_and(|b| b == "threads") { Backend::Threads } else { Backend::Ring };
    Runtime::new(backend).unwrap().block_on(async {
        let options = ClientOptions { request: if arguments.iter().any(|a| a == "notimer") { None } else { ClientOptions::default().request }, ..ClientOptions::default() };
        let device = NbdDevice::open(uri, options).await.expect("opens");
        let places = device.geometry().size / block;
        let done = Rc::new(Cell::new(0u64));
        let begun = Instant::now();
        let until = begun + Duration::from_secs(5);
        let (device, done) = (&device, &done);
        together((0..depth).map(|n| async move {
            let mut at = n * 7919;
            let mut buffer = Buffer::zeroed(block as usize);
            while Instant::now() < until {
                at = at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let place = (at >> 33) % places * block;
                let (back, result) = if write { device.write(place, buffer, false).await } else { device.read(place, buffer).await };
                result.expect("done");
                buffer = back;
                done.set(done.get() + 1);
            }
        })).await;
        let took = begun.elapsed().as_secs_f64();
        let n = done.get() as f64;
        eprintln!("{} bs={block} qd={depth}: {:.0} iops, {:.0} MiB/s, {:.1} us", arguments[3], n / took, n * block as f64 / took / 1048576.0, took / n * 1e6 * depth as f64);
    });
}
