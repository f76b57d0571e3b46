//! Joins bytes that come in pieces into lines. Pure.

/// A line that is longer is shown in parts.
const LONGEST_LINE_BYTES: usize = 1 << 20;

/// The lines of one stream, each with a prefix. A carriage return ends a line too: progress bars write no other end.
#[derive(Debug)]
pub struct Lines {
    prefix: String,
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
    /// True if the latest byte was a carriage return: a newline after it ends no other line.
    after_return: bool,
}

impl Lines {
    /// Each line begins with `prefix`.
    pub fn new(prefix: String) -> Self {
        Self { prefix, rest: vec![], after_return: false }
    }

    /// Takes more bytes and returns the lines that are complete now, without the last one's end.
    pub fn push(&mut self, bytes: &[u8]) -> Option<String> {
        let mut lines = vec![];
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => {}
                b'\n' | b'\r' => lines.push(self.take()),
                byte => {
                    self.rest.push(byte);
                    if self.rest.len() == LONGEST_LINE_BYTES {
                        lines.push(self.take());
                    }
                }
            }
            self.after_return = byte == b'\r';
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Returns the beginning of a line whose end never came, at the end.
    pub fn finish(&mut self) -> Option<String> {
        (!self.rest.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let line = format!("{}{}", self.prefix, String::from_utf8_lossy(&self.rest));
        self.rest.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes the pieces and returns what each gives, and the end.
    fn check(pieces: &[&str], expected: &[Option<&str>]) {
        let mut lines = Lines::new("0:".into());
        let mut given: Vec<_> = pieces.iter().map(|piece| lines.push(piece.as_bytes())).collect();
        given.push(lines.finish());
        assert_eq!(given.iter().map(Option::as_deref).collect::<Vec<_>>(), expected, "{pieces:?}");
    }

    #[test]
    fn a_line_is_given_when_it_is_whole() {
        check(&["a\nb", "c\n", "d"], &[Some("0:a"), Some("0:bc"), None, Some("0:d")]);
        check(&["a", "b"], &[None, None, Some("0:ab")]);
        check(&["a\n\nb\n"], &[Some("0:a\n0:\n0:b"), None]);
        check(&[""], &[None, None]);
    }

    #[test]
    fn a_carriage_return_ends_a_line_once() {
        check(&["10%\r20%\r", "\nend\r\n"], &[Some("0:10%\n0:20%"), Some("0:end"), None]);
        check(&["a\r\rb\n"], &[Some("0:a\n0:\n0:b"), None]);
    }

    #[test]
    fn bytes_that_are_no_text_and_endless_lines_are_shown() {
        let mut lines = Lines::new(String::new());
        assert_eq!(lines.push(b"a\xffb\n").as_deref(), Some("a\u{fffd}b"));
        let line = lines.push(&vec![b'x'; LONGEST_LINE_BYTES + 1]).unwrap();
        assert_eq!((line.len(), lines.finish().as_deref()), (LONGEST_LINE_BYTES, Some("x")));
    }
}
