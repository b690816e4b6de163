//! Why an operation did not end well. Every message is one sentence: what failed, on what, why, what to do.

mod refusal;

use std::fmt;
use std::io;
use std::path::PathBuf;

use tzero_api::mover::{FailureCode, PROTOCOL};
use tzero_api::quoted;
use tzero_block::ByteRange;
use tzero_originals::{BrokenReason, ReconcileError};

use crate::manifest::ManifestFault;
use crate::{CopyId, Exit, Timestamp};

pub use refusal::{Holding, RangeFault, Refusal};

/// What was to be done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAction {
    /// Look at it, or open it for reading.
    Open,
    /// Make it, or open it for writing.
    Create,
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Make it durable.
    Flush,
    /// Give it its final name.
    Rename,
    /// Remove it.
    Remove,
    /// Lock it.
    Lock,
}

impl fmt::Display for FileAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Lock => "lock",
        })
    }
}

/// A restore that has overwritten its target in part.
#[derive(Debug)]
pub struct Halted {
    /// The target, as `--to` takes it.
    pub path: PathBuf,
    /// The command that goes on.
    pub again: String,
    /// The command that forgets it.
    pub dismissal: String,
    /// Why it ended.
    pub cause: Error,
}

impl fmt::Display for Halted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, again, dismissal, cause } = self;
        write!(
            f,
            "{cause}; {} was overwritten in part and holds neither what it held nor the copy: `{again}` goes on, `{dismissal}` leaves it at that",
            path.display()
        )
    }
}

/// Why a copy cannot go on where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeFault {
    /// There is no unfinished copy.
    Nothing,
    /// It is a copy of something else.
    OtherSource,
    /// Its snapshot no longer exists.
    SnapshotGone,
    /// The daemon's snapshot is not the one that was being copied.
    OtherSnapshot,
    /// The unfinished image is gone, or is not the one that was being written.
    ImageGone,
    /// The plain source was changed since.
    SourceChanged,
    /// It is being copied in another mode.
    OtherMode,
    /// It is being copied with another boundary.
    OtherBoundary,
    /// It is being copied with another scope.
    OtherScope,
}

/// Why a snapshot cannot be copied in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeFault {
    /// An outboard copy of a snapshot that releases its originals.
    #[error(
        "an outboard copy needs a snapshot that keeps its originals, and this one releases them; leave out --mode, or copy the volume"
    )]
    Releases,
    /// An outboard copy of a base that only its daemon can read.
    #[error(
        "an outboard copy reads the base itself, and this one is at a server that shows no other connection what the daemon has written; leave out --mode"
    )]
    View,
}

impl fmt::Display for ResumeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::Nothing => {
                return f.write_str("there is no unfinished copy to resume; leave out --resume to begin one");
            }
            Self::OtherSource => "the unfinished copy there is of another source",
            Self::SnapshotGone => "the snapshot of the unfinished copy is gone",
            Self::OtherSnapshot => "the snapshot or its volume is not the one that was being copied",
            Self::ImageGone => "the unfinished image is gone or was replaced",
            Self::SourceChanged => "the source was changed since the copy began",
            Self::OtherMode | Self::OtherBoundary | Self::OtherScope => {
                let (what, flag) = match self {
                    Self::OtherMode => ("in another mode", "--mode"),
                    Self::OtherBoundary => ("with another boundary", "--boundary"),
                    _ => ("with another scope", "--scope"),
                };
                return write!(f, "the unfinished copy there is being made {what}; leave out {flag} to go on with it");
            }
        };
        write!(f, "{why}; leave out --resume to begin a new copy")
    }
}

/// What went wrong between a mover and the daemon.
#[derive(Debug)]
pub enum DaemonFault {
    /// The daemon cannot be reached.
    Unreachable(io::Error),
    /// The connection ended or broke.
    Lost(io::Error),
    /// No answer in time.
    Silent,
    /// An answer that does not fit the protocol.
    Protocol,
    /// It speaks this version of the mover protocol.
    Version(u32),
    /// A component of the base is shorter than the volume was at T0.
    Cut {
        /// Its size in bytes.
        has: u64,
        /// The snapshot's.
        needs: u64,
    },
    /// The files that it handed over cannot be used.
    Files(io::Error),
    /// An export that it named cannot be used.
    Export {
        /// Which.
        uri: String,
        /// Why.
        source: tzero_nbd::ClientError,
    },
    /// The original cache that it handed over cannot be used.
    Originals(tzero_originals::OpenError),
    /// The daemon said no; the message is its own sentence.
    Refused {
        /// For programs.
        code: FailureCode,
        /// For people.
        message: String,
    },
}

impl DaemonFault {
    /// Whether the same session may be taken up again later. A daemon that is stopping refuses too.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Lost(_) | Self::Silent | Self::Export { .. } => true,
            Self::Refused { code, .. } => matches!(code, FailureCode::Busy | FailureCode::Failed),
            Self::Protocol | Self::Version(_) | Self::Cut { .. } | Self::Files(_) | Self::Originals(_) => false,
        }
    }
}

impl fmt::Display for DaemonFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(source) => write!(f, "the daemon cannot be reached ({source}); start `tzero serve`"),
            Self::Lost(source) => write!(f, "the daemon is gone ({source})"),
            Self::Silent => f.write_str("the daemon does not answer"),
            Self::Protocol => f.write_str("the daemon's answer makes no sense; are both of the same version?"),
            Self::Version(theirs) => write!(
                f,
                "it speaks version {theirs} of the mover protocol and this program {PROTOCOL}: use one version of tzero for both"
            ),
            Self::Cut { has, needs } => write!(
                f,
                "its base was cut to {has} bytes and had {needs} at time zero; give it that size again, or restore it from a copy"
            ),
            Self::Files(source) => write!(f, "what the daemon handed over cannot be used ({source})"),
            Self::Export { uri, source } => {
                write!(f, "the export {uri} that its bytes are on cannot be used ({source})")
            }
            Self::Originals(source) => write!(f, "the original cache cannot be used ({source})"),
            Self::Refused { message, .. } => f.write_str(message),
        }
    }
}

/// Why the T0 bytes of a range cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceFault {
    /// The base does not give them.
    #[error("{0}")]
    Base(#[source] tzero_block::Error),
    /// The snapshot does not stand, or an original is bad.
    #[error("{0}")]
    Snapshot(#[source] ReconcileError),
    /// The snapshot has let go of it.
    #[error("the snapshot has released it, so what it held at time zero is gone")]
    Released,
}

impl SourceFault {
    /// What helps, as the end of a sentence; empty where the fault says so itself or nobody knows.
    fn remedy(&self) -> &'static str {
        match self {
            Self::Snapshot(ReconcileError::Broken(BrokenReason::CacheFull | BrokenReason::MapFull)) => {
                ": make room for originals (`tzero volume show`: cache), or let the host wait with `--on-full wait:DURATION`, and back up again"
            }
            Self::Snapshot(ReconcileError::Broken(_)) => ": back up again",
            Self::Base(_) | Self::Snapshot(_) | Self::Released => "",
        }
    }

    /// Whether it is the link to a server that was cut.
    pub(crate) fn is_link(&self) -> bool {
        matches!(self, Self::Base(error) if tzero_nbd::ClientError::of(error).is_some())
    }
}

/// A copy that can go on later.
#[derive(Debug)]
pub struct Incomplete {
    /// Why it stopped.
    pub cause: StopCause,
    /// Volume's name; none for a plain source.
    pub volume: Option<String>,
    /// Snapshot's name without the volume's.
    pub snapshot: Option<String>,
    /// The snapshot was made for this copy alone.
    pub private: bool,
    /// What to name as the source when going on.
    pub source: String,
    /// Where the copy will be.
    pub destination: PathBuf,
    /// What names the unfinished copy when it is given up.
    pub unfinished: PathBuf,
    /// Bytes of the volume that are done, holes included.
    pub done: u64,
    /// Of so many.
    pub total: u64,
}

/// Why a copy stopped before its end.
#[derive(Debug)]
pub enum StopCause {
    /// It was asked to.
    Cancelled,
    /// The daemon went away.
    Daemon(DaemonFault),
    /// The destination is full.
    Full,
    /// The link to the destination was cut, and did not come back.
    Link(Box<Error>),
    /// The image has taken its place, but a step after that failed.
    Unnamed(Box<Error>),
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("it was interrupted"),
            Self::Daemon(fault) => fault.fmt(f),
            Self::Full => f.write_str("the destination is full"),
            Self::Link(error) => error.fmt(f),
            Self::Unnamed(error) => write!(f, "it stands in its place, but is not declared yet: {error}"),
        }
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, destination, done, total, .. } = self;
        let (source, to) = (quoted(&self.source), destination.to_string_lossy());
        let (to, unfinished) = (quoted(&to), self.unfinished.to_string_lossy());
        write!(f, "the copy of {source} to {to} is incomplete, {done} of {total} bytes are done: {cause}; ")?;
        write!(
            f,
            "`tzero backup {source} --to {to} --resume` goes on, `tzero copy remove {}` gives it up",
            quoted(&unfinished)
        )?;
        match (&self.volume, &self.snapshot) {
            (Some(volume), Some(snapshot)) if self.private => {
                write!(f, " together with its snapshot {volume}@{snapshot}")
            }
            _ => Ok(()),
        }
    }
}

/// Why an operation did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What.
        action: FileAction,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A destination or target is not written to.
    #[error("{} is not written to: {refusal}", path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// A destination or target that is named like a file that stands beside a copy.
    #[error(
        "{} is not written to: names that end with `{suffix}` belong to the files that are kept beside a copy; choose another name",
        path.display()
    )]
    Reserved {
        /// Which.
        path: PathBuf,
        /// How its name ends.
        suffix: &'static str,
    },
    /// A destination or target in the state directory.
    #[error("{} is not written to: it lies in the state directory {}; choose a place elsewhere", path.display(), state.display())]
    InState {
        /// Which.
        path: PathBuf,
        /// The state directory.
        state: PathBuf,
    },
    /// A destination or target on which a registered volume lies.
    #[error(
        "{} is not written to: it shares its bytes with the {holding} of volume {volume}; remove the volume first, with `tzero volume remove {volume}`",
        path.display()
    )]
    Registered {
        /// Which.
        path: PathBuf,
        /// The volume's name.
        volume: String,
        /// What of it.
        holding: Holding,
    },
    /// Somebody else's file is where one of a copy's would be.
    #[error(
        "{} is not written to: {} would be overwritten or removed and is no file of tzero's; move it away, or choose another place",
        path.display(), beside.display()
    )]
    Foreign {
        /// The destination or target.
        path: PathBuf,
        /// The file beside it.
        beside: PathBuf,
    },
    /// What is to be read is neither a file nor a block device.
    #[error("{} cannot be {what}: it is neither a file nor a block device; name one", path.display())]
    WrongKind {
        /// Which.
        path: PathBuf,
        /// `copied` or `read as a copy`.
        what: &'static str,
    },
    /// A file that does not say how much it holds, as those of `/proc`.
    #[error("{} cannot be copied: it holds more than the {size} bytes that it says; copy a file of a disk", path.display())]
    Unmeasured {
        /// Which.
        path: PathBuf,
        /// What it says.
        size: u64,
    },
    /// A target on which an unfinished copy stands, which would later go on over what was restored.
    #[error(
        "{} is not written to: an unfinished copy stands there; `tzero copy remove {}` gives it up",
        path.display(), quoted(&unfinished.to_string_lossy())
    )]
    Unfinished {
        /// Which.
        path: PathBuf,
        /// What names the unfinished copy.
        unfinished: PathBuf,
    },
    /// A manifest cannot be used.
    #[error("the manifest {} cannot be used: {fault}", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        fault: ManifestFault,
    },
    /// There is no manifest for a path.
    #[error("{} is no copy: there is no manifest {}", path.display(), manifest.display())]
    NoCopy {
        /// What was named.
        path: PathBuf,
        /// What was looked for.
        manifest: PathBuf,
    },
    /// No copy has this name.
    #[error(
        "there is no copy {name}: it is neither the id of one in the catalogue nor the path of one; see `tzero copy list`"
    )]
    UnknownCopy {
        /// What was given.
        name: String,
    },
    /// Several copies have it.
    #[error("{name} is the beginning of {count} copies' ids; give more of it")]
    AmbiguousCopy {
        /// What was given.
        name: String,
        /// How many fit.
        count: usize,
    },
    /// The image is not what the manifest says, so it is not removed.
    #[error("{} is not removed: it has {found} bytes and the copy {expected}, so something else stands there", path.display())]
    NotItsImage {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The copy's.
        expected: u64,
    },
    /// A copy cannot go on.
    #[error("the copy to {} cannot be resumed: {fault}", path.display())]
    Resume {
        /// The destination.
        path: PathBuf,
        /// Why.
        fault: ResumeFault,
    },
    /// There is nothing to give up.
    #[error("there is no unfinished copy {}; `tzero status` lists those that the daemon knows", path.display())]
    NothingUnfinished {
        /// What was named.
        path: PathBuf,
    },
    /// An unfinished copy whose journal is gone: nothing says any more what of it is done.
    #[error("the copy to {} cannot be resumed: its journal is lost; `{way}` gives up what is left of it", path.display())]
    JournalLost {
        /// The destination.
        path: PathBuf,
        /// The command.
        way: String,
    },
    /// The snapshot of an unfinished copy is not given up.
    #[error("the snapshot of the unfinished copy cannot be deleted: {0}")]
    Control(#[from] tzero_api::ClientError),
    /// The mode that was asked for is not to be had of this source.
    #[error("{source_name} cannot be copied so: {fault}")]
    Mode {
        /// What was to be copied.
        source_name: String,
        /// Why.
        fault: ModeFault,
    },
    /// The daemon does not do its part.
    #[error("{} cannot be copied: {fault}", volume)]
    Daemon {
        /// Which volume.
        volume: String,
        /// Why.
        fault: DaemonFault,
    },
    /// The source does not give its bytes. Nothing was declared.
    #[error("{source_name} cannot be copied, at {range}: {fault}; no copy was made{}", fault.remedy())]
    Source {
        /// What was read.
        source_name: String,
        /// Where.
        range: ByteRange,
        /// Why.
        fault: SourceFault,
    },
    /// A part of an interrupted copy is lost, and its source has released it. Nothing is left of the copy.
    #[error("{}", lost(source_name, path, *range, *replace))]
    Lost {
        /// What was read.
        source_name: String,
        /// Where the copy was to be.
        path: PathBuf,
        /// What is lost, first.
        range: ByteRange,
        /// A new copy has to replace something there.
        replace: bool,
    },
    /// The destination or target does not take bytes.
    #[error("cannot write to {}: {source}", path.display())]
    Target {
        /// Which.
        path: PathBuf,
        /// Why.
        source: tzero_block::Error,
    },
    /// A fresh copy does not read back as what was written.
    #[error("{} does not read back as what was written, first at {range}: the medium is bad, and nothing was declared", path.display())]
    ReadBack {
        /// Which.
        path: PathBuf,
        /// Where, first.
        range: ByteRange,
    },
    /// A copy is damaged and is not restored.
    #[error("the copy {copy} of {t0} is damaged at {range}: {} is not restored", target.display())]
    Damaged {
        /// Which.
        copy: CopyId,
        /// Its T0.
        t0: Timestamp,
        /// Where, first.
        range: ByteRange,
        /// What was to be restored.
        target: PathBuf,
    },
    /// The copy's image is shorter or longer than it was.
    #[error("the image {} has {found} bytes instead of {expected}: the copy is damaged", path.display())]
    WrongSize {
        /// The image.
        path: PathBuf,
        /// What it has.
        found: u64,
        /// What it had.
        expected: u64,
    },
    /// Can go on later.
    #[error("{0}")]
    Incomplete(Box<Incomplete>),
    /// A restore that overwrites its target in place ended too early.
    #[error("{0}")]
    Halted(Box<Halted>),
    /// A range of a copy that cannot be restored.
    #[error("{range} of the copy {copy} cannot be restored: {fault}")]
    Range {
        /// Which copy.
        copy: CopyId,
        /// Which range.
        range: ByteRange,
        /// Why.
        fault: RangeFault,
    },
    /// What is meant as the URI of an export is none.
    #[error("{text} is no NBD export that can be used: {fault}")]
    Uri {
        /// What was given.
        text: String,
        /// Why.
        fault: tzero_nbd::UriError,
    },
    /// An export cannot be had.
    #[error("{uri} cannot be used: {source}; look at its server")]
    Export {
        /// Which.
        uri: String,
        /// Why.
        source: tzero_nbd::ClientError,
    },
    /// The daemon does not say what it serves.
    #[error("{0}")]
    Served(#[source] tzero_api::ClientError),
    /// A volume that cannot be restored to.
    #[error("volume {volume} is not served: {reason}")]
    NotServed {
        /// Which.
        volume: String,
        /// Why.
        reason: String,
    },
    /// A destination or target cannot be read.
    #[error("{} cannot be read: {fault}", path.display())]
    Unread {
        /// Which.
        path: PathBuf,
        /// Why.
        fault: SourceFault,
    },
    /// A copy cannot be read. Nothing is known of it being damaged.
    #[error("the copy {copy} cannot be read at {range}: {fault}; {} is not restored", target.display())]
    Unreadable {
        /// Which.
        copy: CopyId,
        /// Where.
        range: ByteRange,
        /// Why.
        fault: SourceFault,
        /// What was to be restored.
        target: PathBuf,
    },
    /// A target that others can write to does not hold what was restored.
    #[error(
        "{} does not hold what was restored, first at {range}: somebody has written there meanwhile, or its medium is bad; nothing was declared",
        path.display()
    )]
    ChangedMeanwhile {
        /// Which.
        path: PathBuf,
        /// Where, first.
        range: ByteRange,
    },
    /// Asked to stop; nothing is left of it.
    #[error("interrupted: {} is not {what}; run the same command again", path.display())]
    Interrupted {
        /// Target or copy.
        path: PathBuf,
        /// `restored` or `verified`.
        what: &'static str,
    },
    /// The kernel does not let this process do I/O.
    #[error("cannot set up input and output: {0}")]
    Runtime(#[source] io::Error),
}

fn lost(source: &str, path: &std::path::Path, range: ByteRange, replace: bool) -> String {
    let (from, to) = (quoted(source), path.to_string_lossy());
    let (to, replace) = (quoted(&to), if replace { " --replace" } else { "" });
    format!(
        "the copy of {source} to {to} cannot go on: what it had of {range} is lost, and {source} has released what it held there at time zero; nothing is left of the copy, `tzero backup {from} --to {to}{replace}` starts over"
    )
}

impl Error {
    /// For the process's exit status.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Incomplete(_) | Self::Interrupted { .. } => Exit::Incomplete,
            Self::Daemon { fault: DaemonFault::Refused { code: FailureCode::Invalid, .. }, .. } => Exit::Usage,
            Self::Target { .. } | Self::Unread { .. } | Self::Unreadable { .. }
                if self.may_pass() && !self.is_full() =>
            {
                Exit::Incomplete
            }
            Self::Halted(halted) if halted.cause.may_pass() => Exit::Incomplete,
            Self::Halted(halted) => halted.cause.exit(),
            Self::Reserved { .. }
            | Self::Mode { .. }
            | Self::InState { .. }
            | Self::Range { .. }
            | Self::Uri { .. } => Exit::Usage,
            Self::Served(error) => error.exit(),
            _ => Exit::Failed,
        }
    }

    /// Whether the destination or a file of the copy has no room.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Target { source, .. } => source.is_no_space(),
            Self::File { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// Whether it is the link to a destination or target that was cut.
    pub(crate) fn is_link(&self) -> bool {
        match self {
            Self::Export { .. } => true,
            Self::Target { source, .. } => tzero_nbd::ClientError::of(source).is_some(),
            Self::Unread { fault, .. } | Self::Unreadable { fault, .. } => fault.is_link(),
            _ => false,
        }
    }

    /// Whether the same may go well later: a link that was cut, a server that was away, a place without room.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Interrupted { .. } => true,
            Self::Served(error) => !matches!(error, tzero_api::ClientError::Refused(_)),
            _ => self.is_link() || self.is_full(),
        }
    }

    /// Whether it may have cost the destination something that it had taken before.
    pub(crate) fn casts_doubt(&self) -> bool {
        matches!(self, Self::Target { .. } | Self::File { action: FileAction::Flush, .. }) || self.is_full()
    }

    pub(crate) fn daemon(volume: &str) -> impl FnOnce(DaemonFault) -> Self + use<> {
        let volume = volume.to_owned();
        move |fault| Self::Daemon { volume, fault }
    }

    pub(crate) fn file(action: FileAction, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// Of a flush.
    pub(crate) fn unflushed(path: &std::path::Path) -> impl FnOnce(tzero_block::Error) -> Self {
        let path = path.to_owned();
        move |error| {
            let is_link = tzero_nbd::ClientError::of(&error).is_some();
            match error.fault {
                tzero_block::Fault::System(source) if !is_link => {
                    Self::File { action: FileAction::Flush, path, source }
                }
                fault => Self::Target { path, source: tzero_block::Error { fault, ..error } },
            }
        }
    }

    /// Of a read from a destination or target.
    pub(crate) fn unread(path: &std::path::Path) -> impl FnOnce(tzero_block::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Unread { path, fault: SourceFault::Base(error) }
    }

    pub(crate) fn foreign(path: &std::path::Path, beside: &std::path::Path) -> Self {
        Self::Foreign { path: path.to_owned(), beside: beside.to_owned() }
    }

    pub(crate) fn refused(path: &std::path::Path, refusal: Refusal) -> Self {
        Self::Refused { path: path.to_owned(), refusal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let incomplete = Incomplete {
            cause: StopCause::Cancelled,
            volume: Some("vm".into()),
            snapshot: Some("backup-0badcafe".into()),
            private: true,
            source: "vm".into(),
            destination: "/my copies/it's.img".into(),
            unfinished: "/my copies/it's.img.tzero-partial".into(),
            done: 1,
            total: 2,
        };
        let text = incomplete.to_string();
        assert!(text.contains(r"`tzero backup vm --to '/my copies/it'\''s.img' --resume` goes on"), "{text}");
        assert!(text.contains(r"`tzero copy remove '/my copies/it'\''s.img.tzero-partial'` gives it up"), "{text}");
        assert!(text.ends_with("together with its snapshot vm@backup-0badcafe"), "{text}");
    }
}
