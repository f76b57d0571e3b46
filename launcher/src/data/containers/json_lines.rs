//! JSON Lines: one row a line. Blank lines are no rows.

use std::io::{self, BufRead, Read};

use super::chunk::{Bounds, RowBuffer};
use super::json::{JsonText, ROW_BYTES_MAX};
use crate::data::error::Rule;
use crate::data::sources::unreadable;

impl JsonText {
    /// Appends the next line, and a row if it is not blank. False at the end of the file.
    pub(super) fn fill_line(&mut self, rows: &mut RowBuffer) -> Result<bool, Rule> {
        let start = rows.bytes.len();
        let len = self.read_line(&mut rows.bytes).map_err(unreadable)?;
        if len == 0 {
            return Ok(false);
        }
        (self.line, self.byte) = (self.line + 1, self.byte + len as u64);
        if len > ROW_BYTES_MAX {
            return Err(Rule::LineTooLong { limit: ROW_BYTES_MAX });
        }
        let text = rows.bytes[start..].trim_ascii_end();
        if !text.trim_ascii_start().is_empty() {
            rows.bounds.push(Bounds { number: self.line, start, end: start + text.len() });
        }
        Ok(true)
    }

    /// Appends one line to `bytes`, or as much of it as tells that it is too long.
    fn read_line(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        (&mut self.reader).take(ROW_BYTES_MAX as u64 + 1).read_until(b'\n', bytes)
    }
}
