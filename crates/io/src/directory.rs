//! [`Storage`] in a real directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::allocation;
use crate::file::fallocate;
use crate::mapped::MappedFile;
use crate::storage::Storage;

/// Prefix of files that are being made; removed when found.
const UNFINISHED: &str = ".new-";

/// A directory of [`MappedFile`]s, mode 0600 each.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory at `path`, which must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let unfinished = self.path.join(format!("{UNFINISHED}{name}"));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        allocation::write_in_place(&file);
        let made = if len > 0 { fallocate(&file, 0, 0, len) } else { Ok(()) }
            // Its length first: a name that outlives the machine has the whole file behind it.
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&unfinished, self.path.join(name)));
        if made.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        made
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Storage for Directory {
    type Mapping = MappedFile;

    fn open(&self, name: &str, len: u64) -> io::Result<MappedFile> {
        let path = self.path.join(name);
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create(name, len.next_multiple_of(8))?;
                open()?
            }
            other => other?,
        };
        MappedFile::from_file(file, true)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path.join(name).try_exists()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string()
                && !name.starts_with(UNFINISHED)
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        Directory::sync(self)
    }

    async fn names_durable(&self) -> io::Result<()> {
        crate::file::File::new(File::open(&self.path)?, false).sync_data().await
    }
}
