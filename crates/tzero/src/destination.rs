//! Where copies go and where they are restored to.

use std::path::{Path, PathBuf};

use crate::ending::Ending;

/// Finds the file or device that `--to` of a backup means. `volume` names the image in a directory.
pub(crate) fn backup_destination(text: &str, volume: &str) -> Result<PathBuf, Ending> {
    if let Some((kind, _)) = text.split_once(':')
        && matches!(kind, "archive" | "tape" | "repo")
    {
        return Err(Ending::usage(format!("{text}: this version writes images only, to image:PATH")));
    }
    let path = text.strip_prefix("image:").unwrap_or(text);
    if path.starts_with("nbd+unix:") {
        return Err(Ending::usage(format!("{text}: this version writes images to files and block devices only")));
    }
    if path.is_empty() {
        return Err(Ending::usage("the destination is empty: write image:PATH"));
    }
    let path = Path::new(path);
    let is_directory = path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir();
    Ok(if is_directory { path.join(format!("{volume}.img")) } else { path.to_owned() })
}

/// Finds the file or device that `--to` of a restore means.
pub(crate) fn restore_target(text: &str) -> Result<PathBuf, Ending> {
    if text.starts_with("nbd+unix:") || text.starts_with("volume:") {
        return Err(Ending::usage(format!("{text}: this version restores to files and block devices only")));
    }
    match text.strip_prefix("image:").unwrap_or(text) {
        "" => Err(Ending::usage("the target is empty: write the path of a file or block device")),
        path => Ok(path.into()),
    }
}

#[cfg(test)]
mod tests {
    use tzero_api::Exit;

    use super::*;

    #[test]
    fn images_and_directories_of_them() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().to_str().unwrap();
        for (text, path) in [
            ("x.img", "x.img"),
            ("image:x.img", "x.img"),
            ("image:/a/b", "/a/b"),
            ("a:b", "a:b"),
            ("image:missing/", "missing/v.img"),
            (directory, &format!("{directory}/v.img")),
        ] {
            assert_eq!(backup_destination(text, "v").unwrap(), Path::new(path));
        }
    }

    #[test]
    fn what_is_not_there_yet_is_bad_usage() {
        for text in [
            "archive:-",
            "archive:/x",
            "tape:/dev/nst0",
            "repo:/r",
            "image:nbd+unix:///x?socket=/s",
            "nbd+unix:///",
            "",
            "image:",
        ] {
            assert_eq!(backup_destination(text, "v").unwrap_err().exit, Exit::Usage, "{text}");
        }
        for text in ["nbd+unix:///", "volume:v", ""] {
            assert_eq!(restore_target(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
        assert_eq!(restore_target("/dev/sdx").unwrap(), Path::new("/dev/sdx"));
    }
}
