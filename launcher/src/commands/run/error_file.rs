//! The file in which a worker leaves the reason of its failure, in the format of torch's `@record`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::output::units::printable;

/// Nobody has more to say; a file that is longer is not looked at.
const LARGEST_BYTES: u64 = 4 << 20;
/// Lines of a message that are kept.
const MESSAGE_LINES: usize = 20;

/// The message in the error file at `path`, fit for a terminal; `None` if there is none.
pub fn message(path: &Path) -> Option<String> {
    let mut text = vec![];
    File::open(path).ok()?.take(LARGEST_BYTES).read_to_end(&mut text).ok()?;
    parse(&text)
}

/// `{"message": {"message": "...", ...}}`, or `{"message": "..."}` as older programs write it.
fn parse(text: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(text).ok()?;
    let message = &document["message"];
    let message = message.as_str().or_else(|| message["message"].as_str())?;
    let lines: Vec<_> = message.lines().take(MESSAGE_LINES).map(printable).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_found_in_either_format() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(parse(text.as_bytes()).as_deref(), expected);
        let torch = r#"{"message": {"message": "ValueError: a\nb\u001b[31m", "extraInfo": {"timestamp": "1"}}}"#;
        check(torch, Some("ValueError: a\nb\u{fffd}[31m"));
        check(r#"{"message": "boom", "timestamp": 1}"#, Some("boom"));
        for none in ["", "boom", "[]", "{}", r#"{"message": 3}"#, r#"{"message": ""}"#, r#"{"message": {}}"#] {
            check(none, None);
        }
    }
}
