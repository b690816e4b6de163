//! What an unfinished copy has done so far, so that it can go on with the same T0 after anything.
//!
//! The file is described in `docs/formats/journal.md`: a sealed header that says which copy of what this is, then one
//! record of fixed size for every chunk, appended once the chunk's bytes are in the destination.
//!
//! # Invariants
//! 1. A record is written after the chunk's bytes and before the daemon hears that the chunk is captured. So what was
//!    released is always in the journal, and what is in the journal is always in the destination.
//! 2. A record is believed only as a whole, and only in the journal that it was made for: its checksum covers the
//!    copy's id.
//! 3. The last record of a chunk counts. The first record that does not check ends the journal: nothing after it
//!    counts.
//! 4. Whoever writes a destination holds the lock of its journal from before the first byte until after the last
//!    rename.
//! 5. All space is taken at the start: appending needs none.
//!
//! Records reach the page cache, not the disk: they survive the writer. No run that goes on takes them on trust: every
//! recorded chunk is read again and compared (see `backup::recheck`), and from the medium where pages may have been lost:
//! on another boot than the header names, and after the word of doubt, which is set once the destination has failed to
//! take or to keep something. The kernel says so once and then forgets, and with it the pages that it could not write.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tzero_io::{LockError, lock_exclusive};

use crate::digests::{CHUNK, chunk_count};
use crate::manifest::{DeviceRecord, ModeAsked, ModeUsed, Outboard, VolumeRecord};
use crate::patience::patiently;
use crate::{ChunkDigest, CopyId, Timestamp, durable, hex, opening};

const MAGIC: [u8; 8] = *b"TZEROJNL";
/// Newest version that is read, and the one that is written.
const VERSION: u32 = 2;
/// Oldest version that is read: it knew mode `timezero` and plain sources only.
const OLDEST_VERSION: u32 = 1;
/// Bytes before the first record.
pub(crate) const HEADER_LEN: u64 = 16_384;
const TEXT_AT: usize = 48;
/// Where the word of doubt is, at the end of the header and outside its seal: it is stored in place, which takes no space.
const DOUBT_AT: u64 = HEADER_LEN - 8;
const DOUBT: [u8; 8] = *b"TZERODBT";
/// Bytes of a record.
pub(crate) const RECORD_LEN: usize = 80;
const CHECKED_LEN: usize = RECORD_LEN - 8;
/// A chunk has at most this many records: found bad and copied again on as many boots.
const RECORDS_PER_CHUNK: u64 = 8;
/// A journal for more chunks than this is refused, so that a forged header cannot ask for memory.
const MOST_CHUNKS: u64 = 1 << 26;

const DATA: u64 = 1;
const ZERO: u64 = 2;
const LOST: u64 = 3;
const BASE_DATA: u64 = 4;
const BASE_ZERO: u64 = 5;
const LAID_DATA: u64 = 6;
const LAID_ZERO: u64 = 7;
const BOUNDARY: u64 = 8;

/// The snapshot that an unfinished copy reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// Stable id (32 hex digits).
    pub(crate) id: String,
    /// Name without the volume's.
    pub(crate) name: String,
    /// It was made for this copy alone and goes with it.
    pub(crate) private: bool,
}

/// The plain file or device that an unfinished copy reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlainRecord {
    /// Absolute path.
    pub(crate) path: PathBuf,
    /// Its modification time when the copy began, in nanoseconds.
    pub(crate) modified_ns: i64,
}

/// Which copy of what this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JournalHeader {
    pub(crate) copy: CopyId,
    pub(crate) volume: VolumeRecord,
    pub(crate) snapshot: Option<SnapshotRecord>,
    pub(crate) plain: Option<PlainRecord>,
    pub(crate) t0: Timestamp,
    pub(crate) pause_us: u64,
    pub(crate) mode_asked: ModeAsked,
    /// What is done.
    #[serde(default = "ModeUsed::of_version_1")]
    pub(crate) mode_used: ModeUsed,
    /// How, where it is an outboard copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outboard: Option<Outboard>,
    pub(crate) chunk: u64,
    /// An existing destination may be replaced at the end.
    pub(crate) replace: bool,
    /// Inode of the unfinished image; absent for a device.
    pub(crate) inode: Option<u64>,
    /// The device that is being written.
    pub(crate) device: Option<DeviceRecord>,
    /// The boot on which the copy began (32 hex digits).
    pub(crate) boot: String,
}

impl JournalHeader {
    pub(crate) fn chunks(&self) -> u64 {
        chunk_count(self.chunk, self.volume.size)
    }

    /// Records that a run which is not interrupted writes.
    fn records(&self) -> u64 {
        if self.outboard.is_some() { 2 * self.chunks() + 1 } else { self.chunks() }
    }
}

/// What of a chunk is in the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The base's bytes, read with no regard to updates. They are T0's where no original lies over them.
    Base,
    /// The base's bytes and, from some on, originals over them. The digest is that of T0, with all of them.
    Laid,
    /// The bytes of T0.
    Final,
}

/// A chunk that is in the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRecord {
    pub(crate) stage: Stage,
    pub(crate) digest: ChunkDigest,
    pub(crate) read: u64,
    pub(crate) changed: u64,
    pub(crate) written: u64,
}

/// Why a journal cannot be used.
#[derive(Debug)]
pub(crate) enum JournalFault {
    /// Another run is writing this destination.
    Locked,
    /// What stands there is no journal, and somebody may need it.
    Foreign,
    /// The operating system's word.
    Io(io::Error),
}

impl From<io::Error> for JournalFault {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

impl fmt::Display for JournalFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("another backup is writing there"),
            Self::Foreign => f.write_str("it is no journal"),
            Self::Io(source) => source.fmt(f),
        }
    }
}

/// What an earlier run left in a journal.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) header: JournalHeader,
    pub(crate) records: BTreeMap<u64, ChunkRecord>,
    /// The outboard copy of the base is complete, and these originals belong to it: all up to this sequence.
    pub(crate) boundary: Option<u64>,
    /// What is recorded may not be in the destination.
    pub(crate) doubted: bool,
    next: u64,
}

/// The right to write a destination: its journal's lock.
#[derive(Debug)]
pub(crate) struct Claim {
    file: File,
    path: PathBuf,
}

impl Claim {
    /// Locks the journal at `path`, which is made if it was not there. One that a killed run may still hold is waited for.
    pub(crate) fn take(path: &Path) -> Result<Self, JournalFault> {
        patiently(|| Self::try_take(path), |fault| matches!(fault, JournalFault::Locked))
    }

    fn try_take(path: &Path) -> Result<Self, JournalFault> {
        loop {
            let file = match opening::open_or_create(path, durable::PRIVATE) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(JournalFault::Foreign),
                other => other?,
            };
            match lock_exclusive(&file) {
                Ok(()) => {}
                Err(LockError::Held) => return Err(JournalFault::Locked),
                Err(LockError::Failed(source)) => return Err(JournalFault::Io(source)),
            }
            // The one who held it may have removed it: then the lock is on a file without a name.
            match fs::metadata(path) {
                Ok(there) if there.ino() == file.metadata()?.ino() => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => continue,
            }
            return match begins(&file)? {
                true => Ok(Self { file, path: path.to_owned() }),
                false => Err(JournalFault::Foreign),
            };
        }
    }

    /// Whether a run has written anything into it.
    pub(crate) fn is_begun(&self) -> io::Result<bool> {
        self.file.metadata().map(|metadata| metadata.len() > 0)
    }

    /// What is in it; `None` where there is nothing that can be believed.
    pub(crate) fn load(&self) -> io::Result<Option<Left>> {
        load(&self.file)
    }

    /// Forgets whatever was in it.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Starts afresh: whatever was in it is gone. The journal shares the lock with `self`.
    pub(crate) fn start(&self, header: JournalHeader) -> io::Result<Journal> {
        let text = serde_json::to_vec(&header).expect("a header has nothing that JSON cannot say");
        if text.len() > DOUBT_AT as usize - TEXT_AT || header.chunks() > MOST_CHUNKS {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.clear()?;
        // First, so that whoever finds part of it knows whose it is.
        self.file.write_all_at(&MAGIC, 0)?;
        // Zeroes, not a hole: space for every record is taken here.
        let len = HEADER_LEN + header.records() * RECORD_LEN as u64;
        let zeroes = vec![0; 1 << 16];
        let mut at = MAGIC.len() as u64;
        while at < len {
            let now = (len - at).min(zeroes.len() as u64);
            self.file.write_all_at(&zeroes[..now as usize], at)?;
            at += now;
        }
        let mut head = vec![0; TEXT_AT];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[12..16].copy_from_slice(&(text.len() as u32).to_le_bytes());
        let seal = seal(&head[..16], &text);
        head[16..48].copy_from_slice(&seal);
        head.extend_from_slice(&text);
        self.file.write_all_at(&head, 0)?;
        self.file.sync_all()?;
        durable::sync_parent(&self.path)?;
        Ok(Journal { file: self.file.try_clone()?, path: self.path.clone(), header, doubted: false, next: HEADER_LEN })
    }

    /// Goes on where the earlier run left off.
    pub(crate) fn resume(self, left: &Left) -> Journal {
        Journal {
            file: self.file,
            path: self.path,
            header: left.header.clone(),
            doubted: left.doubted,
            next: left.next,
        }
    }

    /// Removes the journal. The lock ends with `self`.
    pub(crate) fn remove(self) -> io::Result<()> {
        durable::remove(&self.path)
    }
}

/// A journal that is being written.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    pub(crate) header: JournalHeader,
    doubted: bool,
    next: u64,
}

impl Journal {
    /// What the journal at `path` is of, without taking its lock: for telling, not for writing.
    pub(crate) fn peek(path: &Path) -> Option<JournalHeader> {
        load(&opening::open(path).ok()?).ok().flatten().map(|left| left.header)
    }

    /// Records that chunk `index` is in the destination.
    pub(crate) fn append(&mut self, index: u64, record: &ChunkRecord) -> io::Result<()> {
        let (kinds, digest) = match record.digest {
            ChunkDigest::Data(digest) => ([DATA, BASE_DATA, LAID_DATA], digest),
            ChunkDigest::Zero => ([ZERO, BASE_ZERO, LAID_ZERO], [0; 32]),
        };
        let kind = match record.stage {
            Stage::Final => kinds[0],
            Stage::Base => kinds[1],
            Stage::Laid => kinds[2],
        };
        self.put(index, kind, digest, [record.read, record.changed, record.written])
    }

    /// Takes back what was recorded of chunk `index`.
    pub(crate) fn append_lost(&mut self, index: u64) -> io::Result<()> {
        self.put(index, LOST, [0; 32], [0; 3])
    }

    /// Records that the outboard copy of the base is complete, and which originals belong to it.
    pub(crate) fn append_boundary(&mut self, up_to: u64) -> io::Result<()> {
        self.put(0, BOUNDARY, [0; 32], [up_to, 0, 0])
    }

    /// Takes back that it is complete: some of it is read again.
    pub(crate) fn append_no_boundary(&mut self) -> io::Result<()> {
        self.put(1, BOUNDARY, [0; 32], [0, 0, 0])
    }

    /// The file, for making durable what was recorded.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Whether what is recorded may not be in the destination.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// The destination has failed: whoever goes on must not trust what is recorded. Durable on return.
    pub(crate) fn doubt(&mut self) -> io::Result<()> {
        if !self.doubted {
            self.file.write_all_at(&DOUBT, DOUBT_AT)?;
            self.file.sync_data()?;
            self.doubted = true;
        }
        Ok(())
    }

    /// Everything that is recorded was found in the destination.
    pub(crate) fn trust(&mut self) -> io::Result<()> {
        if self.doubted {
            self.file.write_all_at(&[0; 8], DOUBT_AT)?;
            self.doubted = false;
        }
        Ok(())
    }

    fn put(&mut self, index: u64, kind: u64, digest: [u8; 32], counts: [u64; 3]) -> io::Result<()> {
        let mut bytes = [0; RECORD_LEN];
        bytes[..8].copy_from_slice(&index.to_le_bytes());
        bytes[8..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..48].copy_from_slice(&digest);
        for (at, count) in (48..).step_by(8).zip(counts) {
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
        }
        let sum = checksum(self.header.copy, &bytes[..CHECKED_LEN]);
        bytes[CHECKED_LEN..].copy_from_slice(&sum);
        self.file.write_all_at(&bytes, self.next)?;
        self.next += RECORD_LEN as u64;
        Ok(())
    }

    /// Removes it: the copy is declared or given up.
    pub(crate) fn remove(self) -> io::Result<()> {
        durable::remove(&self.path)
    }
}

fn seal(head: &[u8], text: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(text).finalize().as_bytes()
}

fn checksum(copy: CopyId, bytes: &[u8]) -> [u8; 8] {
    let hash = blake3::Hasher::new().update(copy.as_bytes()).update(bytes).finalize();
    *hash.as_bytes().first_chunk().expect("a digest is longer than eight bytes")
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Whether a file begins as a journal does, or has nothing in it.
fn begins(file: &File) -> io::Result<bool> {
    let mut head = [0; MAGIC.len()];
    let count = file.read_at(&mut head, 0)?;
    Ok(head[..count] == MAGIC[..count])
}

/// Whether what stands at `path` is a journal of whatever worth, and not an empty one.
pub(crate) fn is_one(path: &Path) -> bool {
    let look = || {
        let file = opening::open(path)?;
        Ok::<_, io::Error>(file.metadata()?.len() > 0 && begins(&file)?)
    };
    look().unwrap_or(false)
}

fn load(file: &File) -> io::Result<Option<Left>> {
    let mut head = vec![0; HEADER_LEN as usize];
    match file.read_exact_at(&mut head, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let Some(header) = parse_header(&head) else { return Ok(None) };
    // Whatever is not plainly no doubt is one.
    let doubted = head[DOUBT_AT as usize..] != [0; 8];
    let most = (header.chunks() + 1) * RECORDS_PER_CHUNK;
    let (mut records, mut boundary) = (BTreeMap::new(), None);
    let mut next = HEADER_LEN;
    let mut reader = BufReader::with_capacity(1 << 16, FileFrom { file, at: HEADER_LEN });
    let mut bytes = [0; RECORD_LEN];
    for _ in 0..most {
        match reader.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        match parse_record(&header, &bytes) {
            None => break,
            Some(Parsed::Chunk(index, record)) => drop(records.insert(index, record)),
            Some(Parsed::Lost(index)) => drop(records.remove(&index)),
            Some(Parsed::Boundary(up_to)) => boundary = up_to,
        }
        next += RECORD_LEN as u64;
    }
    Ok(Some(Left { header, records, boundary, doubted, next }))
}

fn parse_header(head: &[u8]) -> Option<JournalHeader> {
    let version = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
    let len = u32::from_le_bytes(head[12..16].try_into().expect("four bytes")) as usize;
    if head[..8] != MAGIC || !(OLDEST_VERSION..=VERSION).contains(&version) {
        return None;
    }
    let text = head[..DOUBT_AT as usize].get(TEXT_AT..TEXT_AT.checked_add(len)?)?;
    if seal(&head[..16], text) != head[16..48] {
        return None;
    }
    let header: JournalHeader = serde_json::from_slice(text).ok()?;
    let coherent = header.chunk.is_power_of_two()
        && header.chunk >= 4096
        && header.chunks() <= MOST_CHUNKS
        && header.snapshot.is_some() != header.plain.is_some()
        && header.inode.is_some() != header.device.is_some()
        && header.outboard.is_some() == (header.mode_used == ModeUsed::Outboard)
        && (header.outboard.is_none() || header.chunk == CHUNK)
        && hex::decode::<16>(&header.boot).is_some();
    coherent.then_some(header)
}

/// What a record says.
enum Parsed {
    Chunk(u64, ChunkRecord),
    /// What was recorded of the chunk does not count.
    Lost(u64),
    /// The outboard copy of the base is complete up to this original, or is not any more.
    Boundary(Option<u64>),
}

fn parse_record(header: &JournalHeader, bytes: &[u8; RECORD_LEN]) -> Option<Parsed> {
    if checksum(header.copy, &bytes[..CHECKED_LEN]) != bytes[CHECKED_LEN..] {
        return None;
    }
    let index = word(bytes, 0);
    if word(bytes, 8) == BOUNDARY {
        return Some(Parsed::Boundary((index == 0).then(|| word(bytes, 48))));
    }
    if index >= header.chunks() {
        return None;
    }
    let data = ChunkDigest::Data(bytes[16..48].try_into().expect("32 bytes"));
    let (stage, digest) = match word(bytes, 8) {
        DATA => (Stage::Final, data),
        ZERO => (Stage::Final, ChunkDigest::Zero),
        BASE_DATA => (Stage::Base, data),
        BASE_ZERO => (Stage::Base, ChunkDigest::Zero),
        LAID_DATA => (Stage::Laid, data),
        LAID_ZERO => (Stage::Laid, ChunkDigest::Zero),
        LOST => return Some(Parsed::Lost(index)),
        _ => return None,
    };
    let counts = [48, 56, 64].map(|at| word(bytes, at));
    Some(Parsed::Chunk(index, ChunkRecord { stage, digest, read: counts[0], changed: counts[1], written: counts[2] }))
}

struct FileFrom<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FileFrom<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
