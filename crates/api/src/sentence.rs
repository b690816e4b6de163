//! Errors as the sentences that operators get.

use std::fmt::Display;

const NUMBER: &str = " (os error ";

/// The text of an error without the numbers that the system's errors carry: the words beside them say it.
pub fn sentence(error: impl Display) -> String {
    let text = error.to_string();
    let mut rest = text.as_str();
    let mut clean = String::with_capacity(text.len());
    while let Some((before, after)) = rest.split_once(NUMBER) {
        clean.push_str(before);
        rest = match after.split_once(')') {
            Some((number, after)) if number.bytes().all(|byte| byte.is_ascii_digit()) => after,
            _ => {
                clean.push_str(NUMBER);
                after
            }
        };
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_no_numbers() {
        assert_eq!(sentence("a: No such file (os error 2), b (os error 13)"), "a: No such file, b");
        assert_eq!(sentence("a (os error x) b"), "a (os error x) b");
        assert_eq!(sentence(std::io::Error::from_raw_os_error(28)), "No space left on device");
    }
}
