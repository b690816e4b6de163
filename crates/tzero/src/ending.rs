//! How a command ends when it does not end as asked.

use std::fmt;

use tzero_api::{ClientError, Exit, sentence};

/// One sentence and an exit status.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) exit: Exit,
    pub(crate) sentence: String,
}

impl Ending {
    fn new(exit: Exit, error: impl fmt::Display) -> Self {
        Self { exit, sentence: sentence(error) }
    }

    pub(crate) fn failed(error: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, error)
    }

    pub(crate) fn usage(error: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, error)
    }

    /// Of an error of the command line. `None`: it was a question for help or version, and this is the answer.
    pub(crate) fn of_usage(error: &clap::Error) -> Option<Self> {
        use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
        match error.kind() {
            DisplayHelp | DisplayVersion => None,
            DisplayHelpOnMissingArgumentOrSubcommand => {
                Some(Self::usage("no command was given: `tzero --help` lists them all"))
            }
            _ => {
                let text = error.to_string();
                let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
                let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
                let sentence = lines.join(" ");
                Some(Self::usage(sentence.strip_prefix("error: ").unwrap_or(&sentence)))
            }
        }
    }
}

impl From<ClientError> for Ending {
    fn from(error: ClientError) -> Self {
        Self::new(error.exit(), error)
    }
}

impl From<tzero_copy::Error> for Ending {
    fn from(error: tzero_copy::Error) -> Self {
        Self::new(error.exit(), error)
    }
}

impl From<tzero_daemon::ServeError> for Ending {
    fn from(error: tzero_daemon::ServeError) -> Self {
        Self::new(error.exit(), error)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_usage_error_is_one_line() {
        for line in
            ["tzero backup v --to x --scope y", "tzero frob", "tzero volume add a/b /x", "tzero backup --to x", "tzero"]
        {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            let ending = Ending::of_usage(&error).unwrap();
            assert_eq!(ending.exit, Exit::Usage);
            assert!(!ending.sentence.contains('\n') && !ending.sentence.is_empty(), "{}", ending.sentence);
            assert!(!ending.sentence.starts_with("error"), "{}", ending.sentence);
        }
    }

    #[test]
    fn help_is_no_error() {
        for line in ["tzero --help", "tzero --version", "tzero volume --help"] {
            assert!(Ending::of_usage(&Cli::try_parse_from(line.split_whitespace()).unwrap_err()).is_none());
        }
    }
}
