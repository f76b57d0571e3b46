//! Writes a safetensors file from front to back, one tensor at a time. The `safetensors` crate writes only tensors that
//! are all there at once; gathered ones are not.
//!
//! The format: length of the header as a little-endian u64, the header as JSON (name to type, shape and byte range), then
//! the tensors' bytes in the order of their ranges (huggingface/safetensors, "Format").

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use proto::model_config::DiskDType;
use proto::weight_files::TensorEntry;
use proto::weights_folder::{NewTensor, safetensors_header};

use super::error::{Result, writing};

/// A file being written.
pub(super) struct SafetensorsWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes that are still to come.
    left: usize,
}

impl SafetensorsWriter {
    /// Creates the file and writes its header. The tensors' bytes must follow in the same order.
    pub fn create(path: &Path, tensors: &[TensorEntry]) -> Result<Self> {
        let new_tensors = tensors.iter().map(|TensorEntry { name, dtype, shape, bytes, .. }| {
            let dtype = match dtype {
                DiskDType::Bf16 => "BF16",
                DiskDType::F16 => "F16",
                DiskDType::F32 => "F32",
            };
            NewTensor { name, dtype, shape, bytes: *bytes as u64 }
        });
        let header = safetensors_header(new_tensors);
        let file = File::create(path).map_err(writing(path))?;
        let left = tensors.iter().map(|tensor| tensor.bytes).sum();
        let mut writer = Self { path: path.into(), file: BufWriter::new(file), left };
        writer.put(&header)?;
        Ok(writer)
    }

    /// The next bytes: a tensor's, or some of them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.left, "more bytes than the header of {} says", self.path.display());
        self.left -= bytes.len();
        self.put(bytes)
    }

    /// The file is whole; where it is.
    pub fn finish(mut self) -> Result<PathBuf> {
        assert_eq!(self.left, 0, "bytes missing in {}", self.path.display());
        self.file.flush().map_err(writing(&self.path))?;
        Ok(self.path)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(writing(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_crate_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensor = |name: &str, dtype, shape: &[usize], bytes| TensorEntry {
            name: name.into(),
            dtype,
            shape: shape.into(),
            bytes,
        };
        let tensors = [tensor("z", DiskDType::F32, &[2, 1], 8), tensor("a", DiskDType::Bf16, &[3], 6)];
        let mut writer = SafetensorsWriter::create(&path, &tensors).unwrap();
        writer.write(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        writer.write(&[9, 10, 11, 12, 13, 14]).unwrap();
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!((read.tensor("z").unwrap().shape(), read.tensor("z").unwrap().data()[7]), (&[2, 1][..], 8));
        assert_eq!(
            (read.tensor("a").unwrap().dtype(), read.tensor("a").unwrap().data()[0]),
            (safetensors::Dtype::BF16, 9)
        );
    }
}
