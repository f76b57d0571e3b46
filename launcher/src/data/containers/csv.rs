//! CSV with the names of its columns in the first record, as RFC 4180 has it: fields in quotes may hold separators, quotes (two
//! for one) and line ends. TSV is the same with tabs.
//!
//! A field is a text, but those of columns that hold lists in every format ([`LISTS`], by whatever name) are JSON. The library takes anything
//! for CSV; [`Strict`] refuses what the standard does not allow, because it is mostly a file that was cut or put together.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, Read};

use csv::{ByteRecord, Reader, ReaderBuilder};
use serde::de::IgnoredAny;

use super::Rows;
use super::chunk::{Bounds, RowBuffer};
use super::json::{ROW_BYTES_MAX, skip_mark};
use crate::data::error::Rule;
use crate::data::object::Columns;
use crate::data::sources::unreadable;

/// Read at a time.
const BUFFER_BYTES: usize = 1 << 17;

/// The columns whose fields are JSON; an empty one is as if the column were not there.
const LISTS: [&str; 6] = ["input_ids", "labels", "messages", "conversations", "history", "tools"];

/// The rows of a file.
pub struct CsvRows {
    state: State,
    /// The line of the record that was read last, or where reading has failed.
    line: u64,
    record: ByteRecord,
}

enum State {
    /// Before the record of names.
    Begin { bytes: Box<dyn BufRead>, separator: u8, lists: Vec<String> },
    /// Behind it.
    Records { reader: Box<Reader<Strict>>, columns: Vec<Column> },
    /// After an error, or at the end of a file without a record.
    Ended,
}

struct Column {
    /// `"name":`
    key: Vec<u8>,
    is_list: bool,
}

impl CsvRows {
    /// Of the file that `bytes` begins at, whose names of our keys are `names`.
    pub fn new(bytes: Box<dyn BufRead>, separator: u8, names: &Columns) -> Self {
        let lists = LISTS.into_iter().filter_map(|list| names.read_as(list)).map(str::to_owned).collect();
        Self { state: State::Begin { bytes, separator, lists }, line: 0, record: ByteRecord::new() }
    }

    /// `lists`: the names of columns whose fields are JSON.
    fn begin(&mut self, mut bytes: Box<dyn BufRead>, separator: u8, lists: &[String]) -> Result<(), Rule> {
        skip_mark(&mut *bytes)?;
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            // Records of another length are told with their lines.
            .flexible(true)
            .delimiter(separator)
            .buffer_capacity(BUFFER_BYTES)
            .from_reader(Strict::new(bytes, separator));
        if !read_record(&mut reader, &mut self.record, &mut self.line)? {
            return Ok(());
        }
        let mut columns: Vec<Column> = vec![];
        for name in &self.record {
            let name = str::from_utf8(name).map_err(|_| Rule::NotUtf8)?;
            let key = [json(name), b":".into()].concat();
            if !name.is_empty() && columns.iter().any(|column| column.key == key) {
                return Err(Rule::BadCsv(format!("two columns have the name {name:?}")));
            }
            columns.push(Column { key, is_list: lists.iter().any(|list| list == name) });
        }
        self.state = State::Records { reader: Box::new(reader), columns };
        Ok(())
    }

    /// Appends the next record as a row. False at the end of the file.
    fn fill_record(&mut self, rows: &mut RowBuffer) -> Result<bool, Rule> {
        let State::Records { reader, columns } = &mut self.state else { return Ok(false) };
        if !read_record(reader, &mut self.record, &mut self.line)? {
            return Ok(false);
        }
        if self.record.len() != columns.len() {
            let (fields, names) = (self.record.len(), columns.len());
            return Err(Rule::BadCsv(format!("the record has {fields} fields, but the first one has {names} names")));
        }
        let start = rows.bytes.len();
        rows.bytes.push(b'{');
        for (column, field) in columns.iter().zip(&self.record) {
            if column.is_list && field.trim_ascii().is_empty() {
                continue;
            }
            if rows.bytes.len() > start + 1 {
                rows.bytes.push(b',');
            }
            rows.bytes.extend_from_slice(&column.key);
            push_field(column, field, &mut rows.bytes);
        }
        rows.bytes.push(b'}');
        rows.bounds.push(Bounds { number: self.line, start, end: rows.bytes.len() });
        Ok(true)
    }
}

impl Rows for CsvRows {
    fn fill(&mut self, rows: &mut RowBuffer) -> Result<(), Rule> {
        if let State::Begin { .. } = self.state
            && let State::Begin { bytes, separator, lists } = std::mem::replace(&mut self.state, State::Ended)
        {
            self.begin(bytes, separator, &lists)?;
        }
        while !rows.is_full() && self.fill_record(rows)? {}
        Ok(())
    }

    fn place(&self) -> Option<u64> {
        Some(self.line).filter(|line| *line > 0)
    }
}

/// Reads the next record and sets `line` to where it begins, or to where it breaks a rule. False at the end of the file.
fn read_record(reader: &mut Reader<Strict>, record: &mut ByteRecord, line: &mut u64) -> Result<bool, Rule> {
    match reader.read_byte_record(record) {
        Ok(true) => {
            let begins = reader.get_mut().begins.pop_front();
            *line = begins.expect("the library finds the records that were found when their bytes passed by");
            Ok(true)
        }
        Ok(false) => Ok(false),
        Err(error) => Err(match error.into_kind() {
            csv::ErrorKind::Io(error) => match error.downcast::<Fault>() {
                Ok(fault) => {
                    *line = fault.line;
                    fault.rule
                }
                Err(error) => unreadable(error),
            },
            other => Rule::BadCsv(format!("{other:?}")),
        }),
    }
}

/// Appends a field as JSON. Bytes that are no text stay as they are: whoever reads the row says so.
fn push_field(column: &Column, field: &[u8], bytes: &mut Vec<u8>) {
    let is_json = column.is_list && serde_json::from_slice::<IgnoredAny>(field).is_ok();
    match str::from_utf8(field) {
        Ok(text) if !is_json => bytes.extend(json(text)),
        _ => bytes.extend_from_slice(field),
    }
}

fn json(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("a text is JSON")
}

/// Bytes on their way to the library, checked.
struct Strict {
    bytes: Box<dyn BufRead>,
    separator: u8,
    place: Place,
    /// The line of the byte that comes next, from 1.
    line: u64,
    /// The line in which the quotes were opened.
    quoted_since: u64,
    /// Bytes of the record.
    len: usize,
    /// The lines in which the records begin that were not taken yet.
    begins: VecDeque<u64>,
}

/// Where the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a record, or on a blank line.
    BeforeRecord,
    /// Behind a separator.
    BeforeField,
    /// In a field without quotes.
    Plain,
    /// Between quotes.
    Quoted,
    /// Behind a quote between quotes: it ends the field, or is the first of two.
    Quote,
}

/// A rule that is broken, and the line.
#[derive(Debug)]
struct Fault {
    line: u64,
    rule: Rule,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.rule)
    }
}

impl std::error::Error for Fault {}

impl Strict {
    fn new(bytes: Box<dyn BufRead>, separator: u8) -> Self {
        let (place, begins) = (Place::BeforeRecord, VecDeque::new());
        Self { bytes, separator, place, line: 1, quoted_since: 0, len: 0, begins }
    }

    fn pass(&mut self, byte: u8) -> Result<(), Fault> {
        let is_end = byte == b'\n' || byte == b'\r';
        if self.place == Place::BeforeRecord && !is_end {
            self.begins.push_back(self.line);
            self.len = 0;
            self.place = Place::BeforeField;
        }
        self.place = match (self.place, byte) {
            (Place::Quoted, b'"') => Place::Quote,
            (Place::Quoted, _) => Place::Quoted,
            (Place::Quote, b'"') => Place::Quoted,
            (_, byte) if byte == self.separator => Place::BeforeField,
            (_, _) if is_end => Place::BeforeRecord,
            (Place::BeforeField, b'"') => {
                self.quoted_since = self.line;
                Place::Quoted
            }
            (Place::Plain, b'"') => return Err(self.fault("a quote stands in a field that does not begin with one")),
            (Place::Quote, _) => return Err(self.fault("something follows the quote that ends a field")),
            (_, _) => Place::Plain,
        };
        self.line += u64::from(byte == b'\n');
        self.len += 1;
        if self.len > ROW_BYTES_MAX {
            return Err(self.fault("a record does not end: is a quote missing?"));
        }
        Ok(())
    }

    fn fault(&self, rule: &str) -> Fault {
        Fault { line: self.line, rule: Rule::BadCsv(rule.into()) }
    }
}

impl Read for Strict {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.bytes.read(buffer)?;
        for byte in &buffer[..len] {
            self.pass(*byte).map_err(io::Error::other)?;
        }
        if len == 0 && !buffer.is_empty() && self.place == Place::Quoted {
            let fault = Fault { line: self.quoted_since, ..self.fault("a field in quotes does not end") };
            return Err(io::Error::other(fault));
        }
        Ok(len)
    }
}
