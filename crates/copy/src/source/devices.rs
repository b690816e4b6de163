//! What the daemon handed over, as devices: the base's components in a row, and the cache's tiers.

use std::fs::File;
use std::os::fd::OwnedFd;

use tzero_api::mover::{Access, Begun};
use tzero_block::{BlockDevice, Concat, FileDevice};
use tzero_io::MappedFile;
use tzero_nbd::AnyDevice;

use crate::error::DaemonFault;

/// The last tier of the cache grows while it is read; nothing in it lies beyond this many bytes.
const CACHE_REACH: u64 = 1 << 56;

/// See the [module](self).
pub(super) struct Devices {
    pub(super) base: Concat<AnyDevice>,
    pub(super) cache: Concat<AnyDevice>,
    pub(super) map: MappedFile,
    pub(super) table: MappedFile,
}

/// Opens what came with [`Begun`].
///
/// # Errors
/// When it is not what it should be.
pub(super) fn open(begun: &Begun, descriptors: Vec<OwnedFd>) -> Result<Devices, DaemonFault> {
    let mut files = descriptors.into_iter().map(File::from);
    let mut next = || files.next().ok_or(DaemonFault::Protocol);
    let map = MappedFile::from_file(next()?, false).map_err(DaemonFault::Files)?;
    let table = MappedFile::from_file(next()?, false).map_err(DaemonFault::Files)?;
    let mut base = Vec::new();
    for component in &begun.components {
        base.push(match component.access {
            Access::Descriptor => AnyDevice::from(component_of(next()?, begun.direct, component.size)?),
        });
    }
    let mut cache = Vec::new();
    for (index, tier) in begun.tiers.iter().enumerate() {
        let size = if index + 1 == begun.tiers.len() { CACHE_REACH } else { tier.size };
        cache.push(match tier.access {
            Access::Descriptor => {
                AnyDevice::from(FileDevice::from_file(next()?, false).map_err(DaemonFault::Files)?.growing_to(size))
            }
        });
    }
    let row = |devices| Concat::new(devices).map_err(|_| DaemonFault::Protocol);
    Ok(Devices { base: row(base)?, cache: row(cache)?, map, table })
}

/// A component, exactly as long as it was: what follows it begins there.
fn component_of(file: File, direct: bool, size: u64) -> Result<FileDevice, DaemonFault> {
    let device = FileDevice::in_passing(file, direct).map_err(DaemonFault::Files)?.cut_to(size);
    let has = device.geometry().size;
    if has < size { Err(DaemonFault::Cut { has, needs: size }) } else { Ok(device) }
}
