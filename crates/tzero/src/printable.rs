//! Text as it may be shown to a person: names come from files and manifests that others have made, and must not steer a terminal.

use std::borrow::Cow;

/// `text` with escapes in the place of control characters, and of those that change the direction or the line of what follows.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if steers(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

fn steers(character: char) -> bool {
    const SEPARATORS: [char; 2] = ['\u{2028}', '\u{2029}'];
    let direction = matches!(
        character,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    character.is_control() || direction || SEPARATORS.contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(printable("\x1b[2Jx\n\0"), r"\u{1b}[2Jx\n\u{0}");
        assert_eq!(printable("\u{9b}2J\u{7f}\u{202e}gmi"), r"\u{9b}2J\u{7f}\u{202e}gmi");
        for plain in ["", "copy — Größe 5 µs", "日本語", r"back\slash 'quote'"] {
            assert!(matches!(printable(plain), Cow::Borrowed(same) if same == plain));
        }
    }
}
