//! Rows of Arrow's record batches, which Parquet is read as, too. A null is as if its key were not there. Columns of types
//! that JSON has no form for, such as images, are left out, unless a format reads their names.

use arrow_array::RecordBatch;
use arrow_json::LineDelimitedWriter;
use arrow_schema::{ArrowError, DataType, Schema};
use proto::panics;

use super::chunk::{Bounds, RowBuffer};
use crate::data::error::Rule;
use crate::data::format;
use crate::data::object::Columns;
use crate::data::sources::unreadable;

/// Rows that become text at a time: so many may go beyond a chunk.
const ROWS_AT_ONCE: usize = 64;

/// Cuts batches into rows.
pub struct BatchRows {
    /// Indices of the columns that are read.
    columns: Vec<usize>,
    batch: Option<RecordBatch>,
    /// Rows of the batch that were read.
    taken: usize,
    /// Rows of the file that were read.
    pub count: u64,
}

impl BatchRows {
    /// For batches of this schema, whose names of our keys are `names`.
    pub fn new(schema: &Schema, names: &Columns) -> Result<Self, Rule> {
        let fields = schema.fields().iter().enumerate();
        let (known, other): (Vec<_>, Vec<_>) = fields.partition(|(_, field)| has_json(field.data_type()));
        if let Some((_, field)) = other.iter().find(|(_, field)| format::reads_key(field.name(), names)) {
            let (column, kind) = (field.name().clone(), field.data_type().to_string());
            return Err(Rule::BadColumn { column, kind });
        }
        let columns: Vec<_> = known.into_iter().map(|(idx, _)| idx).collect();
        if columns.is_empty() { Err(Rule::NoColumns) } else { Ok(Self { columns, batch: None, taken: 0, count: 0 }) }
    }

    /// Indices of the columns that are read.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// All columns of the batches are to be read: the others do not come.
    pub fn without_others(self) -> Self {
        Self { columns: (0..self.columns.len()).collect(), ..self }
    }

    /// Appends rows until `rows` is full or `next` gives no more batches.
    pub fn fill(
        &mut self,
        rows: &mut RowBuffer,
        mut next: impl FnMut() -> Result<Option<RecordBatch>, Rule>,
    ) -> Result<(), Rule> {
        while !rows.is_full() {
            let Some(batch) = &self.batch else {
                let Some(batch) = next()? else { break };
                let batch = batch.project(&self.columns).map_err(|error| damaged("Arrow", error))?;
                (self.batch, self.taken) = (Some(batch), 0);
                continue;
            };
            let len = ROWS_AT_ONCE.min(batch.num_rows() - self.taken);
            if len == 0 {
                self.batch = None;
                continue;
            }
            let start = rows.bytes.len();
            let written = LineDelimitedWriter::new(&mut rows.bytes).write(&batch.slice(self.taken, len));
            written.map_err(|error| Rule::NoJson(error.to_string()))?;
            self.taken += len;
            self.find_lines(start, rows);
        }
        Ok(())
    }

    /// Each line behind `start` is a row: there are no line ends within.
    fn find_lines(&mut self, mut start: usize, rows: &mut RowBuffer) {
        let RowBuffer { bytes, bounds, .. } = rows;
        while let Some(len) = bytes[start..].iter().position(|byte| *byte == b'\n') {
            self.count += 1;
            bounds.push(Bounds { number: self.count, start, end: start + len });
            start += len + 1;
        }
    }
}

/// Whether a value of this type is itself in JSON, not its bytes in some alphabet.
fn has_json(kind: &DataType) -> bool {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => false,
        DataType::Union(..) | DataType::Interval(_) | DataType::RunEndEncoded(..) => false,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => has_json(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| has_json(field.data_type())),
        DataType::Dictionary(_, value) => has_json(value),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => {
                let is_text =
                    |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
                fields.len() == 2 && is_text(fields[0].data_type()) && has_json(fields[1].data_type())
            }
            _ => false,
        },
        _ => true,
    }
}

/// Does what calls the libraries, which panic on some of what damaged files hold.
pub fn guarded<T>(kind: &'static str, work: impl FnOnce() -> Result<T, Rule>) -> Result<T, Rule> {
    panics::as_text(work).unwrap_or_else(|message| Err(damaged(kind, message)))
}

/// Makes a rule of a library's error.
pub fn of_arrow(error: ArrowError) -> Rule {
    match error {
        // A file that ends too early is read without an error of the system.
        ArrowError::IoError(_, error) if error.raw_os_error().is_some() => unreadable(error),
        error => damaged("Arrow", error),
    }
}

/// Makes a rule of what a library says of the contents of a file.
pub fn damaged(kind: &'static str, error: impl ToString) -> Rule {
    Rule::Damaged { kind, message: error.to_string() }
}
