//! The largest files and functions: where to look first for what has grown too much.

use super::{Repository, Text};

/// How many of each are shown.
const SHOWN: usize = 8;

/// Lines to be printed.
pub(super) fn largest(repository: &Repository) -> Vec<String> {
    let sources: Vec<&Text> = repository.texts.iter().filter(|text| text.is_rust()).collect();
    let files = sources.iter().map(|text| (text.lines().count(), text.path.clone())).collect();
    let functions = sources.iter().flat_map(|text| functions_of(text)).collect();
    let shown =
        |what: &str, found| top(found).into_iter().map(move |line| format!("{what} {line}")).collect::<Vec<_>>();
    [shown("file    ", files), shown("function", functions)].concat()
}

fn top(mut found: Vec<(usize, String)>) -> Vec<String> {
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    found.into_iter().take(SHOWN).map(|(lines, what)| format!("{lines:4} lines  {what}")).collect()
}

/// Every function with a body, and how many lines it has. In formatted source it ends at the brace below its first letter.
fn functions_of(text: &Text) -> Vec<(usize, String)> {
    let lines: Vec<&str> = text.content.lines().collect();
    let begins = lines.iter().enumerate().filter_map(|(at, line)| Some((at, indent(line), name_of(line)?)));
    begins
        .filter_map(|(at, indent_of_it, name)| {
            let is_end =
                |line: &&str| indent(line) == indent_of_it && (line.trim() == "}" || line.trim_end().ends_with(';'));
            let length = lines[at + 1..].iter().position(is_end)? + 2;
            Some((length, format!("{}:{} {name}", text.path, at + 1)))
        })
        .collect()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn name_of(line: &str) -> Option<&str> {
    // What ends on the line where it begins has no length to speak of.
    if line.trim_end().ends_with(['}', ';']) {
        return None;
    }
    let code = line.trim_start();
    let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe "];
    let mut rest = code;
    while let Some(after) = words.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = after;
    }
    let name = rest.strip_prefix("fn ")?;
    name.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_their_lengths() {
        let content = "impl A {\n    pub async fn one(\n        &self,\n    ) -> u8 {\n        1\n    }\n\n    fn two() {}\n\n    fn three() {\n        4;\n    }\n}\n\npub(crate) fn four<T>() {\n    if true {\n    }\n}\n";
        let text = Text { path: "a.rs".into(), content: content.into() };
        assert_eq!(
            functions_of(&text),
            [(5, "a.rs:2 one".into()), (3, "a.rs:10 three".into()), (4, "a.rs:15 four".into())]
        );
    }
}
