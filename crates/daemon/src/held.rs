//! What a path leads to, held before it is opened: nobody waits for the other end of a fifo, and what was looked at is what is opened.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tzero_io::system;

/// Something in a file system that is not open.
pub(crate) struct Held {
    node: File,
    metadata: Metadata,
}

impl Held {
    /// Takes hold of what `path` leads to. Never waits for anybody but the file system.
    pub(crate) fn take(path: &Path) -> io::Result<Self> {
        let node = OpenOptions::new().read(true).custom_flags(system::HOLD).open(path)?;
        Ok(Self { metadata: node.metadata()?, node })
    }

    /// What it is.
    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Opens it. The caller has made sure that it is nothing that may wait: a file, a block device, a directory.
    pub(crate) fn open(&self, options: &OpenOptions) -> io::Result<File> {
        options.open(format!("/proc/self/fd/{}", self.node.as_raw_fd()))
    }
}

/// Opens the file at `path`; what is no file is `InvalidData`.
pub(crate) fn open_file(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let held = Held::take(path)?;
    if !held.metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"));
    }
    held.open(options)
}

/// Reads the file at `path`; one of more than `longest` bytes is `FileTooLarge`, what is no file `InvalidData`.
pub(crate) fn read_file(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path, OpenOptions::new().read(true))?.take(longest + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > longest { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// A fifo that nobody has open.
    pub(crate) fn fifo(directory: &Path) -> PathBuf {
        let path = directory.join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    #[test]
    fn nobody_waits_and_nothing_is_read_without_end() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        assert_eq!(read_file(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        for odd in [fifo(scratch.path()), scratch.path().to_path_buf(), "/dev/zero".into()] {
            assert_eq!(read_file(&odd, 9).unwrap_err().kind(), io::ErrorKind::InvalidData, "{odd:?}");
        }
        let held = Held::take(&path).unwrap();
        fs::rename(&path, scratch.path().join("old")).unwrap();
        fs::write(&path, "another").unwrap();
        let mut text = String::new();
        held.open(OpenOptions::new().read(true)).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "12345", "what was held is what is opened");
    }
}
