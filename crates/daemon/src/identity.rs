//! Telling whether a base is the one that was left.
//!
//! The identity of a base (device, inode, size) is compared at every start. After a clean stop, which records them, its times and
//! a digest of samples are compared too: then nobody but the daemon can have written in between without being noticed, within what
//! samples can notice. After an unclean stop the daemon's own last writes made the times what they are, so they say nothing.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};
use tzero_io::system;

/// Places that are sampled, spread evenly from the first byte to the last.
const SAMPLES: u64 = 64;
/// Bytes of a sample.
const SAMPLE: u64 = 4096;

/// What makes a base this base and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum BaseIdentity {
    /// A regular file.
    File { device: u64, inode: u64, size: u64 },
    /// A block device, by its number.
    Device { number: u64, size: u64 },
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
    /// It is another file or device.
    Identity,
    /// It has another size.
    Size,
    /// It was changed while no daemon had it.
    Contents,
}

impl BaseIdentity {
    pub(crate) fn of(base: &File) -> io::Result<Self> {
        let metadata = base.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(Self::Device { number: metadata.rdev(), size: system::device_size(base)? });
        }
        Ok(Self::File { device: metadata.dev(), inode: metadata.ino(), size: metadata.len() })
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } | Self::Device { size, .. } => *size,
        }
    }

    /// Whether both are the same file or device, whatever its size.
    pub(crate) fn same_base(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { device, inode, .. }, Self::File { device: other_device, inode: other_inode, .. }) => {
                (device, inode) == (other_device, other_inode)
            }
            (Self::Device { number, .. }, Self::Device { number: other, .. }) => number == other,
            _ => false,
        }
    }

    /// How this base differs from one that was left as `left` and, where it was left in good order, looking like `clean`.
    pub(crate) fn difference(
        &self,
        base: &File,
        left: &Self,
        clean: Option<&CleanStop>,
    ) -> io::Result<Option<Difference>> {
        if !self.same_base(left) {
            return Ok(Some(Difference::Identity));
        }
        if self.size() != left.size() {
            return Ok(Some(Difference::Size));
        }
        match clean {
            Some(clean) if CleanStop::of(base, self.size())? != *clean => Ok(Some(Difference::Contents)),
            _ => Ok(None),
        }
    }
}

impl CleanStop {
    /// Of an open base of `size` bytes whose writes are durable.
    pub(crate) fn of(base: &File, size: u64) -> io::Result<Self> {
        let metadata = base.metadata()?;
        let (modified_ns, changed_ns) = if metadata.file_type().is_block_device() { (0, 0) } else { times(&metadata) };
        Ok(Self { modified_ns, changed_ns, samples: samples(base, size)? })
    }
}

fn times(metadata: &Metadata) -> (i128, i128) {
    let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    (ns(metadata.mtime(), metadata.mtime_nsec()), ns(metadata.ctime(), metadata.ctime_nsec()))
}

fn samples(base: &File, size: u64) -> io::Result<String> {
    // The daemon's own open may want aligned memory; this one goes through the page cache.
    let cached = File::open(format!("/proc/self/fd/{}", base.as_raw_fd()))?;
    let last = size.saturating_sub(SAMPLE);
    let mut digest = blake3::Hasher::new();
    let mut sample = vec![0; SAMPLE.min(size) as usize];
    for index in 0..SAMPLES {
        let offset = (u128::from(last) * u128::from(index) / u128::from(SAMPLES - 1)) as u64;
        cached.read_exact_at(&mut sample, offset)?;
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
        let clean = CleanStop::of(&base, left.size()).unwrap();
        let difference = |clean: Option<&CleanStop>| {
            let base = open();
            BaseIdentity::of(&base).unwrap().difference(&base, &left, clean).unwrap()
        };
        assert_eq!(difference(Some(&clean)), None);

        base.write_all_at(b"!", (1 << 20) - 1).unwrap();
        assert_eq!(difference(Some(&clean)), Some(Difference::Contents));
        assert_eq!(difference(None), None);
        // The contents alone tell, without the times.
        let (before, after) = (&clean.samples, CleanStop::of(&base, left.size()).unwrap().samples);
        assert_ne!(*before, after);

        base.set_len(2 << 20).unwrap();
        assert_eq!(difference(None), Some(Difference::Size));
        drop(base);
        fs::rename(&path, scratch.path().join("old")).unwrap();
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        assert_eq!(difference(None), Some(Difference::Identity));
    }
}
