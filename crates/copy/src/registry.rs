//! The volumes that a state directory has on record, as far as a copy must not touch what is theirs.
//!
//! `STATE/volumes/NAME/volume.json` is written before a volume is served for the first time and stays until it is removed.
//! So the record tells of every volume, whether a daemon runs or not, and nobody has to be asked. A volume that is declared
//! in a configuration and could never be opened has no record, and no bytes either.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tzero_api::{Name, Place, StatePaths};
use tzero_nbd::Uri;

use crate::error::{Error, FileAction, Holding};
use crate::location;
use crate::opening;
use crate::placement::{Ground, Identity, resolved};

/// Longest record that is read, in bytes.
const LONGEST: u64 = 1 << 20;
const RECORD: &str = "volume.json";

/// What the record says. Its format is the daemon's; version 1 has one base and says so.
#[derive(Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    base: Option<Place>,
    #[serde(default)]
    bases: Vec<Base>,
    cache_dir: Option<Place>,
    #[serde(default)]
    memory: Option<Memory>,
}

/// Where originals in memory are.
#[derive(Deserialize)]
struct Memory {
    path: PathBuf,
}

#[derive(Deserialize)]
struct Base {
    place: Place,
}

impl Record {
    /// The files and devices that it stands on.
    fn bases(&self) -> impl Iterator<Item = &Path> {
        self.base.iter().chain(self.bases.iter().map(|base| &base.place)).filter_map(Place::path)
    }
}

/// Refuses a place that shares bytes with the base or the originals of a registered volume. The one that is being copied is
/// left to whoever knows its open base.
pub(crate) fn refuse_registered(path: &Path, ground: &Ground, state: &Path, copied: Option<&str>) -> Result<(), Error> {
    let place = resolved(path).ok();
    let is_there = |owned: &Path| {
        // A base that is gone leaves its place, which stays the volume's.
        Identity::of_path(owned).is_ok_and(|identity| ground.meets(identity))
            || place.is_some() && place == resolved(owned).ok()
    };
    for (name, record) in registered(state)? {
        let refused = |holding| Error::Registered { path: path.to_owned(), volume: name.to_string(), holding };
        if copied != Some(name.as_str()) && record.bases().any(is_there) {
            return Err(refused(Holding::Base));
        }
        let originals = record.cache_dir.as_ref().and_then(Place::path);
        let originals = originals.map(|directory| directory.join(format!("{name}-{}.originals", record.id)));
        let mut originals = originals.into_iter().chain(record.memory.map(|memory| memory.path));
        if originals.any(|originals| is_there(&originals)) {
            return Err(refused(Holding::Originals));
        }
    }
    Ok(())
}

/// The same of an export, by the name that it has really: one that holds a base or originals of a registered volume.
pub(crate) fn refuse_registered_export(uri: &Uri, state: &Path) -> Result<(), Error> {
    let is_it = |place: &Place| {
        let theirs = place.uri().and_then(|uri| uri.parse::<Uri>().ok());
        theirs.is_some_and(|theirs| location::resolved(&theirs) == *uri)
    };
    for (volume, record) in registered(state)? {
        let held = record.base.iter().chain(record.bases.iter().map(|base| &base.place)).any(is_it);
        let holding = match held {
            true => Holding::Base,
            false if record.cache_dir.as_ref().is_some_and(is_it) => Holding::Originals,
            false => continue,
        };
        return Err(Error::Registered { path: uri.to_string().into(), volume: volume.to_string(), holding });
    }
    Ok(())
}

/// All volumes on record. One whose record is damaged is left out: nobody can tell what its base is.
fn registered(state: &Path) -> Result<Vec<(Name, Record)>, Error> {
    let paths = StatePaths::new(state);
    let root = paths.volumes();
    let entries = match fs::read_dir(&root) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.map_err(Error::file(FileAction::Read, &root))?,
    };
    let mut volumes = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::file(FileAction::Read, &root))?.file_name();
        let Some(name) = name.to_str().and_then(|name| name.parse::<Name>().ok()) else { continue };
        let record = opening::read(&paths.volume(&name).join(RECORD), LONGEST).ok();
        volumes.extend(record.and_then(|record| serde_json::from_slice(&record).ok()).map(|record| (name, record)));
    }
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(state: &Path, name: &str, bases: &[&Path], cache_dir: Option<&Path>) {
        let directory = state.join("volumes").join(name);
        fs::create_dir_all(&directory).unwrap();
        let record = match bases {
            // As version 1 has it.
            [base] => {
                serde_json::json!({ "version": 1, "id": "1a", "name": name, "base": base, "cache_dir": cache_dir })
            }
            _ => {
                let bases: Vec<_> = bases.iter().map(|base| serde_json::json!({ "place": base })).collect();
                serde_json::json!({ "version": 2, "id": "1a", "name": name, "bases": bases, "cache_dir": cache_dir })
            }
        };
        fs::write(directory.join(RECORD), record.to_string()).unwrap();
    }

    #[test]
    fn bases_and_originals_are_known_by_any_name_and_by_their_place() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        let path = |name: &str| root.path().join(name);
        fs::write(path("base"), "x").unwrap();
        fs::hard_link(path("base"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("base"), path("soft")).unwrap();
        fs::create_dir(path("fast")).unwrap();
        let refused = |name: &str, copied: Option<&str>| {
            let ground = Ground::of(&path(name)).unwrap();
            match refuse_registered(&path(name), &ground, &state, copied) {
                Ok(()) => None,
                Err(Error::Registered { volume, holding, .. }) => Some((volume, holding)),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(refused("base", None), None, "there is no state yet");
        fs::write(path("second"), "x").unwrap();
        register(&state, "v", &[&path("base")], Some(&path("fast")));
        register(&state, "gone", &[&path("missing")], None);
        let uri = Path::new("nbd+unix:///x?socket=/s");
        register(&state, "two", &[&path("first"), &path("second"), uri], Some(uri));
        fs::create_dir(state.join("volumes/damaged")).unwrap();
        fs::write(state.join("volumes/damaged").join(RECORD), "{").unwrap();
        fs::create_dir(state.join("volumes/removed~gone")).unwrap();
        for name in ["base", "hard", "soft"] {
            assert_eq!(refused(name, None), Some(("v".into(), Holding::Base)), "{name}");
        }
        assert_eq!(refused("missing", None), Some(("gone".into(), Holding::Base)));
        for name in ["first", "second"] {
            assert_eq!(refused(name, None), Some(("two".into(), Holding::Base)), "{name}");
        }
        let memory = serde_json::json!({ "version": 2, "id": "2b", "bases": [], "memory": { "path": path("memory") } });
        fs::create_dir_all(state.join("volumes/remembering")).unwrap();
        fs::write(state.join("volumes/remembering").join(RECORD), memory.to_string()).unwrap();
        assert_eq!(refused("memory", None), Some(("remembering".into(), Holding::Originals)));
        assert_eq!(refused("fast/v-1a.originals", None), Some(("v".into(), Holding::Originals)));
        assert_eq!((refused("new", None), refused("fast/new", None), refused("base", Some("v"))), (None, None, None));
    }

    #[test]
    fn exports_are_known_by_the_socket_that_they_really_have() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        fs::write(root.path().join("s"), "").unwrap();
        std::os::unix::fs::symlink(root.path().join("s"), root.path().join("link")).unwrap();
        let uri =
            |socket: &str, export: &str| Uri::unix(&root.path().canonicalize().unwrap().join(socket), export).unwrap();
        let (base, cache) = (uri("link", "disk").to_string(), uri("s", "cache").to_string());
        register(&state, "v", &[Path::new("/dev/null"), Path::new(&base)], Some(Path::new(&cache)));
        let refused = |uri: &Uri| match refuse_registered_export(uri, &state) {
            Ok(()) => None,
            Err(Error::Registered { holding, .. }) => Some(holding),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(refused(&uri("s", "disk")), Some(Holding::Base));
        assert_eq!(refused(&uri("s", "cache")), Some(Holding::Originals));
        assert_eq!(refused(&uri("s", "other")), None);
    }
}
