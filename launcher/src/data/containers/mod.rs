//! Reads source files as rows, whatever they lie in: JSON Lines, one JSON array, CSV, Parquet, Arrow. Each row comes out as the
//! text of one JSON object, so whoever reads rows knows no container.
//!
//! `kind` tells which container a file is, a file for each of them reads its rows ([`Rows`]), and `chunk` cuts these into
//! pieces of work. Parquet and Arrow share `batches`, the two forms of JSON share `json`. `unpack` is gzip and zstd.
//!
//! - CON-1 A file's rows are the same in every container.
//! - CON-2 What was read of a file is what was hashed, or it is told.

mod arrow;
mod batches;
mod chunk;
mod csv;
mod json;
mod json_array;
mod json_lines;
mod kind;
mod parquet;
#[cfg(test)]
mod tests;
mod unpack;

use std::cell::RefCell;
use std::rc::Rc;

use super::error::Rule;
use super::object::Columns;
use super::sources::{Source, unreadable};

use self::arrow::ArrowRows;
use self::chunk::RowBuffer;
pub use self::chunk::{Chunk, ChunkReader};
use self::csv::CsvRows;
use self::json::JsonRows;
pub use self::kind::{Container, Unit};
use self::parquet::ParquetRows;
use self::unpack::{Seen, Unpacked};

/// The rows of an open file.
trait Rows {
    /// Appends rows until `rows` is full or the file ends. At its end it appends no byte.
    fn fill(&mut self, rows: &mut RowBuffer) -> Result<(), Rule>;

    /// The line or the row that was read last, from 1: where [`Rows::fill`] has failed. `None`: nowhere in particular.
    fn place(&self) -> Option<u64>;
}

/// A file that is being read.
struct Opened {
    rows: Box<dyn Rows>,
    /// What was seen of it: all of it, once there are no more rows.
    seen: Rc<RefCell<Seen>>,
}

/// `names`: what the rows call our keys.
fn open(source: &Source, names: &Columns) -> Result<Opened, Rule> {
    if source.container == Container::Parquet {
        let seen = Rc::default();
        let rows = Box::new(ParquetRows::open(&source.path, names, Rc::clone(&seen))?);
        return Ok(Opened { rows, seen });
    }
    let Unpacked { mut bytes, seen, is_plain } = unpack::open(&source.path).map_err(unreadable)?;
    let rows: Box<dyn Rows> = match source.container {
        Container::Parquet => unreachable!("it was opened above"),
        Container::Json | Container::JsonArray => {
            kind::refuse_packed(bytes.fill_buf().map_err(unreadable)?)?;
            Box::new(JsonRows::new(bytes, is_plain))
        }
        Container::Csv => Box::new(CsvRows::new(bytes, b',', names)),
        Container::Tsv => Box::new(CsvRows::new(bytes, b'\t', names)),
        Container::ArrowFile => Box::new(ArrowRows::of_file(bytes, names)?),
        Container::ArrowStream => Box::new(ArrowRows::of_stream(bytes, names)?),
    };
    Ok(Opened { rows, seen })
}

/// Opens a file of plain JSON Lines at its line `line`, which begins at `byte`. What was seen of it is never all of it.
fn open_at(source: &Source, line: u64, byte: u64) -> Result<Opened, Rule> {
    let Unpacked { bytes, seen, .. } = unpack::open_at(&source.path, byte).map_err(unreadable)?;
    Ok(Opened { rows: Box::new(JsonRows::from_line(bytes, line, byte)), seen })
}
