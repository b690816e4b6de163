//! Rules about Rust files.

use super::{Findings, Repository, Text};

/// Longest file, in lines.
const LONGEST: usize = 800;

pub(super) fn sizes(repository: &Repository) -> Findings {
    repository
        .rust()
        .filter_map(|text| {
            let lines = text.content.lines().count();
            (lines > LONGEST).then(|| format!("{}: {lines} lines, more than {LONGEST}: split it", text.path))
        })
        .collect()
}

pub(super) fn module_docs(repository: &Repository) -> Findings {
    repository
        .rust()
        .filter(|text| !text.path.ends_with("/tests.rs") && !text.content.starts_with("//!"))
        .map(|text| format!("{}: does not begin with `//!` and what the module is for", text.path))
        .collect()
}

pub(super) fn unfinished(repository: &Repository) -> Findings {
    // Written in parts, so that this file keeps its own rule.
    let marks = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let marks = marks.into_iter().chain([["#[ign", "ore"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()]);
    let marks: Vec<String> = marks.collect();
    lines(repository, |_, line| marks.iter().find(|mark| line.contains(mark.as_str())).cloned())
}

/// A test waits for a condition, never for a time.
pub(super) fn sleeps(repository: &Repository) -> Findings {
    let mark = ["thread::", "sleep("].concat();
    let mut findings = Findings::new();
    for text in repository.rust() {
        let dirs = text.path.split('/').any(|part| part == "tests" || part == "tests.rs");
        let mut tests = dirs;
        for (number, line) in text.lines() {
            tests |= line.trim() == "#[cfg(test)]";
            if tests && line.contains(&mark) {
                findings.push(format!("{}:{number}: {mark}", text.path));
            }
        }
    }
    findings
}

/// The lint denies unsafe code everywhere; only the I/O adapter may lift it.
pub(super) fn unsafe_code(repository: &Repository) -> Findings {
    let lint = ["unsafe", "_code"].concat();
    lines(repository, |text, line| {
        let lifted = line.contains(&lint) && (line.contains("allow(") || line.contains("expect("));
        (lifted && !text.path.starts_with("crates/io/")).then(|| format!("{lint} lifted outside crates/io"))
    })
}

/// A file is alive when cargo knows it as a root, or its parent module declares it.
pub(super) fn dead_files(repository: &Repository) -> Findings {
    repository
        .rust()
        .filter(|text| !is_root_file(repository, &text.path) && !declared(repository, &text.path))
        .map(|text| format!("{}: no module declares it", text.path))
        .collect()
}

fn is_root_file(repository: &Repository, path: &str) -> bool {
    let Some((dir, name)) = path.rsplit_once('/') else { return false };
    let parent = dir.rsplit('/').next().unwrap_or(dir);
    if matches!(name, "lib.rs" | "main.rs" | "build.rs") || matches!(parent, "bin" | "benches" | "examples") {
        return true;
    }
    // An integration test of a package: `PACKAGE/tests/NAME.rs`.
    parent == "tests" && repository.get(&format!("{}/Cargo.toml", dir.trim_end_matches("/tests"))).is_some()
}

fn declared(repository: &Repository, path: &str) -> bool {
    let Some((dir, file)) = path.rsplit_once('/') else { return false };
    let (module, parents) = if file == "mod.rs" {
        let Some((above, module)) = dir.rsplit_once('/') else { return false };
        (module.to_owned(), parents_of(above))
    } else {
        (file.trim_end_matches(".rs").to_owned(), parents_of(dir))
    };
    let declaration = format!("mod {module};");
    // Integration tests of a package share modules: any of them may be the parent.
    let beside = |text: &&Text| {
        let above = text.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        parents.contains(&text.path) || (above.ends_with("/tests") && parents.contains(&format!("{above}/mod.rs")))
    };
    repository.rust().filter(beside).any(|text| {
        text.content.lines().any(|line| {
            let line = line.trim_start();
            line == declaration
                || line.strip_prefix("pub").is_some_and(|rest| rest.ends_with(&format!(" {declaration}")))
        })
    })
}

/// The files that may declare the modules of a directory.
fn parents_of(dir: &str) -> Vec<String> {
    vec![format!("{dir}/lib.rs"), format!("{dir}/main.rs"), format!("{dir}/mod.rs"), format!("{dir}.rs")]
}

fn lines(repository: &Repository, rule: impl Fn(&Text, &str) -> Option<String>) -> Findings {
    repository
        .rust()
        .flat_map(|text| text.lines().map(move |(number, line)| (text, number, line)))
        .filter_map(|(text, number, line)| rule(text, line).map(|what| format!("{}:{number}: {what}", text.path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(files: &[(&str, &str)]) -> Repository {
        let texts =
            files.iter().map(|(path, content)| Text { path: (*path).to_owned(), content: (*content).to_owned() });
        Repository { top: std::path::PathBuf::new(), texts: texts.collect() }
    }

    #[test]
    fn a_file_that_nobody_declares_is_found() {
        let repository = repository(&[
            ("crates/a/src/lib.rs", "//! A.\nmod one;\npub(crate) mod two;\n"),
            ("crates/a/src/one.rs", "//! One.\nmod inner;"),
            ("crates/a/src/one/inner.rs", "//! Inner."),
            ("crates/a/src/two/mod.rs", "//! Two."),
            ("crates/a/src/three.rs", "//! Three."),
        ]);
        assert_eq!(dead_files(&repository), ["crates/a/src/three.rs: no module declares it"]);
    }

    #[test]
    fn a_sleep_is_found_in_tests() {
        let sleep = format!("std::{}one);", ["thread::", "sleep("].concat());
        let inline = format!("//! A.\n{sleep}\n#[cfg(test)]\nmod tests {{\n{sleep}\n}}\n");
        let repository = repository(&[("crates/a/src/lib.rs", &inline), ("tests/src/lib.rs", &sleep)]);
        let found = sleeps(&repository);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("crates/a/src/lib.rs:5") && found[1].starts_with("tests/src/lib.rs:1"));
    }
}
