//! A daemon with one volume and one snapshot: real original cache, map and table, and the mover's protocol; nothing
//! else.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use tzero_api::control;
use tzero_api::mover::{
    Access, Begun, Component, Destination, FailureCode, PROTOCOL, ReleasedPage, Reply, Request, Tier,
};
use tzero_block::{ByteRange, FileDevice, Mode};
use tzero_copy::BackupSource;
use tzero_io::{Backend, Buffer, Directory, MappedFile, Runtime, Storage, descriptors};
use tzero_originals::{
    BrokenReason, CacheLayout, Epoch, GrainIndex, Grains, ModifiedMap, OnFull, Original, OriginalCache, Originals,
    Payload, RangeSet, Record, RecordState, Sequence, SnapshotId, SnapshotTable,
};

pub const GRAIN: u64 = 4096;
const VOLUME: [u8; 16] = [0xAB; 16];
const EPOCH: Epoch = Epoch(4);
const SLOT: u32 = 2;

/// What the daemon does other than well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault {
    /// The connection ends at this `Captured`.
    pub lose_at_capture: Option<usize>,
    /// `Check` finds the snapshot broken.
    pub broken_at_check: bool,
    /// `Captured` is refused, as a stopping daemon does.
    pub stopping_at_capture: bool,
    /// The base is read past the page cache (which is no fault).
    pub direct: bool,
    /// What it says of the volume.
    pub durability: tzero_api::control::Durability,
    /// The snapshot keeps its originals and releases nothing (which is no fault).
    pub keeps: bool,
    /// The connection ends at `Recorded`.
    pub lose_at_recorded: bool,
    /// The original cache is short of space (which is no fault).
    pub short_of_space: bool,
    /// What was released is not said, as by an earlier daemon.
    pub silent_of_released: bool,
}

#[derive(Default)]
pub struct Heard {
    pub begun: usize,
    pub resumed: usize,
    pub recorded: usize,
    /// What the last `Begin` or `Resume` said of it.
    pub destination: Option<Destination>,
    pub captured: Vec<ByteRange>,
    pub captures: usize,
    pub delivered: Vec<ByteRange>,
    pub markers: usize,
    pub terminated: usize,
    pub finished: usize,
    pub abandoned: usize,
}

pub struct Daemon {
    pub directory: tempfile::TempDir,
    pub socket: PathBuf,
    pub base: PathBuf,
    t0: Mutex<Arc<Vec<u8>>>,
    size: u64,
    pub heard: Mutex<Heard>,
    pub fault: Mutex<Fault>,
    saved: Mutex<Vec<bool>>,
    snapshot: Mutex<Option<[u8; 16]>>,
    released: Mutex<RangeSet>,
    /// Kept originals are not released, whatever is reported.
    keeps: Mutex<bool>,
    /// The last original of a snapshot whose copy-on-write has ended.
    ended: Mutex<Option<u64>>,
    cache: OriginalCache<MappedFile, FileDevice>,
    table: SnapshotTable<MappedFile>,
}

impl Daemon {
    pub fn start(t0: Vec<u8>) -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let base = path("base");
        let file = File::create(&base).unwrap();
        file.set_len(t0.len() as u64).unwrap();
        for (index, block) in t0.chunks(GRAIN as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, index as u64 * GRAIN).unwrap();
            }
        }
        let storage = Directory::new(directory.path());
        let map = storage.open("map", ModifiedMap::<MappedFile>::NEW_LEN).unwrap();
        let map = ModifiedMap::create_or_open(map, GRAIN as u32, VOLUME).unwrap();
        let table = storage.open("snapshots", SnapshotTable::<MappedFile>::LEN).unwrap();
        let table = SnapshotTable::create_or_open(table, VOLUME).unwrap();
        File::create(path("originals")).unwrap();
        let device = FileDevice::open(&path("originals"), Mode { direct: false, writable: true }).unwrap();
        let grains = Grains::new(GRAIN as u32, t0.len() as u64).unwrap();
        let cache = OriginalCache::open(
            map,
            vec![],
            vec![],
            device.growing_to(1 << 30),
            CacheLayout::default(),
            grains,
            |_, _, _, _| true,
        );
        let socket = path("mover.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = Arc::new(Self {
            socket,
            base,
            heard: Mutex::default(),
            fault: Mutex::default(),
            saved: Mutex::new(vec![false; t0.len().div_ceil(GRAIN as usize)]),
            snapshot: Mutex::default(),
            released: Mutex::default(),
            keeps: Mutex::default(),
            ended: Mutex::default(),
            cache: cache.unwrap(),
            table,
            size: t0.len() as u64,
            t0: Mutex::new(Arc::new(t0)),
            directory,
        });
        // Not its owner: the directory goes with the test.
        let serving = Arc::downgrade(&daemon);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(daemon) = serving.upgrade() else { return };
                thread::spawn(move || daemon.converse(stream.unwrap()));
            }
        });
        daemon
    }

    pub fn source(&self) -> BackupSource {
        BackupSource::Volume { mover_socket: self.socket.clone(), volume: "vm".into(), snapshot: None }
    }

    /// What the volume held when the snapshot was taken.
    pub fn t0(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.t0.lock().unwrap())
    }

    pub fn now(&self) -> Vec<u8> {
        fs::read(&self.base).unwrap()
    }

    pub fn stands(&self) -> bool {
        self.snapshot.lock().unwrap().is_some()
    }

    /// The host overwrites a grain; its original is saved first, if a snapshot stands and the grain is still needed.
    pub fn host_write(&self, runtime: &Runtime, grain: u64, byte: u8) {
        let range = self.cache.grains().range(GrainIndex(grain));
        let mut saved = self.saved.lock().unwrap();
        let saves = self.stands() && self.ended.lock().unwrap().is_none();
        if saves && !std::mem::replace(&mut saved[grain as usize], true) {
            let t0 = self.t0();
            let original = &t0[range.start() as usize..range.end() as usize];
            let zero = original.iter().all(|byte| *byte == 0);
            let reservation = self.cache.reserve(1, u64::from(!zero)).unwrap();
            let payload = if zero {
                Payload::Zero
            } else {
                let slot = reservation.slots[0].start;
                runtime.block_on(self.cache.store(slot, Buffer::copy_of(original))).1.unwrap();
                Payload::Stored { offset: slot * GRAIN, checksum: crc32c::crc32c(original) }
            };
            let original = Original { grain: GrainIndex(grain), len: range.len() as u32, payload };
            self.cache.publish(reservation, EPOCH, &[original], None).unwrap();
        }
        let base = OpenOptions::new().write(true).open(&self.base).unwrap();
        base.write_all_at(&vec![byte; range.len() as usize], range.start()).unwrap();
    }

    /// One host, writing anywhere, until told to stop.
    pub fn host(self: &Arc<Self>, seed: u64, stop: tzero_copy::Cancel) -> thread::JoinHandle<u64> {
        let daemon = Arc::clone(self);
        thread::spawn(move || {
            let runtime = Runtime::new(Backend::Auto).unwrap();
            let mut random = super::Random(seed);
            let mut writes = 0;
            while !stop.is_cancelled() {
                let grain = random.below(daemon.cache.grains().count());
                daemon.host_write(&runtime, grain, random.next() as u8 | 1);
                writes += 1;
            }
            writes
        })
    }

    /// The snapshot breaks, in the table that movers read.
    pub fn break_snapshot(&self) {
        self.table.set_state(SLOT, RecordState::Broken(BrokenReason::CacheFull), 0).unwrap();
    }

    /// As if it had been deleted by name.
    pub fn delete_snapshot(&self) {
        *self.snapshot.lock().unwrap() = None;
        self.table.clear(SLOT).unwrap();
    }

    fn create_snapshot(&self) -> [u8; 16] {
        // The host stands still meanwhile.
        let mut saved = self.saved.lock().unwrap();
        saved.fill(false);
        *self.released.lock().unwrap() = RangeSet::default();
        *self.ended.lock().unwrap() = None;
        *self.t0.lock().unwrap() = Arc::new(self.now());
        let id = tzero_io::system::random_id();
        let record = Record {
            id: SnapshotId(id),
            name: "backup-0badcafe".into(),
            epoch: EPOCH,
            created_ns: 1_700_000_000_000_000_001,
            pause_ns: 42_000,
            size: self.size,
            originals: Originals::Release,
            private: true,
            scoped: false,
            on_full: OnFull::Break,
            broken_at: 0,
            confirmed: false,
            state: RecordState::Live,
        };
        self.table.prepare(SLOT, &record).unwrap();
        self.table.set_state(SLOT, RecordState::Live, 0).unwrap();
        self.table.set_epoch(EPOCH).unwrap();
        *self.snapshot.lock().unwrap() = Some(id);
        id
    }

    fn converse(&self, mut stream: UnixStream) {
        let lines = BufReader::new(stream.try_clone().unwrap());
        for line in lines.split(b'\n') {
            let Ok(line) = line else { return };
            let request: Request = serde_json::from_slice(&line).unwrap();
            let fault = *self.fault.lock().unwrap();
            let mut heard = self.heard.lock().unwrap();
            let reply = match request {
                Request::Begin { volume, .. } if volume != "vm" => failed(FailureCode::Unknown, "no such volume"),
                Request::Begin { destination, originals, .. } => {
                    heard.begun += 1;
                    *self.keeps.lock().unwrap() = fault.keeps || originals == Some(control::Originals::Keep);
                    heard.destination = destination;
                    let id = self.create_snapshot();
                    self.hand_over(&stream, id, fault);
                    continue;
                }
                Request::Resume { snapshot_id, destination, .. } => {
                    heard.resumed += 1;
                    heard.destination = destination;
                    match *self.snapshot.lock().unwrap() {
                        Some(id) if SnapshotId(id).to_string() == snapshot_id => {
                            self.hand_over(&stream, id, fault);
                            continue;
                        }
                        _ => failed(FailureCode::Unknown, "the snapshot is gone"),
                    }
                }
                Request::Recorded if fault.lose_at_recorded => return,
                Request::Recorded => {
                    heard.recorded += 1;
                    Reply::Recorded
                }
                Request::ReleasedFrom { start } => Reply::ReleasedRanges(self.released_page(start)),
                Request::Captured { ranges } => {
                    heard.captures += 1;
                    if fault.lose_at_capture == Some(heard.captures) {
                        return;
                    }
                    if fault.stopping_at_capture {
                        failed(FailureCode::Failed, "the daemon is stopping")
                    } else {
                        self.release(&mut heard, &ranges, *self.keeps.lock().unwrap());
                        Reply::Released { hurry: false }
                    }
                }
                Request::Delivered { ranges } => {
                    heard.delivered.extend(ranges.iter().map(|(offset, len)| ByteRange::new(*offset, *len)));
                    Reply::Released { hurry: fault.short_of_space }
                }
                Request::Marker => {
                    heard.markers += 1;
                    Reply::Boundary { up_to: self.cache.head().0 }
                }
                Request::Terminate => {
                    heard.terminated += 1;
                    Reply::Boundary { up_to: self.end_snapshot() }
                }
                Request::Check if fault.broken_at_check => {
                    failed(FailureCode::Broken, "the snapshot vm@backup is broken")
                }
                Request::Check => Reply::Good,
                Request::Finish => {
                    heard.finished += 1;
                    self.delete_snapshot();
                    Reply::Finished
                }
                Request::Abandon => {
                    heard.abandoned += 1;
                    self.delete_snapshot();
                    Reply::Finished
                }
            };
            drop(heard);
            if stream.write_all(&line_of(&reply)).is_err() {
                return;
            }
        }
    }

    /// What was released of the snapshot, from byte `start` on.
    fn released_page(&self, start: u64) -> ReleasedPage {
        let released = self.released.lock().unwrap();
        ReleasedPage::of(released.iter().map(|range| (range.start(), range.len())), start)
    }

    /// What is captured is not saved any more: who reads it again gets what the host wrote since.
    fn release(&self, heard: &mut Heard, ranges: &[(u64, u64)], keeps: bool) {
        let mut saved = self.saved.lock().unwrap();
        for (offset, len) in ranges {
            let range = ByteRange::new(*offset, *len);
            heard.captured.push(range);
            if keeps {
                continue;
            }
            self.released.lock().unwrap().insert(range);
            for grain in range.start() / GRAIN..range.end().div_ceil(GRAIN) {
                saved[grain as usize] = true;
            }
        }
    }

    /// The host stands still meanwhile.
    fn end_snapshot(&self) -> u64 {
        let _saved = self.saved.lock().unwrap();
        let end = *self.ended.lock().unwrap().get_or_insert(self.cache.head().0);
        self.table.set_state(SLOT, RecordState::Ended(Sequence(end)), 0).unwrap();
        end
    }

    fn hand_over(
        &self,
        stream: &UnixStream,
        id: [u8; 16],
        Fault { direct, durability, silent_of_released, .. }: Fault,
    ) {
        let begun = Begun {
            gauge: false,
            protocol: PROTOCOL,
            volume: "vm".into(),
            volume_id: SnapshotId(VOLUME).to_string(),
            generation: 1,
            size: self.size,
            grain: GRAIN as u32,
            snapshot: "backup-0badcafe".into(),
            snapshot_id: SnapshotId(id).to_string(),
            slot: SLOT,
            epoch: EPOCH.0,
            t0_ns: 1_700_000_000_000_000_001,
            pause_us: 42,
            keep: *self.keeps.lock().unwrap(),
            private: true,
            ended: *self.ended.lock().unwrap(),
            durability,
            direct,
            components: vec![Component {
                size: self.size,
                access: Access::Descriptor,
                place: self.base.clone().into(),
            }],
            tiers: vec![Tier { size: 0, access: Access::Descriptor }],
            view: None,
            released: (!silent_of_released).then(|| self.released_page(0)),
            scope: None,
        };
        let open = |name: &str| {
            let flags = if direct && name == "base" { tzero_io::system::DIRECT } else { 0 };
            OpenOptions::new().read(true).custom_flags(flags).open(self.directory.path().join(name)).unwrap()
        };
        let files = ["map", "snapshots", "base", "originals"].map(open);
        let line = line_of(&Reply::Begun(Box::new(begun)));
        let sent = descriptors::send(stream, &line, &files.each_ref().map(File::as_fd)).unwrap();
        (&*stream).write_all(&line[sent..]).unwrap();
    }
}

fn failed(code: FailureCode, message: &str) -> Reply {
    Reply::Failed { code, message: message.into() }
}

fn line_of(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).unwrap();
    line.push(b'\n');
    line
}
