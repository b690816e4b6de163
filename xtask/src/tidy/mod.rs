//! Rules that no compiler checks. `cargo xtask tidy` prints what is largest and what breaks them; as tests they are part of every run.
//!
//! A finding names the file, the line where it has one, and the rule. There is no list of exceptions.

mod documents;
mod largest;
mod source;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::root;

/// What breaks a rule.
type Findings = Vec<String>;

/// Looks through the repository for what breaks it.
type Rule = fn(&Repository) -> Findings;

const RULES: &[(&str, Rule)] = &[
    ("file sizes", source::sizes),
    ("module docs", source::module_docs),
    ("unfinished code", source::unfinished),
    ("sleeps", source::sleeps),
    ("unsafe code", source::unsafe_code),
    ("dead files", source::dead_files),
    ("forbidden words", words::forbidden),
    ("links", documents::links),
    ("decision index", documents::decisions),
    ("code map", documents::code_map),
    ("dependencies", documents::dependencies),
];

/// The task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("`cargo xtask tidy` takes no argument");
    }
    let repository = Repository::read(&root())?;
    largest::largest(&repository).iter().for_each(|line| println!("{line}"));
    let mut count = 0;
    for (name, rule) in RULES {
        for finding in rule(&repository) {
            println!("{name}: {finding}");
            count += 1;
        }
    }
    if count == 0 { Ok(()) } else { bail!("{count} findings") }
}

/// A text file of the repository.
struct Text {
    /// Relative to the top, with `/`.
    path: String,
    content: String,
}

impl Text {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.content.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Every text file that belongs to the project, in the order of their paths.
struct Repository {
    top: PathBuf,
    texts: Vec<Text>,
}

impl Repository {
    fn read(top: &Path) -> Result<Self> {
        let mut texts = Vec::new();
        collect(top, top, &mut texts)?;
        texts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { top: top.to_path_buf(), texts })
    }

    fn get(&self, path: &str) -> Option<&Text> {
        self.texts.iter().find(|text| text.path == path)
    }

    fn rust(&self) -> impl Iterator<Item = &Text> {
        self.texts.iter().filter(|text| text.is_rust())
    }

    fn exists(&self, path: &str) -> bool {
        self.top.join(path).exists()
    }
}

fn collect(top: &Path, dir: &Path, texts: &mut Vec<Text>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let path = entry.path();
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.is_dir() {
            if entry.file_name() != ".git" && path != top.join("target") {
                collect(top, &path, texts)?;
            }
        } else if kind.is_file()
            && let Ok(content) = fs::read_to_string(&path)
        {
            let relative = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
            texts.push(Text { path: relative, content });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: Rule) {
        let repository = Repository::read(&root()).expect("the repository can be read");
        let findings = rule(&repository);
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    /// A test for each rule, and none forgotten.
    macro_rules! rules {
        ($($test:ident $name:literal),* $(,)?) => {
            $(#[test] fn $test() {
                let (_, rule) = RULES.iter().find(|(name, _)| *name == $name).expect("a rule of that name");
                holds(*rule);
            })*

            #[test]
            fn every_rule_is_a_test() {
                let tested = [$($name),*];
                for (name, _) in RULES {
                    assert!(tested.contains(name), "no test for {name}");
                }
            }
        };
    }

    rules! {
        files_are_short "file sizes",
        every_module_says_what_it_is_for "module docs",
        nothing_is_unfinished "unfinished code",
        nothing_sleeps_to_wait "sleeps",
        only_the_adapter_is_unsafe "unsafe code",
        no_source_file_is_dead "dead files",
        no_forbidden_word_stands_anywhere "forbidden words",
        links_lead_somewhere "links",
        the_decision_index_is_complete "decision index",
        the_code_map_is_true "code map",
        every_dependency_has_its_reason "dependencies",
    }
}
