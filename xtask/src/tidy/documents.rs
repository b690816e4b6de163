//! Rules about documents.

use std::collections::BTreeSet;

use super::{Findings, Repository, Text};

/// Where decisions are recorded, and the file that lists them.
const DECISIONS: &str = "docs/adr";
const DECISION_INDEX: &str = "docs/adr/README.md";
const CODE_MAP: &str = "ARCHITECTURE.md";
const DEPENDENCIES: &str = "docs/dependencies.md";

/// Every relative link of every document leads to a file or directory.
pub(super) fn links(repository: &Repository) -> Findings {
    let mut findings = Findings::new();
    for text in repository.texts.iter().filter(|text| text.is_markdown()) {
        let dir = text.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        for (number, target) in targets(text) {
            if target.contains("://") || target.starts_with("mailto:") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap_or(target);
            let path = if dir.is_empty() { file.to_owned() } else { format!("{dir}/{file}") };
            if !repository.exists(&path) {
                findings.push(format!("{}:{number}: {target} does not exist", text.path));
            }
        }
    }
    findings
}

/// Every decision stands in the index.
pub(super) fn decisions(repository: &Repository) -> Findings {
    let records = repository.texts.iter().filter(|text| {
        text.path.strip_prefix(DECISIONS).is_some_and(|name| name.starts_with("/0") && name.ends_with(".md"))
    });
    let Some(index) = repository.get(DECISION_INDEX) else {
        return vec![format!("{DECISION_INDEX} does not exist")];
    };
    let linked: BTreeSet<&str> = targets(index).map(|(_, target)| target).collect();
    records
        .filter(|record| !linked.contains(record.path.rsplit('/').next().unwrap_or_default()))
        .map(|record| format!("{DECISION_INDEX}: has no link to {}", record.path))
        .collect()
}

/// The code map names every crate, and whatever path it names exists.
pub(super) fn code_map(repository: &Repository) -> Findings {
    let Some(map) = repository.get(CODE_MAP) else {
        return vec![format!("{CODE_MAP} does not exist")];
    };
    let mut findings = Findings::new();
    for (number, line) in map.lines() {
        for path in line.split('`').skip(1).step_by(2).filter(|word| looks_like_path(word)) {
            if !repository.exists(path) {
                findings.push(format!("{CODE_MAP}:{number}: `{path}` does not exist"));
            }
        }
    }
    for text in &repository.texts {
        if let Some(name) = text.path.strip_prefix("crates/").and_then(|rest| rest.strip_suffix("/Cargo.toml"))
            && !map.content.contains(&format!("crates/{name}"))
        {
            findings.push(format!("{CODE_MAP}: does not name crates/{name}"));
        }
    }
    findings
}

fn looks_like_path(word: &str) -> bool {
    let anchored = ["crates/", "docs/", "xtask/", "tests/", ".ci/", ".config/"].iter().any(|dir| word.starts_with(dir));
    anchored && !word.contains(['*', '<', '{', ' ', '…'])
}

/// Every dependency that comes from outside is named in the document that gives its reason.
pub(super) fn dependencies(repository: &Repository) -> Findings {
    let Some(document) = repository.get(DEPENDENCIES) else {
        return vec![format!("{DEPENDENCIES} does not exist")];
    };
    let mut findings = Findings::new();
    for manifest in repository.texts.iter().filter(|text| text.path.ends_with("Cargo.toml")) {
        for name in external(manifest) {
            if !document.content.contains(&format!("`{name}`")) {
                findings.push(format!("{DEPENDENCIES}: does not say why `{name}` ({}) is there", manifest.path));
            }
        }
    }
    let named =
        document.lines().filter_map(|(number, line)| Some((number, line.strip_prefix("| `")?.split('`').next()?)));
    for (number, name) in named {
        let used = repository.texts.iter().any(|text| {
            text.path.ends_with("Cargo.toml") && text.path != "Cargo.toml" && external(text).any(|other| other == name)
        });
        if !used {
            findings.push(format!("{DEPENDENCIES}:{number}: no package uses `{name}`"));
        }
    }
    findings
}

/// Names of the dependencies of a manifest that are no packages of this workspace.
fn external(manifest: &Text) -> impl Iterator<Item = &str> {
    let mut within = false;
    manifest.content.lines().filter_map(move |line| {
        if line.starts_with('[') {
            within = line.trim_end_matches(']').ends_with("dependencies");
            return None;
        }
        let (name, value) = line.split_once('=').filter(|_| within)?;
        let name = name.trim().trim_end_matches(".workspace");
        let own = name.starts_with("tzero-") || name == "e2e" || value.contains("path =");
        (!own && !name.starts_with('#')).then_some(name)
    })
}

/// Targets of the links of a document, outside of code blocks.
fn targets(text: &Text) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    text.lines()
        .filter(move |(_, line)| {
            let fence = line.trim_start().starts_with("```");
            code ^= fence;
            !code && !fence
        })
        .flat_map(|(number, line)| {
            line.split("](").skip(1).filter_map(move |rest| Some((number, rest.split(')').next()?)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, content: &str) -> Text {
        Text { path: path.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn links_are_found_outside_of_code_only() {
        let text = text("a.md", "[x](one.md) and [y](two.md#part)\n```\n[z](three.md)\n```\n[w](four.md)");
        let found: Vec<_> = targets(&text).collect();
        assert_eq!(found, [(1, "one.md"), (1, "two.md#part"), (5, "four.md")]);
    }

    #[test]
    fn own_packages_are_no_dependencies_from_outside() {
        let manifest = text(
            "Cargo.toml",
            "[workspace]\nmembers = []\n[workspace.dependencies]\ntzero-io = { path = \"crates/io\" }\nlibc = \"0.2\"\n\
             [dev-dependencies]\ntempfile.workspace = true\n[profile.dev]\nopt-level = 1\n",
        );
        assert_eq!(external(&manifest).collect::<Vec<_>>(), ["libc", "tempfile"]);
    }
}
