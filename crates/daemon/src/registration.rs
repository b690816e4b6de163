//! What a new volume must not be: a second one of its name, or over bytes that another has or that the state itself lies on.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use tzero_api::control::AddVolume;

use crate::base::{self, OpenBase, Patience};
use crate::held::Held;
use crate::identity::BaseIdentity;
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

    /// Opens the base of a new volume, and looks at everything that must not be. Blocking.
    pub(crate) fn open_new(&self, request: &AddVolume) -> Result<OpenBase, Refusal> {
        self.refuse_registered(&request.base)?;
        let base = base::open(&request.base, request.direct, Patience::None)?;
        self.check_placement(request, &base)?;
        self.check_overlap(&request.base, &base)?;
        base::refuse_in_use_through(&request.base, &base)?;
        Ok(base)
    }

    /// A base holds one volume, whether that is served now or not. What cannot be opened is for whoever opens it to say.
    fn refuse_registered(&self, base: &Path) -> Result<(), Refusal> {
        let open = |held: Held| {
            let kind = held.metadata().file_type();
            let may_open = kind.is_file() || kind.is_block_device();
            may_open.then(|| held.open(OpenOptions::new().read(true))).and_then(Result::ok)
        };
        let file = Held::take(base).ok().and_then(open);
        let Some(identity) = file.and_then(|file| BaseIdentity::of(&file).ok()) else { return Ok(()) };
        let holds = |volume: &Arc<Volume>| {
            let known = volume.record.as_ref().and_then(|record| record.identity.as_ref());
            known.is_some_and(|known| {
                // Hardware may share a name; what is open now is told apart by its number.
                if volume.serving().is_ok() { known.has_number_of(&identity) } else { known.is_same(&identity) }
            })
        };
        match self.all().into_iter().find(holds) {
            Some(volume) => Err(Refusal::BaseTaken { base: base.into(), volume: volume.name.clone() }),
            None => Ok(()),
        }
    }

    /// Originals of a base on the base itself would make every save another change.
    fn check_placement(&self, request: &AddVolume, base: &OpenBase) -> Result<(), Refusal> {
        let lies_on = |path: &Path| {
            (self.lies_on)(path, &base.file).map_err(|source| Refusal::CacheDirectory { path: path.into(), source })
        };
        if let Some(directory) = &request.cache_dir {
            let unusable = |source| Refusal::CacheDirectory { path: directory.clone(), source };
            if !fs::metadata(directory).map_err(unusable)?.is_dir() {
                return Err(unusable(io::ErrorKind::NotADirectory.into()));
            }
            if lies_on(directory)? {
                return Err(Refusal::CacheOnBase { path: directory.clone(), base: request.base.clone() });
            }
        }
        let state = self.paths.volumes();
        if fs::canonicalize(&request.base).is_ok_and(|base| base.starts_with(&state)) {
            return Err(Refusal::BaseIsState { base: request.base.clone(), state });
        }
        if lies_on(self.paths.root())? {
            return Err(Refusal::StateOnBase { path: self.paths.root().into(), base: request.base.clone() });
        }
        Ok(())
    }

    /// Two volumes on the same bytes, a file and a loop device over it, would know nothing of each other's changes.
    fn check_overlap(&self, path: &Path, base: &OpenBase) -> Result<(), Refusal> {
        for volume in self.all() {
            let (Ok(serving), Some(record)) = (volume.serving(), &volume.record) else { continue };
            let unreadable = |source| base::BaseError::Unopenable { path: path.into(), source };
            let above = (self.lies_on)(path, &serving.base).map_err(unreadable)?;
            if above || (self.lies_on)(&record.base, &base.file).map_err(unreadable)? {
                let (base, other) = (path.into(), record.base.clone());
                return Err(Refusal::BaseOverlaps { base, other, volume: volume.name.clone() });
            }
        }
        Ok(())
    }
}
