use std::fs;

use tzero_api::mover::{Access, Component, PROTOCOL, Tier};
use tzero_io::{Backend, Directory, Runtime, Storage};
use tzero_originals::{ModifiedMap, OnFull, Originals, RangeSet, Record, RecordState, SnapshotTable};

use super::*;

const SIZE: u64 = 64 << 10;

/// A snapshot without originals over a base of ones.
fn source(directory: &std::path::Path, released: Released) -> SnapshotSource {
    let storage = Directory::new(directory);
    let map = storage.open("map", ModifiedMap::<MappedFile>::NEW_LEN).unwrap();
    ModifiedMap::create_or_open(map, 4096, [1; 16]).unwrap();
    let table = storage.open("snapshots", SnapshotTable::<MappedFile>::LEN).unwrap();
    let table = SnapshotTable::create_or_open(table, [1; 16]).unwrap();
    let record = Record {
        id: SnapshotId([2; 16]),
        name: "backup-0badcafe".into(),
        epoch: Epoch(1),
        created_ns: 1,
        pause_ns: 0,
        size: SIZE,
        originals: Originals::Release,
        private: true,
        scoped: false,
        on_full: OnFull::Break,
        broken_at: 0,
        confirmed: false,
        state: RecordState::Live,
    };
    table.prepare(0, &record).unwrap();
    table.set_state(0, RecordState::Live, 0).unwrap();
    fs::write(directory.join("base"), vec![1; SIZE as usize]).unwrap();
    fs::write(directory.join("cache"), b"").unwrap();
    let begun = Begun {
        protocol: PROTOCOL,
        volume: "vm".into(),
        volume_id: SnapshotId([1; 16]).to_string(),
        generation: 1,
        size: SIZE,
        grain: 4096,
        snapshot: record.name,
        snapshot_id: record.id.to_string(),
        slot: 0,
        epoch: 1,
        t0_ns: 1,
        pause_us: 1,
        keep: false,
        private: true,
        ended: None,
        durability: tzero_api::control::Durability::Process,
        direct: false,
        components: vec![Component { size: SIZE, access: Access::Descriptor, place: "/base".into() }],
        tiers: vec![Tier { size: 0, access: Access::Descriptor }],
        gauge: false,
        view: None,
        released: None,
        scope: None,
    };
    let open = |name: &str| OwnedFd::from(File::open(directory.join(name)).unwrap());
    let files = ["map", "snapshots", "base", "cache"].map(open);
    let opened = SnapshotSource::open(&begun, files.into(), released);
    Runtime::new(Backend::Auto).unwrap().block_on(opened).unwrap()
}

#[test]
fn what_is_released_is_never_settled() {
    let settles = |source: &mut SnapshotSource, offset: u64| {
        let parts = (0..2).map(|part| ByteRange::new(offset + part * 4096, 4096));
        let content = |range: ByteRange| match range.start() % 8192 {
            0 => Content::Bytes(Buffer::copy_of(&[1; 4096])),
            _ => Content::Hole,
        };
        let parts = parts.map(|range| (range, content(range))).collect();
        Runtime::new(Backend::Auto).unwrap().block_on(source.settle(parts)).map(drop).map_err(|(range, fault)| {
            assert!(matches!(fault, SourceFault::Released), "{fault}");
            range.start()
        })
    };
    let mut known = RangeSet::default();
    known.insert(ByteRange::new(20 << 10, 1));
    let directory = tempfile::tempdir().unwrap();
    let released = Released::new(known, false);
    let mut source = source(directory.path(), released.clone());
    assert_eq!(settles(&mut source, 0), Ok(()));
    assert_eq!(settles(&mut source, 16 << 10), Err(20 << 10), "before this process");
    released.insert(ByteRange::new(0, 4096));
    assert_eq!(settles(&mut source, 0), Err(0), "by this process");
    assert_eq!(settles(&mut source, 32 << 10), Ok(()));
    // A snapshot that keeps its originals lets go of nothing, whatever is reported.
    let keeps = Released::new(RangeSet::default(), true);
    keeps.insert(ByteRange::new(0, SIZE));
    assert!(!keeps.overlaps(ByteRange::new(0, SIZE)));
    assert_eq!(keeps.missing(ByteRange::new(0, SIZE)), [ByteRange::new(0, SIZE)]);
}
