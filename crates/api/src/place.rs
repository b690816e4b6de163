//! Where bytes are kept: here, or at an NBD server.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How URIs begin that mean an export of an NBD server, whether this program can use them or not.
const SCHEMES: [&str; 4] = ["nbd:", "nbds:", "nbd+unix:", "nbds+unix:"];

/// A path of this machine, or an export of an NBD server. In JSON a string; a file whose name looks like a URI is meant by `./NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A file, a device or a directory.
    Path(PathBuf),
    /// A URI, as it was given. Whether it is one that can be used is for whoever uses it to say.
    Export(String),
}

impl Place {
    /// The path, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Export(_) => None,
        }
    }

    /// The URI, if it is one.
    pub fn uri(&self) -> Option<&str> {
        match self {
            Self::Path(_) => None,
            Self::Export(uri) => Some(uri),
        }
    }
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        let uri = path.to_str().filter(|text| SCHEMES.iter().any(|scheme| text.starts_with(scheme)));
        match uri {
            Some(uri) => Self::Export(uri.to_owned()),
            None => Self::Path(path),
        }
    }
}

impl From<&str> for Place {
    fn from(text: &str) -> Self {
        PathBuf::from(text).into()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Export(uri) => f.write_str(uri),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Path(path) => path.serialize(serializer),
            Self::Export(uri) => uri.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PathBuf::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_uri_is_one() {
        for uri in ["nbd+unix:///v?socket=/s", "nbd://host/v", "nbds://host/v", "nbd:oops"] {
            assert_eq!(Place::from(uri), Place::Export(uri.into()));
            assert_eq!(serde_json::to_string(&Place::from(uri)).unwrap(), format!("\"{uri}\""));
        }
        for path in ["/dev/nbd0", "./nbd:x", "nbd", ""] {
            assert_eq!(Place::from(path), Place::Path(path.into()));
            let read: Place = serde_json::from_str(&serde_json::to_string(path).unwrap()).unwrap();
            assert_eq!(read, Place::Path(path.into()));
        }
    }
}
