//! What the files of a volume's state are like, before the engine takes them over.
//!
//! The engine makes what is all new. A volume that was served before has nothing new: what is missing or empty then is lost, and must not
//! be taken for a volume without snapshots. Nothing is changed here.
//!
//! | file | is right when |
//! |---|---|
//! | snapshot table | it is there, whole, of this version and this volume |
//! | modified map | the same, and of this grain and these components |
//! | original cache | each of its tiers: it is the file that was made for this volume, or holds its originals; it reaches to the end of each; those that are sampled fit their checksums |
//!
//! After a loss of power no originals are compared: the snapshots are broken anyhow, or the originals are found by their records, and the map
//! is not looked at.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tzero_engine::{MAP_NAME, TABLE_NAME};
use tzero_io::MappedFile;
use tzero_originals::{Components, Entry, MapError, ModifiedMap, Payload, RecordState, SnapshotTable, TableError};

use crate::held::open_file;
use crate::store::Store;

/// How many originals are compared with their checksums.
const SAMPLES: usize = 64;

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Missing,
    Damaged,
    Foreign,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Damaged => "is damaged",
            Self::Foreign => "belongs to another volume",
        })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) table: Option<Wrong>,
    pub(crate) map: Option<Wrong>,
    pub(crate) cache: Option<Wrong>,
    /// The first tier, where there is one.
    pub(crate) memory: Option<Wrong>,
    /// The originals that should be in it, where what the map says is trusted.
    pub(crate) in_memory: Vec<Stored>,
    /// How many snapshots are not broken; 0 where the table does not tell.
    pub(crate) standing: usize,
    /// Where the last original ends that is not in memory, in bytes of its file; unknown where the map does not tell.
    pub(crate) end: Option<u64>,
}

/// The volume whose files are looked at.
pub(crate) struct Inspected<'a> {
    /// Where the engine keeps its files.
    pub(crate) engine: &'a Path,
    pub(crate) volume: [u8; 16],
    pub(crate) grain: u32,
    pub(crate) components: &'a Components,
    pub(crate) boot: [u8; 16],
    /// Its originals outlive a loss of power: after one the map is made anew, whatever became of it.
    pub(crate) outlives_power: bool,
    /// What holds the originals that are not in memory, where it can be had.
    pub(crate) cache: Option<&'a Store>,
    /// Whether that is another one than was made for the volume.
    pub(crate) is_other_cache: bool,
    /// The file in memory that was made for the volume, where it is there.
    pub(crate) memory: Option<&'a File>,
    /// How many bytes of the cache are in memory.
    pub(crate) memory_bytes: u64,
}

impl Inspected<'_> {
    /// Looks at everything. Blocking.
    ///
    /// # Errors
    /// When a file cannot be looked at now, which says nothing about it.
    pub(crate) fn inspect(&self) -> io::Result<Findings> {
        let mut findings = Findings::default();
        let (mut trusted, mut lost) = (false, false);
        match open(&self.engine.join(TABLE_NAME))? {
            Err(wrong) => findings.table = Some(wrong),
            Ok(mapped) => match SnapshotTable::create_or_open(mapped, self.volume) {
                Err(error) => {
                    findings.table =
                        Some(if matches!(error, TableError::Foreign) { Wrong::Foreign } else { Wrong::Damaged });
                }
                Ok(table) => {
                    let stands = |state| !matches!(state, RecordState::Broken(_));
                    findings.standing = table.records().iter().filter(|(_, record)| stands(record.state)).count();
                    let (boot, clean) = table.boot();
                    trusted = findings.standing > 0 && (clean || boot == self.boot);
                    lost = !clean && boot != self.boot;
                }
            },
        }
        if lost && self.outlives_power {
            findings.cache = self.cache(&[])?;
            return Ok(findings);
        }
        let mut stored = Vec::new();
        match open(&self.engine.join(MAP_NAME))? {
            Err(wrong) => findings.map = Some(wrong),
            Ok(mapped) => match ModifiedMap::open(mapped)
                .and_then(|map| map.check(self.grain, self.volume, self.components).map(|()| map))
            {
                Err(error) => {
                    findings.map =
                        Some(if matches!(error, MapError::Foreign) { Wrong::Foreign } else { Wrong::Damaged });
                }
                Ok(map) => stored = map.scan().0.into_iter().filter_map(|(_, entry)| Stored::of(entry)).collect(),
            },
        }
        let (mut in_memory, mut stored): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|stored| stored.offset < self.memory_bytes);
        stored.iter_mut().for_each(|stored| stored.offset -= self.memory_bytes);
        // Records of originals lie before them: what is given back there is theirs to say.
        if findings.map.is_none() && !self.outlives_power {
            findings.end = Some(stored.iter().map(|stored| stored.offset + u64::from(self.grain)).max().unwrap_or(0));
        }
        if !trusted {
            stored.clear();
            in_memory.clear();
        }
        findings.cache = self.cache(&stored)?;
        findings.memory = self.memory(&in_memory);
        findings.in_memory = in_memory;
        Ok(findings)
    }

    /// It was told apart by its own identity already; samples tell whether it was emptied.
    fn memory(&self, stored: &[Stored]) -> Option<Wrong> {
        if self.memory_bytes == 0 {
            return None;
        }
        let Some(memory) = self.memory else { return Some(Wrong::Missing) };
        let step = stored.len().div_ceil(SAMPLES).max(1);
        let holds = |stored: &Stored| stored.is_in(|bytes, offset| memory.read_exact_at(bytes, offset));
        if stored.iter().step_by(step).all(holds) { None } else { Some(Wrong::Damaged) }
    }

    fn cache(&self, stored: &[Stored]) -> io::Result<Option<Wrong>> {
        let Some(cache) = self.cache else { return Ok(Some(Wrong::Missing)) };
        let len = cache.len()?;
        if stored.is_empty() {
            // Nothing tells whose it is but the file itself. An empty one is nobody's; an export tells by its claim.
            return Ok((self.is_other_cache && len > 0).then_some(Wrong::Foreign));
        }
        let reaches = stored.iter().all(|stored| stored.offset + u64::from(stored.entry.len) <= len);
        let step = stored.len().div_ceil(SAMPLES);
        if reaches
            && stored
                .iter()
                .step_by(step)
                .all(|stored| stored.is_in(|bytes, offset| cache.read_exact_at(bytes, offset)))
        {
            return Ok(None);
        }
        Ok(Some(if self.is_other_cache { Wrong::Foreign } else { Wrong::Damaged }))
    }
}

/// An original that has bytes in the cache.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Where, in its tier.
    pub(crate) offset: u64,
    pub(crate) entry: Entry,
}

impl Stored {
    fn of(entry: Entry) -> Option<Self> {
        let Payload::Stored { offset, .. } = entry.payload else { return None };
        Some(Self { offset, entry })
    }

    fn is_in(&self, read_exact_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> bool {
        let mut bytes = vec![0; self.entry.len as usize];
        read_exact_at(&mut bytes, self.offset).is_ok() && self.entry.is_payload(&bytes)
    }
}

/// Maps a file for reading; or says what is wrong with it.
fn open(path: &Path) -> io::Result<Result<MappedFile, Wrong>> {
    match open_file(path, OpenOptions::new().read(true)).and_then(|file| MappedFile::from_file(file, false)) {
        Ok(mapped) => Ok(Ok(mapped)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Err(Wrong::Missing)),
        Err(error) if is_passing(&error) => Err(error),
        Err(_) => Ok(Err(Wrong::Damaged)),
    }
}

/// Whether an error says nothing about the file that it was met at.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, OutOfMemory, ResourceBusy, TimedOut, WouldBlock};
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), Interrupted | OutOfMemory | ResourceBusy | TimedOut | WouldBlock)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}
