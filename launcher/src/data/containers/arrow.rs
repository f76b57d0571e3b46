//! Arrow's IPC formats. A stream is a schema and record batches; a file is the same between marks, with an index at its end. Both
//! are read from front to back, a batch at a time, so what is read is what is hashed, and the index is not needed.

use std::io::{self, BufRead, Read};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;

use super::Rows;
use super::batches::{BatchRows, damaged, guarded, of_arrow};
use super::chunk::RowBuffer;
use crate::data::error::Rule;
use crate::data::object::Columns;
use crate::data::sources::unreadable;

/// The first bytes of a file, behind which zeroes fill it up to its stream, and the last ones.
const FILE_MARK: &[u8; 6] = b"ARROW1";

/// What ends a stream, unless the end of the file does.
const STREAM_END: [u8; ALIGNMENT as usize] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// Each message takes a multiple of this.
const ALIGNMENT: u64 = 8;

/// The rows of a file.
pub struct ArrowRows {
    batches: StreamReader<Tail>,
    rows: BatchRows,
    /// Whether an index follows the stream.
    is_file: bool,
}

impl ArrowRows {
    /// Of the file format.
    pub fn of_file(mut bytes: Box<dyn BufRead>, names: &Columns) -> Result<Self, Rule> {
        let mut mark = *FILE_MARK;
        bytes.read_exact(&mut mark).map_err(unreadable)?;
        loop {
            let buffer = bytes.fill_buf().map_err(unreadable)?;
            let zeroes = buffer.iter().take_while(|byte| **byte == 0).count();
            if zeroes == 0 {
                return Self::new(bytes, true, names);
            }
            bytes.consume(zeroes);
        }
    }

    /// Of the stream format.
    pub fn of_stream(bytes: Box<dyn BufRead>, names: &Columns) -> Result<Self, Rule> {
        Self::new(bytes, false, names)
    }

    fn new(bytes: Box<dyn BufRead>, is_file: bool, names: &Columns) -> Result<Self, Rule> {
        let tail = Tail { bytes, len: 0, last: [0; ALIGNMENT as usize] };
        let batches = guarded("Arrow", || StreamReader::try_new(tail, None).map_err(of_arrow))?;
        let rows = BatchRows::new(&batches.schema(), names)?;
        Ok(Self { batches, rows, is_file })
    }
}

impl Rows for ArrowRows {
    fn fill(&mut self, rows: &mut RowBuffer) -> Result<(), Rule> {
        let Self { batches, rows: of_batches, is_file } = self;
        guarded("Arrow", || of_batches.fill(rows, || next(batches, *is_file)))
    }

    fn place(&self) -> Option<u64> {
        None
    }
}

fn next(batches: &mut StreamReader<Tail>, is_file: bool) -> Result<Option<RecordBatch>, Rule> {
    if batches.is_finished() {
        return Ok(None);
    }
    match batches.next().transpose().map_err(of_arrow)? {
        Some(batch) => Ok(Some(batch)),
        None => batches.get_mut().check_end(is_file).map(|()| None),
    }
}

/// A stream's bytes, of which the last that were read are known.
struct Tail {
    bytes: Box<dyn BufRead>,
    len: u64,
    last: [u8; ALIGNMENT as usize],
}

impl Tail {
    /// The library takes any end of the bytes between two messages for the end of the stream, also within the first word of a
    /// message: where that is, and what follows, is looked at here.
    fn check_end(&mut self, is_file: bool) -> Result<(), Rule> {
        let (is_marked, is_between) = (self.last == STREAM_END, self.len.is_multiple_of(ALIGNMENT));
        let behind = io::copy(self, &mut io::sink()).map_err(unreadable)?;
        let is_whole = match is_file {
            true => is_marked && self.last.ends_with(FILE_MARK),
            false => is_marked || is_between,
        };
        if !is_whole {
            return Err(damaged("Arrow", "it does not end"));
        }
        if !is_file && behind > 0 {
            return Err(damaged("Arrow", format!("{behind} bytes follow its end")));
        }
        Ok(())
    }
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.bytes.read(buffer)?;
        self.len += len as u64;
        let kept = len.min(self.last.len());
        self.last.rotate_left(kept);
        let start = self.last.len() - kept;
        self.last[start..].copy_from_slice(&buffer[len - kept..len]);
        Ok(len)
    }
}
