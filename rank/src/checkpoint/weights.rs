//! Weights out: a model as safetensors files that `from_pretrained` loads, written one tensor at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use proto::model_config::DiskDType;
use safetensors::tensor::View;
use tch::{Kind, Tensor};

use super::error::{CheckpointError, Result, damaged, writing};
use super::files::{sync, write_synced};
use super::safetensors_writer::{SafetensorsWriter, TensorHeader};
use crate::engine::Memory;
use proto::layout::UnitLayout;

/// Largest weights file. Larger models are cut into several with an index, as `save_pretrained` does.
const SHARD_BYTES: usize = 5_000_000_000;

/// Writes the weights of a model into `folder`, synced. Collective over dp: units are gathered one after the other, and
/// the rank whose role is [`Role::Writer`] writes each while it is whole. When it cannot write it goes on gathering, so
/// that no peer waits for it.
pub(super) fn write_weights(folder: &Path, memory: &mut Memory, dtype: DiskDType, role: Role) -> Result<()> {
    let layouts: Vec<UnitLayout> = (0..memory.num_units()).map(|unit| memory.layout(unit).clone()).collect();
    let shards = shards(&layouts, dtype, SHARD_BYTES);
    let mut outcome = if role == Role::Writer { write_index(folder, &shards) } else { Ok(()) };
    let mut writer: Option<(usize, SafetensorsWriter)> = None;
    for (unit, layout) in layouts.iter().enumerate() {
        memory.gather(unit)?;
        if role == Role::Reader || outcome.is_err() {
            continue;
        }
        outcome = layout.params.iter().try_for_each(|param| {
            let shard = shards.iter().position(|shard| shard.holds(&param.name)).expect("every parameter has a shard");
            if writer.as_ref().is_none_or(|(open, _)| *open != shard) {
                if let Some((_, done)) = writer.take() {
                    done.finish()?;
                }
                let path = folder.join(&shards[shard].file);
                writer = Some((shard, SafetensorsWriter::create(&path, &shards[shard].tensors)?));
            }
            let (_, file) = writer.as_mut().expect("opened above");
            file.write(&tensor_bytes(&memory.param(unit, param).to_kind(kind_of(dtype))))
        });
    }
    outcome?;
    writer.map_or(Ok(()), |(_, last)| last.finish())
}

/// What a rank does while weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Writes.
    Writer,
    /// Only helps to gather.
    Reader,
}

/// One weights file.
struct Shard {
    file: String,
    tensors: Vec<TensorHeader>,
}

impl Shard {
    fn holds(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name == name)
    }
}

/// Consecutive tensors, as many as fit into `shard_bytes`; a larger one has a shard of its own.
fn shards(layouts: &[UnitLayout], dtype: DiskDType, shard_bytes: usize) -> Vec<Shard> {
    let mut shards: Vec<Vec<TensorHeader>> = Vec::new();
    let mut room = 0;
    for param in layouts.iter().flat_map(|layout| &layout.params) {
        let bytes = param.numel() * kind_of(dtype).elt_size_in_bytes();
        if bytes > room || shards.is_empty() {
            shards.push(Vec::new());
            room = shard_bytes;
        }
        room = room.saturating_sub(bytes);
        let header = TensorHeader { name: param.name.clone(), dtype, shape: param.shape.clone(), bytes };
        shards.last_mut().expect("the first tensor opened one").push(header);
    }
    let count = shards.len();
    let file = |idx: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", idx + 1),
    };
    shards.into_iter().enumerate().map(|(idx, tensors)| Shard { file: file(idx), tensors }).collect()
}

/// Says which tensor is in which file, where there are several.
fn write_index(folder: &Path, shards: &[Shard]) -> Result<()> {
    if shards.len() == 1 {
        return Ok(());
    }
    let tensors = || shards.iter().flat_map(|shard| shard.tensors.iter().map(move |tensor| (shard, tensor)));
    let weight_map: BTreeMap<&str, &str> =
        tensors().map(|(shard, tensor)| (tensor.name.as_str(), shard.file.as_str())).collect();
    let total_size: usize = tensors().map(|(_, tensor)| tensor.bytes).sum();
    let total_parameters: usize = tensors().map(|(_, tensor)| tensor.shape.iter().product::<usize>()).sum();
    let index = serde_json::json!({
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": weight_map,
    });
    let text = serde_json::to_vec_pretty(&index).expect("a map of strings");
    write_synced(&folder.join("model.safetensors.index.json"), &text)
}

/// Writes one safetensors file and syncs it.
pub(super) fn write_safetensors<N, V>(path: &Path, tensors: impl IntoIterator<Item = (N, V)>) -> Result<()>
where
    N: AsRef<str> + Ord + std::fmt::Display,
    V: View,
{
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    match safetensors::serialize_to_file(tensors, Some(metadata), path) {
        Ok(()) => sync(path),
        Err(safetensors::SafeTensorError::IoError(source)) => Err(writing(path)(source)),
        Err(err) => Err(damaged(path, err.to_string())),
    }
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
