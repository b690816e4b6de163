//! Places that nothing is written to, whatever is asked for: one rule for the destinations of backups and the targets of
//! restores.
//!
//! | place | |
//! |---|---|
//! | has the name of a file that is kept beside a copy | a copy there would be taken for that file, and removed as one |
//! | lies in the state directory | volumes and copies are on record there |
//! | shares bytes with a registered volume's base or originals, through whatever layers | its host would read them, running daemon or not |
//! | lies on a file that somebody has locked | the base of a volume of another state directory, for one |

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tzero_io::{LockError, lock_exclusive};

use crate::error::{Error, FileAction, Refusal};
use crate::opening;
use crate::placement::{Ground, resolved};
use crate::registry::refuse_registered;

/// How the names of files end that stand beside a copy.
const RESERVED: [&str; 5] = [".tzero", ".tzero.new", ".tzero-partial", ".tzero-journal", ".tzero-restore"];

/// Refuses such a place. `copied` is the volume that a backup is of, whose own base it refuses by itself.
pub(crate) fn refuse_forbidden(path: &Path, state: &Path, copied: Option<&str>) -> Result<(), Error> {
    let look = |path: &Path| resolved(path).map_err(Error::file(FileAction::Open, path));
    let place = look(path)?;
    for name in [path, &place] {
        if let Some(suffix) =
            RESERVED.into_iter().find(|suffix| name.as_os_str().as_bytes().ends_with(suffix.as_bytes()))
        {
            return Err(Error::Reserved { path: path.to_owned(), suffix });
        }
    }
    let state = look(state)?;
    let ground = Ground::of(path).map_err(Error::file(FileAction::Open, path))?;
    let below = ground.files().iter().filter_map(|file| resolved(file).ok());
    if std::iter::once(place.clone()).chain(below).any(|place| place.starts_with(&state)) {
        return Err(Error::InState { path: path.to_owned(), state });
    }
    refuse_registered(path, &ground, &state, copied)?;
    for file in ground.files().iter().filter(|file| **file != place) {
        // One that cannot be opened for reading has nobody here to lock it.
        let Ok(opened) = opening::open(file) else { continue };
        if matches!(lock_exclusive(&opened), Err(LockError::Held)) {
            return Err(Error::refused(path, Refusal::LiesOnLocked));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tzero_api::Exit;

    use super::*;

    #[test]
    fn names_that_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let (state, place) = (root.path().join("state"), root.path().join("c.img"));
        for suffix in RESERVED {
            let path = root.path().join(format!("c.img{suffix}"));
            let error = refuse_forbidden(&path, &state, None).unwrap_err();
            assert!(matches!(error, Error::Reserved { .. }) && error.exit() == Exit::Usage, "{error}");
            fs::write(&path, "x").unwrap();
            let link = root.path().join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            assert!(matches!(refuse_forbidden(&link, &state, None), Err(Error::Reserved { .. })), "{suffix}");
            fs::remove_file(link).unwrap();
        }
        for name in ["c.tzero.img", "tzero", "c.img.tzero-", "c.img.new"] {
            refuse_forbidden(&root.path().join(name), &state, None).unwrap();
        }
        refuse_forbidden(&place, &state, None).unwrap();
    }

    #[test]
    fn the_state_directory_and_what_is_below() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        fs::create_dir_all(state.join("volumes")).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&state, &link).unwrap();
        for (place, state) in [("state/x", &state), ("link/volumes/x", &state), ("state/no/such", &link)] {
            let error = refuse_forbidden(&root.path().join(place), state, None).unwrap_err();
            assert!(matches!(error, Error::InState { .. }) && error.exit() == Exit::Usage, "{error}");
        }
        refuse_forbidden(&root.path().join("state-of-things"), &state, None).unwrap();
    }
}
