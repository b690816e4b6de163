//! The configuration file.
//!
//! ```toml
//! nbd = ["unix:/run/tzero/nbd.sock", "tcp:127.0.0.1:10809"]
//!
//! [volume.database]
//! base = "/dev/vg0/database"
//! grain = "4K"
//! cache_dir = "/fast/originals"
//! cache_limit = "20G"
//! direct = true
//! ```
//!
//! A volume that is declared here and not there yet is added at start. Deliberately absent: removal. What disappears from the file
//! stays until `volume remove`, since forgetting a volume forgets its snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tzero_api::control::AddVolume;
use tzero_api::{Name, Size};

use crate::address::Address;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub nbd: Vec<Address>,
    /// Volumes by name.
    pub volume: BTreeMap<Name, VolumeConfig>,
}

/// What the file says of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// File or block device, an absolute path.
    pub base: PathBuf,
    /// Grain in bytes.
    #[serde(default)]
    pub grain: Option<Size>,
    /// Directory for originals, an absolute path.
    #[serde(default)]
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of originals.
    #[serde(default)]
    pub cache_limit: Option<Size>,
    /// Past the page cache.
    #[serde(default)]
    pub direct: bool,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("the configuration {} cannot be read: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the configuration {} is wrong in line {line}: {message}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// First line of the place.
        line: usize,
        /// What is wrong there.
        message: Box<str>,
    },
    /// A path whose meaning would depend on where the daemon was started.
    #[error("the configuration {} gives volume {volume} the relative path {}; write it from the root", .path.display(), .relative.display())]
    Relative {
        /// The file.
        path: PathBuf,
        /// The volume.
        volume: Name,
        /// What it says.
        relative: PathBuf,
    },
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = error.message().trim().replace('\n', ", ").into();
            ConfigError::Malformed { path: path.into(), line, message }
        })?;
        for (volume, settings) in &config.volume {
            let paths = std::iter::once(&settings.base).chain(&settings.cache_dir);
            if let Some(relative) = paths.into_iter().find(|path| path.is_relative()) {
                let (path, volume, relative) = (path.into(), volume.clone(), relative.clone());
                return Err(ConfigError::Relative { path, volume, relative });
            }
        }
        Ok(config)
    }
}

impl VolumeConfig {
    /// The request that adds such a volume.
    pub fn request(&self, name: &Name) -> AddVolume {
        AddVolume {
            name: name.clone(),
            base: self.base.clone(),
            grain: self.grain,
            cache_dir: self.cache_dir.clone(),
            cache_limit: self.cache_limit,
            direct: self.direct,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/tzero.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn volumes_and_listeners() {
        let config = parse(
            "nbd = ['tcp:127.0.0.1:0']\n[volume.a]\nbase = '/a'\n[volume.'b.1']\nbase = '/b'\ngrain = '64K'\ncache_dir = '/c'\ncache_limit = 1048576\ndirect = true\n",
        )
        .unwrap();
        assert_eq!(config.nbd, ["tcp:127.0.0.1:0".parse().unwrap()]);
        let request = config.volume["b.1"].request(&"b.1".parse().unwrap());
        assert_eq!(request.grain, Some(Size(65536)));
        assert_eq!(request.cache_limit, Some(Size(1 << 20)));
        assert!(request.direct && !config.volume["a"].direct);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, part) in [
            ("nbd = 3", "line 1"),
            ("\nvolumes = {}", "line 2"),
            ("[volume.a]\nbase = 'a'", "relative path a"),
            ("[volume.a]\nbase = '/a'\ngrain = '4KiB'", "not a size"),
            ("[volume.'a/b']\nbase = '/a'", "a/b"),
            ("nbd = ['tcp:0.0.0.0:1']", "loopback"),
            ("[volume.a]\nbase = '/a'\nsize = 1", "unknown field"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
