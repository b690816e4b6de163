use super::*;

fn peek(path: &Path) -> io::Result<Option<Left>> {
    load(&File::open(path)?)
}

fn header() -> JournalHeader {
    JournalHeader {
        copy: "00112233445566778899aabbccddeeff".parse().unwrap(),
        volume: VolumeRecord { name: "vm".into(), id: "ab".repeat(16), generation: 1, size: 5 * 4096 - 7 },
        snapshot: Some(SnapshotRecord { id: "cd".repeat(16), name: "backup-01234567".into(), private: true }),
        plain: None,
        t0: Timestamp(5),
        pause_us: 9,
        mode_asked: ModeAsked::Auto,
        mode_used: ModeUsed::TimeZero,
        outboard: None,
        chunk: 4096,
        replace: false,
        inode: Some(12),
        device: None,
        boot: "ef".repeat(16),
    }
}

fn record(seed: u8) -> ChunkRecord {
    let digest = if seed == 0 { ChunkDigest::Zero } else { ChunkDigest::Data([seed; 32]) };
    ChunkRecord { stage: Stage::Final, digest, read: 1, changed: 2, written: u64::from(seed) }
}

fn filled(path: &Path) -> Vec<u8> {
    let mut journal = Claim::take(path).unwrap().start(header()).unwrap();
    for (index, seed) in [(0, 1), (2, 0), (1, 3)] {
        journal.append(index, &record(seed)).unwrap();
    }
    drop(journal);
    fs::read(path).unwrap()
}

#[test]
fn goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path);
    let claim = Claim::take(&path).unwrap();
    let left = claim.load().unwrap().unwrap();
    assert_eq!(left.header, header());
    assert_eq!(left.records, BTreeMap::from([(0, record(1)), (1, record(3)), (2, record(0))]));
    let mut journal = claim.resume(&left);
    journal.append(4, &record(5)).unwrap();
    journal.append_lost(0).unwrap();
    drop(journal);
    let left = peek(&path).unwrap().unwrap();
    assert_eq!(left.records.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
}

#[test]
fn doubt_outlives_the_run_and_ends_with_trust() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path);
    let resume = || {
        let claim = Claim::take(&path).unwrap();
        let left = claim.load().unwrap().unwrap();
        claim.resume(&left)
    };
    let mut journal = resume();
    assert!(!journal.is_doubted());
    journal.doubt().unwrap();
    drop(journal);
    assert_eq!(peek(&path).unwrap().unwrap().records.len(), 3, "what it is about is still known");
    let mut journal = resume();
    assert!(journal.is_doubted());
    journal.trust().unwrap();
    drop(journal);
    assert!(!resume().is_doubted());
    // Anything but zeroes is doubt.
    File::options().write(true).open(&path).unwrap().write_all_at(&[1], HEADER_LEN - 1).unwrap();
    assert!(resume().is_doubted());
    let claim = Claim::take(&path).unwrap();
    assert!(!claim.start(header()).unwrap().is_doubted(), "another copy starts with none");
}

#[test]
fn torn_at_every_byte_it_keeps_what_was_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let bytes = filled(&path);
    let torn = dir.path().join("torn");
    let records_end = HEADER_LEN as usize + 3 * RECORD_LEN;
    let text_end = TEXT_AT + serde_json::to_vec(&header()).unwrap().len();
    for len in (0..text_end + 64).chain(HEADER_LEN as usize - 64..records_end + 1) {
        // Either the file ends there, or it goes on with zeroes.
        for padded in [false, true] {
            let mut part = bytes[..len].to_vec();
            if padded {
                part.resize(bytes.len(), 0);
            }
            fs::write(&torn, &part).unwrap();
            let left = peek(&torn).unwrap();
            if len < text_end || (!padded && len < HEADER_LEN as usize) {
                assert!(left.is_none(), "{len}");
                continue;
            }
            let whole = len.saturating_sub(HEADER_LEN as usize) / RECORD_LEN;
            assert_eq!(left.unwrap().records.len(), whole, "{len}");
        }
    }
}

#[test]
fn a_changed_byte_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let bytes = filled(&path);
    let text_end = TEXT_AT + serde_json::to_vec(&header()).unwrap().len();
    for at in (0..text_end).chain(HEADER_LEN as usize..HEADER_LEN as usize + 3 * RECORD_LEN) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x41;
        fs::write(&path, &bad).unwrap();
        let left = peek(&path).unwrap();
        match at.checked_sub(HEADER_LEN as usize) {
            None => assert!(left.is_none(), "{at}"),
            Some(at) => assert_eq!(left.unwrap().records.len(), at / RECORD_LEN, "{at}"),
        }
    }
}

#[test]
fn another_copys_records_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let old = filled(&path);
    let other = JournalHeader { copy: CopyId::random(), ..header() };
    drop(Claim::take(&path).unwrap().start(other).unwrap());
    let mut mixed = fs::read(&path).unwrap();
    mixed[HEADER_LEN as usize..].copy_from_slice(&old[HEADER_LEN as usize..]);
    fs::write(&path, &mixed).unwrap();
    assert!(peek(&path).unwrap().unwrap().records.is_empty());
}

#[test]
fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let first = Claim::take(&path).unwrap();
    assert!(matches!(Claim::take(&path), Err(JournalFault::Locked)));
    first.remove().unwrap();
    assert!(Claim::take(&path).unwrap().load().unwrap().is_none());
}

#[test]
fn space_is_taken_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    drop(Claim::take(&path).unwrap().start(header()).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), HEADER_LEN + 5 * RECORD_LEN as u64);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn version_1_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    fs::write(&path, include_bytes!("../../fixtures/journal-1")).unwrap();
    let left = peek(&path).unwrap().unwrap();
    assert_eq!((left.header.volume.size, left.records.len(), left.boundary), (900_000_000, 19, None));
    assert!(left.header.plain.is_some() && left.header.outboard.is_none());
    assert!(left.records.values().all(|record| record.stage == Stage::Final));
    let claim = Claim::take(&path).unwrap();
    let mut journal = claim.resume(&left);
    journal.append(19, &record(5)).unwrap();
    drop(journal);
    assert_eq!(peek(&path).unwrap().unwrap().records.len(), 20);
}

#[test]
fn what_of_an_outboard_copy_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let outboard = Some(Outboard::default());
    let header = JournalHeader {
        mode_used: ModeUsed::Outboard,
        outboard,
        chunk: CHUNK,
        volume: VolumeRecord { size: 5 * CHUNK - 7, ..header().volume },
        ..header()
    };
    let mut journal = Claim::take(&path).unwrap().start(header.clone()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), HEADER_LEN + 11 * RECORD_LEN as u64, "room for all there will be");
    let at = |stage, seed| ChunkRecord { stage, ..record(seed) };
    for index in 0..5 {
        journal.append(index, &at(Stage::Base, index as u8)).unwrap();
    }
    journal.append_boundary(u64::MAX - 1).unwrap();
    journal.append(3, &at(Stage::Laid, 9)).unwrap();
    journal.append(4, &at(Stage::Laid, 0)).unwrap();
    let left = peek(&path).unwrap().unwrap();
    assert_eq!((left.header, left.boundary), (header, Some(u64::MAX - 1)));
    let stages: Vec<_> =
        left.records.values().map(|record| (record.stage, record.digest == ChunkDigest::Zero)).collect();
    let (base, laid) = (Stage::Base, Stage::Laid);
    assert_eq!(stages, [(base, true), (base, false), (base, false), (laid, false), (laid, true)]);
    journal.append_no_boundary().unwrap();
    assert_eq!(peek(&path).unwrap().unwrap().boundary, None);
}
