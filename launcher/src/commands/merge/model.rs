//! Writes the folder of a merged model: the base model's files, of which some tensors are changed on the way. A part of one tensor,
//! and its adapter, are in memory at a time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proto::adapter_folder::{self, tensor_name};
use proto::config::Adapter;
use proto::weights_folder::{
    COMPANIONS, NewTensor, TensorHeader, file_headers, is_torch_file, safetensors_header, weight_files,
};

use super::tensor::{self, Change};
use super::{MergeError, index};

/// Bytes of a tensor at a time.
const AT_A_TIME: usize = 1 << 24;

/// Writes the model into the folder `to`, which gets its name when it is whole. Returns how many tensors are changed.
pub fn write(
    base: &Path,
    adapter_dir: &Path,
    adapter: &Adapter,
    to: &Path,
    threads: usize,
) -> Result<usize, MergeError> {
    let changes = Changes::read(adapter_dir, adapter)?;
    let unfinished = Unfinished::create(to)?;
    let mut changed = 0;
    let mut names = HashMap::new();
    for source in weight_files(base)? {
        let name = source.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let new_name = if is_torch_file(&source)? { safetensors_name(&name) } else { name.clone() };
        changed += changes.copy(&source, &unfinished.path.join(&new_name), threads)?;
        names.insert(name, new_name);
    }
    for name in COMPANIONS {
        let (from, to) = (base.join(name), unfinished.path.join(name));
        if from.is_file() {
            fs::copy(&from, &to).map_err(MergeError::io("copy", &from))?;
            sync(&to)?;
        }
    }
    index::write(base, &unfinished.path, &names)?;
    unfinished.publish(to)?;
    Ok(changed)
}

/// The name that the weights of a file by `torch.save` have as safetensors.
fn safetensors_name(name: &str) -> String {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    format!("{}.safetensors", stem.strip_prefix("pytorch_").unwrap_or(&stem))
}

/// A folder under another name, which goes unless it is published.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn create(to: &Path) -> Result<Self, MergeError> {
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let path = to.with_file_name(format!(".{name}.tmp"));
        // Of a merge that was killed.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(MergeError::io("remove", &path)(error)),
            _ => {}
        }
        fs::create_dir(&path).map_err(MergeError::io("create", &path))?;
        Ok(Self { path })
    }

    fn publish(self, to: &Path) -> Result<(), MergeError> {
        sync(&self.path)?;
        fs::rename(&self.path, to).map_err(MergeError::io("rename to", to))?;
        sync(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After it is published the name is gone, and there is nobody to tell about a failure.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn sync(path: &Path) -> Result<(), MergeError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(MergeError::io("sync", path))
}

/// What an adapter's folder changes of a model's tensors.
struct Changes {
    tensors: HashMap<String, TensorHeader>,
    rank: usize,
    scale: f32,
}

impl Changes {
    fn read(folder: &Path, adapter: &Adapter) -> Result<Self, MergeError> {
        let tensors = file_headers(&folder.join(adapter_folder::TENSORS))?.into_iter().collect();
        Ok(Self { tensors, rank: adapter.rank, scale: adapter.scale() as f32 })
    }

    /// Copies a file of weights, with what is changed of its tensors. Returns how many those are.
    fn copy(&self, from: &Path, to: &Path, threads: usize) -> Result<usize, MergeError> {
        let source = File::open(from).map_err(MergeError::io("open", from))?;
        let mut out = BufWriter::new(File::create_new(to).map_err(MergeError::io("create", to))?);
        let mut tensors = file_headers(from)?;
        tensors.sort_by_key(|(_, tensor)| tensor.begin);
        let is_torch_file = is_torch_file(from)?;
        let (mut position, mut changed) = (0, 0);
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(MergeError::io("write", to));
        if is_torch_file {
            put(&safetensors_header(tensors.iter().map(|(name, TensorHeader { dtype, shape, begin, end, .. })| {
                NewTensor { name, dtype, shape, bytes: end - begin }
            })))?;
        }
        for (name, tensor) in &tensors {
            if !is_torch_file {
                // The header, or what another program has left between two tensors.
                put(&read(&source, from, position, tensor.begin.saturating_sub(position))?)?;
            }
            changed += usize::from(self.put_tensor((&source, name, tensor), threads, &mut put)?);
            position = tensor.end;
        }
        out.flush().map_err(MergeError::io("write", to))?;
        sync(to)?;
        Ok(changed)
    }

    /// Writes a tensor, changed or as it is. Returns whether it is changed.
    fn put_tensor(
        &self,
        (source, name, tensor): (&File, &str, &TensorHeader),
        threads: usize,
        put: &mut impl FnMut(&[u8]) -> Result<(), MergeError>,
    ) -> Result<bool, MergeError> {
        if let Some(instead) = self.tensors.get(&tensor_name(name)) {
            let file = File::open(&instead.file).map_err(MergeError::io("open", &instead.file))?;
            let [from, to] = [instead.disk_dtype(name)?, tensor.disk_dtype(name)?];
            let rows = pieces(instead.begin..instead.end, from.element_bytes());
            for Range { start, end } in rows {
                let values = tensor::values(&read(&file, &instead.file, start, end - start)?, from);
                put(&tensor::bytes(&values, to))?;
            }
            return Ok(true);
        }
        let Some(change) = self.change_of(name)? else {
            for Range { start, end } in pieces(tensor.begin..tensor.end, 1) {
                put(&read(source, &tensor.file, start, end - start)?)?;
            }
            return Ok(false);
        };
        // The headers were compared with the model: a weight with an adapter is a matrix.
        let (dtype, columns) = (tensor.disk_dtype(name)?, tensor.shape[1]);
        let row_bytes = columns * dtype.element_bytes();
        for Range { start, end } in pieces(tensor.begin..tensor.end, row_bytes) {
            let mut values = tensor::values(&read(source, &tensor.file, start, end - start)?, dtype);
            change.add_to(&mut values, (start - tensor.begin) as usize / row_bytes, threads);
            put(&tensor::bytes(&values, dtype))?;
        }
        Ok(true)
    }

    /// The adapter of a weight, if it has one.
    fn change_of(&self, name: &str) -> Result<Option<Change>, MergeError> {
        let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
        let get = |part: &str| self.tensors.get(&tensor_name(&format!("{module}{part}")));
        let Some((a, b)) = get(".lora_A.weight").zip(get(".lora_B.weight")) else { return Ok(None) };
        let magnitudes = get(Adapter::MAGNITUDE).map(|magnitudes| self.values(magnitudes)).transpose()?;
        Ok(Some(Change { a: self.values(a)?, b: self.values(b)?, magnitudes, rank: self.rank, scale: self.scale }))
    }

    fn values(&self, tensor: &TensorHeader) -> Result<Vec<f32>, MergeError> {
        let file = File::open(&tensor.file).map_err(MergeError::io("open", &tensor.file))?;
        let bytes = read(&file, &tensor.file, tensor.begin, tensor.end - tensor.begin)?;
        Ok(tensor::values(&bytes, tensor.disk_dtype("of the adapter")?))
    }
}

/// Cuts a range of bytes into pieces of whole rows.
fn pieces(whole: Range<u64>, row_bytes: usize) -> impl Iterator<Item = Range<u64>> {
    let at_a_time = (AT_A_TIME / row_bytes.max(1)).max(1) * row_bytes.max(1);
    let starts = (whole.start..whole.end).step_by(at_a_time);
    starts.map(move |start| start..(start + at_a_time as u64).min(whole.end))
}

fn read(file: &File, path: &Path, begin: u64, length: u64) -> Result<Vec<u8>, MergeError> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, begin).map_err(MergeError::io("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_those_of_safetensors_are() {
        for (name, expected) in [
            ("pytorch_model.bin", "model.safetensors"),
            ("pytorch_model-00002-of-00002.bin", "model-00002-of-00002.safetensors"),
            ("part.pt", "part.safetensors"),
            ("model.safetensors", "model.safetensors"),
        ] {
            assert_eq!(safetensors_name(name), expected);
        }
    }
}
