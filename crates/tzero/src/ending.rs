//! How a command ends when it does not end as asked.

use std::ffi::OsString;
use std::fmt;
use std::io;

use tzero_api::{ClientError, Exit, sentence};
use tzero_daemon::{ServeError, StateError};

use crate::advice;
use crate::sockets::TooLong;

/// One sentence and an exit status.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) exit: Exit,
    pub(crate) sentence: String,
}

impl Ending {
    fn new(exit: Exit, error: impl fmt::Display) -> Self {
        Self { exit, sentence: advice::completed(sentence(error)) }
    }

    pub(crate) fn failed(error: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, error)
    }

    pub(crate) fn usage(error: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, error)
    }

    /// Of an error of the command line `arguments`. `None`: it was a question for help or version, and this is the answer.
    pub(crate) fn of_usage(error: &clap::Error, mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        use clap::error::ErrorKind::{
            DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion, InvalidUtf8,
        };
        match error.kind() {
            DisplayHelp | DisplayVersion => None,
            DisplayHelpOnMissingArgumentOrSubcommand => {
                Some(Self::usage("no command was given: `tzero --help` lists them all"))
            }
            InvalidUtf8 => {
                let wrong = arguments.find(|argument| argument.to_str().is_none()).unwrap_or_default();
                Some(Self::usage(format!(
                    "the argument {wrong:?} is not UTF-8, as names, sizes, ids and addresses are: write it so"
                )))
            }
            _ => Some(Self::usage(one_sentence(&error.to_string()))),
        }
    }
}

/// The lines of a parser's message as one sentence: what is wrong, what was meant perhaps, and where to read on.
fn one_sentence(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let usage = lines().find_map(|line| line.strip_prefix("Usage: "));
    let tip = lines().find_map(|line| line.strip_prefix("tip: ")).filter(|tip| tip.contains("similar"));
    let wrong =
        lines().take_while(|line| !["tip: ", "Usage: ", "For more"].iter().any(|begin| line.starts_with(begin)));
    let wrong = wrong.collect::<Vec<_>>().join(" ");
    let mut sentence = wrong.strip_prefix("error: ").unwrap_or(&wrong).to_owned();
    if let Some(tip) = tip {
        sentence += "; ";
        sentence += tip;
    }
    if let Some(usage) = usage {
        let command: Vec<_> =
            usage.split(' ').take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect();
        sentence += &format!("; see `{} --help`", command.join(" "));
    }
    sentence
}

impl From<ClientError> for Ending {
    fn from(error: ClientError) -> Self {
        match error {
            // It is not for another user to give: there is no such place.
            ClientError::Unreachable { socket, source } if source.kind() != io::ErrorKind::PermissionDenied => {
                Self::failed(format!("the daemon's socket {} cannot be used: {source}", socket.display()))
            }
            error => Self::new(error.exit(), error),
        }
    }
}

impl From<tzero_copy::Error> for Ending {
    fn from(error: tzero_copy::Error) -> Self {
        Self::new(error.exit(), error)
    }
}

impl From<ServeError> for Ending {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::State(StateError::TooLong(_)) => Self::usage(error),
            error => Self::new(error.exit(), error),
        }
    }
}

impl From<TooLong> for Ending {
    fn from(error: TooLong) -> Self {
        Self::usage(error)
    }
}

#[cfg(test)]
mod tests {
    use std::iter;
    use std::os::unix::ffi::OsStringExt;

    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_usage_error_is_one_line() {
        for line in
            ["tzero backup v --to x --scope y", "tzero frob", "tzero volume add a/b /x", "tzero backup --to x", "tzero"]
        {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            let ending = Ending::of_usage(&error, iter::empty()).unwrap();
            assert_eq!(ending.exit, Exit::Usage);
            assert!(!ending.sentence.contains('\n') && !ending.sentence.is_empty(), "{}", ending.sentence);
            assert!(!ending.sentence.starts_with("error"), "{}", ending.sentence);
        }
    }

    #[test]
    fn a_usage_error_says_where_to_read_on() {
        for (line, sentence) in [
            ("tzero backup v --to x --speed y", "unexpected argument '--speed' found; see `tzero backup --help`"),
            (
                "tzero restor",
                "unrecognized subcommand 'restor'; a similar subcommand exists: 'restore'; see `tzero --help`",
            ),
            (
                "tzero volume show",
                "the following required arguments were not provided: <NAME>; see `tzero volume show --help`",
            ),
        ] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert_eq!(Ending::of_usage(&error, iter::empty()).unwrap().sentence, sentence);
        }
    }

    #[test]
    fn help_is_no_error() {
        for line in ["tzero --help", "tzero --version", "tzero volume --help"] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert!(Ending::of_usage(&error, iter::empty()).is_none());
        }
    }

    #[test]
    fn an_argument_of_other_bytes_is_named() {
        let line = || {
            ["tzero", "volume", "show"].map(OsString::from).into_iter().chain([OsString::from_vec(vec![b'n', 0xff])])
        };
        let error = Cli::try_parse_from(line()).unwrap_err();
        let sentence = Ending::of_usage(&error, line()).unwrap().sentence;
        assert!(sentence.starts_with(r#"the argument "n\xFF" is not UTF-8"#), "{sentence}");
    }
}
