//! Why the daemon refuses what it was asked for.

use std::path::PathBuf;

use tzero_api::jobs::UnfitRestore;
use tzero_api::{Code, Failure, Name, Place, SnapshotPath, Unfit, sentence};
use tzero_engine::{NoMemory, SnapshotError};
use tzero_originals::ComponentsError;

use crate::base::BaseError;
use crate::claim::ExportFault;
use crate::memory::MemoryFault;
use crate::record::RecordError;
use crate::remote::RemoteError;
use crate::scope::ScopeError;

/// A refusal; its text is the sentence that the operator gets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is no volume {0}: `tzero volume list` shows them all")]
    NoVolume(Name),
    #[error("there is no snapshot {0}: `tzero snapshot list` shows them all")]
    NoSnapshot(SnapshotPath),
    #[error("the name {0} is taken by another volume: choose another, or remove that one first")]
    VolumeTaken(Name),
    #[error("there is a snapshot {0} already: choose another name, or delete that one first")]
    SnapshotTaken(SnapshotPath),
    #[error("snapshot names like {0} belong to backups: choose another")]
    Reserved(Name),
    #[error("{0}")]
    Unfit(#[from] Unfit),
    #[error("{0}")]
    Scope(#[from] ScopeError),
    #[error("{} is the base of volume {volume} already: a base holds one volume", .base.display())]
    BaseTaken { base: PathBuf, volume: Name },
    #[error("{} is named twice as a base: each holds its own part of the volume", .0.display())]
    BaseTwice(PathBuf),
    #[error("{} and {} hold the same bytes, and each base holds its own part of the volume", .base.display(), .other.display())]
    BasesOverlap { base: PathBuf, other: PathBuf },
    #[error(
        "the base {base} is {found} bytes long and the size asked for is {asked}: leave the size out, or name another base"
    )]
    BaseHasSize { base: Place, found: u64, asked: u64 },
    #[error("the base {} of {size} bytes cannot be made: {source}", .base.display())]
    BaseNotMade { base: PathBuf, size: u64, source: std::io::Error },
    #[error(
        "the bases of volume {volume} cannot be one after the other with a grain of {grain}: {source}; all but the last are whole grains long"
    )]
    Components { volume: Name, grain: u32, source: ComponentsError },
    #[error("the bases {0:?} cannot be one after the other: direct I/O needs all but the last to be whole blocks long")]
    Uneven(Vec<String>),
    #[error("{} and the base {} of volume {volume} hold the same bytes: a base holds one volume", .base.display(), .other.display())]
    BaseOverlaps { base: PathBuf, other: PathBuf, volume: Name },
    #[error("{} is among the daemon's own records in {}: choose a base elsewhere", .base.display(), .state.display())]
    BaseIsState { base: PathBuf, state: PathBuf },
    #[error("{0}")]
    Base(#[from] BaseError),
    #[error("the cache directory {} cannot be used: {source}", .path.display())]
    CacheDirectory { path: PathBuf, source: std::io::Error },
    #[error("the cache directory {} lies on the base {} itself, so saving an original would change the volume: choose another", .path.display(), .base.display())]
    CacheOnBase { path: PathBuf, base: PathBuf },
    #[error("the state directory {} lies on the base {} itself, so saving an original would change the volume: give a --cache-dir elsewhere, and keep the state elsewhere too", .path.display(), .base.display())]
    StateOnBase { path: PathBuf, base: PathBuf },
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("the originals of volume {volume} cannot be opened at {place}: {source}")]
    Cache { volume: Name, place: Place, source: std::io::Error },
    #[error("the originals of volume {volume} at {place} are in use by another process")]
    CacheLocked { volume: Name, place: Place },
    #[error("the originals of volume {volume} cannot be kept: {source}")]
    CacheExport { volume: Name, source: ExportFault },
    #[error("the originals of volume {volume} cannot be kept in memory: {source}")]
    Memory { volume: Name, source: MemoryFault },
    #[error(
        "the export {uri} is in use by volume {volume}: an export holds the bytes, or the originals, of one volume"
    )]
    ExportTaken { uri: String, volume: Name },
    #[error("the export {0} is named twice: it can be one base, or hold the originals, and no more")]
    ExportTwice(String),
    #[error("the export {0} is this daemon's own: a volume cannot stand on the daemon that serves it")]
    OwnExport(String),
    #[error("{0}")]
    Remote(#[from] RemoteError),
    #[error(
        "the export {uri} cannot flush, so nothing tells what on it outlives a loss of power: choose another, or add volume {volume} with --durability process"
    )]
    NoFlush { volume: Name, uri: String },
    #[error("volume {volume} cannot be opened: {source}")]
    Open { volume: Name, source: tzero_engine::OpenError },
    #[error("volume {volume} is not served: {reason}")]
    NotServed { volume: Name, reason: Box<str> },
    #[error("volume {volume} still has snapshots ({count}): delete them first (`tzero snapshot list`)")]
    HasSnapshots { volume: Name, count: usize },
    #[error(
        "volume {volume} still has snapshots ({count}), and what they have not saved is on the base that it has: back up what is still wanted, delete them (`tzero snapshot list`), then try again"
    )]
    SnapshotsOnBase { volume: Name, count: usize },
    #[error(
        "volume {volume} stands on {count} bases, and only a volume on a single one can get another: begin anew with `tzero volume remove {volume}` and `tzero volume add`"
    )]
    SeveralBases { volume: Name, count: usize },
    #[error(
        "{place} is {found} bytes long and volume {volume} {size}: its new base must have its size exactly; restore a copy of it there first, or name another"
    )]
    RebaseSize { volume: Name, place: Place, found: u64, size: u64 },
    #[error(
        "a restore to {target} has not come to its end, so what is there is neither old nor a copy: go on with `{resume}`, or leave it at that with `{discard}`"
    )]
    Unrestored { target: String, resume: String, discard: String },
    #[error("volume {volume} stands on {place} from now on, but is not served yet, and is tried again: {why}")]
    RebasedNotServed { volume: Name, place: Place, why: Box<Refusal> },
    #[error("volume {volume} stays on its base, and is not served yet, but tried again: {why}")]
    NotRebased { volume: Name, why: Box<Refusal> },
    #[error(
        "volume {volume} still has snapshots ({count}), which have the size that it has: back up what is still wanted, delete them (`tzero snapshot list`), then try again"
    )]
    SnapshotsOfSize { volume: Name, count: usize },
    #[error("a backup of volume {0} is under way: wait for its end, or stop it")]
    HasMovers(Name),
    #[error(
        "{place}, the last base of volume {volume}, is {found} bytes long, and for the volume to be {size} it must be {wanted}: give it that size first, or ask for the one that the volume would have ({would})"
    )]
    SizeNotThere { volume: Name, place: Place, found: u64, wanted: u64, size: u64, would: u64 },
    #[error(
        "{place}, the last base of volume {volume}, is no file, and only a file can be cut: begin anew with `tzero volume remove {volume}` and `tzero volume add`"
    )]
    NotCut { volume: Name, place: Place },
    #[error(
        "nothing would be left of {place}, the last base of volume {volume}: the volume must be longer than {least} bytes"
    )]
    NothingLeft { volume: Name, place: Place, least: u64 },
    #[error(
        "{place} is read and written past the page cache, so its size must be a multiple of {block} bytes: choose another size for volume {volume}"
    )]
    NotBlocks { volume: Name, place: Place, block: u64 },
    #[error("{place}, the last base of volume {volume}, cannot be {wanted} bytes long: {source}")]
    NotResized { volume: Name, place: Place, wanted: u64, source: std::io::Error },
    #[error("volume {volume} cannot be so long: {source}; a larger grain needs less")]
    NoBits { volume: Name, source: NoMemory },
    #[error("volume {volume} has the size {size} on record, but is not served yet, and is tried again: {why}")]
    ResizedNotServed { volume: Name, size: u64, why: Box<Refusal> },
    #[error("volume {volume} keeps its size, and is not served yet, but tried again: {why}")]
    UnresizedNotServed { volume: Name, why: Box<Refusal> },
    #[error("volume {volume} still has clients connected ({count}): disconnect them first")]
    HasClients { volume: Name, count: u64 },
    #[error("volume {0} is being changed by another command: try again")]
    BeingChanged(Name),
    #[error("volume {0} was closed meanwhile: look whether it and the daemon are still there")]
    Closed(Name),
    #[error("requests to volume {0} still run: its snapshots are kept, but a power failure now would cost them")]
    StillRunning(Name),
    #[error("{0}")]
    NoPlace(Box<str>),
    #[error(
        "the base {place} of volume {volume} is another device than the one that was left: put that one back, or let the path lead to it, or begin anew with `tzero volume remove {volume}` and `tzero volume add`"
    )]
    BaseIsAnother { volume: Name, place: Place },
    #[error(
        "the base {place} of volume {volume} is {size} bytes long and was {left}: give it back its size, or begin anew with `tzero volume remove {volume}` and `tzero volume add`"
    )]
    BaseResized { volume: Name, place: Place, size: u64, left: u64 },
    #[error(
        "the base {place} of volume {volume} was cut to {size} bytes while it was served, and had {was}: what lay behind is lost; give it back its size, restart the daemon, and restore a copy"
    )]
    BaseShrank { volume: Name, place: Place, size: u64, was: u64 },
    #[error(
        "no snapshot of volume {volume} can be taken now: what its base had acknowledged may be lost ({source}); try again"
    )]
    Unsettled { volume: Name, source: std::io::Error },
    #[error("no snapshot of volume {volume} can be taken: that it is being taken cannot be noted: {source}")]
    Unnoted { volume: Name, source: std::io::Error },
    #[error("volume {volume} cannot be closed: {source}")]
    Close { volume: Name, source: std::io::Error },
    #[error("the snapshot {path} cannot be made or changed: {source}")]
    Snapshot { path: SnapshotPath, source: SnapshotError },
    #[error("there is no job {0}: a list of all is at /v1/jobs")]
    NoJob(Box<str>),
    #[error("{0}")]
    UnfitRestore(#[from] UnfitRestore),
    #[error("{0} restores are running already: wait for one to end")]
    TooManyJobs(usize),
    #[error("the process of a restore cannot be started: {0}")]
    JobNotStarted(#[source] std::io::Error),
    #[error("the daemon is stopping: try again when it runs")]
    Stopping,
    #[error("the snapshot cannot be deleted from the records of volume {volume}: {source}")]
    Records { volume: Name, source: std::io::Error },
    #[error("the request is longer than {} bytes: ask for less at once", crate::control::LONGEST_BODY)]
    TooLong,
    #[error("the request cannot be read to its end: {0}")]
    Unread(String),
    #[error("the request is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the request is malformed: {0}")]
    Name(#[from] tzero_api::NameError),
}

impl Refusal {
    /// What the engine says of a snapshot, for the operator.
    pub(crate) fn of_snapshot(path: &SnapshotPath, error: SnapshotError) -> Self {
        match error {
            SnapshotError::Unknown => Self::NoSnapshot(path.clone()),
            SnapshotError::Taken => Self::SnapshotTaken(path.clone()),
            source => Self::Snapshot { path: path.clone(), source },
        }
    }

    /// The stable word for programs.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoVolume(_) | Self::NoSnapshot(_) | Self::NoJob(_) => Code::Unknown,
            Self::VolumeTaken(_)
            | Self::SnapshotTaken(_)
            | Self::BaseTaken { .. }
            | Self::BaseOverlaps { .. }
            | Self::ExportTaken { .. } => Code::Taken,
            Self::Reserved(_)
            | Self::Unfit(_)
            | Self::UnfitRestore(_)
            | Self::BaseTwice(_)
            | Self::ExportTwice(_)
            | Self::OwnExport(_)
            | Self::Remote(RemoteError::Uri { .. })
            | Self::Base(BaseError::Export(RemoteError::Uri { .. }))
            | Self::CacheExport { source: ExportFault::Remote(RemoteError::Uri { .. }), .. }
            | Self::BaseHasSize { .. }
            | Self::Components { .. }
            | Self::Scope(_)
            | Self::TooLong
            | Self::Unread(_)
            | Self::Malformed(_)
            | Self::Name(_) => Code::Invalid,
            Self::HasSnapshots { .. }
            | Self::SnapshotsOnBase { .. }
            | Self::SnapshotsOfSize { .. }
            | Self::HasMovers(_)
            | Self::HasClients { .. }
            | Self::BeingChanged(_)
            | Self::TooManyJobs(_)
            | Self::CacheLocked { .. }
            | Self::Base(BaseError::Locked(_) | BaseError::InUse(_) | BaseError::InUseThrough { .. }) => Code::Busy,
            Self::NotServed { .. } | Self::BaseShrank { .. } | Self::Stopping | Self::Closed(_) | Self::NoPlace(_) => {
                Code::Unavailable
            }
            _ => Code::Failed,
        }
    }
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        Self { code: refusal.code(), message: sentence(refusal) }
    }
}
