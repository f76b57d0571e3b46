//! Files of JSON: lines, or one array. The first byte that is not blank tells which.

use std::io::BufRead;

use super::Rows;
use super::chunk::RowBuffer;
use crate::data::error::Rule;
use crate::data::sources::unreadable;

/// A line or an element that is longer is no row but a file without line ends.
pub(super) const ROW_BYTES_MAX: usize = 1 << 28;

/// The rows of such a file.
pub struct JsonRows {
    text: JsonText,
    /// How rows stand in it; `None` until the first byte that is not blank.
    layout: Option<Layout>,
    /// Whether its bytes are the file's.
    is_plain: bool,
}

/// The text of a file.
pub(super) struct JsonText {
    pub(super) reader: Box<dyn BufRead>,
    /// Lines read so far.
    pub(super) line: u64,
    /// Bytes read so far.
    pub(super) byte: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One row a line.
    Lines,
    /// One JSON array of rows, of which so many were read.
    Array(u64),
    /// Such an array that has ended.
    ArrayEnded,
}

impl JsonRows {
    /// Of the file that `reader` begins at. `is_plain`: its bytes are the file's.
    pub fn new(reader: Box<dyn BufRead>, is_plain: bool) -> Self {
        Self { text: JsonText { reader, line: 0, byte: 0 }, layout: None, is_plain }
    }

    /// Of a file of lines whose bytes come as they are, from the beginning of a line on, which `reader` begins at.
    pub fn from_line(reader: Box<dyn BufRead>, line: u64, byte: u64) -> Self {
        Self { text: JsonText { reader, line: line - 1, byte }, layout: Some(Layout::Lines), is_plain: true }
    }
}

impl Rows for JsonRows {
    fn fill(&mut self, rows: &mut RowBuffer) -> Result<(), Rule> {
        while !rows.is_full() {
            let layout = match self.layout {
                Some(layout) => layout,
                None => match self.text.begin()? {
                    Some(layout) => *self.layout.insert(layout),
                    None => break,
                },
            };
            if rows.bytes.is_empty() {
                rows.first_byte = (self.is_plain && layout == Layout::Lines).then_some(self.text.byte);
            }
            let is_there = match layout {
                Layout::Lines => self.text.fill_line(rows)?,
                Layout::Array(count) => {
                    let is_there = self.text.fill_element(count, rows)?;
                    self.layout = Some(if is_there { Layout::Array(count + 1) } else { Layout::ArrayEnded });
                    is_there
                }
                Layout::ArrayEnded => false,
            };
            if !is_there {
                break;
            }
        }
        Ok(())
    }

    fn place(&self) -> Option<u64> {
        match self.layout {
            Some(Layout::Array(count)) => Some(count + 1),
            Some(Layout::ArrayEnded) => None,
            Some(Layout::Lines) | None => Some(self.text.line).filter(|line| *line > 0),
        }
    }
}

impl JsonText {
    /// Passes over blank lines, and the byte order mark that some editors put in front. What follows says how rows stand in the
    /// file; `None`: nothing does.
    fn begin(&mut self) -> Result<Option<Layout>, Rule> {
        self.byte += skip_mark(&mut *self.reader)?;
        loop {
            let buffer = self.reader.fill_buf().map_err(unreadable)?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.line += buffer[..blank].iter().filter(|byte| **byte == b'\n').count() as u64;
            match buffer.get(blank) {
                Some(b'[') => {
                    self.reader.consume(blank + 1);
                    return Ok(Some(Layout::Array(0)));
                }
                Some(_) => {
                    // What stands before the first row in its line counts for columns.
                    let whole_lines =
                        buffer[..blank].iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
                    self.reader.consume(whole_lines);
                    self.byte += whole_lines as u64;
                    return Ok(Some(Layout::Lines));
                }
                None => {
                    self.reader.consume(blank);
                    self.byte += blank as u64;
                }
            }
        }
    }
}

/// Passes over the byte order mark, if a text begins with one. Returns its length.
pub(super) fn skip_mark(reader: &mut dyn BufRead) -> Result<u64, Rule> {
    if reader.fill_buf().map_err(unreadable)?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
        return Ok(3);
    }
    Ok(0)
}
