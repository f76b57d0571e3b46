//! One JSON array: each of its elements is a row, which may take several lines, or stand in one with others. Only brackets, commas and texts are looked at
//! here; what an element is, its reader finds.

use std::io::BufRead;

use super::chunk::{Bounds, RowBuffer};
use super::json::{JsonText, ROW_BYTES_MAX};
use crate::data::error::Rule;
use crate::data::sources::unreadable;

impl JsonText {
    /// Appends the next element. `count`: elements came before. False at the end of the array, which has to be that of the file.
    pub(super) fn fill_element(&mut self, count: u64, rows: &mut RowBuffer) -> Result<bool, Rule> {
        let mut next = self.skip_blank()?;
        if next == b',' && count > 0 {
            self.reader.consume(1);
            next = self.skip_blank()?;
            if next == b']' {
                return Err(Rule::BadArray("a comma stands before its end"));
            }
        }
        if next == b']' {
            self.reader.consume(1);
            return match self.skip_blank() {
                Ok(_) => Err(Rule::BadArray("something follows it")),
                Err(Rule::BadArray(_)) => Ok(false),
                Err(rule) => Err(rule),
            };
        }
        let (start, number) = (rows.bytes.len(), count + 1);
        self.read_element(&mut rows.bytes)?;
        rows.bounds.push(Bounds { number, start, end: rows.bytes.trim_ascii_end().len() });
        Ok(true)
    }

    /// The next byte that is not blank, which stays. There has to be one: the array has not ended.
    fn skip_blank(&mut self) -> Result<u8, Rule> {
        loop {
            let buffer = self.reader.fill_buf().map_err(unreadable)?;
            if buffer.is_empty() {
                return Err(Rule::BadArray("it does not end"));
            }
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let next = buffer.get(blank).copied();
            self.reader.consume(blank);
            if let Some(next) = next {
                return Ok(next);
            }
        }
    }

    /// Appends all up to the comma or the bracket that ends an element.
    fn read_element(&mut self, bytes: &mut Vec<u8>) -> Result<(), Rule> {
        let (start, mut depth, mut in_text, mut is_escaped) = (bytes.len(), 0u32, false, false);
        loop {
            let buffer = self.reader.fill_buf().map_err(unreadable)?;
            if buffer.is_empty() {
                return Err(Rule::BadArray("it does not end"));
            }
            let end = buffer.iter().position(|byte| {
                if in_text {
                    in_text = is_escaped || *byte != b'"';
                    is_escaped = !is_escaped && *byte == b'\\';
                    return false;
                }
                match byte {
                    b'"' => in_text = true,
                    b'{' | b'[' => depth += 1,
                    b',' if depth == 0 => return true,
                    b'}' | b']' if depth == 0 => return true,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                false
            });
            let taken = end.unwrap_or(buffer.len());
            bytes.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if bytes.len() - start > ROW_BYTES_MAX {
                return Err(Rule::LineTooLong { limit: ROW_BYTES_MAX });
            }
            if end.is_some() {
                return Ok(());
            }
        }
    }
}
