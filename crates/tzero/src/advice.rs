//! What to do about what the system says, for sentences that end with its words and say no more.
//!
//! They are known by these words, not by a number: a refusal of the daemon comes as text.

/// The system's words, and what helps. The standard library has words of its own where it knows the kind of an error only.
const ADVICE: &[(&[&str], &str)] = &[
    (
        &["No such file or directory", "entity not found"],
        "check the path; a directory that it lacks has to be made first",
    ),
    (
        &["Permission denied", "permission denied", "Operation not permitted"],
        "run it as a user who may, or choose another place",
    ),
    (
        &["No space left on device", "no storage space", "Disk quota exceeded", "quota exceeded"],
        "make room there, or choose another place",
    ),
    (
        &["Read-only file system", "read-only filesystem or storage medium"],
        "choose another place, or make that one writable",
    ),
    (&["File name too long", "invalid filename"], "choose a shorter name"),
    (&["Not a directory", "not a directory"], "check the path: a part of it is no directory"),
    (&["Is a directory", "is a directory"], "name a file instead"),
    (&["Too many levels of symbolic links"], "check the path: its links lead nowhere"),
    (&["Input/output error"], "look at the device and the kernel's log"),
    (&["Device or resource busy", "resource busy"], "stop what uses it first"),
    (&["No such device or address", "No such device"], "check the device"),
    (&["File too large", "file too large"], "choose a file system that takes larger files, or raise `ulimit -f`"),
    (&["Too many open files"], "raise `ulimit -n`"),
    (&["Cannot allocate memory", "out of memory"], "free some memory, and try again"),
];

/// A sentence with what to do at its end.
pub(crate) fn completed(sentence: String) -> String {
    // Not the end of a longer word.
    let ends =
        |words: &str| sentence.strip_suffix(words).is_some_and(|before| before.is_empty() || before.ends_with(' '));
    match ADVICE.iter().find(|(words, _)| words.iter().any(|words| ends(words))) {
        Some((_, advice)) => format!("{sentence}; {advice}"),
        None => sentence,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use tzero_api::sentence;

    use super::*;

    #[test]
    fn what_the_system_says_usually_gets_advice() {
        // ENOENT, EPERM, EIO, ENXIO, EACCES, EBUSY, ENODEV, ENOTDIR, EISDIR, EMFILE, EFBIG, ENOSPC, EROFS, ENAMETOOLONG, ELOOP, EDQUOT
        for number in [2, 1, 5, 6, 13, 16, 19, 20, 21, 24, 27, 28, 30, 36, 40, 122] {
            let said = sentence(format!("cannot create /x: {}", Error::from_raw_os_error(number)));
            let whole = completed(said.clone());
            assert!(whole.starts_with(&format!("{said}; ")), "{whole}");
        }
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::PermissionDenied,
            ErrorKind::StorageFull,
            ErrorKind::QuotaExceeded,
            ErrorKind::ReadOnlyFilesystem,
            ErrorKind::InvalidFilename,
            ErrorKind::NotADirectory,
            ErrorKind::IsADirectory,
            ErrorKind::ResourceBusy,
            ErrorKind::FileTooLarge,
        ] {
            let said = format!("cannot create /x: {kind}");
            assert_ne!(completed(said.clone()), said);
        }
    }

    #[test]
    fn what_says_what_to_do_already_is_left_alone() {
        for said in ["cannot open /x: Permission denied; ask for it", "it exists; --force replaces it", ""] {
            assert_eq!(completed(said.into()), said);
        }
        assert_eq!(completed("no such word: /x/is a directory".into()), "no such word: /x/is a directory");
    }
}
