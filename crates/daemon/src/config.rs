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
//!
//! [volume.archive]
//! bases = ["/dev/sdb", "/dev/sdc"]    # one after the other
//! ```
//!
//! A volume that is declared here and not there yet is added at start. Deliberately absent: removal. What disappears from the file
//! stays until `volume remove`, since forgetting a volume forgets its snapshots.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tzero_api::control::{AddVolume, Durability};
use tzero_api::{Name, Place, Rate, Size, Unfit};

use crate::address::Address;
use crate::held::read_file;

/// Longest file that is read, in bytes: room for thousands of volumes.
const LONGEST: u64 = 1 << 20;

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
    /// File or block device (an absolute path), or an export: where it stands on one.
    #[serde(default)]
    pub base: Option<Place>,
    /// Several, in order.
    #[serde(default)]
    pub bases: Vec<Place>,
    /// Grain in bytes.
    #[serde(default)]
    pub grain: Option<Size>,
    /// Directory for originals (an absolute path), or an export for them.
    #[serde(default)]
    pub cache_dir: Option<Place>,
    /// Most bytes of originals on disk.
    #[serde(default)]
    pub cache_limit: Option<Size>,
    /// Most bytes of originals in memory.
    #[serde(default)]
    pub memory_limit: Option<Size>,
    /// Past the page cache.
    #[serde(default)]
    pub direct: bool,
    /// What snapshots survive.
    #[serde(default)]
    pub durability: Durability,
    /// Originals are saved ahead of changes, so many bytes a second at most.
    #[serde(default)]
    pub save_ahead: Option<Rate>,
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
    /// It is a fifo, a device, a directory.
    #[error("the configuration {} is no file: name one, or leave --config out", .0.display())]
    Kind(PathBuf),
    /// Nobody has written that much.
    #[error("the configuration {} is longer than {LONGEST} bytes: it is hardly a configuration", .0.display())]
    TooLong(PathBuf),
    /// Two ways to say the same, which may differ.
    #[error("the configuration {} gives volume {volume} a `base` and `bases`: leave one of them out", .path.display())]
    TwoBases {
        /// The file.
        path: PathBuf,
        /// The volume.
        volume: Name,
    },
    /// A volume that no command could add either.
    #[error("the configuration {} asks for a volume {volume} that cannot be: {source}", .path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// The volume.
        volume: Name,
        /// What is wrong with it.
        source: Unfit,
    },
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = read_file(path, LONGEST).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => ConfigError::Kind(path.into()),
            io::ErrorKind::FileTooLarge => ConfigError::TooLong(path.into()),
            _ => ConfigError::Unreadable { path: path.into(), source },
        })?;
        let text = str::from_utf8(&bytes).map_err(|error| {
            let line = line_at(&bytes, error.valid_up_to());
            ConfigError::Malformed { path: path.into(), line, message: "it is not UTF-8".into() }
        })?;
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = line_at(text.as_bytes(), error.span().map_or(0, |span| span.start));
            let message = error.message().trim().replace('\n', ", ").into();
            ConfigError::Malformed { path: path.into(), line, message }
        })?;
        for (volume, settings) in &config.volume {
            if settings.base.is_some() && !settings.bases.is_empty() {
                return Err(ConfigError::TwoBases { path: path.into(), volume: volume.clone() });
            }
            settings.request(volume).check().map_err(|source| {
                let (path, volume) = (path.into(), volume.clone());
                ConfigError::Unfit { path, volume, source }
            })?;
        }
        Ok(config)
    }
}

/// The line, from 1, that holds the byte at `offset`.
fn line_at(bytes: &[u8], offset: usize) -> usize {
    bytes[..offset.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

impl VolumeConfig {
    /// What it stands on, in order.
    pub fn places(&self) -> Vec<Place> {
        self.base.iter().chain(&self.bases).cloned().collect()
    }

    /// The request that adds such a volume.
    pub fn request(&self, name: &Name) -> AddVolume {
        AddVolume {
            name: name.clone(),
            bases: self.places(),
            size: None,
            grain: self.grain,
            cache_dir: self.cache_dir.clone(),
            cache_limit: self.cache_limit,
            memory_limit: self.memory_limit,
            direct: self.direct,
            durability: self.durability,
            save_ahead: self.save_ahead,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::held::tests::fifo;

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
        let several = parse("[volume.a]\nbases = ['/a', '/b']").unwrap();
        assert_eq!(several.volume["a"].places(), ["/a".into(), "/b".into()]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, part) in [
            ("nbd = 3", "line 1"),
            ("\nvolumes = {}", "line 2"),
            ("[volume.a]\nbase = 'a'", "the path a is relative"),
            ("[volume.a]\nbase = '/a'\ngrain = '4KiB'", "not a size"),
            ("[volume.'a/b']\nbase = '/a'", "a/b"),
            ("nbd = ['tcp:0.0.0.0:1']", "loopback"),
            ("[volume.a]\nbase = '/a'\nsize = 1", "unknown field"),
            ("[volume.a]\nbase = '/a'\ngrain = '3K'", "volume a that cannot be: the grain 3K"),
            ("[volume.a]\nbase = '/a'\ncache_limit = 0", "no room"),
            ("[volume.a]\nbase = '/a'\ngrain = '8K'\ncache_limit = '4K'", "no room"),
            ("[volume.a]\nbase = '/a'\ncache_dir = ''", "relative"),
            ("[volume.a]\nbase = '/a'\nbases = ['/b']", "a `base` and `bases`"),
            ("[volume.a]\nbases = []", "0 are named"),
            ("[volume.a]\ndirect = true", "0 are named"),
            ("[volume.a]\nbases = ['/a', 'b']", "the path b is relative"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_not_read_to_its_end() {
        let scratch = tempfile::tempdir().unwrap();
        let long = scratch.path().join("long");
        fs::File::create(&long).unwrap().set_len(LONGEST + 1).unwrap();
        let binary = scratch.path().join("binary");
        fs::write(&binary, b"nbd = []\n\xff").unwrap();
        for (path, part) in [
            (fifo(scratch.path()), "no file"),
            ("/dev/zero".into(), "no file"),
            (scratch.path().to_path_buf(), "no file"),
            (long, "longer"),
            (binary, "line 2: it is not UTF-8"),
            (scratch.path().join("none"), "cannot be read"),
        ] {
            let error = Config::read(&path).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
