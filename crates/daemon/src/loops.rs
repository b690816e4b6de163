//! Loop devices over a file: who uses one uses the file's bytes, behind the back of whoever serves the file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tzero_io::system;

use crate::device_name;
use crate::held::Held;

/// A loop device over the same file as an open base that is mounted, is part of another device, or is somebody's alone. What cannot be
/// seen counts as not used. Blocking.
pub(crate) fn in_use_over(base: &File) -> Option<PathBuf> {
    let metadata = base.metadata().ok()?;
    let own = metadata.rdev();
    let file = match metadata.file_type().is_block_device() {
        true => fs::metadata(device_name::backing_file(own)?.0).ok()?,
        false => metadata,
    };
    let is_over = |place: &Path| {
        let behind = fs::read_to_string(place.join("loop/backing_file")).ok();
        let behind = behind.and_then(|path| fs::metadata(path.trim_end_matches('\n')).ok());
        behind.is_some_and(|behind| (behind.dev(), behind.ino()) == (file.dev(), file.ino()))
    };
    let places = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path());
    places.filter(|place| is_over(place)).find_map(|place| {
        let device = Path::new("/dev").join(place.file_name()?);
        is_used(&device, &place, own).then_some(device)
    })
}

fn is_used(device: &Path, place: &Path, own: u64) -> bool {
    let Ok(held) = Held::take(device) else { return false };
    // Partitions of the base's own disk are that disk's affair, which is open alone.
    if !held.metadata().file_type().is_block_device() || held.metadata().rdev() == own {
        return false;
    }
    match held.open(OpenOptions::new().read(true).custom_flags(system::EXCLUSIVE)) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => true,
        // Not for this user to open. Mounts and holders can be seen all the same.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => is_seen_in_use(place),
        _ => false,
    }
}

fn is_seen_in_use(place: &Path) -> bool {
    let is_held = fs::read_dir(place.join("holders")).is_ok_and(|mut holders| holders.next().is_some());
    let parts = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
    let numbers: Vec<String> = parts
        .chain([place.to_path_buf()])
        .filter_map(|part| fs::read_to_string(part.join("dev")).ok())
        .map(|number| format!(" {} ", number.trim()))
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    is_held || mounts.lines().any(|mount| numbers.iter().any(|number| mount.contains(number)))
}
