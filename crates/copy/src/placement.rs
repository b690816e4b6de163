//! Where bytes end up: to recognise a destination that is, or lies on, its own source or a volume.
//!
//! A path's bytes lie in a stack: the file itself, the block device of its file system, and below that whatever the device
//! is made of: a stretch of a disk (a partition) or of a file (a loop device), the members of a device-mapper or RAID
//! device, the file system that a file is on, and so on. `Ground` is that stack, as stretches:
//!
//! ```text
//!   partition, loop device   the same bytes as a stretch of what is below: that stretch takes their place
//!   dm, md, file system      bytes of their own, somewhere on what is below: that counts as a whole
//! ```
//! Two places share bytes when what one of them *is* overlaps something that the other is or lies on. So two loop devices
//! over one file do, two partitions of one disk do not, and two files on it do not either.
//!
//! What cannot be seen from here: the other end of a network (NFS, an nbd or iSCSI disk), a FUSE file system's store, a file
//! behind a loop device that has lost its name, and which parts of a disk a device-mapper device has: two of them on one
//! disk count as apart.

use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a file or block device is, whatever path or link leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A block device, by its number.
    Device {
        /// As in `st_rdev`.
        number: u64,
    },
    /// Anything else, by its inode.
    File {
        /// As in `st_dev`.
        file_system: u64,
        /// As in `st_ino`.
        inode: u64,
    },
}

impl Identity {
    /// Of what `path` leads to, links followed.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }

    /// Of an open file.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn of_file(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::of(&metadata))
    }

    fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::Device { number: metadata.rdev() }
        } else {
            Self::File { file_system: metadata.dev(), inode: metadata.ino() }
        }
    }
}

/// Whether bytes written at `path` would land in `source`: `path` (or, if there is nothing yet, the nearest directory
/// that would hold it) is the source, or lies on it, or the source lies on it.
///
/// # Errors
/// When the path cannot be looked at. What the system does not tell about lower layers counts as "not".
pub fn lies_on(path: &Path, source: &Identity) -> io::Result<bool> {
    Ok(Ground::of(path)?.meets(*source))
}

/// The path from the root with all links followed, whether or not something is there.
pub(crate) fn resolved(path: &Path) -> io::Result<PathBuf> {
    let (existing, rest) = nearest_existing(path)?;
    // Joining nothing would leave a slash at the end.
    Ok(if rest.as_os_str().is_empty() { existing } else { existing.join(rest) })
}

/// The nearest ancestor that is there, links followed, and what is missing below it.
fn nearest_existing(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let path = std::path::absolute(path)?;
    for candidate in path.ancestors() {
        match fs::canonicalize(candidate) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            other => return Ok((other?, path.strip_prefix(candidate).map(PathBuf::from).unwrap_or_default())),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// A stretch of bytes of something that is not itself a stretch of something else.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    of: Identity,
    bytes: Range<u64>,
}

impl Stretch {
    fn overlaps(&self, other: &Self) -> bool {
        self.of == other.of && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }
}

/// What the bytes at a place are and lie on.
#[derive(Debug, Default)]
pub(crate) struct Ground {
    /// What they are comes first.
    stretches: Vec<Stretch>,
    /// Devices that are being looked into: a loop device's file may be hidden below a mount of that device.
    inside: Vec<u64>,
    /// Files behind loop devices.
    files: Vec<PathBuf>,
}

impl Ground {
    /// Of a path, or of the nearest directory that would hold it.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let (start, _) = nearest_existing(path)?;
        let mut ground = Self::default();
        ground.add(Identity::of_path(&start)?, 0..u64::MAX, Some(&start));
        Ok(ground)
    }

    /// Whether it shares bytes with `other`.
    pub(crate) fn meets(&self, other: Identity) -> bool {
        let mut ground = Self::default();
        ground.add(other, 0..u64::MAX, None);
        let hits = |one: &Self, other: &Self| {
            one.stretches.first().is_some_and(|own| other.stretches.iter().any(|stretch| own.overlaps(stretch)))
        };
        hits(self, &ground) || hits(&ground, self)
    }

    /// The files behind loop devices that it lies on.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn add(&mut self, identity: Identity, bytes: Range<u64>, path: Option<&Path>) {
        let below = match identity {
            Identity::File { file_system, .. } => {
                Below::Made(device_of_file_system(file_system, path).into_iter().collect())
            }
            Identity::Device { number } if self.inside.contains(&number) => Below::Made(Vec::new()),
            Identity::Device { number } => below(number),
        };
        let depth = self.inside.len();
        if let Identity::Device { number } = identity {
            self.inside.push(number);
        }
        match below {
            Below::StretchOf { what, window, path } => {
                let at = |byte: u64| window.start.saturating_add(byte).min(window.end);
                self.files.extend(path.clone());
                self.add(what, at(bytes.start)..at(bytes.end), path.as_deref());
            }
            Below::Made(members) => {
                self.stretches.push(Stretch { of: identity, bytes });
                members.into_iter().for_each(|member| self.add(member, 0..u64::MAX, None));
            }
        }
        self.inside.truncate(depth);
    }
}

/// The directory in which the kernel describes a block device.
pub(crate) fn sysfs_of(number: u64) -> PathBuf {
    let (major, minor) = split(number);
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Major and minor, as the kernel packs them into `dev_t`.
pub(crate) const fn split(number: u64) -> (u64, u64) {
    ((number >> 32 & 0xffff_f000) | (number >> 8 & 0xfff), (number >> 12 & 0xffff_ff00) | (number & 0xff))
}

const fn join(major: u64, minor: u64) -> u64 {
    (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | (minor & 0xff)
}

pub(crate) fn number_in(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(join(major.parse().ok()?, minor.parse().ok()?))
}

/// What is one layer down.
enum Below {
    /// The device is a stretch of something.
    StretchOf {
        what: Identity,
        window: Range<u64>,
        /// Of a file.
        path: Option<PathBuf>,
    },
    /// It has bytes of its own, which lie somewhere on these.
    Made(Vec<Identity>),
}

/// Sectors, in which the kernel tells sizes, in bytes.
const SECTOR: u64 = 512;

/// One layer down from a block device.
fn below(number: u64) -> Below {
    let Ok(place) = fs::canonicalize(sysfs_of(number)) else { return Below::Made(Vec::new()) };
    let count = |name: &str| fs::read_to_string(place.join(name)).ok()?.trim().parse::<u64>().ok();
    if place.join("partition").exists()
        && let Some(number) = place.parent().and_then(|disk| number_in(&disk.join("dev")))
    {
        let window = match (count("start"), count("size")) {
            (Some(start), Some(size)) => start * SECTOR..(start + size) * SECTOR,
            _ => 0..u64::MAX,
        };
        return Below::StretchOf { what: Identity::Device { number }, window, path: None };
    }
    if let Some(path) = backing_file(&place)
        && let Ok(what) = Identity::of_path(&path)
    {
        let start = count("loop/offset").unwrap_or(0);
        let end = match count("loop/sizelimit") {
            None | Some(0) => u64::MAX,
            Some(size) => start.saturating_add(size),
        };
        return Below::StretchOf { what, window: start..end, path: Some(path) };
    }
    let members = fs::read_dir(place.join("slaves")).into_iter().flatten().flatten();
    Below::Made(
        members
            .filter_map(|member| number_in(&member.path().join("dev")))
            .map(|number| Identity::Device { number })
            .collect(),
    )
}

/// The file or device behind a loop device.
fn backing_file(place: &Path) -> Option<PathBuf> {
    let mut file = fs::read(place.join("loop/backing_file")).ok()?;
    if file.last() == Some(&b'\n') {
        file.pop();
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(file)))
}

/// The block device under a file system. Some (btrfs, overlays) number themselves: for those the mount table tells.
fn device_of_file_system(file_system: u64, path: Option<&Path>) -> Option<Identity> {
    if sysfs_of(file_system).exists() {
        return Some(Identity::Device { number: file_system });
    }
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mounts = || table.lines().filter_map(Mount::parse);
    let mount = match path {
        // Later lines cover earlier ones at the same place.
        Some(path) => {
            mounts().filter(|mount| path.starts_with(&mount.at)).max_by_key(|mount| mount.at.as_os_str().len())
        }
        None => mounts().find(|mount| mount.file_system == file_system),
    }?;
    let metadata = fs::metadata(mount.source?).ok()?;
    metadata.file_type().is_block_device().then(|| Identity::Device { number: metadata.rdev() })
}

struct Mount {
    file_system: u64,
    at: PathBuf,
    source: Option<PathBuf>,
}

impl Mount {
    /// A line of `/proc/self/mountinfo`, see proc(5).
    fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.split_once(" - ")?;
        let mut fields = head.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        let at = unescape(fields.nth(1)?);
        let source = unescape(tail.split(' ').nth(1)?);
        Some(Self {
            file_system: join(major.parse().ok()?, minor.parse().ok()?),
            at,
            source: source.is_absolute().then_some(source),
        })
    }
}

/// Undoes `\040` and the like.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.first_chunk::<3>().filter(|_| first == b'\\');
        let code =
            code.and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_packed_as_the_kernel_does() {
        for (major, minor) in [(0, 0), (8, 1), (259, 300_000), (4095, 255), (70_000, 1 << 19)] {
            assert_eq!(split(join(major, minor)), (major, minor));
        }
        assert_eq!(join(8, 1), 0x801);
    }

    #[test]
    fn mount_table_lines() {
        let line = "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.at, Path::new("/mnt two"));
        assert_eq!(mount.file_system, join(98, 0));
        assert_eq!(mount.source.as_deref(), Some(Path::new("/dev/root")));
        assert!(Mount::parse("nonsense").is_none());
        assert_eq!(unescape("a\\"), Path::new("a\\"));
    }

    #[test]
    fn a_file_is_itself_through_any_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, hard, soft) = (dir.path().join("file"), dir.path().join("hard"), dir.path().join("soft"));
        fs::write(&file, b"x").unwrap();
        fs::hard_link(&file, &hard).unwrap();
        std::os::unix::fs::symlink(&file, &soft).unwrap();
        let source = Identity::of_path(&file).unwrap();
        for path in [&file, &hard, &soft] {
            assert!(lies_on(path, &source).unwrap());
        }
        assert!(!lies_on(&dir.path().join("new"), &source).unwrap());
        assert!(!lies_on(&dir.path().join("no/such/directory/file"), &source).unwrap());
    }

    #[test]
    fn what_is_not_there_yet_has_a_place_too() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(resolved(&link.join("no/such")).unwrap(), real.join("no/such"));
        assert_eq!(resolved(&link).unwrap(), real);
    }

    #[test]
    fn stretches_of_one_thing_overlap_or_do_not() {
        let stretch = |number, bytes| Stretch { of: Identity::Device { number }, bytes };
        assert!(stretch(1, 0..10).overlaps(&stretch(1, 9..u64::MAX)));
        assert!(!stretch(1, 0..10).overlaps(&stretch(1, 10..20)));
        assert!(!stretch(1, 0..10).overlaps(&stretch(2, 0..10)));
    }

    #[test]
    fn a_path_lies_on_the_device_of_its_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let number = fs::metadata(dir.path()).unwrap().dev();
        if sysfs_of(number).exists() {
            assert!(lies_on(&dir.path().join("new"), &Identity::Device { number }).unwrap());
        }
        assert!(!lies_on(dir.path(), &Identity::Device { number: join(240, 240) }).unwrap());
    }
}
