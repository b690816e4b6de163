//! Where copies go and where they are restored to.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What begins the destinations that later versions have.
const LATER: [&str; 3] = ["archive:", "tape:", "repo:"];
const IMAGE: &[u8] = b"image:";
const NBD: &[u8] = b"nbd+unix:";
const VOLUME: &[u8] = b"volume:";

/// Why a text is no place to write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("this version writes images only: write image:PATH")]
    ImagesOnly,
    #[error("this version writes images to files and block devices only: write image:PATH")]
    FilesOnly,
    #[error("it is empty: write image:PATH")]
    NoDestination,
    #[error("this version restores to files and block devices only: write the path of one")]
    RestoresToFilesOnly,
    #[error("it is empty: write the path of a file or block device")]
    NoTarget,
}

/// What `--to` of a backup means: a file, a block device, or a directory of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination(PathBuf);

impl Destination {
    pub(crate) fn parse(text: OsString) -> Result<Self, PlaceError> {
        let bytes = text.as_bytes();
        if LATER.iter().any(|kind| bytes.starts_with(kind.as_bytes())) {
            return Err(PlaceError::ImagesOnly);
        }
        match bytes.strip_prefix(IMAGE).unwrap_or(bytes) {
            b"" => Err(PlaceError::NoDestination),
            path if path.starts_with(NBD) => Err(PlaceError::FilesOnly),
            path => Ok(Self(OsStr::from_bytes(path).into())),
        }
    }

    /// The file or block device. `volume` names the image in a directory.
    pub(crate) fn path(&self, volume: &str) -> PathBuf {
        let is_directory = self.0.as_os_str().as_bytes().ends_with(b"/") || self.0.is_dir();
        if is_directory { self.0.join(format!("{volume}.img")) } else { self.0.clone() }
    }
}

/// What `--to` of a restore means: a file or a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target(PathBuf);

impl Target {
    pub(crate) fn parse(text: OsString) -> Result<Self, PlaceError> {
        let bytes = text.as_bytes();
        match bytes.strip_prefix(IMAGE).unwrap_or(bytes) {
            b"" => Err(PlaceError::NoTarget),
            path if path.starts_with(NBD) || path.starts_with(VOLUME) => Err(PlaceError::RestoresToFilesOnly),
            path => Ok(Self(OsStr::from_bytes(path).into())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_directories_of_them() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().to_str().unwrap();
        for (text, path) in [
            ("x.img", "x.img"),
            ("image:x.img", "x.img"),
            ("image:/a/b", "/a/b"),
            ("a:b", "a:b"),
            ("./archive:b", "./archive:b"),
            ("image:missing/", "missing/v.img"),
            (directory, &format!("{directory}/v.img")),
        ] {
            assert_eq!(Destination::parse(text.into()).unwrap().path("v"), Path::new(path));
        }
    }

    #[test]
    fn what_is_not_there_yet_is_no_place() {
        for text in
            ["archive:-", "archive:/x", "tape:/dev/nst0", "repo:/r", "image:nbd+unix:///x?socket=/s", "", "image:"]
        {
            assert!(Destination::parse(text.into()).is_err(), "{text}");
        }
        for text in ["nbd+unix:///", "image:nbd+unix:///", "volume:v", "", "image:"] {
            assert!(Target::parse(text.into()).is_err(), "{text}");
        }
        assert_eq!(Target::parse("/dev/sdx".into()).unwrap().path(), Path::new("/dev/sdx"));
    }
}
