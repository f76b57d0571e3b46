//! Tells which container a file is: CSV by its name, because any text could be CSV; all others by their first bytes.

use std::path::Path;

use super::unpack;
use crate::data::error::Rule;

/// What rows lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// JSON Lines.
    Json,
    /// One JSON array of rows, of which several may stand in a line.
    JsonArray,
    /// Fields with commas between them, and their names in the first record.
    Csv,
    /// The same with tabs.
    Tsv,
    /// Parquet.
    Parquet,
    /// Arrow's format of files, which is also Feather 2.
    ArrowFile,
    /// Arrow's format of streams, which `datasets` of Hugging Face keeps its tables in.
    ArrowStream,
}

/// What numbers the rows of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The line in which a row begins.
    Line,
    /// The row: there are no lines.
    Row,
}

/// First bytes of files whose rows lie in binary tables.
const TABLES: [(&[u8], Container, &str); 3] = [
    (b"PAR1", Container::Parquet, "Parquet"),
    (b"ARROW1\0\0", Container::ArrowFile, "Arrow"),
    (b"\xff\xff\xff\xff", Container::ArrowStream, "Arrow"),
];

/// First bytes of files that are none of these, whatever their names say.
const FOREIGN: [(&[u8], &str); 6] = [
    (b"PK\x03\x04", "zip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"7z\xbc\xaf", "7z"),
    (b"Obj\x01", "Avro"),
    (b"SQLite format 3\0", "SQLite"),
    (b"\x89HDF", "HDF5"),
];

/// Names that promise a table.
const TABLE_NAMES: [&str; 4] = [".parquet", ".arrow", ".feather", ".ipc"];

impl Container {
    /// Of the file at `path`, which begins with `head`.
    pub fn of(path: &Path, head: &[u8]) -> Result<Self, Rule> {
        if let Some((_, kind)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(Rule::NotSupported(kind));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let unpacked = [".gz", ".zst"].iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(&name);
        if unpacked.ends_with(".csv") {
            return Ok(Self::Csv);
        }
        if unpacked.ends_with(".tsv") {
            return Ok(Self::Tsv);
        }
        if let Some((_, container, _)) = TABLES.iter().find(|(magic, ..)| head.starts_with(magic)) {
            return Ok(*container);
        }
        match TABLE_NAMES.iter().find(|ending| name.ends_with(**ending) && !head.is_empty()) {
            Some(ending) => Err(Rule::NotAsNamed(ending)),
            None if unpack::begins_with(head, b'[') => Ok(Self::JsonArray),
            None => Ok(Self::Json),
        }
    }

    /// What numbers its rows.
    pub fn unit(self) -> Unit {
        match self {
            Self::Json | Self::Csv | Self::Tsv => Unit::Line,
            Self::JsonArray | Self::Parquet | Self::ArrowFile | Self::ArrowStream => Unit::Row,
        }
    }

    /// Whether rows are read as they stand in the file, so that a byte of a row is a byte of the file.
    pub fn is_verbatim(self) -> bool {
        self == Self::Json
    }
}

impl Unit {
    /// The place of the row `number` in the file `name`.
    pub fn place(self, name: &str, number: u64) -> String {
        match self {
            Self::Line => format!("{name}:{number}"),
            Self::Row => format!("{name}: row {number}"),
        }
    }
}

/// Tables are read where they lie: unpacked, they would be read from front to back.
pub fn refuse_packed(head: &[u8]) -> Result<(), Rule> {
    match TABLES.iter().find(|(magic, ..)| head.starts_with(magic)) {
        Some((_, _, kind)) => Err(Rule::PackedTable(kind)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_told_by_its_first_bytes_and_csv_by_its_name() {
        let check = |name: &str, head: &[u8], expected: Result<Container, Rule>| {
            assert_eq!(Container::of(Path::new(name), head), expected, "{name}");
        };
        check("a.jsonl", b"{}", Ok(Container::Json));
        check("a", b"\xef\xbb\xbf \n[", Ok(Container::JsonArray));
        check("a", b" \n", Ok(Container::Json));
        check("a.csv", b"PAR1,b\n", Ok(Container::Csv));
        check("dir/A.CSV.gz", b"\x1f\x8b", Ok(Container::Csv));
        check("a.tsv.zst", b"", Ok(Container::Tsv));
        check("a.csv.bak", b"text\n", Ok(Container::Json));
        check("a.jsonl", b"PAR1\x15", Ok(Container::Parquet));
        check("a.feather", b"ARROW1\0\0\xff", Ok(Container::ArrowFile));
        check("cache-1.arrow", b"\xff\xff\xff\xff\x10", Ok(Container::ArrowStream));
        check("a.parquet", b"version https://git-lfs", Err(Rule::NotAsNamed(".parquet")));
        check("a.parquet", b"", Ok(Container::Json));
        check("a.csv", b"PK\x03\x04", Err(Rule::NotSupported("zip")));
        check("a.jsonl", b"Obj\x01", Err(Rule::NotSupported("Avro")));
    }

    #[test]
    fn rows_of_tables_are_counted_and_others_have_lines() {
        let place = |container: Container| container.unit().place("a", 17);
        assert_eq!(place(Container::Csv), "a:17");
        assert_eq!(place(Container::ArrowStream), "a: row 17");
    }
}
