//! Why a place is not written to, and a range not restored.

use std::fmt;

/// Why a destination of a backup, or the target of a restore, is not written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is, or lies on, what is being copied.
    IsSource,
    /// The source lies in the state that this destination would overwrite.
    HoldsCopy,
    /// A complete copy stands there.
    CompleteCopy,
    /// Something stands there that is no copy of this volume.
    NoCopyOfIt,
    /// An unfinished copy of another volume stands there.
    OtherUnfinished,
    /// A device that is not blank, for a backup.
    NotBlank,
    /// The same for what a restore would overwrite in place.
    NotBlankTarget,
    /// A file that a restore would replace.
    Exists,
    /// A copy stands where a restore would write, or at least its manifest says so.
    Declared,
    /// Neither a file nor a block device.
    NotAFile,
    /// A block device that is mounted or otherwise held.
    DeviceInUse,
    /// A file that someone holds locked, a registered volume's base for one.
    Locked,
    /// A device over a file that someone holds locked.
    LiesOnLocked,
    /// Another run is writing it.
    Busy,
    /// A device smaller than the volume.
    TooSmall {
        /// Its size in bytes.
        has: u64,
        /// What is needed.
        needs: u64,
    },
    /// A device that is set read-only.
    ReadOnly,
    /// An export that its server gives read-only.
    ReadOnlyExport,
    /// An export whose server never says that bytes are durable.
    CannotFlush,
    /// An export of the daemon that serves the source: the source itself, or one that lies with it on the same bytes.
    ServesSource,
    /// A file that ends before what is to be written to it in place.
    TooShort {
        /// Its length in bytes.
        has: u64,
        /// What is needed.
        needs: u64,
    },
    /// A file of another length than the copy, of which only what differs was to be written.
    OtherLength {
        /// Its length in bytes.
        has: u64,
        /// The copy's.
        needs: u64,
    },
    /// A volume of another size than the copy.
    OtherSize {
        /// Its size in bytes.
        has: u64,
        /// The copy's.
        needs: u64,
    },
    /// The volume of that name is not the one that was restored.
    AnotherVolume,
    /// The restore that a note is of runs.
    Running,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IsSource => f.write_str("it is, or lies on, the source of this copy; choose a place elsewhere"),
            Self::HoldsCopy => f.write_str("it is, or holds, the copy itself; choose another target"),
            Self::CompleteCopy => f.write_str(
                "a complete copy stands there; --replace makes the new one beside it and then takes its place",
            ),
            Self::NoCopyOfIt => f.write_str(
                "something stands there that is no copy of this volume; --replace puts the copy in its place",
            ),
            Self::OtherUnfinished => {
                f.write_str("an unfinished copy of another volume stands there; --replace throws it away")
            }
            Self::NotBlank => f.write_str("the device is not blank; --replace overwrites it"),
            Self::NotBlankTarget => {
                f.write_str("it is not blank, and holds something else than the copy; --force overwrites that")
            }
            Self::Exists => f.write_str("it exists; --force replaces it once the restore is complete"),
            Self::Declared => f.write_str(
                "by the manifest beside it a copy stands there; --force un-declares that copy before it is overwritten",
            ),
            Self::NotAFile => f.write_str("it is neither a file nor a block device"),
            Self::DeviceInUse => f.write_str("the device is mounted or in use; release it first"),
            Self::Locked => {
                f.write_str("it is locked, as the base of a served volume is; remove the volume from the daemon first")
            }
            Self::LiesOnLocked => f.write_str(
                "it lies on a file that is locked, as the base of a served volume is; remove the volume from the daemon first",
            ),
            Self::Busy => f.write_str("another run is writing there; wait for it to end"),
            Self::TooSmall { has, needs } => {
                write!(f, "it has {has} bytes and {needs} are needed; use a larger one")
            }
            Self::ReadOnly => f.write_str("the device is set read-only"),
            Self::ReadOnlyExport => f.write_str("its server gives the export read-only"),
            Self::CannotFlush => {
                f.write_str("its server has no way to make bytes durable, so nothing there could ever be declared")
            }
            Self::ServesSource => {
                f.write_str("it is an export of the daemon that serves the source, and lies on the same bytes; choose a place elsewhere")
            }
            Self::TooShort { has, needs } => {
                write!(f, "the file has {has} bytes and {needs} are needed; make it longer, or choose another")
            }
            Self::OtherLength { has, needs } => write!(
                f,
                "the file has {has} bytes and the copy {needs}; leave out --differing to replace the file, or name what is wanted with --range"
            ),
            Self::OtherSize { has, needs } => write!(
                f,
                "the volume has {has} bytes and the copy {needs}; `--range 0+{needs}` restores the beginning of the volume, and leaves the rest as it is"
            ),
            Self::AnotherVolume => f.write_str("the volume of that name is another one by now"),
            Self::Running => f.write_str("the restore that it is a note of is running; interrupt it first"),
        }
    }
}

/// What of a registered volume a place shares bytes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Its base.
    Base,
    /// Its original cache.
    Originals,
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Originals => "originals",
        })
    }
}

/// Why a range cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeFault {
    /// It has no bytes.
    Empty,
    /// It ends behind the copy's volume.
    PastEnd {
        /// Where that ends, in bytes.
        size: u64,
    },
    /// It shares bytes with another range.
    Overlaps,
    /// The copy is of a part of its volume, and not of all of this.
    OutOfScope,
    /// One more than are taken at once.
    TooMany,
}

impl fmt::Display for RangeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it has no bytes; give it a length"),
            Self::PastEnd { size } => write!(f, "the copy ends at {size}"),
            Self::Overlaps => f.write_str("it overlaps another range; give every byte once"),
            Self::OutOfScope => f.write_str("the copy does not have all of it; `tzero copy show` tells its scope"),
            Self::TooMany => write!(f, "a restore takes {} ranges; restore the others after it", crate::MOST_RANGES),
        }
    }
}
