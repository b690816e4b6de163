//! Where things are in the state directory.

use std::path::{Path, PathBuf};

/// The state directory and the fixed places in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePaths {
    root: PathBuf,
}

impl StatePaths {
    /// Of a directory that need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where state is kept unless told otherwise: `/var/lib/tzero` for root, else below `$XDG_STATE_HOME` or
    /// `$HOME/.local/state`. `None` for a user without either.
    pub fn default_root(is_root: bool, xdg_state_home: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
        if is_root {
            return Some("/var/lib/tzero".into());
        }
        let xdg = xdg_state_home.filter(|path| path.is_absolute());
        xdg.or_else(|| home.filter(|path| path.is_absolute()).map(|home| home.join(".local/state")))
            .map(|base| base.join("tzero"))
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Held by the one daemon.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// HTTP with JSON.
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// Movers.
    pub fn mover_socket(&self) -> PathBuf {
        self.root.join("mover.sock")
    }

    /// Where NBD is served by default.
    pub fn nbd_socket(&self) -> PathBuf {
        self.root.join("nbd.sock")
    }

    /// One directory a volume.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Of one volume.
    pub fn volume(&self, name: &crate::Name) -> PathBuf {
        self.volumes().join(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_depends_on_who_asks() {
        let default = |root, xdg: Option<&str>, home: Option<&str>| {
            StatePaths::default_root(root, xdg.map(PathBuf::from), home.map(PathBuf::from))
        };
        assert_eq!(default(true, Some("/x"), Some("/h")), Some("/var/lib/tzero".into()));
        assert_eq!(default(false, Some("/x"), Some("/h")), Some("/x/tzero".into()));
        assert_eq!(default(false, Some("relative"), Some("/h")), Some("/h/.local/state/tzero".into()));
        assert_eq!(default(false, None, Some("/h")), Some("/h/.local/state/tzero".into()));
        assert_eq!(default(false, None, None), None);
    }
}
