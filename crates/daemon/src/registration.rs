//! What a new volume must not be: a second one of its name, or over bytes that another has or that the state itself lies on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tzero_api::control::{AddVolume, DEFAULT_GRAIN};
use tzero_api::{Name, Place};
use tzero_nbd::Uri;

use crate::address::Address;
use crate::base::{self, Component, OpenBase, Patience};
use crate::cache_file::sync_parent;
use crate::held::Held;
use crate::identity::BaseIdentity;
use crate::opening;
use crate::refusal::Refusal;
use crate::remote;
use crate::volume::Volume;
use crate::volumes::Volumes;

impl Volumes {
    /// Checks a request by itself. The volume that it replaces, one that could not be made before, is in nobody's way.
    pub(crate) fn check(&self, request: &AddVolume, replaced: Option<&Arc<Volume>>) -> Result<(), Refusal> {
        let is_replaced = |volume: &Arc<Volume>| replaced.is_some_and(|replaced| Arc::ptr_eq(replaced, volume));
        if self.get(&request.name).is_ok_and(|volume| !is_replaced(&volume)) {
            return Err(Refusal::VolumeTaken(request.name.clone()));
        }
        Ok(request.check()?)
    }

    /// Opens the base of a new volume, made where it is to be, and looks at everything that must not be. Blocking.
    pub(crate) fn open_new(&self, request: &AddVolume) -> Result<(OpenBase, Option<MadeBase>), Refusal> {
        let paths: Vec<&Path> = request.bases.iter().filter_map(Place::path).collect();
        self.refuse_registered(&request.name, &paths)?;
        self.refuse_exports(request)?;
        let made = self.make_base(request, &paths)?;
        let base = OpenBase::open(&self.threads, &request.bases, request.direct, Patience::None)?;
        if let (Some(asked), [only]) = (request.size, &base.components[..])
            && only.size() != asked.0
        {
            let (base, found) = (only.place.clone(), only.size());
            return Err(Refusal::BaseHasSize { base, found, asked: asked.0 });
        }
        let grain = request.grain.map_or(DEFAULT_GRAIN, |grain| grain.0 as u32);
        opening::components_of(&base, &request.name, grain)?;
        opening::afford(&request.name, base.lengths().iter().sum(), grain)?;
        for (path, file) in base.components.iter().filter_map(Component::local) {
            self.check_placement(request, path, file)?;
            self.check_overlap((path, file), &base)?;
        }
        base::refuse_in_use_through(&base)?;
        Ok((base, made))
    }

    /// An export is one base, or holds the originals of one volume, and is not this daemon's own. That nobody else uses it cannot be
    /// known: a server tells no client of others.
    fn refuse_exports(&self, request: &AddVolume) -> Result<(), Refusal> {
        let mut seen: Vec<Uri> = Vec::new();
        for uri in request.bases.iter().chain(&request.cache_dir).filter_map(Place::uri) {
            let parsed = remote::resolved(&remote::parse(uri)?);
            if seen.contains(&parsed) {
                return Err(Refusal::ExportTwice(uri.into()));
            }
            if self.is_own(&parsed) {
                return Err(Refusal::OwnExport(uri.into()));
            }
            let uses = |volume: &Arc<Volume>| {
                let record = volume.record();
                let mut places = record
                    .iter()
                    .flat_map(|record| record.bases.iter().map(|base| &base.place).chain(&record.cache_dir));
                places.any(|place| {
                    place.uri().and_then(|uri| uri.parse().ok()).is_some_and(|uri| remote::resolved(&uri) == parsed)
                })
            };
            // A volume of this name is the one that is being made.
            if let Some(volume) = self.all().into_iter().find(|volume| volume.name != request.name && uses(volume)) {
                return Err(Refusal::ExportTaken { uri: uri.into(), volume: volume.name.clone() });
            }
            seen.push(parsed);
        }
        Ok(())
    }

    /// Whether an export is one of this daemon's.
    fn is_own(&self, uri: &Uri) -> bool {
        let same = |one: &Path, other: &Path| {
            fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
        };
        self.listening.get().into_iter().flatten().any(|address| match address {
            Address::Unix(path) => uri.socket().is_some_and(|socket| same(socket, path)),
            Address::Tcp(address) => uri.host().is_some_and(|(host, port)| {
                let is_here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
                is_here && port == address.port()
            }),
        })
    }

    /// Makes the one base of a new volume, if it is not there and a size was given for it.
    fn make_base(&self, request: &AddVolume, paths: &[&Path]) -> Result<Option<MadeBase>, Refusal> {
        let (Some(size), [path]) = (request.size, paths) else { return Ok(None) };
        if fs::symlink_metadata(path).is_ok() {
            return Ok(None);
        }
        let state = self.paths.volumes();
        if path.starts_with(&state) {
            return Err(Refusal::BaseIsState { base: path.to_path_buf(), state });
        }
        let made = MadeBase::new(path, size.0);
        made.map(Some).map_err(|source| Refusal::BaseNotMade { base: path.to_path_buf(), size: size.0, source })
    }

    /// A base holds one volume, whether that is served now or not, and is one component of it. What cannot be opened is for whoever opens it
    /// to say. A volume of this name that is not served may find its own base again, elsewhere.
    fn refuse_registered(&self, name: &Name, bases: &[&Path]) -> Result<(), Refusal> {
        let is_other = |volume: &Arc<Volume>| volume.name != *name || volume.serving().is_ok();
        let open = |held: Held| {
            let kind = held.metadata().file_type();
            let may_open = kind.is_file() || kind.is_block_device();
            may_open.then(|| held.open(OpenOptions::new().read(true))).and_then(Result::ok)
        };
        let identity_of = |base: &Path| BaseIdentity::of(&Held::take(base).ok().and_then(open)?).ok();
        let mut seen: Vec<BaseIdentity> = Vec::new();
        for base in bases {
            let Some(identity) = identity_of(base) else { continue };
            if seen.iter().any(|other| other.has_number_of(&identity)) {
                return Err(Refusal::BaseTwice(base.to_path_buf()));
            }
            if let Some(volume) = self.all().into_iter().find(|volume| is_other(volume) && holds(volume, &identity)) {
                return Err(Refusal::BaseTaken { base: base.to_path_buf(), volume: volume.name.clone() });
            }
            seen.push(identity);
        }
        Ok(())
    }

    /// Originals of a base on the base itself would make every save another change.
    fn check_placement(&self, request: &AddVolume, base: &Path, file: &File) -> Result<(), Refusal> {
        let lies_on = |path: &Path| {
            (self.lies_on)(path, file).map_err(|source| Refusal::CacheDirectory { path: path.into(), source })
        };
        if let Some(directory) = request.cache_dir.as_ref().and_then(Place::path) {
            let unusable = |source| Refusal::CacheDirectory { path: directory.into(), source };
            if !fs::metadata(directory).map_err(unusable)?.is_dir() {
                return Err(unusable(io::ErrorKind::NotADirectory.into()));
            }
            if lies_on(directory)? {
                return Err(Refusal::CacheOnBase { path: directory.into(), base: base.into() });
            }
        }
        let state = self.paths.volumes();
        if fs::canonicalize(base).is_ok_and(|base| base.starts_with(&state)) {
            return Err(Refusal::BaseIsState { base: base.into(), state });
        }
        if lies_on(self.paths.root())? {
            return Err(Refusal::StateOnBase { path: self.paths.root().into(), base: base.into() });
        }
        Ok(())
    }

    /// Two volumes on the same bytes, a file and a loop device over it, would know nothing of each other's changes; two components of one
    /// volume would be the same stretch of it twice.
    fn check_overlap(&self, (path, file): (&Path, &File), base: &OpenBase) -> Result<(), Refusal> {
        let shares = |(other_path, other): (&Path, &File)| {
            let unreadable = |source| base::BaseError::Unopenable { path: path.into(), source };
            let above = (self.lies_on)(path, other).map_err(unreadable)?;
            Ok::<_, Refusal>(above || (self.lies_on)(other_path, file).map_err(unreadable)?)
        };
        let own = base.components.iter().filter_map(Component::local);
        for other in own.take_while(|(_, other)| !std::ptr::eq(*other, file)) {
            if shares(other)? {
                return Err(Refusal::BasesOverlap { base: path.into(), other: other.0.into() });
            }
        }
        for volume in self.all() {
            let Ok(serving) = volume.serving() else { continue };
            for other in serving.base.components.iter().filter_map(Component::local) {
                if shares(other)? {
                    let (base, other) = (path.into(), other.0.into());
                    return Err(Refusal::BaseOverlaps { base, other, volume: volume.name.clone() });
                }
            }
        }
        Ok(())
    }
}

/// Whether the volume stands on this file or device.
fn holds(volume: &Volume, identity: &BaseIdentity) -> bool {
    let record = volume.record();
    let known = record.iter().flat_map(|record| &record.bases).filter_map(|base| base.identity.as_ref());
    // Hardware may share a name; what is open now is told apart by its number.
    let is_open = volume.serving().is_ok();
    known.into_iter().any(|known| if is_open { known.has_number_of(identity) } else { known.is_same(identity) })
}

/// A file that was made to be a base, durably. It goes again with this value, unless it is kept.
#[derive(Debug)]
pub(crate) struct MadeBase {
    path: PathBuf,
    kept: bool,
}

impl MadeBase {
    fn new(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let made = Self { path: path.into(), kept: false };
        file.set_len(size)?;
        file.sync_all()?;
        sync_parent(path)?;
        Ok(made)
    }

    /// There is a volume on it.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for MadeBase {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(
                "{}, which was made for a volume that could not be added, stays: {error}",
                self.path.display()
            );
        }
    }
}
