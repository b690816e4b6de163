//! Paths as the daemon, the copies' records and JSON need them: from the root, and where they are written down, in UTF-8.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tzero_api::StatePaths;

use crate::ending::Ending;
use crate::output::Output;

/// Names the state directory where no option does.
const STATE: &str = "TZERO_STATE";

/// The state directory that was asked for, or the one that is used otherwise.
pub(crate) fn state(asked: Option<PathBuf>) -> Result<StatePaths, Ending> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let found = asked
        .or_else(|| variable(STATE))
        .or_else(|| StatePaths::default_root(is_root(), variable("XDG_STATE_HOME"), variable("HOME")))
        .ok_or_else(|| {
            Ending::usage("there is no home for the state directory: name one with --state or TZERO_STATE")
        })?;
    // Records in it name their own places.
    Ok(StatePaths::new(recorded(&found, "the records in a state directory name it")?))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The path from the root, without following links.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Ending> {
    std::path::absolute(path)
        .map_err(|error| Ending::failed(format!("{} is relative, and where to is not known: {error}", path.display())))
}

/// The path from the root of something that is written down, and why it is.
pub(crate) fn recorded(path: &Path, why: &str) -> Result<PathBuf, Ending> {
    let path = absolute(path)?;
    if path.to_str().is_none() {
        return Err(Ending::usage(format!("the path {path:?} is not UTF-8, and {why}: choose one that is")));
    }
    Ok(path)
}

/// The path from the root of something that the result names.
pub(crate) fn named(path: &Path, output: Output) -> Result<PathBuf, Ending> {
    if output.json { recorded(path, "JSON cannot say it") } else { absolute(path) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use tzero_api::Exit;

    use super::*;

    #[test]
    fn other_bytes_are_refused_only_where_they_are_written_down() {
        let odd = Path::new(OsStr::from_bytes(b"/a/\xff"));
        assert_eq!(absolute(odd).unwrap(), odd);
        assert_eq!(named(odd, Output { json: false }).unwrap(), odd);
        for refused in [named(odd, Output { json: true }), recorded(odd, "why")] {
            let ending = refused.unwrap_err();
            assert_eq!(ending.exit, Exit::Usage);
            assert!(ending.sentence.contains(r#""/a/\xFF""#), "{}", ending.sentence);
        }
    }
}
