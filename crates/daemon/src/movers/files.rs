//! The files that a mover reads through.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use tzero_api::mover::{Access, Component, Tier};
use tzero_engine::{MAP_NAME, TABLE_NAME};
use tzero_io::system;

use crate::base::Medium;
use crate::cache_file;
use crate::remote::Remote;
use crate::store::Store;
use crate::volume::Volume;

/// What a mover gets.
pub(super) struct Handed {
    pub(super) files: Vec<File>,
    pub(super) components: Vec<Component>,
    pub(super) tiers: Vec<Tier>,
    /// It cannot have all that it would need.
    pub(super) needs_view: bool,
    /// The last of the files is the gauge.
    pub(super) gauge: bool,
}

/// Separate opens, read-only and in the daemon's own mode, in the order of `tzero_api::mover`; and what the components and tiers are. `size` is
/// the snapshot's: where the volume has grown since, the end of the last component is not its own.
pub(super) fn open_for_mover(volume: &Volume, direct: bool, size: u64) -> io::Result<Handed> {
    let serving = volume.serving().map_err(io::Error::other)?;
    let engine = volume.directory.engine();
    let open = |path: PathBuf| File::options().read(true).open(path);
    let mut files = vec![open(engine.join(MAP_NAME))?, open(engine.join(TABLE_NAME))?];
    let (mut components, mut left) = (Vec::new(), size);
    for component in &serving.base.components {
        let access = match &component.medium {
            Medium::File(file) => {
                files.push(reopen(file, direct)?);
                Access::Descriptor
            }
            Medium::Export(remote) => of_export(remote),
        };
        let size = component.size().min(left);
        left -= size;
        components.push(Component { size, access, place: component.place.clone() });
    }
    let mut tiers = Vec::new();
    if let Some(memory) = &serving.tiers.memory {
        files.push(reopen(&memory.file, false)?);
        tiers.push(Tier { size: serving.tiers.memory_bytes, access: Access::Descriptor });
    } else if serving.tiers.memory_bytes > 0 {
        // It is withheld: nothing is in it, and an empty file says so.
        files.push(cache_file::nameless(&engine)?);
        tiers.push(Tier { size: serving.tiers.memory_bytes, access: Access::Descriptor });
    }
    let access = match &serving.tiers.store {
        Store::File(file) => {
            files.push(reopen(file, false)?);
            Access::Descriptor
        }
        Store::Export(remote) => of_export(remote),
    };
    let needs_view = access == Access::Nothing || components.iter().any(|part| part.access == Access::Nothing);
    tiers.push(Tier { size: 0, access });
    // A mover can do without.
    let gauge = serving.engine.platform().gauge.as_ref().and_then(|gauge| reopen(gauge.file(), false).ok());
    let has_gauge = gauge.is_some();
    files.extend(gauge);
    Ok(Handed { files, components, tiers, needs_view, gauge: has_gauge })
}

/// Another open of an open file, read-only. Its path may lead elsewhere by now.
fn reopen(file: &File, direct: bool) -> io::Result<File> {
    let flags = if direct { system::DIRECT } else { 0 };
    OpenOptions::new().read(true).custom_flags(flags).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// An export that shows a mover what the daemon has written through another connection, or nothing.
fn of_export(remote: &Remote) -> Access {
    if remote.device().is_coherent() { Access::Export(remote.device().uri().to_string()) } else { Access::Nothing }
}
