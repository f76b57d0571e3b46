//! Parquet. What lies at its end says where its columns are, so it cannot be read from front to back: the rows of a few pages are
//! in memory at a time, and at the end the whole file is hashed once more.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

use super::Rows;
use super::batches::{BatchRows, damaged, guarded, of_arrow};
use super::chunk::RowBuffer;
use super::unpack::Seen;
use crate::data::error::Rule;
use crate::data::object::Columns;
use crate::data::sources::unreadable;

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 1024;

/// The rows of a file.
pub struct ParquetRows {
    file: File,
    /// What the system said of the file before anything of it was read.
    before: Stamp,
    batches: ParquetRecordBatchReader,
    rows: BatchRows,
    all_rows: u64,
    /// Takes the hash at the end, and until then the share of the bytes that the rows so far are.
    seen: Rc<RefCell<Seen>>,
    has_ended: bool,
}

/// Changes with every change of a file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let (modified, changed) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
        Self { bytes: meta.len(), modified, changed }
    }
}

impl ParquetRows {
    /// Of the file at `path`.
    pub fn open(path: &Path, names: &Columns, seen: Rc<RefCell<Seen>>) -> Result<Self, Rule> {
        guarded("Parquet", || Self::read_index(path, names, seen))
    }

    fn read_index(path: &Path, names: &Columns, seen: Rc<RefCell<Seen>>) -> Result<Self, Rule> {
        let file = File::open(path).map_err(unreadable)?;
        let before = Stamp::of(&file.metadata().map_err(unreadable)?);
        let reader = file.try_clone().map_err(unreadable)?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(reader).map_err(of_parquet)?;
        check_packing(builder.metadata())?;
        let rows = BatchRows::new(builder.schema(), names)?;
        let all_rows = builder.metadata().file_metadata().num_rows().max(0).cast_unsigned();
        let columns = ProjectionMask::roots(builder.parquet_schema(), rows.columns().iter().copied());
        let builder = builder.with_projection(columns).with_batch_size(BATCH_ROWS);
        let (batches, rows) = (builder.build().map_err(of_parquet)?, rows.without_others());
        Ok(Self { file, before, batches, rows, all_rows, seen, has_ended: false })
    }

    /// Hashes the file, which must be as it was.
    fn end(&mut self) -> Result<(), Rule> {
        if self.rows.count != self.all_rows {
            let message = format!("it says that it has {} rows, and has {}", self.all_rows, self.rows.count);
            return Err(damaged("Parquet", message));
        }
        let mut seen = self.seen.borrow_mut();
        self.file.rewind().map_err(unreadable)?;
        seen.bytes = io::copy(&mut self.file, &mut seen.hasher).map_err(unreadable)?;
        let after = Stamp::of(&self.file.metadata().map_err(unreadable)?);
        self.has_ended = true;
        if after == self.before { Ok(()) } else { Err(Rule::Changed) }
    }
}

impl Rows for ParquetRows {
    fn fill(&mut self, rows: &mut RowBuffer) -> Result<(), Rule> {
        let Self { batches, rows: of_batches, .. } = self;
        let next = || batches.next().transpose().map_err(of_arrow_in_parquet);
        guarded("Parquet", || of_batches.fill(rows, next))?;
        if rows.bytes.is_empty() {
            return if self.has_ended { Ok(()) } else { self.end() };
        }
        // Of the rest the end is told.
        let share = u128::from(self.before.bytes) * u128::from(self.rows.count.min(self.all_rows));
        self.seen.borrow_mut().bytes = (share / u128::from(self.all_rows.max(1))) as u64;
        Ok(())
    }

    fn place(&self) -> Option<u64> {
        None
    }
}

/// Names what packs a column, if that is not read here.
fn check_packing(metadata: &ParquetMetaData) -> Result<(), Rule> {
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    let mut packings = columns.map(|column| column.compression());
    match packings.find(|packing| matches!(packing, Compression::BROTLI(_) | Compression::LZO)) {
        Some(Compression::LZO) => Err(Rule::NotUnpacked("LZO")),
        Some(_) => Err(Rule::NotUnpacked("Brotli")),
        None => Ok(()),
    }
}

fn of_parquet(error: ParquetError) -> Rule {
    match error {
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) if error.raw_os_error().is_some() => unreadable(*error),
            Ok(error) => damaged("Parquet", error),
            Err(error) => damaged("Parquet", error),
        },
        error => damaged("Parquet", error),
    }
}

fn of_arrow_in_parquet(error: arrow_schema::ArrowError) -> Rule {
    match of_arrow(error) {
        Rule::Damaged { message, .. } => damaged("Parquet", message),
        rule => rule,
    }
}
