//! The files that a mover reads through.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tzero_api::mover::Descriptors;
use tzero_engine::{MAP_NAME, TABLE_NAME};
use tzero_io::system;

use crate::volume::Volume;

/// Separate opens, read-only and in the daemon's own mode, in the order of [`Descriptors`].
pub(super) fn open_for_mover(volume: &Volume, direct: bool) -> io::Result<[File; Descriptors::COUNT]> {
    let serving = volume.serving().map_err(io::Error::other)?;
    let engine = volume.directory.engine();
    // The base by its open file: its path may lead elsewhere by now.
    let base = format!("/proc/self/fd/{}", serving.base.as_raw_fd());
    Ok([
        open(Path::new(&base), direct)?,
        open(&serving.cache, false)?,
        open(&engine.join(MAP_NAME), false)?,
        open(&engine.join(TABLE_NAME), false)?,
    ])
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(if direct { system::DIRECT } else { 0 }).open(path)
}
