//! What a new volume must not be: a second one of its name, or over bytes that another has or that the state itself lies on.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tzero_api::Place;
use tzero_api::control::{AddVolume, DEFAULT_GRAIN};

use crate::base::{self, Component, OpenBase, Patience};
use crate::cache_file::sync_parent;
use crate::held::Held;
use crate::identity::BaseIdentity;
use crate::opening;
use crate::refusal::Refusal;
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
        self.refuse_registered(&paths)?;
        let made = self.make_base(request, &paths)?;
        let base = OpenBase::open(&request.bases, request.direct, Patience::None)?;
        if let (Some(asked), [only]) = (request.size, &base.components[..])
            && only.identity.size() != asked.0
        {
            let (base, found) = (only.path.clone(), only.identity.size());
            return Err(Refusal::BaseHasSize { base, found, asked: asked.0 });
        }
        let grain = request.grain.map_or(DEFAULT_GRAIN, |grain| grain.0 as u32);
        opening::components_of(&base, &request.name, grain)?;
        for component in &base.components {
            self.check_placement(request, component)?;
            self.check_overlap(component, &base)?;
        }
        base::refuse_in_use_through(&base)?;
        Ok((base, made))
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
    /// to say.
    fn refuse_registered(&self, bases: &[&Path]) -> Result<(), Refusal> {
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
            if let Some(volume) = self.all().into_iter().find(|volume| holds(volume, &identity)) {
                return Err(Refusal::BaseTaken { base: base.to_path_buf(), volume: volume.name.clone() });
            }
            seen.push(identity);
        }
        Ok(())
    }

    /// Originals of a base on the base itself would make every save another change.
    fn check_placement(&self, request: &AddVolume, base: &Component) -> Result<(), Refusal> {
        let lies_on = |path: &Path| {
            (self.lies_on)(path, &base.file).map_err(|source| Refusal::CacheDirectory { path: path.into(), source })
        };
        if let Some(directory) = request.cache_dir.as_ref().and_then(Place::path) {
            let unusable = |source| Refusal::CacheDirectory { path: directory.into(), source };
            if !fs::metadata(directory).map_err(unusable)?.is_dir() {
                return Err(unusable(io::ErrorKind::NotADirectory.into()));
            }
            if lies_on(directory)? {
                return Err(Refusal::CacheOnBase { path: directory.into(), base: base.path.clone() });
            }
        }
        let state = self.paths.volumes();
        if fs::canonicalize(&base.path).is_ok_and(|base| base.starts_with(&state)) {
            return Err(Refusal::BaseIsState { base: base.path.clone(), state });
        }
        if lies_on(self.paths.root())? {
            return Err(Refusal::StateOnBase { path: self.paths.root().into(), base: base.path.clone() });
        }
        Ok(())
    }

    /// Two volumes on the same bytes, a file and a loop device over it, would know nothing of each other's changes; two components of one
    /// volume would be the same stretch of it twice.
    fn check_overlap(&self, component: &Component, base: &OpenBase) -> Result<(), Refusal> {
        let shares = |other: &Component| {
            let unreadable = |source| base::BaseError::Unopenable { path: component.path.clone(), source };
            let above = (self.lies_on)(&component.path, &other.file).map_err(unreadable)?;
            Ok::<_, Refusal>(above || (self.lies_on)(&other.path, &component.file).map_err(unreadable)?)
        };
        let own = base.components.iter().take_while(|other| !std::ptr::eq(*other, component));
        for other in own {
            if shares(other)? {
                return Err(Refusal::BasesOverlap { base: component.path.clone(), other: other.path.clone() });
            }
        }
        for volume in self.all() {
            let Ok(serving) = volume.serving() else { continue };
            for other in &serving.base.components {
                if shares(other)? {
                    let (base, other) = (component.path.clone(), other.path.clone());
                    return Err(Refusal::BaseOverlaps { base, other, volume: volume.name.clone() });
                }
            }
        }
        Ok(())
    }
}

/// Whether the volume stands on this file or device.
fn holds(volume: &Volume, identity: &BaseIdentity) -> bool {
    let known = volume.record.iter().flat_map(|record| &record.bases).filter_map(|base| base.identity.as_ref());
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
