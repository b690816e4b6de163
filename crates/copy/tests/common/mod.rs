//! What several tests need.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::missing_panics_doc)]

pub mod daemon;
pub mod export;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tzero_copy::{
    BackupOutcome, BackupRequest, BackupSource, Cancel, Catalogue, Copy, Error, Event, ModeAsked, Phase,
    RestoreRequest, RestoreTarget, Restored, Verification,
};

pub const MIB: usize = 1 << 20;

/// Small and seeded, so that a failure can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Data everywhere but in some stretches.
pub fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let len = (random.below(600_000) as usize + 1).min(size - at);
        if random.below(3) > 0 {
            let word = random.next();
            bytes[at..at + len].iter_mut().enumerate().for_each(|(i, byte)| *byte = (word >> (i % 53)) as u8 | 1);
        }
        at += len;
    }
    bytes
}

/// A scratch place with a state directory and a place for copies.
pub struct Place {
    pub root: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("copies")).unwrap();
        Self { root }
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn image(&self) -> PathBuf {
        self.path("copies/vol.img")
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn plain(&self, source: &Path) -> BackupRequest {
        self.request(BackupSource::Path(source.to_owned()))
    }

    pub fn request(&self, source: BackupSource) -> BackupRequest {
        BackupRequest {
            restraint: tzero_copy::Restraint::default(),
            source,
            destination: self.image(),
            state: self.state(),
            mode: ModeAsked::Auto,
            outboard: None,
            scope: Vec::new(),
            on_full: None,
            hurries: true,
            replace: false,
            resume: false,
            verify: false,
        }
    }

    pub fn copy(&self) -> Copy {
        Copy::open(&self.image(), &self.state()).unwrap()
    }

    pub fn catalogue(&self) -> Catalogue {
        Catalogue::new(&self.state())
    }

    /// Names in the directory of the copies.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("copies"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub const COMPLETE: [&str; 2] = ["vol.img", "vol.img.tzero"];
pub const UNFINISHED: [&str; 2] = ["vol.img.tzero-journal", "vol.img.tzero-partial"];

pub fn backup(request: &BackupRequest) -> Result<BackupOutcome, Error> {
    tzero_copy::backup(request, &mut |_| {}, &Cancel::new())
}

/// Stops once so many bytes are copied.
pub fn backup_interrupted(request: &BackupRequest, after: u64) -> Result<BackupOutcome, Error> {
    let cancel = Cancel::new();
    let stop = cancel.clone();
    tzero_copy::backup(
        request,
        &mut |event| {
            if let Event::Progress { phase: Phase::Copy, done, .. } = event
                && *done >= after
            {
                stop.cancel();
            }
        },
        &cancel,
    )
}

pub fn verify(copy: &Copy) -> Verification {
    tzero_copy::verify(copy, &mut |_| {}, &Cancel::new()).unwrap()
}

pub fn restore(place: &Place, copy: Copy, target: &Path, force: bool) -> Result<Restored, Error> {
    tzero_copy::restore(&restoring(place, copy, target, force), &mut |_| {}, &Cancel::new())
}

/// A restore of a whole copy to a path.
pub fn restoring(place: &Place, copy: Copy, target: &Path, force: bool) -> RestoreRequest {
    RestoreRequest {
        copy,
        state: place.state(),
        target: RestoreTarget::Path(target.to_owned()),
        ranges: Vec::new(),
        differing: false,
        force,
        job: None,
    }
}

/// Bytes that a file takes on its medium.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// One line, not empty, no bare number of an error.
pub fn assert_sentence(error: &Error) {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() > 20, "{text}");
}

/// What an unfinished copy has.
pub fn partial(place: &Place) -> PathBuf {
    place.path("copies/vol.img.tzero-partial")
}

/// Its journal.
pub fn journal(place: &Place) -> PathBuf {
    place.path("copies/vol.img.tzero-journal")
}

/// Changes a byte of the unfinished image that is not zero, at `from` or soon after.
pub fn damage(partial: &Path, from: usize) {
    let bytes = fs::read(partial).unwrap();
    let at = bytes[from..].iter().position(|byte| *byte != 0).unwrap() + from;
    fs::File::options().write(true).open(partial).unwrap().write_all_at(&[0], at as u64).unwrap();
}

/// Casts doubt on a journal, as `docs/formats/journal.md` describes it.
pub fn doubt(journal: &Path) {
    fs::File::options().write(true).open(journal).unwrap().write_all_at(b"TZERODBT", 16_376).unwrap();
}

/// Whether doubt was cast on it.
pub fn is_doubted(journal: &Path) -> bool {
    fs::read(journal).unwrap()[16_376..16_384] != [0; 8]
}

/// Makes a journal one of another boot, its seal included, as `docs/formats/journal.md` describes it.
pub fn reboot(journal: &Path) {
    let mut bytes = fs::read(journal).unwrap();
    let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[48..48 + len]).unwrap();
    let boot = header["boot"].as_str().unwrap();
    header["boot"] = boot.chars().map(|digit| if digit == '0' { '1' } else { '0' }).collect::<String>().into();
    let text = serde_json::to_vec(&header).unwrap();
    assert_eq!(text.len(), len, "the header keeps its length");
    bytes[48..48 + len].copy_from_slice(&text);
    let seal = blake3::Hasher::new().update(&bytes[..16]).update(&text).finalize();
    bytes[16..48].copy_from_slice(seal.as_bytes());
    fs::write(journal, bytes).unwrap();
}
