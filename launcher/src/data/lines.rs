//! Cuts source files into chunks of whole lines. A chunk is enough work for one thread, and only a few chunks of a file
//! are in memory at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use proto::config::{AutoOr, DataFormat};

use super::error::{Problem, Rule};
use super::format::{self, LineFormat};
use super::sources::{Source, unreadable};

/// A chunk ends with the first line that takes it past this.
const CHUNK_BYTES: usize = 1 << 18;

/// A line that is longer is no row but a file without line ends.
const LINE_BYTES_MAX: usize = 1 << 28;

/// Lines of one file, all of one format.
#[derive(Debug)]
pub struct Chunk {
    /// Index of the file.
    pub source: u32,
    /// The format of each line.
    pub format: LineFormat,
    /// Whether the file begins with it.
    pub first: bool,
    bytes: Vec<u8>,
    lines: Vec<LineBounds>,
}

#[derive(Debug)]
struct LineBounds {
    number: u64,
    start: usize,
    end: usize,
}

impl Chunk {
    /// Its length in the file.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The lines that are not blank, with their numbers from 1, without their line ends.
    pub fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.lines.iter().map(|line| (line.number, &self.bytes[line.start..line.end]))
    }
}

/// Reads all sources, one after the other. A file that cannot be read, or whose format is unclear, gives one problem
/// and is left, so that the other files' problems are found too.
pub struct ChunkReader<'a> {
    sources: &'a [Source],
    format: AutoOr<DataFormat>,
    /// Index of the file being read.
    source: usize,
    /// `None` until that file is opened.
    file: Option<OpenFile>,
}

struct OpenFile {
    reader: BufReader<File>,
    source: usize,
    /// Lines read so far.
    line: u64,
    /// `None` until the first line that is not blank.
    format: Option<LineFormat>,
    /// Of all bytes read so far.
    hasher: blake3::Hasher,
}

impl<'a> ChunkReader<'a> {
    /// For all lines of `sources`.
    pub fn new(sources: &'a [Source], format: AutoOr<DataFormat>) -> Self {
        Self { sources, format, source: 0, file: None }
    }

    fn next_in(&mut self, source: &Source) -> Result<Option<Chunk>, Problem> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => OpenFile::open(source, self.source).map_err(|rule| Problem::of_file(source.name.as_str(), rule))?,
        };
        let chunk = file.read_chunk(source, self.format)?;
        self.file = chunk.is_some().then_some(file);
        Ok(chunk)
    }
}

impl Iterator for ChunkReader<'_> {
    type Item = Result<Chunk, Problem>;

    /// The next chunk or problem in the order of files and lines.
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
    fn open(source: &Source, index: usize) -> Result<Self, Rule> {
        let file = File::open(&source.path).map_err(unreadable)?;
        Ok(Self {
            reader: BufReader::with_capacity(1 << 18, file),
            source: index,
            line: 0,
            format: None,
            hasher: blake3::Hasher::new(),
        })
    }

    /// `None` at the end of the file, which must have held a row and what was hashed before.
    fn read_chunk(&mut self, source: &Source, format: AutoOr<DataFormat>) -> Result<Option<Chunk>, Problem> {
        let of_file = |rule| Problem::of_file(source.name.as_str(), rule);
        let (mut bytes, mut lines) = (Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4), Vec::new());
        while lines.is_empty() {
            bytes.clear();
            self.fill(&mut bytes, &mut lines)
                .map_err(|rule| Problem { line: Some(self.line).filter(|line| *line > 0), ..of_file(rule) })?;
            self.hasher.update(&bytes);
            if bytes.is_empty() {
                return self.check_end(source).map(|()| None).map_err(of_file);
            }
        }
        let first = &lines[0];
        let format = match self.format {
            Some(format) => format,
            None => format::resolve(format, &bytes[first.start..first.end]).map_err(|error| Problem {
                line: Some(first.number),
                column: error.column,
                ..of_file(error.rule)
            })?,
        };
        let first = self.format.replace(format).is_none();
        Ok(Some(Chunk { source: self.source as u32, format, first, bytes, lines }))
    }

    /// Reads lines until `bytes` is full or the file ends; `lines` gets those that are not blank.
    fn fill(&mut self, bytes: &mut Vec<u8>, lines: &mut Vec<LineBounds>) -> Result<(), Rule> {
        while bytes.len() < CHUNK_BYTES {
            let start = bytes.len();
            let len = self.read_line(bytes).map_err(unreadable)?;
            if len == 0 {
                break;
            }
            self.line += 1;
            if len > LINE_BYTES_MAX {
                return Err(Rule::LineTooLong { limit: LINE_BYTES_MAX });
            }
            let mut text = &bytes[start..];
            if self.line == 1 {
                // The byte order mark that some editors put in front.
                text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            }
            let end = start + len;
            let start = end - text.len();
            let text = text.trim_ascii_end();
            if !text.trim_ascii_start().is_empty() {
                lines.push(LineBounds { number: self.line, start, end: start + text.len() });
            }
        }
        Ok(())
    }

    /// Appends one line to `bytes`, or as much of it as tells that it is too long.
    fn read_line(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        (&mut self.reader).take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', bytes)
    }

    fn check_end(&self, source: &Source) -> Result<(), Rule> {
        // The hash is in the name of the prepared file, so it must be the hash of what was prepared.
        if self.hasher.finalize() != source.hash {
            Err(Rule::Changed)
        } else if self.format.is_none() {
            Err(Rule::Empty)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a file with these contents, or its first problem; the file's hash is that of `hashed`.
    fn read(contents: &str, hashed: &str) -> Result<Vec<(u64, String)>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        let hash = blake3::hash(hashed.as_bytes());
        let read = super::super::sources::find(&[file.path().to_string_lossy().into_owned()]).unwrap();
        let mut sources = read;
        (sources[0].name, sources[0].hash) = ("a.jsonl".into(), hash);
        let mut all = Vec::new();
        for chunk in ChunkReader::new(&sources, AutoOr::Given(DataFormat::Text)) {
            let chunk = chunk.map_err(|problem| problem.to_string())?;
            all.extend(chunk.lines().map(|(number, line)| (number, String::from_utf8(line.to_vec()).unwrap())));
        }
        Ok(all)
    }

    #[test]
    fn blank_lines_are_left_out_and_counted() {
        let check = |contents: &str, expected: &[(u64, &str)]| {
            let expected: Vec<_> = expected.iter().map(|(number, line)| (*number, line.to_string())).collect();
            assert_eq!(read(contents, contents), Ok(expected), "{contents:?}");
        };
        check("a\nb", &[(1, "a"), (2, "b")]);
        check("\r\n \t\na\r\n\n  b \n", &[(3, "a"), (5, "  b")]);
        check("\u{feff}a\n\u{feff}b\n", &[(1, "a"), (2, "\u{feff}b")]);
        // Chunks that are blank throughout, and a line longer than a chunk.
        let long = "x".repeat(3 * CHUNK_BYTES);
        let blank = "\n".repeat(3 * CHUNK_BYTES);
        check(
            &[&blank, long.as_str(), "\ny"].concat(),
            &[(blank.len() as u64 + 1, &long), (blank.len() as u64 + 2, "y")],
        );
    }

    #[test]
    fn a_file_that_changes_between_hashing_and_reading_is_a_problem() {
        assert_eq!(read("a\n", "a\nb\n"), Err("a.jsonl: the file changed while it was being read".into()));
    }
}
