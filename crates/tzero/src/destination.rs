//! Where copies go and where they are restored to.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tzero_api::{Name, NameError};
use tzero_copy::{Location, RestoreTarget};
use tzero_nbd::{Uri, UriError};

/// What begins the destinations that later versions have.
const LATER: [&str; 3] = ["archive:", "tape:", "repo:"];
const IMAGE: &[u8] = b"image:";
const VOLUME: &[u8] = b"volume:";

/// Why a text is no place to write to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("this version writes images only: write image:PATH")]
    ImagesOnly,
    #[error("it is empty: write image:PATH")]
    NoDestination,
    #[error("it is empty: write the path of a file or block device, volume:NAME, or the URI of an export")]
    NoTarget,
    #[error("it is no NBD export that can be used: {0}")]
    Uri(#[from] UriError),
    #[error("{0}")]
    Name(#[from] NameError),
}

/// What `--to` of a backup means: a file, a block device, an export, or a directory of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination(Location);

impl Destination {
    pub(crate) fn parse(text: OsString) -> Result<Self, PlaceError> {
        let bytes = text.as_bytes();
        if LATER.iter().any(|kind| bytes.starts_with(kind.as_bytes())) {
            return Err(PlaceError::ImagesOnly);
        }
        location(bytes)?.map(Self).ok_or(PlaceError::NoDestination)
    }

    /// The file, block device or export. `volume` names the image in a directory.
    pub(crate) fn place(&self, volume: &str) -> Location {
        match &self.0 {
            Location::Path(path) if path.as_os_str().as_bytes().ends_with(b"/") || path.is_dir() => {
                Location::Path(path.join(format!("{volume}.img")))
            }
            other => other.clone(),
        }
    }
}

/// What `--to` of a restore means: a file, a block device, an export, or a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target(RestoreTarget);

impl Target {
    pub(crate) fn parse(text: OsString) -> Result<Self, PlaceError> {
        if let Some(name) = text.as_bytes().strip_prefix(VOLUME) {
            let name: Name = String::from_utf8_lossy(name).parse()?;
            return Ok(Self(RestoreTarget::Volume(name)));
        }
        match location(text.as_bytes())?.ok_or(PlaceError::NoTarget)? {
            Location::Path(path) => Ok(Self(RestoreTarget::Path(path))),
            Location::Export(uri) => Ok(Self(RestoreTarget::Export(uri))),
        }
    }

    pub(crate) fn target(&self) -> &RestoreTarget {
        &self.0
    }
}

/// A path or the URI of an export, with `image:` before it or not; `None` for nothing.
fn location(bytes: &[u8]) -> Result<Option<Location>, UriError> {
    let place = Path::new(OsStr::from_bytes(bytes.strip_prefix(IMAGE).unwrap_or(bytes)));
    match place.to_str().filter(|text| Uri::is_meant(text)) {
        Some(text) => Ok(Some(Location::Export(text.parse()?))),
        None if place.as_os_str().is_empty() => Ok(None),
        None => Ok(Some(Location::Path(PathBuf::from(place)))),
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
            ("./nbd:b", "./nbd:b"),
            ("image:missing/", "missing/v.img"),
            (directory, &format!("{directory}/v.img")),
        ] {
            assert_eq!(Destination::parse(text.into()).unwrap().place("v"), Location::Path(path.into()));
        }
    }

    #[test]
    fn exports_and_volumes() {
        let uri = "nbd+unix:///x?socket=/s";
        for text in [uri, "image:nbd+unix:///x?socket=/s"] {
            assert_eq!(Destination::parse(text.into()).unwrap().place("v").written(), Path::new(uri));
            assert_eq!(Target::parse(text.into()).unwrap().target().to_string(), uri);
        }
        assert_eq!(Target::parse("volume:v".into()).unwrap().target(), &RestoreTarget::Volume("v".parse().unwrap()));
        assert_eq!(Target::parse("/dev/sdx".into()).unwrap().target(), &RestoreTarget::Path("/dev/sdx".into()));
    }

    #[test]
    fn what_is_no_place() {
        for text in
            ["archive:-", "archive:/x", "tape:/dev/nst0", "repo:/r", "image:nbd+unix:///x", "nbds://h/x", "", "image:"]
        {
            assert!(Destination::parse(text.into()).is_err(), "{text}");
        }
        for text in ["nbd+unix:///", "image:nbd+unix:///", "volume:", "volume:a/b", "volume:v@s", "", "image:"] {
            assert!(Target::parse(text.into()).is_err(), "{text}");
        }
    }
}
