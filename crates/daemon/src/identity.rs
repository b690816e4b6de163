//! Telling whether a base is the one that was left.
//!
//! The identity of a base is compared at every start: what a file or device is known by for good, and its size. Numbers of devices count only
//! where there is nothing else. After a clean stop, which records them, its times and
//! a digest of samples are compared too: then nobody but the daemon can have written in between without being noticed, within what
//! samples can notice. After an unclean stop the daemon's own last writes made the times what they are, so they say nothing.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};
use tzero_io::system;

use crate::device_name;
use crate::file_identity::FileIdentity;
use crate::held::open_file;
use crate::remote::Remote;

/// Places that are sampled, spread evenly from the first byte to the last.
const SAMPLES: u64 = 64;
/// Bytes of a sample.
const SAMPLE: u64 = 4096;
const SECTOR: u64 = 512;

/// What makes a base this base and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum BaseIdentity {
    /// A regular file.
    File {
        #[serde(flatten)]
        file: FileIdentity,
        size: u64,
    },
    /// A block device.
    Device {
        /// Its number. Says something in one boot only.
        number: u64,
        size: u64,
        /// Its name for good, where it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// The file behind a loop device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backing: Option<Backing>,
    },
    /// An export of an NBD server. It has no identity but where it is: the protocol tells of none.
    Export { uri: String, size: u64 },
}

/// What a loop device is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backing {
    #[serde(flatten)]
    file: FileIdentity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
}

/// Size in bytes of an open file or block device.
pub(crate) fn size_of(base: &File) -> io::Result<u64> {
    let metadata = base.metadata()?;
    if metadata.file_type().is_block_device() { system::device_size(base) } else { Ok(metadata.len()) }
}

/// What a base looked like when it was last closed in good order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CleanStop {
    /// Last change of the file's contents, nanoseconds; 0 for a block device.
    modified_ns: i128,
    /// Last change of the file or its attributes, nanoseconds; 0 for a block device.
    changed_ns: i128,
    /// Digest of the samples.
    samples: String,
}

/// How a base differs from the one that was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// It is certainly another disk, or no file any more: its path leads elsewhere.
    Stranger,
    /// It has another size.
    Size,
    /// It is another file, or may be another device: somebody put it in the place of the one that was left.
    Identity,
    /// It was changed while no daemon had it.
    Contents,
}

/// What two identities say of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinship {
    Same,
    /// Another file at the same place, as after a restore.
    Replaced,
    /// Devices that have nothing but their numbers, which differ: as after a reboot, or another device.
    Unknown,
    Stranger,
}

impl BaseIdentity {
    pub(crate) fn of(base: &File) -> io::Result<Self> {
        let metadata = base.metadata()?;
        if !metadata.file_type().is_block_device() {
            return Ok(Self::File { file: FileIdentity::of(base)?, size: metadata.len() });
        }
        let number = metadata.rdev();
        let backing = device_name::backing_file(number).and_then(|(path, partition)| {
            let file = FileIdentity::of(&open_file(&path, OpenOptions::new().read(true)).ok()?).ok()?;
            Some(Backing { file, partition })
        });
        Ok(Self::Device { number, size: system::device_size(base)?, name: device_name::of(number), backing })
    }

    /// The same, of another size.
    pub(crate) fn resized(mut self, to: u64) -> Self {
        match &mut self {
            Self::File { size, .. } | Self::Device { size, .. } | Self::Export { size, .. } => *size = to,
        }
        self
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } | Self::Device { size, .. } | Self::Export { size, .. } => *size,
        }
    }

    /// Whether both are the same file or device, whatever its size.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.kinship(other) == Kinship::Same
    }

    /// Whether both have one number, in one boot.
    pub(crate) fn has_number_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { file, .. }, Self::File { file: other, .. }) => {
                (file.device, file.inode) == (other.device, other.inode)
            }
            (Self::Device { number, .. }, Self::Device { number: other, .. }) => number == other,
            (Self::Export { uri, .. }, Self::Export { uri: other, .. }) => uri == other,
            _ => false,
        }
    }

    fn kinship(&self, other: &Self) -> Kinship {
        let same = |same, otherwise| if same { Kinship::Same } else { otherwise };
        match (self, other) {
            (Self::File { file, .. }, Self::File { file: other, .. }) => same(file.is_same(other), Kinship::Replaced),
            (
                Self::Device { number, name, backing, .. },
                Self::Device { number: other_number, name: other_name, backing: other_backing, .. },
            ) => match ((name, other_name), (backing, other_backing)) {
                ((Some(name), Some(other)), _) => same(name == other, Kinship::Stranger),
                (_, (Some(backing), Some(other))) => same(backing.is_same(other), Kinship::Replaced),
                _ => same(number == other_number, Kinship::Unknown),
            },
            (Self::Export { uri, .. }, Self::Export { uri: other, .. }) => same(uri == other, Kinship::Stranger),
            _ => Kinship::Stranger,
        }
    }

    /// How this component differs from one that was left as `left`. Whether the whole base looks as it was left in good order is for
    /// `looks_the_same` to say; `None` where it was not left in good order.
    pub(crate) fn difference(&self, left: &Self, looks_the_same: Option<bool>) -> Option<Difference> {
        let kinship = self.kinship(left);
        match (kinship, looks_the_same) {
            (Kinship::Stranger, _) => Some(Difference::Stranger),
            _ if self.size() != left.size() => Some(Difference::Size),
            (Kinship::Replaced, _) => Some(Difference::Identity),
            (_, Some(true)) | (Kinship::Same, None) => None,
            (Kinship::Same, Some(false)) => Some(Difference::Contents),
            _ => Some(Difference::Identity),
        }
    }
}

impl Backing {
    fn is_same(&self, other: &Self) -> bool {
        self.partition == other.partition && self.file.is_same(&other.file)
    }
}

impl CleanStop {
    /// Of a base whose writes are durable, given what each of its components looks like.
    pub(crate) fn of(components: Vec<Self>) -> Self {
        match <[Self; 1]>::try_from(components) {
            Ok([only]) => only,
            Err(several) => {
                // All times and samples in one digest: the place for them is of one size, whatever the number of components.
                let mut digest = blake3::Hasher::new();
                for Self { modified_ns, changed_ns, samples } in several {
                    digest.update(&modified_ns.to_le_bytes()).update(&changed_ns.to_le_bytes());
                    digest.update(samples.as_bytes());
                }
                Self { modified_ns: 0, changed_ns: 0, samples: digest.finalize().to_hex().to_string() }
            }
        }
    }

    /// Of one component, an open file or device of `size` bytes.
    pub(crate) fn of_component(base: &File, size: u64) -> io::Result<Self> {
        let metadata = base.metadata()?;
        let (modified_ns, changed_ns) = if metadata.file_type().is_block_device() { (0, 0) } else { times(&metadata) };
        // The daemon's own open may want aligned memory; this one goes through the page cache.
        let cached = File::open(format!("/proc/self/fd/{}", base.as_raw_fd()))?;
        let samples = samples(size, |sample, offset| cached.read_exact_at(sample, offset))?;
        Ok(Self { modified_ns, changed_ns, samples })
    }

    /// Of one component that is an export. Blocking.
    pub(crate) fn of_export(remote: &Remote) -> io::Result<Self> {
        let samples = samples(remote.size(), |sample, offset| {
            // Whole sectors, as the export may want them.
            let start = offset / SECTOR * SECTOR;
            let skip = (offset - start) as usize;
            let wide = (skip + sample.len()).next_multiple_of(SECTOR as usize).min((remote.size() - start) as usize);
            sample.copy_from_slice(&remote.read(start, wide)?[skip..skip + sample.len()]);
            Ok(())
        })?;
        Ok(Self { modified_ns: 0, changed_ns: 0, samples })
    }

    /// Of a base that lost a part while it was served: whatever it looks like at the next start, its snapshots are not right.
    pub(crate) fn of_loss() -> Self {
        Self { modified_ns: 0, changed_ns: 0, samples: "lost".into() }
    }
}

fn times(metadata: &Metadata) -> (i128, i128) {
    let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    (ns(metadata.mtime(), metadata.mtime_nsec()), ns(metadata.ctime(), metadata.ctime_nsec()))
}

fn samples(size: u64, read_exact_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<String> {
    let last = size.saturating_sub(SAMPLE);
    let mut digest = blake3::Hasher::new();
    let mut sample = vec![0; SAMPLE.min(size) as usize];
    for index in 0..SAMPLES {
        let offset = (u128::from(last) * u128::from(index) / u128::from(SAMPLES - 1)) as u64;
        read_exact_at(&mut sample, offset)?;
        digest.update(&sample);
    }
    Ok(digest.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_change_while_nobody_looks_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("base");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let base = open();
        let left = BaseIdentity::of(&base).unwrap();
        let look = |base: &File| CleanStop::of_component(base, left.size()).unwrap();
        let clean = look(&base);
        let difference = |clean: Option<&CleanStop>| {
            let base = open();
            BaseIdentity::of(&base).unwrap().difference(&left, clean.map(|clean| look(&base) == *clean))
        };
        assert_eq!(difference(Some(&clean)), None);

        base.write_all_at(b"!", (1 << 20) - 1).unwrap();
        assert_eq!(difference(Some(&clean)), Some(Difference::Contents));
        assert_eq!(difference(None), None);
        // The contents alone tell, without the times.
        let (before, after) = (&clean.samples, look(&base).samples);
        assert_ne!(*before, after);

        base.set_len(2 << 20).unwrap();
        assert_eq!(difference(None), Some(Difference::Size));
        drop(base);
        fs::rename(&path, scratch.path().join("old")).unwrap();
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        assert_eq!(difference(None), Some(Difference::Identity));
    }

    #[test]
    fn several_components_look_like_one_thing() {
        let look = |modified_ns, samples: &str| CleanStop { modified_ns, changed_ns: 2, samples: samples.into() };
        let one = look(1, "a");
        assert_eq!(CleanStop::of(vec![one.clone()]), one, "as it always was");
        let two = CleanStop::of(vec![one.clone(), look(1, "b")]);
        assert!(serde_json::to_vec(&two).unwrap().len() < 512);
        assert_eq!(two, CleanStop::of(vec![one.clone(), look(1, "b")]));
        for other in [vec![look(1, "b"), one.clone()], vec![one.clone(), look(3, "b")], vec![one.clone(), look(1, "c")]]
        {
            assert_ne!(two, CleanStop::of(other));
        }
    }

    #[test]
    fn a_device_is_known_by_its_name_and_else_by_its_contents() {
        let device = |number, name: Option<&str>| BaseIdentity::Device {
            number,
            size: 1 << 20,
            name: name.map(str::to_owned),
            backing: None,
        };
        let difference = |now: BaseIdentity, left: BaseIdentity, looks| now.difference(&left, looks);
        let (a, b) = (Some("wwid-a"), Some("wwid-b"));
        assert_eq!(difference(device(2, a), device(1, a), None), None, "renumbered");
        assert_eq!(difference(device(1, a), device(1, b), Some(true)), Some(Difference::Stranger));
        assert_eq!(difference(device(2, None), device(1, None), Some(true)), None, "nameless, and looks the same");
        assert_eq!(difference(device(2, None), device(1, None), Some(false)), Some(Difference::Identity));
        assert_eq!(difference(device(2, None), device(1, None), None), Some(Difference::Identity));
        assert_eq!(difference(device(1, None), device(1, a), Some(false)), Some(Difference::Contents));
        let old: BaseIdentity = serde_json::from_str(r#"{"kind":"device","number":1,"size":1048576}"#).unwrap();
        assert_eq!(old, device(1, None));
        let old: BaseIdentity = serde_json::from_str(r#"{"kind":"file","device":1,"inode":2,"size":3}"#).unwrap();
        assert_eq!(old.size(), 3);
        assert_eq!(difference(device(1, a), old, None), Some(Difference::Stranger), "a file was left");
    }
}
