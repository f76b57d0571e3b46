//! Reads the headers of weight files: which tensors there are, of which type and shape, and where. Not their values.
//!
//! The format of safetensors (safetensors' README): eight bytes, the length of a JSON object, least significant first; that object, which maps each
//! tensor's name to `dtype`, `shape` and `data_offsets` after it, and `__metadata__` to texts; then the data.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::torch_file::{self, MAGIC};
use super::{WeightFilesError, weight_files};
use crate::regular_file::{self, GIT_LFS_RULE, is_git_lfs_pointer};

/// Longest header that is read: safetensors' own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The first bytes of what `torch.save` wrote before it wrote archives: a pickled number.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9";

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// The file.
    pub file: PathBuf,
    /// Its type in safetensors' words: `BF16`, `F32` and so on.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The first byte of its data in the file.
    pub begin: u64,
    /// The byte behind its data.
    pub end: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The tensors in the weight files of `folder`, by name. Of two of the same name the later file's counts.
pub fn read_headers(folder: &Path) -> Result<BTreeMap<String, TensorHeader>, WeightFilesError> {
    let mut tensors = BTreeMap::new();
    for path in weight_files(folder)? {
        tensors.extend(file_headers(&path)?);
    }
    Ok(tensors)
}

/// Whether the file at `path` is one that `torch.save` has written, whatever its name says.
pub fn is_torch_file(path: &Path) -> Result<bool, WeightFilesError> {
    let reading = |source: io::Error| WeightFilesError::Read { path: path.to_owned(), source };
    let mut magic = vec![];
    let file = regular_file::open(path).map_err(reading)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(reading)?;
    Ok(magic == MAGIC)
}

/// The tensors in the file at `path`: safetensors, or what `torch.save` has written, whatever its name says.
pub fn file_headers(path: &Path) -> Result<Vec<(String, TensorHeader)>, WeightFilesError> {
    let reading = |source: io::Error| WeightFilesError::Read { path: path.to_owned(), source };
    let damaged = |rule: String| WeightFilesError::Damaged { path: path.to_owned(), rule };
    let mut file = regular_file::open(path).map_err(reading)?;
    let mut magic = vec![];
    (&mut file).take(MAGIC.len().max(OLD_MAGIC.len()) as u64).read_to_end(&mut magic).map_err(reading)?;
    if magic.starts_with(OLD_MAGIC) {
        return Err(damaged("was written by PyTorch before 1.6: load it there and save it again".into()));
    }
    file.rewind().map_err(reading)?;
    if magic.starts_with(MAGIC) {
        return torch_file::tensors(path, file).map_err(damaged);
    }
    let file_bytes = file.metadata().map_err(reading)?.len();
    let mut first = vec![];
    (&mut file).take(8).read_to_end(&mut first).map_err(reading)?;
    let Ok(length) = <[u8; 8]>::try_from(&first[..]) else {
        return Err(damaged(format!("has {file_bytes} bytes, too few for a safetensors file")));
    };
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || 8 + length > file_bytes {
        (&mut file).take(64).read_to_end(&mut first).map_err(reading)?;
        let rule = if is_git_lfs_pointer(&first) {
            GIT_LFS_RULE.to_owned()
        } else {
            format!(
                "has {file_bytes} bytes, and its first eight say that its header has {length}: no safetensors file, or cut short"
            )
        };
        return Err(damaged(rule));
    }
    let mut header = vec![];
    file.take(length).read_to_end(&mut header).map_err(reading)?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|error| damaged(format!("its header is no JSON object: {error}")))?;
    let mut tensors = vec![];
    for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let entry: Entry =
            serde_json::from_value(entry).map_err(|error| damaged(format!("the header of tensor {name}: {error}")))?;
        let [begin, end] = entry.data_offsets.map(|offset| offset.saturating_add(8 + length));
        if begin > end || end > file_bytes {
            let rule = format!("has {file_bytes} bytes, and tensor {name} lies at {begin} to {end}: it is cut short");
            return Err(damaged(rule));
        }
        tensors
            .push((name, TensorHeader { file: path.to_owned(), dtype: entry.dtype, shape: entry.shape, begin, end }));
    }
    Ok(tensors)
}
