//! What keeps writers off a plain file or device while it is read.
//!
//! **Read-only**: nobody could write, whoever they are: a read-only device or file system, a file that is immutable or that
//! has no permission to be written.
//!
//! **Locked**: somebody holds a lock on all of it, by `flock` or `fcntl`, shared or exclusive, from before the copy begins until
//! after its last byte is read. Locks bind only those who ask for them, so this is what it is worth:
//!
//! - A lock on *parts* says the opposite, whatever else is locked: whoever took it uses the file. QEMU does so with single
//!   bytes of every image that it has open, and its shared locks are a writer's.
//! - The holder may be a writer itself. Of a file that shows in its time of change, which is compared. A device has none:
//!   there an exclusive lock counts only if whoever started this process has it (`flock DEVICE tzero backup DEVICE`), for a
//!   stranger's is that of a program at work.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use tzero_io::{LockError, lock_exclusive, record_lock, system};

use crate::manifest::Protection;
use crate::opening;

/// What protects it now.
pub(super) fn protection_of(path: &Path, file: &File, metadata: &Metadata) -> Option<Protection> {
    if nobody_can_write(path, file, metadata) {
        return Some(Protection::ReadOnly);
    }
    is_locked(path, file, metadata).then_some(Protection::Locked)
}

fn nobody_can_write(path: &Path, file: &File, metadata: &Metadata) -> bool {
    if metadata.file_type().is_block_device() {
        return system::device_is_read_only(file).unwrap_or(false);
    }
    if metadata.permissions().mode() & 0o222 == 0 {
        return true;
    }
    // A read-only file system or an immutable file refuses even its owner. Opening changes nothing.
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => false,
        Err(error) => {
            matches!(error.raw_os_error(), Some(libc::EROFS | libc::EPERM))
                || error.kind() == io::ErrorKind::ExecutableFileBusy
        }
    }
}

fn is_locked(path: &Path, file: &File, metadata: &Metadata) -> bool {
    let Ok(table) = fs::read_to_string("/proc/locks") else { return false };
    // File systems that number themselves are not in the table by the number that files have: whose part is locked counts
    // by its inode alone.
    let locks: Vec<Lock> = table.lines().filter_map(Lock::parse).filter(|lock| lock.inode == metadata.ino()).collect();
    let size = if metadata.is_file() { metadata.len() } else { u64::MAX };
    if locks.iter().any(|lock| !lock.is_of_all(size)) {
        return false;
    }
    // The table may leave out what other containers hold.
    let record = match record_lock(file) {
        Ok(Some(lock)) if lock.start > 0 || (lock.len > 0 && lock.len < size) => return false,
        Ok(lock) => lock.is_some(),
        Err(_) => false,
    };
    if !metadata.file_type().is_block_device() {
        return record || is_flocked(path);
    }
    let mine = |lock: &&Lock| lock.device == (major(metadata.dev()), minor(metadata.dev()));
    locks.iter().filter(mine).any(|lock| !lock.is_exclusive || is_ancestor(lock.pid)) || is_inherited(metadata)
}

/// Whether anybody else has it locked by `flock`.
fn is_flocked(path: &Path) -> bool {
    // An open of its own, so that a lock that it gets goes with it.
    opening::open(path).is_ok_and(|other| matches!(lock_exclusive(&other), Err(LockError::Held)))
}

/// A line of `/proc/locks`, see proc(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lock {
    is_exclusive: bool,
    start: u64,
    /// The last byte; none: to the end, wherever that is.
    end: Option<u64>,
    pid: u32,
    device: (u64, u64),
    inode: u64,
}

impl Lock {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        // What only waits for a lock has an arrow before it.
        if !matches!(words.next()?, "FLOCK" | "POSIX" | "OFDLCK") {
            return None;
        }
        let is_exclusive = words.nth(1)? == "WRITE";
        // Locks of open files have no process.
        let pid = words.next()?.parse().unwrap_or(0);
        let mut place = words.next()?.split(':');
        let device = (u64::from_str_radix(place.next()?, 16).ok()?, u64::from_str_radix(place.next()?, 16).ok()?);
        let inode = place.next()?.parse().ok()?;
        let start = words.next()?.parse().ok()?;
        let end = Some(words.next()?).filter(|end| *end != "EOF").map(str::parse).transpose().ok()?;
        Some(Self { is_exclusive, start, end, pid, device, inode })
    }

    fn is_of_all(&self, size: u64) -> bool {
        self.start == 0 && self.end.is_none_or(|end| end.saturating_add(1) >= size)
    }
}

fn major(device: u64) -> u64 {
    crate::placement::split(device).0
}

fn minor(device: u64) -> u64 {
    crate::placement::split(device).1
}

/// Whether the process has started this one, or has started what has.
fn is_ancestor(pid: u32) -> bool {
    let mut this = std::process::id();
    while this > 1 {
        if this == pid {
            return true;
        }
        // The name, in parentheses, may hold anything.
        let Ok(stat) = fs::read_to_string(format!("/proc/{this}/stat")) else { return false };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        let Some(parent) = parent else { return false };
        this = parent;
    }
    false
}

/// Whether a descriptor that this process was given at its start holds a lock on all of it.
fn is_inherited(metadata: &Metadata) -> bool {
    let descriptors = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten();
    let texts = descriptors.filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok());
    let device = (major(metadata.dev()), minor(metadata.dev()));
    texts.into_iter().any(|text| {
        let locks = text.lines().filter_map(|line| Lock::parse(line.strip_prefix("lock:")?));
        locks.into_iter().any(|lock| lock.is_of_all(u64::MAX) && (lock.device, lock.inode) == (device, metadata.ino()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table() {
        let lock =
            |is_exclusive, (start, end), pid| Lock { is_exclusive, start, end, pid, device: (8, 0x1f), inode: 77 };
        let all = (0, None);
        let parsed = |line: &str| Lock::parse(line);
        assert_eq!(parsed("1: FLOCK  ADVISORY  WRITE 12 08:1f:77 0 EOF"), Some(lock(true, all, 12)));
        assert_eq!(parsed("2: POSIX  ADVISORY  READ  12 08:1f:77 0 EOF"), Some(lock(false, all, 12)));
        assert_eq!(parsed("3: OFDLCK ADVISORY  READ  -1 08:1f:77 100 101"), Some(lock(false, (100, Some(101)), 0)));
        assert_eq!(parsed("1: -> FLOCK  ADVISORY  WRITE 12 08:1f:77 0 EOF"), None);
        assert_eq!(parsed("4: LEASE  ACTIVE    READ  12 08:1f:77 0 EOF"), None);
        assert_eq!(parsed("nonsense"), None);
        let covers = |place, size| lock(true, place, 0).is_of_all(size);
        assert!(covers(all, u64::MAX) && covers((0, Some(99)), 100) && covers((0, Some(u64::MAX)), 100));
        assert!(!covers((0, Some(98)), 100) && !covers((1, None), 100));
    }

    #[test]
    fn a_process_and_whoever_started_it() {
        assert!(is_ancestor(std::process::id()));
        assert!(is_ancestor(std::os::unix::process::parent_id()));
        assert!(!is_ancestor(0) && !is_ancestor(u32::MAX));
    }
}
