//! What makes a file this file, over reboots too.
//!
//! Numbers of devices are given out anew at every boot and inode numbers after every removal, so neither is enough. When an inode was
//! born and its generation do not change; the file system is known by its uuid, or by the device that it is on.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use tzero_io::inode;

use crate::device_name;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    /// Number of the file system's device. Says something in one boot only.
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// The file system, where it can be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file_system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    /// When the inode was born, nanoseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born_ns: Option<u64>,
}

impl FileIdentity {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let uuid = inode::file_system_uuid(file).map(|uuid| format!("uuid-{:032x}", u128::from_be_bytes(uuid)));
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            file_system: uuid.ok().or_else(|| device_name::of(metadata.dev())),
            generation: inode::generation(file).ok(),
            born_ns: born_ns(&metadata),
        })
    }

    /// Whether both are the same file, as far as what is known of both tells.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let agree = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a == b);
        let (born, generation) = (agree(self.born_ns, other.born_ns), agree(self.generation, other.generation));
        let file_system = match (&self.file_system, &other.file_system) {
            (Some(a), Some(b)) => a == b,
            // A birth to the nanosecond is no coincidence.
            _ => self.device == other.device || born == Some(true),
        };
        self.inode == other.inode && file_system && born != Some(false) && generation != Some(false)
    }
}

fn born_ns(metadata: &Metadata) -> Option<u64> {
    let since = metadata.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_device_number_is_no_identity_and_an_inode_number_neither() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "x").unwrap();
        let of = || FileIdentity::of(&File::open(&path).unwrap()).unwrap();
        let file = of();
        assert!(file.is_same(&of()));
        assert!(file.is_same(&FileIdentity { device: file.device + 1, ..of() }), "after a reboot");
        let reborn = FileIdentity { born_ns: file.born_ns.map(|ns| ns + 1), ..of() };
        assert!(file.born_ns.is_none() || !file.is_same(&reborn), "the inode's number was given out again");
        let bare = |device| FileIdentity { device, file_system: None, generation: None, born_ns: None, ..of() };
        assert!(bare(1).is_same(&bare(1)));
        assert!(!bare(1).is_same(&bare(2)), "numbers are all that is known");
        fs::rename(&path, scratch.path().join("old")).unwrap();
        fs::write(&path, "x").unwrap();
        assert!(!file.is_same(&of()));
    }

    #[test]
    fn what_earlier_records_knew_is_read() {
        let old: FileIdentity = serde_json::from_str(r#"{"device":5,"inode":7}"#).unwrap();
        assert_eq!((old.device, old.inode, old.born_ns), (5, 7, None));
    }
}
