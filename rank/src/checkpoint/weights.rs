//! Writes a model as safetensors files that `from_pretrained` loads, one tensor at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proto::model_config::DiskDType;
use proto::plan::Trained;
use proto::weight_files::{WeightFile, WeightFiles};
use tch::{Kind, Tensor};

use super::collector::Collector;
use super::error::{CheckpointError, Result};
use super::files::write;
use super::safetensors_writer::SafetensorsWriter;
use crate::engine::Memory;
use crate::engine::row_chunks::row_chunks;

/// Writes the weights of a model, or of the adapter that is `trained`, into `folder` and returns the files that this rank wrote.
/// Every rank of the job calls it: unit by unit, the stage that holds a unit gathers it, and each parameter goes to the rank that
/// writes its file, which holds one tensor at a time. A rank that cannot write goes on, so that no peer waits for it.
pub(super) fn write_weights(
    folder: &Path,
    collector: &Collector,
    memory: &mut Memory,
    trained: &Trained,
    dtype: DiskDType,
) -> Result<Vec<PathBuf>> {
    let units = collector.units();
    let files = WeightFiles::of(&units, trained, dtype);
    let (rank, world_size) = (memory.groups().all.rank(), memory.groups().all.size());
    let mut writer = Writer { written: Vec::new(), open: None };
    let mut outcome = if rank == 0 { writer.index(folder, files.files()) } else { Ok(()) };
    for (unit, layout) in units.iter().enumerate() {
        let mut under_way = collector.begin(memory, unit)?;
        for (idx, param) in layout.params.iter().enumerate() {
            let Some(file) = files.file_of(&param.name) else { continue };
            let Some(tensor) = under_way.collect(memory, idx, files.writer_of(file, world_size))? else { continue };
            if outcome.is_ok() {
                outcome = writer.tensor(folder, (file, &files.files()[file]), &tensor, kind_of(dtype));
            }
        }
        under_way.finish()?;
    }
    outcome.and_then(|()| writer.finish())
}

/// This rank's files, one of them open at a time.
struct Writer {
    written: Vec<PathBuf>,
    /// The number of the file, and the file.
    open: Option<(usize, SafetensorsWriter)>,
}

impl Writer {
    /// Writes the next tensor of a file, which is open or is opened.
    fn tensor(
        &mut self,
        folder: &Path,
        (number, file): (usize, &WeightFile),
        tensor: &Tensor,
        kind: Kind,
    ) -> Result<()> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            self.close()?;
            self.open = Some((number, SafetensorsWriter::create(&folder.join(&file.name), &file.tensors)?));
        }
        let (_, open) = self.open.as_mut().expect("opened above");
        let num_rows = tensor.size()[0] as usize;
        row_chunks(0..num_rows, tensor.numel() / num_rows).try_for_each(|rows| {
            let rows = tensor.narrow(0, rows.start as i64, rows.len() as i64);
            open.write(&tensor_bytes(&rows.to_kind(kind)))
        })
    }

    /// Says which tensor is in which file, where there are several.
    fn index(&mut self, folder: &Path, files: &[WeightFile]) -> Result<()> {
        if files.len() > 1 {
            let path = folder.join("model.safetensors.index.json");
            write(&path, &index(files))?;
            self.written.push(path);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some((_, done)) = self.open.take() {
            self.written.push(done.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<PathBuf>> {
        self.close()?;
        Ok(self.written)
    }
}

/// Which tensor is in which file, as `save_pretrained` says it.
fn index(files: &[WeightFile]) -> Vec<u8> {
    let tensors = || files.iter().flat_map(|file| file.tensors.iter().map(move |tensor| (file, tensor)));
    let weight_map: BTreeMap<&str, &str> =
        tensors().map(|(file, tensor)| (tensor.name.as_str(), file.name.as_str())).collect();
    let total_size: usize = tensors().map(|(_, tensor)| tensor.bytes).sum();
    let total_parameters: usize = tensors().map(|(_, tensor)| tensor.shape.iter().product::<usize>()).sum();
    let index = serde_json::json!({
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": weight_map,
    });
    serde_json::to_vec_pretty(&index).expect("a map of strings")
}

/// The tensor type of weights on disk.
pub(super) fn kind_of(dtype: DiskDType) -> Kind {
    match dtype {
        DiskDType::Bf16 => Kind::BFloat16,
        DiskDType::F16 => Kind::Half,
        DiskDType::F32 => Kind::Float,
    }
}

fn tensor_bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// The error of a tensor that is not what config.json says.
pub(super) fn tensor_error(path: &Path, name: &str, rule: String) -> CheckpointError {
    CheckpointError::Tensor { path: path.into(), name: name.into(), rule }
}
