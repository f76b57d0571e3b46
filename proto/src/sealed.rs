//! Sealed JSON: a text that people and programs read as any other, and that shows when a bit of it is not what was written.
//!
//! Its first key is the seal, the xxh3 of every other byte:
//!
//! ```text
//! {
//!   "seal": "0123456789abcdef",
//!   ...
//! ```
//!
//! - SEA-1 No bit of a sealed text can change without an error: the seal covers spaces and key names too, and what is no
//!   longer recognised as a seal counts as none.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::Xxh3;

/// Before the digits of the seal.
const BEFORE: &str = "{\n  \"seal\": \"";
/// Hexadecimal digits of it.
const DIGITS: usize = 16;

/// How a text stands to its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// It is what was written.
    Whole,
    /// It is not what was written.
    Broken,
    /// It has none.
    Missing,
}

/// A sealed file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// It cannot be read.
    #[error("{}: cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{}: damaged: {rule}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The rule that is broken.
        rule: String,
    },
}

/// What is wrong with a text whose seal is broken.
pub const BROKEN: &str = "its content is not what its seal says";
/// What is wrong with a text that has to have a seal.
pub const MISSING: &str = "it has no seal";

/// `value` as sealed text. Panics where that is no JSON object with keys.
pub fn to_text(value: &impl Serialize) -> String {
    let plain = serde_json::to_string_pretty(value).expect("plain data");
    let content = plain.strip_prefix("{\n").expect("an object with keys");
    let after = format!("\",\n{content}");
    format!("{BEFORE}{}{after}", seal_of(BEFORE, &after))
}

/// Whether `text` is what [`to_text`] made.
pub fn check(text: &str) -> Seal {
    let Some((digits, after)) = text.strip_prefix(BEFORE).and_then(|rest| rest.split_at_checked(DIGITS)) else {
        return Seal::Missing;
    };
    if seal_of(BEFORE, after) == digits { Seal::Whole } else { Seal::Broken }
}

/// Reads a file whose text [`to_text`] made.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, SealedError> {
    let bytes = fs::read(path).map_err(|source| SealedError::Read { path: path.to_owned(), source })?;
    parse(&bytes).map_err(|rule| SealedError::Damaged { path: path.to_owned(), rule })
}

/// What was sealed, or what does not hold.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    match check(text) {
        Seal::Whole => serde_json::from_str(text).map_err(|error| error.to_string()),
        Seal::Broken => Err(BROKEN.to_owned()),
        Seal::Missing => Err(MISSING.to_owned()),
    }
}

fn seal_of(before: &str, after: &str) -> String {
    let mut hash = Xxh3::new();
    hash.update(before.as_bytes());
    hash.update(after.as_bytes());
    format!("{:0DIGITS$x}", hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Content {
        step: u64,
        name: String,
        rate: f64,
    }

    fn content() -> Content {
        Content { step: 12, name: "ä \" \u{1}".into(), rate: 3e-4 }
    }

    #[test]
    fn a_sealed_text_is_json_and_gives_back_what_was_sealed() {
        let text = to_text(&content());
        assert!(text.starts_with("{\n  \"seal\": \"") && text.contains("\",\n  \"step\": 12,\n"), "{text}");
        assert_eq!(parse(text.as_bytes()), Ok(content()));
        assert_eq!(serde_json::from_str::<Content>(&text).unwrap(), content());
        assert_eq!(check(&text), Seal::Whole);
    }

    #[test]
    fn no_bit_changes_without_an_error() {
        // SEA-1
        let text = to_text(&content()).into_bytes();
        for bit in 0..8 * text.len() {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            parse::<Content>(&flipped).unwrap_err();
        }
        for len in 0..text.len() {
            parse::<Content>(&text[..len]).unwrap_err();
        }
    }

    #[test]
    fn a_text_without_a_seal_is_told_from_one_with_another() {
        let plain = serde_json::to_string(&content()).unwrap();
        assert_eq!((check(&plain), parse::<Content>(plain.as_bytes())), (Seal::Missing, Err(MISSING.to_owned())));
        let edited = to_text(&content()).replace("\"step\": 12", "\"step\": 13");
        assert_eq!((check(&edited), parse::<Content>(edited.as_bytes())), (Seal::Broken, Err(BROKEN.to_owned())));
        assert_eq!(check("{\n  \"seal\": \"0123ä"), Seal::Missing);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        let message = || read::<Content>(&path).unwrap_err().to_string();
        assert_eq!(message(), format!("{}: cannot be read", path.display()));
        fs::write(&path, "{}").unwrap();
        assert_eq!(message(), format!("{}: damaged: {MISSING}", path.display()));
        fs::write(&path, to_text(&content())).unwrap();
        assert_eq!(read::<Content>(&path).unwrap(), content());
    }
}
