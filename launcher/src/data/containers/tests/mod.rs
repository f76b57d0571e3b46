mod csv;
mod json;
mod tables;

use std::fs;
use std::path::Path;

use proto::config::{AutoOr, DataFormat};

use super::ChunkReader;
use crate::data::sources::{self, Identity};

/// The rows of a file of this name with these contents, or its problems without the folder.
fn rows(name: &str, contents: &[u8]) -> Result<Vec<(u64, String)>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, contents).unwrap();
    let told = rows_of(&path, |_| {}).map_err(|told| told.replace(&format!("{}/", folder.path().display()), ""))?;
    assert_eq!(told.1, contents.len() as u64, "the bytes of all chunks are those of the file");
    Ok(told.0)
}

/// Rows with their numbers, and the bytes of their chunks.
type Read = (Vec<(u64, String)>, u64);

/// The same of a file that is there, to which `between` is done when it was hashed.
fn rows_of(path: &Path, between: impl FnOnce(&Path)) -> Result<Read, String> {
    let sources =
        sources::find(&[path.display().to_string()], Identity::Contents).map_err(|problems| problems.to_string())?;
    between(path);
    let (mut all, mut bytes) = (vec![], 0);
    for chunk in ChunkReader::new(&sources, AutoOr::Given(DataFormat::Text)) {
        let chunk = chunk.map_err(|problem| problem.to_string())?;
        bytes += chunk.bytes();
        all.extend(chunk.lines().map(|(number, row)| (number, String::from_utf8_lossy(row).into_owned())));
    }
    Ok((all, bytes))
}
