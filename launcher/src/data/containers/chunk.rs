//! Cuts source files into chunks of whole rows. A chunk is enough work for one thread, and only a few chunks of a file are in
//! memory at a time.

use proto::config::{AutoOr, DataFormat};

use super::Opened;
use crate::data::error::{Problem, Rule};
use crate::data::format::{self, LineFormat};
use crate::data::object::Columns;
use crate::data::sources::Source;

/// A chunk ends with the first row that takes it past this.
pub(super) const CHUNK_BYTES: usize = 1 << 18;

/// Rows of one file, all of one format.
#[derive(Debug)]
pub struct Chunk {
    /// Index of the file.
    pub source: u32,
    /// The format of each row.
    pub format: LineFormat,
    /// Whether the file begins with it.
    pub first: bool,
    packed_bytes: u64,
    rows: RowBuffer,
}

/// Rows one behind the other, each the text of one JSON object.
#[derive(Debug, Default)]
pub(super) struct RowBuffer {
    /// Their bytes, with whatever stands between them.
    pub(super) bytes: Vec<u8>,
    /// Where each of them is.
    pub(super) bounds: Vec<Bounds>,
    /// Where in the file the bytes begin, if they stand there as they are.
    pub(super) first_byte: Option<u64>,
}

/// One row in a [`RowBuffer`].
#[derive(Debug)]
pub(super) struct Bounds {
    /// Its line or its row in the file, from 1.
    pub(super) number: u64,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl RowBuffer {
    /// Whether it has enough for a chunk.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= CHUNK_BYTES
    }
}

impl Chunk {
    /// Its length in the file.
    pub fn bytes(&self) -> u64 {
        self.packed_bytes
    }

    /// Leaves out the rows before the one whose number is `first`. Whether any row is left.
    pub fn begin_at(&mut self, first: u64) -> bool {
        self.rows.bounds.retain(|row| row.number >= first);
        !self.rows.bounds.is_empty()
    }

    /// Where in the file each row begins, with its number; nothing where the file cannot be read from there on.
    pub fn bytes_of_rows(&self) -> impl Iterator<Item = (u64, u64)> {
        let first_byte = self.rows.first_byte.into_iter();
        first_byte.flat_map(|first| self.rows.bounds.iter().map(move |row| (row.number, first + row.start as u64)))
    }

    /// The rows, with the numbers of their lines or their own, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.rows.bounds.iter().map(|row| (row.number, &self.rows.bytes[row.start..row.end]))
    }
}

/// Reads all sources, one after the other. A file that cannot be read, or whose format is unclear, gives one problem
/// and is left, so that the other files' problems are found too.
pub struct ChunkReader<'a> {
    sources: &'a [Source],
    format: AutoOr<DataFormat>,
    /// The rows' names of our keys.
    columns: &'a Columns,
    /// Files of other readers before these.
    files_before: usize,
    /// Index of the file being read.
    source: usize,
    /// `None` until that file is opened.
    file: Option<OpenFile>,
    /// Where in the first file a row is that is not to be missed: its number, and the byte at which it begins.
    begin: Option<(u64, u64)>,
}

struct OpenFile {
    opened: Opened,
    /// Of the bytes that were seen, those that earlier chunks were made of.
    told_bytes: u64,
    source: usize,
    /// `None` until the first row.
    format: Option<LineFormat>,
}

impl<'a> ChunkReader<'a> {
    /// For all rows of `sources`.
    pub fn new(sources: &'a [Source], format: AutoOr<DataFormat>) -> Self {
        Self { sources, format, columns: Columns::SAME, files_before: 0, source: 0, file: None, begin: None }
    }

    /// The same for files whose rows name our keys otherwise, and which are counted from `files_before` on.
    pub fn among_others(self, files_before: usize, columns: &'a Columns) -> Self {
        Self { files_before, columns, ..self }
    }

    /// The same but for rows of the first file before the one with a number, which begins at a byte: they may be left out.
    pub fn beginning_at(self, number: u64, byte: u64) -> Self {
        Self { begin: Some((number, byte)), ..self }
    }

    fn next_in(&mut self, source: &Source) -> Result<Option<Chunk>, Problem> {
        let of_file = |rule| Problem::of_file(source.name.as_str(), rule);
        let mut file = match self.file.take() {
            Some(file) => file,
            None => OpenFile::open(source, self.files_before + self.source, self.columns).map_err(of_file)?,
        };
        if let Some((number, byte)) = self.begin.take() {
            // The first row tells the format.
            file.read_chunk(source, self.format, self.columns)?;
            file.opened = super::open_at(source, number, byte).map_err(of_file)?;
            file.told_bytes = 0;
        }
        let chunk = file.read_chunk(source, self.format, self.columns)?;
        self.file = chunk.is_some().then_some(file);
        Ok(chunk)
    }
}

impl Iterator for ChunkReader<'_> {
    type Item = Result<Chunk, Problem>;

    /// The next chunk or problem in the order of files and rows.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let source = self.sources.get(self.source)?;
            let item = self.next_in(source).transpose();
            // At the end of a file, and where it cannot be read any further.
            self.source += usize::from(self.file.is_none());
            if item.is_some() {
                return item;
            }
        }
    }
}

impl OpenFile {
    fn open(source: &Source, index: usize, columns: &Columns) -> Result<Self, Rule> {
        Ok(Self { opened: super::open(source, columns)?, told_bytes: 0, source: index, format: None })
    }

    /// `None` at the end of the file, which must have held a row and what was hashed before.
    fn read_chunk(
        &mut self,
        source: &Source,
        format: AutoOr<DataFormat>,
        columns: &Columns,
    ) -> Result<Option<Chunk>, Problem> {
        let of_file = |rule| Problem::of_file(source.name.as_str(), rule);
        let bytes = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        let mut rows = RowBuffer { bytes, ..RowBuffer::default() };
        while rows.bounds.is_empty() {
            rows.bytes.clear();
            let filled = self.opened.rows.fill(&mut rows);
            let line = self.opened.rows.place();
            filled.map_err(|rule| Problem { line, unit: source.container.unit(), ..of_file(rule) })?;
            if rows.bytes.is_empty() {
                let format = self.check_end(source).map_err(of_file)?;
                return Ok(self.rest(format));
            }
        }
        let first = &rows.bounds[0];
        let format = match self.format {
            Some(format) => format,
            None => format::resolve(format, columns, &rows.bytes[first.start..first.end])
                .map_err(|error| source.problem(first.number, error))?,
        };
        let first = self.format.replace(format).is_none();
        let packed_bytes = self.untold_bytes();
        Ok(Some(Chunk { source: self.source as u32, format, first, packed_bytes, rows }))
    }

    /// A chunk without rows, for bytes behind the last one; `None` where all are told.
    fn rest(&mut self, format: LineFormat) -> Option<Chunk> {
        let packed_bytes = self.untold_bytes();
        let chunk =
            Chunk { source: self.source as u32, format, first: false, packed_bytes, rows: RowBuffer::default() };
        (packed_bytes > 0).then_some(chunk)
    }

    fn untold_bytes(&mut self) -> u64 {
        let seen = self.opened.seen.borrow().bytes;
        seen - std::mem::replace(&mut self.told_bytes, seen)
    }

    fn check_end(&self, source: &Source) -> Result<LineFormat, Rule> {
        // The hash is in the name of what is prepared, so it must be the hash of what was read.
        if !source.is_unchanged(|| self.opened.seen.borrow().hasher.finalize()) {
            return Err(Rule::Changed);
        }
        self.format.ok_or(Rule::Empty)
    }
}
