//! Where an image is or goes: a path, or an export of an NBD server.
//!
//! Records, catalogue and sentences have a path for it; of an export that is its URI. No path from the root looks like one.

use std::fs;
use std::path::{Path, PathBuf};

use tzero_nbd::Uri;

use crate::Error;

/// A place of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or block device, or where a file will be.
    Path(PathBuf),
    /// An export of an NBD server.
    Export(Uri),
}

impl Location {
    /// What people, or a record, have written.
    ///
    /// # Errors
    /// When it is meant as a URI and is none that can be used.
    pub fn of(written: &Path) -> Result<Self, Error> {
        match written.to_str().filter(|text| Uri::is_meant(text)) {
            None => Ok(Self::Path(written.to_owned())),
            Some(text) => match text.parse() {
                Ok(uri) => Ok(Self::Export(uri)),
                Err(fault) => Err(Error::Uri { text: text.to_owned(), fault }),
            },
        }
    }

    /// The path, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Export(_) => None,
        }
    }

    /// As it is written down.
    pub fn written(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Export(uri) => uri.to_string().into(),
        }
    }
}

/// The same export by the path that its server's socket really has.
pub(crate) fn resolved(uri: &Uri) -> Uri {
    let socket = uri.socket().and_then(|socket| fs::canonicalize(socket).ok());
    socket.and_then(|socket| Uri::unix(&socket, uri.export()).ok()).unwrap_or_else(|| uri.clone())
}

/// What an export is known by: its URI, whatever way it is written.
pub(crate) fn key_of(uri: &Uri) -> String {
    let digest = blake3::hash(uri.to_string().as_bytes());
    format!("nbd-{}", crate::hex::encode(&digest.as_bytes()[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_told_from_paths_and_known_by_one_name() {
        let of = |text: &str| Location::of(Path::new(text));
        assert_eq!(of("/a/nbd:x").unwrap(), Location::Path("/a/nbd:x".into()));
        assert_eq!(of("x.img").unwrap().written(), Path::new("x.img"));
        let Location::Export(uri) = of("nbd+unix:///vol?socket=/s").unwrap() else { panic!("it is one") };
        assert_eq!(Location::Export(uri.clone()).written(), Path::new("nbd+unix:///vol?socket=/s"));
        assert!(matches!(of("nbd+unix:///vol"), Err(Error::Uri { .. })));
        assert!(matches!(of("nbds://host/vol"), Err(Error::Uri { .. })));
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("link");
        fs::write(root.path().join("s"), "").unwrap();
        std::os::unix::fs::symlink(root.path().join("s"), &link).unwrap();
        let (one, other) = (
            Uri::unix(&link, "vol").unwrap(),
            Uri::unix(&root.path().canonicalize().unwrap().join("s"), "vol").unwrap(),
        );
        assert_eq!(resolved(&one), other);
        assert_eq!(key_of(&resolved(&one)), key_of(&other));
        assert_ne!(key_of(&uri), key_of(&other));
    }
}
