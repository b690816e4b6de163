//! Where bytes end up: to recognise a destination that is, or lies on, its own source.
//!
//! A path's bytes lie in a stack of *layers*: the file itself, the block device of its file system, and below
//! that whatever the device is made of: the disk of a partition, the members of a device-mapper or RAID device, the
//! file behind a loop device, the file system that this file is on, and so on. A source is hit when it is one of the
//! layers.
//!
//! What cannot be seen from here: the other end of a network (NFS, an nbd or iSCSI disk), and a FUSE file system's
//! store.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io;
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
    let start = nearest_existing(path)?;
    let place = Identity::of_path(&start)?;
    if layers_of(place, Some(&start)).contains(source) {
        return Ok(true);
    }
    // Overwriting a whole disk, or the file behind a loop device, hits what is made of it.
    Ok(layers_of(*source, None).contains(&place))
}

fn nearest_existing(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for candidate in path.ancestors() {
        match fs::canonicalize(candidate) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Everything that `start` is made of, itself included.
fn layers_of(start: Identity, path: Option<&Path>) -> BTreeSet<Identity> {
    let mut layers = BTreeSet::from([start]);
    let mut found = match (start, path) {
        (Identity::File { file_system, .. }, _) => device_of_file_system(file_system, path).into_iter().collect(),
        (Identity::Device { number }, _) => below(number),
    };
    while let Some(layer) = found.pop() {
        if !layers.insert(layer) {
            continue;
        }
        match layer {
            Identity::Device { number } => found.extend(below(number)),
            Identity::File { file_system, .. } => found.extend(device_of_file_system(file_system, None)),
        }
    }
    layers
}

/// The directory in which the kernel describes a block device.
pub(crate) fn sysfs_of(number: u64) -> PathBuf {
    let (major, minor) = split(number);
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Major and minor, as the kernel packs them into `dev_t`.
const fn split(number: u64) -> (u64, u64) {
    ((number >> 32 & 0xffff_f000) | (number >> 8 & 0xfff), (number >> 12 & 0xffff_ff00) | (number & 0xff))
}

const fn join(major: u64, minor: u64) -> u64 {
    (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | (minor & 0xff)
}

fn number_in(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(join(major.parse().ok()?, minor.parse().ok()?))
}

/// One layer down from a block device.
fn below(number: u64) -> Vec<Identity> {
    let Ok(place) = fs::canonicalize(sysfs_of(number)) else { return Vec::new() };
    let mut found = Vec::new();
    if place.join("partition").exists()
        && let Some(disk) = place.parent().and_then(|disk| number_in(&disk.join("dev")))
    {
        found.push(Identity::Device { number: disk });
    }
    for member in fs::read_dir(place.join("slaves")).into_iter().flatten().flatten() {
        found.extend(number_in(&member.path().join("dev")).map(|number| Identity::Device { number }));
    }
    if let Ok(mut file) = fs::read(place.join("loop/backing_file")) {
        if file.last() == Some(&b'\n') {
            file.pop();
        }
        let file = PathBuf::from(std::ffi::OsString::from_vec(file));
        if let Ok(metadata) = fs::metadata(&file) {
            found.push(Identity::of(&metadata));
            if metadata.is_file() {
                found.extend(device_of_file_system(metadata.dev(), Some(&file)));
            }
        }
    }
    found
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

/// A name for a block device that stays with it as far as the system can tell: what device-mapper or the hardware calls
/// it, a partition by its disk and number, a loop device by the file behind it; failing all, its number.
///
/// # Errors
/// When the device cannot be looked at.
pub(crate) fn device_key(number: u64) -> io::Result<String> {
    let place = fs::canonicalize(sysfs_of(number))?;
    let text = |name: &str| {
        let text = fs::read_to_string(place.join(name)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    if let Some(partition) = text("partition")
        && let Some(disk) = place.parent().and_then(|disk| number_in(&disk.join("dev")))
    {
        return Ok(format!("{}-part{}", device_key(disk)?, plain(&partition)));
    }
    if let Some(uuid) = text("dm/uuid").or_else(|| text("md/uuid")) {
        return Ok(plain(&uuid));
    }
    if let Some(name) =
        text("wwid").or_else(|| text("device/wwid")).or_else(|| text("serial")).or_else(|| text("device/serial"))
    {
        return Ok(plain(&name));
    }
    if let Some(file) = text("loop/backing_file")
        && let Ok(metadata) = fs::metadata(&file)
    {
        return Ok(format!("loop-{:x}-{:x}", metadata.dev(), metadata.ino()));
    }
    let (major, minor) = split(number);
    Ok(format!("device-{major}-{minor}"))
}

/// Only characters that a file name may have everywhere, and not too many.
fn plain(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = text.chars().map(safe).take(100).collect();
    format!("id-{name}")
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
    fn a_path_lies_on_the_device_of_its_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let number = fs::metadata(dir.path()).unwrap().dev();
        if sysfs_of(number).exists() {
            assert!(lies_on(&dir.path().join("new"), &Identity::Device { number }).unwrap());
        }
        assert!(!lies_on(dir.path(), &Identity::Device { number: join(240, 240) }).unwrap());
    }
}
