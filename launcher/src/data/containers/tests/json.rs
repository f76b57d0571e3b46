//! Files of JSON, plain and packed.

use proto::config::{AutoOr, DataFormat};

use super::super::ChunkReader;
use super::super::chunk::CHUNK_BYTES;
use crate::data::sources::{self, Identity, Source};

/// The lines of a file with these contents, or its first problem; the file's hash is that of `hashed`.
fn read(contents: &str, hashed: &str) -> Result<Vec<(u64, String)>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    let hash = blake3::hash(hashed.as_bytes());
    let read = sources::find(&[file.path().to_string_lossy().into_owned()], Identity::Contents).unwrap();
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
    check(&[&blank, long.as_str(), "\ny"].concat(), &[(blank.len() as u64 + 1, &long), (blank.len() as u64 + 2, "y")]);
}

#[test]
fn the_elements_of_an_array_are_rows_that_are_counted() {
    let check = |contents: &str, expected: Result<&[(u64, &str)], &str>| {
        let owned = |rows: &[(u64, &str)]| rows.iter().map(|(number, row)| (*number, row.to_string())).collect();
        assert_eq!(read(contents, contents), expected.map(owned).map_err(str::to_owned), "{contents:?}");
    };
    check("[{}]", Ok(&[(1, "{}")]));
    check(
        "\u{feff}\n [\n {\"a\": [1, {\"b\": \"],}\\\"\"}]}\n,\n{\n\"c\": 2}, {} ]\n\n",
        Ok(&[(1, "{\"a\": [1, {\"b\": \"],}\\\"\"}]}"), (2, "{\n\"c\": 2}"), (3, "{}")]),
    );
    let long = format!("{{\"a\": {:?}}}", "x".repeat(3 * CHUNK_BYTES));
    check(&format!("[{long},{long}]"), Ok(&[(1, &long), (2, &long)]));
    let fails = |contents: &str, expected: &str| check(contents, Err(&format!("a.jsonl:{expected}")));
    fails("[{}", " row 1: the JSON array is not whole: it does not end");
    fails("[{\"a", " row 1: the JSON array is not whole: it does not end");
    fails("[{},\n]", " row 2: the JSON array is not whole: a comma stands before its end");
    fails("[{}]\n[", " row 2: the JSON array is not whole: something follows it");
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
        let find = || sources::find(&[file.path().to_string_lossy().into_owned()], Identity::Contents).unwrap();
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
