//! Taking a damaged file out of the way, for whoever wants to look at it: `NAME` becomes `NAME.damaged-1`, or the next number.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache_file::sync_parent;

const DAMAGED: &str = ".damaged-";

/// Renames what is at `path`, durably; gives its new name, or `None` if there was nothing. Blocking.
pub(crate) fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut number = 1;
    let new = loop {
        let new = numbered(path, number);
        match fs::symlink_metadata(&new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break new,
            Err(error) => return Err(error),
            Ok(_) => number += 1,
        }
    };
    match fs::rename(path, &new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    }
    sync_parent(path)?;
    Ok(Some(new))
}

/// Everything that was set aside of `path`.
pub(crate) fn aside_of(path: &Path) -> Vec<PathBuf> {
    (1..).map(|number| numbered(path, number)).take_while(|aside| fs::symlink_metadata(aside).is_ok()).collect()
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("{DAMAGED}{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("map");
        assert_eq!(set_aside(&path).unwrap(), None);
        for number in 1..3 {
            fs::write(&path, [number]).unwrap();
            assert_eq!(set_aside(&path).unwrap(), Some(scratch.path().join(format!("map.damaged-{number}"))));
        }
        let kept: Vec<_> = aside_of(&path).iter().map(|aside| fs::read(aside).unwrap()).collect();
        assert_eq!(kept, [[1], [2]]);
    }
}
