//! What the daemon handed over, as devices: the base's components in a row, and the cache's tiers. Or, where it could not hand over all of that,
//! the snapshot's view, which it reconciles itself.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tzero_api::mover::{Access, Begun};
use tzero_block::{BlockDevice, Concat, FileDevice};
use tzero_io::{Gauge, MappedFile};
use tzero_nbd::{AnyDevice, ClientOptions, NbdDevice, Reconnect};

use crate::error::DaemonFault;
use crate::manifest::Transport;

/// The last tier of the cache grows while it is read; nothing in it lies beyond this many bytes.
const CACHE_REACH: u64 = 1 << 56;
/// How long a server may be away. A mover can go on later, so it need not wait for long.
const OUTAGE: Duration = Duration::from_secs(30);
/// A server that leaves a read unanswered for so long has gone. Nothing is written here, so that nothing can come late.
const UNANSWERED: Duration = Duration::from_secs(60);
/// Connections at most to one server: reads are spread over threads, of which a mover has few.
const CONNECTIONS: usize = 2;

/// See the [module](self).
pub(super) struct Devices {
    pub(super) base: Concat<AnyDevice>,
    /// Nobody reads it where `base` is the view.
    pub(super) cache: Concat<AnyDevice>,
    pub(super) map: MappedFile,
    pub(super) table: MappedFile,
    pub(super) transport: Transport,
    pub(super) gauge: Option<Gauge>,
}

/// Opens what came with [`Begun`].
///
/// # Errors
/// When it is not what it should be, or a server cannot be reached.
pub(super) async fn open(begun: &Begun, mut descriptors: Vec<OwnedFd>) -> Result<Devices, DaemonFault> {
    let last = if begun.gauge { Some(descriptors.pop().ok_or(DaemonFault::Protocol)?) } else { None };
    let gauge = last.map(|last| Gauge::look_at(last.into())).transpose().map_err(DaemonFault::Files)?;
    let mut files = descriptors.into_iter().map(File::from);
    let mut next = || files.next().ok_or(DaemonFault::Protocol);
    let map = MappedFile::from_file(next()?, false).map_err(DaemonFault::Files)?;
    let table = MappedFile::from_file(next()?, false).map_err(DaemonFault::Files)?;
    let row = |devices| Concat::new(devices).map_err(|_| DaemonFault::Protocol);
    if let Some(uri) = &begun.view {
        let view = Arc::new(connect(uri, begun.size).await?);
        let again = || row(vec![AnyDevice::from(Arc::clone(&view))]);
        return Ok(Devices { base: again()?, cache: again()?, map, table, transport: Transport::View, gauge });
    }
    let mut base = Vec::new();
    for component in &begun.components {
        base.push(match &component.access {
            Access::Descriptor => AnyDevice::from(component_of(next()?, begun.direct, component.size)?),
            Access::Export(uri) => AnyDevice::from(connect(uri, component.size).await?),
            Access::Nothing => return Err(DaemonFault::Protocol),
        });
    }
    let mut cache = Vec::new();
    for (index, tier) in begun.tiers.iter().enumerate() {
        let size = if index + 1 == begun.tiers.len() { CACHE_REACH } else { tier.size };
        cache.push(match &tier.access {
            Access::Descriptor => {
                AnyDevice::from(FileDevice::from_file(next()?, false).map_err(DaemonFault::Files)?.growing_to(size))
            }
            Access::Export(uri) => AnyDevice::from(connect(uri, 0).await?),
            Access::Nothing => return Err(DaemonFault::Protocol),
        });
    }
    let over_network = |access: &Access| matches!(access, Access::Export(_));
    let remote = begun.components.iter().any(|part| over_network(&part.access))
        || begun.tiers.iter().any(|tier| over_network(&tier.access));
    let transport = if remote { Transport::Nbd } else { Transport::Descriptors };
    Ok(Devices { base: row(base)?, cache: row(cache)?, map, table, transport, gauge })
}

/// Connects to an export of at least `needs` bytes, for reading.
async fn connect(uri: &str, needs: u64) -> Result<NbdDevice, DaemonFault> {
    let parsed = uri.parse().map_err(|_| DaemonFault::Protocol)?;
    let options = ClientOptions {
        connections: CONNECTIONS,
        request: Some(UNANSWERED),
        reconnect: Reconnect { within: OUTAGE },
        ..ClientOptions::default()
    };
    let device = NbdDevice::open(parsed, options).await;
    let device = device.map_err(|source| DaemonFault::Export { uri: uri.into(), source })?;
    let has = device.geometry().size;
    if has < needs { Err(DaemonFault::Cut { has, needs }) } else { Ok(device) }
}

/// A component, exactly as long as it was: what follows it begins there.
fn component_of(file: File, direct: bool, size: u64) -> Result<FileDevice, DaemonFault> {
    let device = FileDevice::in_passing(file, direct).map_err(DaemonFault::Files)?.cut_to(size);
    let has = device.geometry().size;
    if has < size { Err(DaemonFault::Cut { has, needs: size }) } else { Ok(device) }
}
