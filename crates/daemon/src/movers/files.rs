//! The files that a mover reads through.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tzero_api::mover::{Access, Component, Tier};
use tzero_engine::{MAP_NAME, TABLE_NAME};
use tzero_io::system;

use crate::volume::Volume;

/// Separate opens, read-only and in the daemon's own mode, in the order of `tzero_api::mover`; and what the components and tiers are.
pub(super) fn open_for_mover(volume: &Volume, direct: bool) -> io::Result<(Vec<File>, Vec<Component>, Vec<Tier>)> {
    let serving = volume.serving().map_err(io::Error::other)?;
    let engine = volume.directory.engine();
    let mut files = vec![open(&engine.join(MAP_NAME), false)?, open(&engine.join(TABLE_NAME), false)?];
    let mut components = Vec::new();
    for component in &serving.base.components {
        // By its open file: its path may lead elsewhere by now.
        let path = format!("/proc/self/fd/{}", component.file.as_raw_fd());
        files.push(open(Path::new(&path), direct)?);
        let (size, place) = (component.identity.size(), component.path.clone().into());
        components.push(Component { size, access: Access::Descriptor, place });
    }
    files.push(open(&serving.cache, false)?);
    Ok((files, components, vec![Tier { size: 0, access: Access::Descriptor }]))
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(if direct { system::DIRECT } else { 0 }).open(path)
}
