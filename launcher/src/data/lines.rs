//! Cuts source files into chunks of whole rows: lines, or the elements of one JSON array. A chunk is enough work for one
//! thread, and only a few chunks of a file are in memory at a time.

use std::cell::RefCell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use proto::config::{AutoOr, DataFormat};

use super::error::{Problem, Rule};
use super::format::{self, LineFormat};
use super::object::Columns;
use super::sources::{Source, unreadable};
use super::unpack::{self, Seen, Unpacked};

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
    packed_bytes: u64,
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
        self.packed_bytes
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
    /// The rows' names of our keys.
    columns: &'a Columns,
    /// Files of other readers before these.
    files_before: usize,
    /// Index of the file being read.
    source: usize,
    /// `None` until that file is opened.
    file: Option<OpenFile>,
}

struct OpenFile {
    reader: Box<dyn BufRead>,
    seen: Rc<RefCell<Seen>>,
    /// Of those that were seen, the bytes that earlier chunks were made of.
    told_bytes: u64,
    source: usize,
    /// Lines read so far.
    line: u64,
    /// How rows stand in it; `None` until the first byte that is not blank.
    layout: Option<Layout>,
    /// `None` until the first row.
    format: Option<LineFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One row a line.
    Lines,
    /// One JSON array of rows, of which so many were read.
    Array(u64),
    /// Such an array that has ended.
    ArrayEnded,
}

impl<'a> ChunkReader<'a> {
    /// For all lines of `sources`.
    pub fn new(sources: &'a [Source], format: AutoOr<DataFormat>) -> Self {
        Self { sources, format, columns: Columns::SAME, files_before: 0, source: 0, file: None }
    }

    /// The same for files whose rows name our keys otherwise, and which are counted from `files_before` on.
    pub fn among_others(self, files_before: usize, columns: &'a Columns) -> Self {
        Self { files_before, columns, ..self }
    }

    fn next_in(&mut self, source: &Source) -> Result<Option<Chunk>, Problem> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => OpenFile::open(source, self.files_before + self.source)
                .map_err(|rule| Problem::of_file(source.name.as_str(), rule))?,
        };
        let chunk = file.read_chunk(source, self.format, self.columns)?;
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
        let Unpacked { bytes, seen } = unpack::open(&source.path).map_err(unreadable)?;
        Ok(Self { reader: bytes, seen, told_bytes: 0, source: index, line: 0, layout: None, format: None })
    }

    /// `None` at the end of the file, which must have held a row and what was hashed before.
    fn read_chunk(
        &mut self,
        source: &Source,
        format: AutoOr<DataFormat>,
        columns: &Columns,
    ) -> Result<Option<Chunk>, Problem> {
        let of_file = |rule| Problem::of_file(source.name.as_str(), rule);
        let (mut bytes, mut lines) = (Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4), Vec::new());
        while lines.is_empty() {
            bytes.clear();
            self.fill(&mut bytes, &mut lines)
                .map_err(|rule| Problem { line: Some(self.line).filter(|line| *line > 0), ..of_file(rule) })?;
            if bytes.is_empty() {
                return self.check_end(source).map(|()| None).map_err(of_file);
            }
        }
        let first = &lines[0];
        let format = match self.format {
            Some(format) => format,
            None => format::resolve(format, columns, &bytes[first.start..first.end]).map_err(|error| Problem {
                line: Some(first.number + error.line),
                column: error.column,
                ..of_file(error.rule)
            })?,
        };
        let first = self.format.replace(format).is_none();
        let seen = self.seen.borrow().bytes;
        let packed_bytes = seen - std::mem::replace(&mut self.told_bytes, seen);
        Ok(Some(Chunk { source: self.source as u32, format, first, packed_bytes, bytes, lines }))
    }

    /// Reads rows until `bytes` is full or the file ends; `lines` gets those that are not blank.
    fn fill(&mut self, bytes: &mut Vec<u8>, lines: &mut Vec<LineBounds>) -> Result<(), Rule> {
        while bytes.len() < CHUNK_BYTES {
            let layout = match self.layout {
                Some(layout) => layout,
                None => match self.begin()? {
                    Some(layout) => *self.layout.insert(layout),
                    None => break,
                },
            };
            let is_there = match layout {
                Layout::Lines => self.fill_line(bytes, lines)?,
                Layout::Array(rows) => self.fill_element(rows, bytes, lines)?,
                Layout::ArrayEnded => false,
            };
            if !is_there {
                break;
            }
        }
        Ok(())
    }

    /// Passes over blank lines, and the byte order mark that some editors put in front. What follows says how rows stand in the
    /// file; `None`: nothing does.
    fn begin(&mut self) -> Result<Option<Layout>, Rule> {
        if self.reader.fill_buf().map_err(unreadable)?.starts_with(b"\xef\xbb\xbf") {
            self.reader.consume(3);
        }
        loop {
            let buffer = self.reader.fill_buf().map_err(unreadable)?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.line += buffer[..blank].iter().filter(|byte| **byte == b'\n').count() as u64;
            match buffer.get(blank) {
                Some(b'[') => {
                    self.reader.consume(blank + 1);
                    self.line += 1;
                    return Ok(Some(Layout::Array(0)));
                }
                Some(_) => {
                    // What stands before the first row in its line counts for columns.
                    let whole_lines =
                        buffer[..blank].iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
                    self.reader.consume(whole_lines);
                    return Ok(Some(Layout::Lines));
                }
                None => self.reader.consume(blank),
            }
        }
    }

    fn fill_line(&mut self, bytes: &mut Vec<u8>, lines: &mut Vec<LineBounds>) -> Result<bool, Rule> {
        let start = bytes.len();
        let len = self.read_line(bytes).map_err(unreadable)?;
        if len == 0 {
            return Ok(false);
        }
        self.line += 1;
        if len > LINE_BYTES_MAX {
            return Err(Rule::LineTooLong { limit: LINE_BYTES_MAX });
        }
        let text = bytes[start..].trim_ascii_end();
        if !text.trim_ascii_start().is_empty() {
            lines.push(LineBounds { number: self.line, start, end: start + text.len() });
        }
        Ok(true)
    }

    /// Appends one line to `bytes`, or as much of it as tells that it is too long.
    fn read_line(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        (&mut self.reader).take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', bytes)
    }

    /// Appends the next element of an array, which may take several lines; its number is that of its first one.
    fn fill_element(&mut self, rows: u64, bytes: &mut Vec<u8>, lines: &mut Vec<LineBounds>) -> Result<bool, Rule> {
        let mut next = self.skip_blank()?;
        if next == b',' && rows > 0 {
            self.reader.consume(1);
            next = self.skip_blank()?;
            if next == b']' {
                return Err(Rule::BadArray("a comma stands before its end"));
            }
        }
        if next == b']' {
            self.reader.consume(1);
            self.layout = Some(Layout::ArrayEnded);
            return match self.skip_blank() {
                Ok(_) => Err(Rule::BadArray("something follows it")),
                Err(Rule::BadArray(_)) => Ok(false),
                Err(rule) => Err(rule),
            };
        }
        let (start, number) = (bytes.len(), self.line);
        self.read_element(bytes)?;
        lines.push(LineBounds { number, start, end: bytes.trim_ascii_end().len() });
        self.layout = Some(Layout::Array(rows + 1));
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
            self.line += buffer[..blank].iter().filter(|byte| **byte == b'\n').count() as u64;
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
            self.line += buffer[..taken].iter().filter(|byte| **byte == b'\n').count() as u64;
            bytes.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if bytes.len() - start > LINE_BYTES_MAX {
                return Err(Rule::LineTooLong { limit: LINE_BYTES_MAX });
            }
            if end.is_some() {
                return Ok(());
            }
        }
    }

    fn check_end(&self, source: &Source) -> Result<(), Rule> {
        // The hash is in the name of the prepared file, so it must be the hash of what was prepared.
        if self.seen.borrow().hasher.finalize() != source.hash {
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
    fn the_elements_of_an_array_are_rows_with_the_lines_in_which_they_begin() {
        let check = |contents: &str, expected: Result<&[(u64, &str)], &str>| {
            let owned = |rows: &[(u64, &str)]| rows.iter().map(|(number, row)| (*number, row.to_string())).collect();
            assert_eq!(read(contents, contents), expected.map(owned).map_err(str::to_owned), "{contents:?}");
        };
        check("[{}]", Ok(&[(1, "{}")]));
        check(
            "\u{feff}\n [\n {\"a\": [1, {\"b\": \"],}\\\"\"}]}\n,\n{\n\"c\": 2}, {} ]\n\n",
            Ok(&[(3, "{\"a\": [1, {\"b\": \"],}\\\"\"}]}"), (5, "{\n\"c\": 2}"), (6, "{}")]),
        );
        let long = format!("{{\"a\": {:?}}}", "x".repeat(3 * CHUNK_BYTES));
        check(&format!("[{long},{long}]"), Ok(&[(1, &long), (1, &long)]));
        let fails = |contents: &str, expected: &str| check(contents, Err(&format!("a.jsonl:{expected}")));
        fails("[{}", "1: the JSON array is not whole: it does not end");
        fails("[{\"a", "1: the JSON array is not whole: it does not end");
        fails("[{},\n]", "2: the JSON array is not whole: a comma stands before its end");
        fails("[{}]\n[", "2: the JSON array is not whole: something follows it");
        fails("[]", " the file is empty: it needs at least one row");
    }

    #[test]
    fn packed_files_give_the_same_rows() {
        use std::io::Write;
        let row = |number: usize| format!("{{\"text\": \"row {number} {}\"}}\n", "abc ".repeat(number % 50));
        let plain: String = (0..20_000).map(row).collect();
        let gzip = |bytes: &[u8]| {
            let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
            packed.write_all(bytes).unwrap();
            packed.finish().unwrap()
        };
        let zstd = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
        let (first, second) = plain.as_bytes().split_at(plain.len() / 3);
        for packed in [
            gzip(plain.as_bytes()),
            [gzip(first), gzip(second)].concat(),
            zstd(plain.as_bytes()),
            [zstd(first), zstd(second)].concat(),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &packed).unwrap();
            let read = |sources: &[Source]| -> Result<(String, u64), String> {
                let (mut rows, mut bytes) = (String::new(), 0);
                for chunk in ChunkReader::new(sources, AutoOr::Auto) {
                    let chunk = chunk.map_err(|problem| problem.to_string())?;
                    bytes += chunk.bytes();
                    chunk.lines().for_each(|(_, line)| rows += &format!("{}\n", str::from_utf8(line).unwrap()));
                }
                Ok((rows, bytes))
            };
            let find = || super::super::sources::find(&[file.path().to_string_lossy().into_owned()]).unwrap();
            let (rows, bytes) = read(&find()).unwrap();
            assert!(rows == plain && bytes == packed.len() as u64, "{bytes} of {}", packed.len());
            // Cut short, it is told.
            std::fs::write(file.path(), &packed[..packed.len() / 2]).unwrap();
            let told = read(&find()).unwrap_err();
            assert!(told.contains("cannot read it"), "{told}");
        }
    }

    #[test]
    fn a_file_that_changes_between_hashing_and_reading_is_a_problem() {
        assert_eq!(read("a\n", "a\nb\n"), Err("a.jsonl: the file changed while it was being read".into()));
    }
}
