//! The record of a copy: what it is of, when, how it was made, and what it must read as.
//!
//! The file is described in `docs/formats/manifest.md`. Two checks come before any field is believed: the last line
//! seals every byte before it with a BLAKE3 digest, and the number of digests fits the size.
//!
//! Deliberately absent: the image's path. A manifest moves together with the image beside it. (A device's has one,
//! since a device has no "beside".)

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digests::chunk_count;
use crate::scope::Scope;
use crate::{CopyId, Digests, Timestamp, hex};

/// Newest version that is read, and the one that is written.
pub const MANIFEST_VERSION: u32 = 2;
/// Oldest version that is read: it knew whole volumes and mode `timezero` only.
const OLDEST_VERSION: u32 = 1;
/// First member of every manifest.
const FORMAT: &str = "tzero-manifest";
/// How every manifest begins, of whatever version.
pub(crate) const MAGIC: &str = "{\n  \"format\": \"tzero-manifest\"";
/// Comes between the sealed bytes and the seal's 64 hex digits.
const SEAL_HEAD: &str = ",\n  \"digest\": \"";
/// Comes after them.
const SEAL_TAIL: &str = "\"\n}\n";
/// Sizes that a chunk may have, in bytes.
const CHUNK_SIZES: std::ops::RangeInclusive<u64> = 4096..=(1 << 30);
/// Longest manifest that is read, in bytes: the digests of 16 TiB of data without a hole.
pub(crate) const LONGEST_MANIFEST: u64 = 512 << 20;

/// What a copy consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyKind {
    /// The volume's bytes, one for one.
    Image,
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeAsked {
    /// Whatever fits: `timezero`.
    #[default]
    Auto,
    /// Every block as of T0, captured blocks released.
    TimeZero,
    /// Every block as of T0, originals marked as read.
    Reconciled,
    /// The base with no regard to updates, then the originals over it.
    Outboard,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeUsed {
    /// Every block as of T0, captured blocks released.
    TimeZero,
    /// Every block as of T0, originals marked as read (R21).
    Reconciled,
    /// The base with no regard to updates, then the originals over it (R31).
    Outboard,
    /// Plain reads of a file or device that is no volume: there is no T0 but the time at which reading began.
    Plain,
}

/// Where the originals of an outboard copy go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// To their places, over the base's bytes: the copy is the T0 image (R37).
    #[default]
    Overwrite,
}

/// Which originals an outboard copy takes (R33).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// All that are saved when the copy of the originals starts.
    #[default]
    All,
    /// All that are saved when copy-on-write is ended, between the two copies.
    Terminate,
    /// Those up to the newest one of the moment at which the last outboard read had completed.
    Marker,
}

/// What moved the base's bytes of an outboard copy (R32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Plain reads and writes.
    Read,
    /// The kernel copied from file to file, the whole base or what of it it would.
    CopyFileRange,
    /// The file system shared the bytes.
    Reflink,
}

/// What an outboard copy is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outboard {
    /// Where the originals go.
    pub layout: Layout,
    /// Which of them.
    pub boundary: Boundary,
}

/// How an outboard copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboardRecord {
    /// Where the originals went.
    pub layout: Layout,
    /// Which of them.
    pub boundary: Boundary,
    /// What moved the base's bytes.
    pub engine: Engine,
}

/// How the bytes of a volume's base reached the mover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// It read base and originals itself, through descriptors of the daemon.
    Descriptors,
    /// It read some of them itself, as a client of the NBD servers that they are on.
    Nbd,
    /// It read the snapshot's view, as a client of the daemon.
    View,
}

impl ModeUsed {
    /// The only mode that the first journals knew. (A plain source was known by its record.)
    pub(crate) fn of_version_1() -> Self {
        Self::TimeZero
    }
}

/// What kept writers off a plain file or device while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// Nobody could write to it.
    ReadOnly,
    /// Somebody held a lock on it.
    Locked,
}

/// What the copied bytes survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The session's originals survived the death of processes. (The finished copy itself is flushed in any case.)
    Process,
    /// They would have survived a power failure, too.
    Power,
}

/// A volume that a copy is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its name at T0.
    pub name: String,
    /// Its stable id (32 hex digits).
    pub id: String,
    /// Its base's generation at T0.
    pub generation: u64,
    /// Its size at T0 in bytes.
    pub size: u64,
}

/// Which file the image is, to tell after a crash whether this manifest's image is in place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Inode number when it was made. Means nothing once the image was moved to another file system.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
}

/// The block device that holds a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Path by which it was named.
    pub path: PathBuf,
    /// What the system knows it by, across boots where it can tell.
    pub key: String,
}

/// Everything that is known of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    /// The copy's stable name.
    pub id: CopyId,
    /// What it consists of.
    pub kind: CopyKind,
    /// What it is of.
    pub volumes: Vec<VolumeRecord>,
    /// The instant that it shows.
    pub t0: Timestamp,
    /// When it was declared.
    pub completed: Timestamp,
    /// What was asked for.
    pub mode_asked: ModeAsked,
    /// What was done.
    pub mode_used: ModeUsed,
    /// Why it is not all that was asked for, if it is not. One sentence.
    pub reason: Option<String>,
    /// What protected a plain source from writers; absent where nothing did, and of a volume, which needs nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<Protection>,
    /// Bytes read from the source, holes excluded.
    pub bytes_read: u64,
    /// Bytes that came from originals because the source had changed.
    pub bytes_changed: u64,
    /// Bytes written to the destination, holes excluded.
    pub bytes_written: u64,
    /// How long the host was held at T0, in microseconds.
    pub pause_us: u64,
    /// Bytes that one digest covers.
    pub chunk: u64,
    /// The copy that this one is an increment on.
    pub parent: Option<CopyId>,
    /// Sequence of the last original that belongs to an outboard copy.
    pub boundary: Option<u64>,
    /// How the volume's bytes reached the mover; absent for a plain source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// How an outboard copy was made; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outboard: Option<OutboardRecord>,
    /// What of the volume was copied; absent where all of it was.
    #[serde(default, skip_serializing_if = "Scope::is_whole")]
    pub scope: Scope,
    /// What the session's originals survived.
    pub durability: Durability,
    /// What made it.
    pub tool: String,
    /// The image beside the manifest; absent where it is a device.
    pub image: Option<ImageRecord>,
    /// The device that holds the copy.
    pub device: Option<DeviceRecord>,
    /// Of every chunk, from the volume's start to its end.
    pub digests: Digests,
}

/// What a new manifest cannot work out by itself.
#[derive(Debug)]
pub(crate) struct ManifestFields {
    pub(crate) id: CopyId,
    pub(crate) volume: VolumeRecord,
    pub(crate) t0: Timestamp,
    pub(crate) completed: Timestamp,
    pub(crate) mode_asked: ModeAsked,
    pub(crate) mode_used: ModeUsed,
    pub(crate) reason: Option<String>,
    pub(crate) protection: Option<Protection>,
    pub(crate) transport: Option<Transport>,
    pub(crate) outboard: Option<(OutboardRecord, u64)>,
    pub(crate) scope: Scope,
    pub(crate) durability: Durability,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_changed: u64,
    pub(crate) bytes_written: u64,
    pub(crate) pause_us: u64,
    pub(crate) chunk: u64,
    pub(crate) image: Option<ImageRecord>,
    pub(crate) device: Option<DeviceRecord>,
    pub(crate) digests: Digests,
}

/// Why bytes are no manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestFault {
    /// The seal is missing or does not fit what it seals.
    Seal,
    /// What stands in its place is no file.
    NoFile,
    /// Made by a newer tzero.
    Version(u64),
    /// Of a kind that only a newer tzero can know.
    Kind,
    /// Sealed, but not what a manifest says.
    Content,
}

impl fmt::Display for ManifestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seal => f.write_str("it is tampered or truncated: its own digest does not match"),
            Self::Version(version) => {
                write!(f, "it has version {version} and this tzero reads up to {MANIFEST_VERSION}; use a newer one")
            }
            Self::NoFile => f.write_str("it is no file; remove what stands there"),
            Self::Kind => f.write_str("it is of a kind of copy that this tzero does not know; use a newer one"),
            Self::Content => f.write_str("its contents contradict each other"),
        }
    }
}

impl std::error::Error for ManifestFault {}

/// What is asked before anything that another version may have changed.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
    #[serde(default)]
    kind: serde_json::Value,
}

impl Manifest {
    pub(crate) fn new(fields: ManifestFields) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: MANIFEST_VERSION,
            id: fields.id,
            kind: CopyKind::Image,
            volumes: vec![fields.volume],
            t0: fields.t0,
            completed: fields.completed,
            mode_asked: fields.mode_asked,
            mode_used: fields.mode_used,
            reason: fields.reason,
            protection: fields.protection,
            bytes_read: fields.bytes_read,
            bytes_changed: fields.bytes_changed,
            bytes_written: fields.bytes_written,
            pause_us: fields.pause_us,
            chunk: fields.chunk,
            parent: None,
            boundary: fields.outboard.map(|(_, up_to)| up_to),
            transport: fields.transport,
            outboard: fields.outboard.map(|(record, _)| record),
            scope: fields.scope,
            durability: fields.durability,
            tool: concat!("tzero ", env!("CARGO_PKG_VERSION")).to_owned(),
            image: fields.image,
            device: fields.device,
            digests: fields.digests,
        }
    }

    /// The volume that an image is of.
    pub fn volume(&self) -> &VolumeRecord {
        &self.volumes[0]
    }

    /// Length of the image in bytes.
    pub fn size(&self) -> u64 {
        self.volume().size
    }

    /// The bytes of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_string_pretty(self).expect("a manifest has nothing that JSON cannot say");
        let sealed = json.strip_suffix("\n}").expect("a pretty object ends so");
        let seal = blake3::hash(sealed.as_bytes());
        [sealed, SEAL_HEAD, &hex::encode(seal.as_bytes()), SEAL_TAIL].concat().into_bytes()
    }

    /// Reads the bytes of the file.
    ///
    /// # Errors
    /// Whatever the bytes are, this tells what is wrong with them.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ManifestFault> {
        let (sealed, seal) = bytes
            .strip_suffix(SEAL_TAIL.as_bytes())
            .and_then(|bytes| bytes.split_last_chunk::<64>())
            .and_then(|(head, seal)| Some((head.strip_suffix(SEAL_HEAD.as_bytes())?, seal)))
            .ok_or(ManifestFault::Seal)?;
        let seal = std::str::from_utf8(seal).ok().and_then(hex::decode::<32>).ok_or(ManifestFault::Seal)?;
        if *blake3::hash(sealed).as_bytes() != seal {
            return Err(ManifestFault::Seal);
        }
        let json = [sealed, b"\n}"].concat();
        let head: Head = serde_json::from_slice(&json).map_err(|_| ManifestFault::Content)?;
        if head.format != FORMAT {
            return Err(ManifestFault::Content);
        }
        if head.version > u64::from(MANIFEST_VERSION) {
            return Err(ManifestFault::Version(head.version));
        }
        if head.kind.is_string() && CopyKind::deserialize(&head.kind).is_err() {
            return Err(ManifestFault::Kind);
        }
        let manifest: Self = serde_json::from_slice(&json).map_err(|_| ManifestFault::Content)?;
        if manifest.is_coherent() { Ok(manifest) } else { Err(ManifestFault::Content) }
    }

    fn is_coherent(&self) -> bool {
        let [volume] = self.volumes.as_slice() else { return false };
        (OLDEST_VERSION..=MANIFEST_VERSION).contains(&self.version)
            && (self.version > OLDEST_VERSION || self.is_of_version_1())
            && self.scope.fits(volume.size)
            && self.outboard.is_some() == self.boundary.is_some()
            && self.outboard.is_some() == (self.mode_used == ModeUsed::Outboard)
            && CHUNK_SIZES.contains(&self.chunk)
            && self.chunk.is_power_of_two()
            && self.digests.len() == chunk_count(self.chunk, volume.size)
            && hex::decode::<16>(&volume.id).is_some()
            && self.image.is_none_or(|image| image.size == volume.size)
            && self.image.is_some() != self.device.is_some()
    }
}

impl Manifest {
    /// Whether it has nothing that version 1 did not know.
    fn is_of_version_1(&self) -> bool {
        let is_later = |mode| matches!(mode, ModeAsked::Reconciled | ModeAsked::Outboard);
        self.scope.is_whole()
            && self.transport.is_none()
            && !is_later(self.mode_asked)
            && matches!(self.mode_used, ModeUsed::TimeZero | ModeUsed::Plain)
            && self.durability == Durability::Process
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tzero_block::ByteRange;

    use super::*;
    use crate::ChunkDigest;

    pub(crate) fn example() -> Manifest {
        Manifest::new(ManifestFields {
            id: "000102030405060708090a0b0c0d0e0f".parse().unwrap(),
            volume: VolumeRecord { name: "vm".into(), id: "ab".repeat(16), generation: 3, size: (9 << 20) + 512 },
            t0: Timestamp(1_700_000_000_123_456_789),
            completed: Timestamp(1_700_000_060_000_000_000),
            mode_asked: ModeAsked::Auto,
            mode_used: ModeUsed::TimeZero,
            reason: None,
            protection: None,
            transport: Some(Transport::Descriptors),
            outboard: None,
            scope: Scope::default(),
            durability: Durability::Process,
            bytes_read: 5 << 20,
            bytes_changed: 4096,
            bytes_written: 1 << 20,
            pause_us: 87,
            chunk: 4 << 20,
            image: Some(ImageRecord { inode: 77, size: (9 << 20) + 512 }),
            device: None,
            digests: [ChunkDigest::Zero, ChunkDigest::Data([9; 32]), ChunkDigest::Zero].into_iter().collect(),
        })
    }

    #[test]
    fn written_and_read_back() {
        let manifest = example();
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        assert!(bytes.starts_with(MAGIC.as_bytes()));
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["format"], "tzero-manifest");
        assert_eq!(json["mode_used"], "timezero");
        assert_eq!(json["t0"], "2023-11-14T22:13:20.123456789Z");
        assert!(json["parent"].is_null() && json["boundary"].is_null());
        assert_eq!(json["digest"].as_str().map(str::len), Some(64));
    }

    #[test]
    fn version_1_is_read() {
        let bytes = include_bytes!("../fixtures/manifest-1.tzero");
        let manifest = Manifest::decode(bytes).unwrap();
        assert_eq!((manifest.version, manifest.size()), (1, 9_437_696));
        assert_eq!((manifest.mode_used, manifest.boundary, manifest.outboard), (ModeUsed::Plain, None, None));
        assert!(manifest.scope.is_whole());
        assert_eq!(manifest.encode(), bytes, "written back, as by `copy` commands, it stays what it was");
    }

    #[test]
    fn what_only_version_2_has() {
        let scope = Scope::of([ByteRange::new(0, 512), ByteRange::new(1 << 20, 4096)]).unwrap();
        let outboard =
            OutboardRecord { layout: Layout::Overwrite, boundary: Boundary::Marker, engine: Engine::Reflink };
        let manifest = Manifest {
            mode_asked: ModeAsked::Outboard,
            mode_used: ModeUsed::Outboard,
            boundary: Some(77),
            outboard: Some(outboard),
            scope,
            ..example()
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest.clone()));
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            json["outboard"],
            serde_json::json!({"layout": "overwrite", "boundary": "marker", "engine": "reflink"})
        );
        assert_eq!(json["scope"][1], serde_json::json!({"offset": 1 << 20, "length": 4096}));
        let content = Err(ManifestFault::Content);
        assert_eq!(Manifest::decode(&Manifest { version: 1, ..manifest.clone() }.encode()), content);
        assert_eq!(Manifest::decode(&Manifest { boundary: None, ..manifest.clone() }.encode()), content);
        let beyond = Scope::of([ByteRange::new(9 << 20, 1024)]).unwrap();
        assert_eq!(Manifest::decode(&Manifest { scope: beyond, ..manifest }.encode()), content);
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = example().encode();
        for len in 0..bytes.len() {
            assert_eq!(Manifest::decode(&bytes[..len]), Err(ManifestFault::Seal), "{len}");
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let bytes = example().encode();
        for at in 0..bytes.len() {
            for flip in [1, 0x20, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                assert_eq!(Manifest::decode(&bad), Err(ManifestFault::Seal), "{at}");
            }
        }
        assert_eq!(Manifest::decode(&[bytes.as_slice(), b" "].concat()), Err(ManifestFault::Seal));
    }

    fn resealed(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut json: serde_json::Value = serde_json::from_slice(&example().encode()).unwrap();
        json.as_object_mut().unwrap().remove("digest");
        change(&mut json);
        let text = serde_json::to_string_pretty(&json).unwrap();
        let sealed = text.strip_suffix("\n}").unwrap();
        let seal = hex::encode(blake3::hash(sealed.as_bytes()).as_bytes());
        [sealed, SEAL_HEAD, &seal, SEAL_TAIL].concat().into_bytes()
    }

    #[test]
    fn a_forger_who_can_seal_is_still_checked() {
        assert!(Manifest::decode(&resealed(|_| {})).is_ok());
        assert_eq!(Manifest::decode(&resealed(|json| json["version"] = 3.into())), Err(ManifestFault::Version(3)));
        for version in [3, u64::MAX] {
            let forged = resealed(|json| {
                json["version"] = version.into();
                json["kind"] = "other".into();
                json["surprise"] = 1.into();
            });
            assert_eq!(Manifest::decode(&forged), Err(ManifestFault::Version(version)));
        }
        let kind = resealed(|json| json["kind"] = "archive".into());
        assert_eq!(Manifest::decode(&kind), Err(ManifestFault::Kind));
        let huge = u64::MAX;
        for (field, value) in [
            ("format", "other".into()),
            ("version", 0.into()),
            ("version", "2".into()),
            ("kind", 7.into()),
            ("chunk", 0.into()),
            ("chunk", 12345.into()),
            ("chunk", (1u64 << 62).into()),
            ("digests", serde_json::json!([format!("0*{huge}")])),
            ("digests", serde_json::json!(["0*2"])),
            ("volumes", serde_json::json!([])),
            ("image", serde_json::json!({"inode": 1, "size": 3})),
            ("id", "short".into()),
            ("surprise", 1.into()),
            ("scope", serde_json::json!([])),
            ("boundary", 1.into()),
        ] {
            let forged = resealed(|json| json[field] = value.clone());
            assert_eq!(Manifest::decode(&forged), Err(ManifestFault::Content), "{field}: {value}");
        }
        let forged = resealed(|json| json["volumes"][0]["size"] = huge.into());
        assert_eq!(Manifest::decode(&forged), Err(ManifestFault::Content));
    }
}
