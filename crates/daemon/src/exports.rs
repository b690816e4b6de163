//! What NBD clients see: `VOLUME`, read-write, and `VOLUME@SNAPSHOT`, read-only.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tzero_block::{ByteRange, Export, ExportError, ExportInfo, ExportSummary, Exports, Extent, Zeroes};
use tzero_engine::{HostSession, View};
use tzero_io::Buffer;
use tzero_originals::Originals;

use crate::filling::Filling;
use crate::platform::Production;
use crate::volume::{Condition, Use};
use crate::volumes::Volumes;

/// One client's use of a volume or of a snapshot's view.
pub(crate) struct Session {
    kind: Kind,
    /// Where the host's changes are counted, and its grain as a power of two.
    counted: Option<(Arc<Filling>, u32)>,
    /// What is delivered has been had. A mover says so itself, once it is safe in its destination.
    consumes: bool,
    _used: Use,
}

enum Kind {
    Host(HostSession<Production>),
    View(View<Production>),
}

/// All volumes and their surfaced snapshots, as an NBD server owns them.
pub(crate) struct Offered(pub(crate) Arc<Volumes>);

impl Exports for Offered {
    type Session = Session;

    fn list(&self) -> Vec<ExportSummary> {
        let mut list = Vec::new();
        for volume in self.0.all() {
            let Condition::Serving(serving) = &volume.condition else { continue };
            let record = volume.record();
            let bases = record.iter().flat_map(|record| &record.bases);
            let bases = bases.map(|base| base.place.to_string()).collect::<Vec<_>>().join(", ");
            list.push(ExportSummary { name: volume.name.to_string(), description: format!("volume on {bases}") });
            for snapshot in serving.engine.snapshots().iter().filter(|snapshot| volume.is_surfaced(snapshot)) {
                let name = format!("{}@{}", volume.name, snapshot.name);
                list.push(ExportSummary { description: format!("snapshot of {}", volume.name), name });
            }
        }
        list
    }

    fn open(&self, name: &str) -> Result<Session, ExportError> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(ExportError::ShuttingDown);
        }
        if let Some(session) = self.open_shown(name) {
            return session;
        }
        let (volume, snapshot) = match name.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (name, None),
        };
        self.0
            .with(volume, |volume| {
                let serving = volume.whole().map_err(|_| ExportError::Unknown)?;
                let Some(snapshot) = snapshot else {
                    let counted = Some((Arc::clone(&serving.filling), serving.engine.grain().trailing_zeros()));
                    return Ok(Session {
                        kind: Kind::Host(serving.engine.session()),
                        counted,
                        consumes: true,
                        _used: volume.used(None),
                    });
                };
                let info = serving
                    .engine
                    .snapshot(snapshot)
                    .filter(|info| volume.is_surfaced(info))
                    .ok_or(ExportError::Unknown)?;
                let view = serving.engine.view(snapshot).map_err(|_| ExportError::Unknown)?;
                let used = match info.originals {
                    Originals::Keep => volume.used(Some(info.id)),
                    Originals::Release => volume.used_alone(info.id).ok_or(ExportError::Busy)?,
                };
                Ok(Session { kind: Kind::View(view), counted: None, consumes: true, _used: used })
            })
            .ok_or(ExportError::Unknown)?
    }
}

impl Offered {
    /// A view that one mover was told of; `None` where the name is none.
    fn open_shown(&self, name: &str) -> Option<Result<Session, ExportError>> {
        let (volume, id) = self.0.shown().get(name).cloned()?;
        let opened = self.0.with(volume.as_str(), |volume| {
            let serving = volume.whole().map_err(|_| ExportError::Unknown)?;
            let info = serving.engine.snapshot_by_id(id).ok_or(ExportError::Unknown)?;
            let view = serving.engine.view(&info.name).map_err(|_| ExportError::Unknown)?;
            Ok(Session { kind: Kind::View(view), counted: None, consumes: false, _used: volume.used(Some(id)) })
        });
        Some(opened.unwrap_or(Err(ExportError::Unknown)))
    }
}

impl Session {
    /// Counts the whole grains that a change of the host touches.
    fn count(&self, offset: u64, len: u64) {
        if let Some((filling, grain)) = &self.counted {
            let last = offset.saturating_add(len).saturating_sub(1);
            filling.count(((last >> grain) + 1 - (offset >> grain)) << grain);
        }
    }
}

macro_rules! delegate {
    ($self:ident, $session:ident => $call:expr) => {
        match &$self.kind {
            Kind::Host($session) => $call,
            Kind::View($session) => $call,
        }
    };
}

impl Export for Session {
    fn info(&self) -> &ExportInfo {
        delegate!(self, session => session.info())
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), ExportError>) {
        delegate!(self, session => session.read(offset, buffer).await)
    }

    fn delivered(&self, range: ByteRange) {
        if self.consumes {
            delegate!(self, session => session.delivered(range));
        }
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), ExportError>) {
        self.count(offset, buffer.len() as u64);
        delegate!(self, session => session.write(offset, buffer, fua).await)
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), ExportError> {
        self.count(range.start(), range.len());
        delegate!(self, session => session.write_zeroes(range, zeroes).await)
    }

    async fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ExportError> {
        delegate!(self, session => session.trim(range, fua).await)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        delegate!(self, session => session.flush().await)
    }

    async fn prefetch(&self, range: ByteRange) -> Result<(), ExportError> {
        delegate!(self, session => session.prefetch(range).await)
    }

    async fn block_status(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        delegate!(self, session => session.block_status(range).await)
    }
}
