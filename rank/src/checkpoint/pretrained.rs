//! Reads weights from a Hugging Face folder's safetensors files, memory-mapped, one tensor copied at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use proto::model_config::{DiskDType, ModelConfig};
use proto::weights_folder::weight_files;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Kind, Tensor};

use super::error::{CheckpointError, Result, damaged, reading};
use super::weights::{kind_of, tensor_error};
use crate::data::MappedFile;
use crate::engine::Memory;
use proto::layout::{ParamLayout, TensorSplit, model_layout};

/// Fills the parameters that this rank needs from the safetensors files in `folder`.
///
/// A tensor that is missing, has another shape or belongs to no parameter is an error naming file and tensor.
pub fn load_pretrained(folder: &Path, config: &ModelConfig, memory: &mut Memory) -> Result<()> {
    let paths = weight_files(folder)?;
    let maps = paths.iter().map(|path| MappedFile::open(path).map_err(reading(path))).collect::<Result<Vec<_>>>()?;
    let mut tensors: HashMap<String, (&Path, TensorView)> = HashMap::new();
    for (path, map) in paths.iter().zip(&maps) {
        let file = SafeTensors::deserialize(map.as_ref()).map_err(|err| damaged(path, err.to_string()))?;
        tensors.extend(file.tensors().into_iter().map(|(name, view)| (name, (path.as_path(), view))));
    }
    check_names(folder, &tensors, config)?;
    for unit in 0..memory.num_units() {
        memory.fill(unit, |param, mut to| {
            let (path, view) = &tensors[&param.name];
            let kind = kind_of(disk_dtype(path, &param.name, view.dtype())?);
            to.copy_(&part(param, view.data(), kind));
            Ok::<(), CheckpointError>(())
        })?;
        // No rank ever holds more of the files than a unit's part.
        paths.iter().zip(&maps).try_for_each(|(path, map)| map.release().map_err(reading(path)))?;
    }
    Ok(())
}

/// This rank's part of a tensor whose bytes lie in a file. Only its own rows are copied, or the tensor where its part is
/// one of columns.
fn part(param: &ParamLayout, bytes: &[u8], kind: Kind) -> Tensor {
    let mut shape: Vec<i64> = param.disk_shape().iter().map(|&size| size as i64).collect();
    let rows = param.rows.clone();
    if param.is_transposed {
        return Tensor::from_data_size(bytes, &shape, kind).narrow(1, rows.start as i64, rows.len() as i64);
    }
    shape[0] = rows.len() as i64;
    let row_bytes = param.row_numel() * kind.elt_size_in_bytes();
    Tensor::from_data_size(&bytes[rows.start * row_bytes..rows.end * row_bytes], &shape, kind)
}

/// Every parameter has its tensor in the right shape, and every tensor its parameter.
fn check_names(folder: &Path, tensors: &HashMap<String, (&Path, TensorView)>, config: &ModelConfig) -> Result<()> {
    let layouts = model_layout(config, TensorSplit::WHOLE);
    let params: BTreeMap<&str, &ParamLayout> =
        layouts.iter().flat_map(|layout| &layout.params).map(|param| (param.name.as_str(), param)).collect();
    let missing: Vec<&str> = params.keys().filter(|name| !tensors.contains_key(**name)).copied().collect();
    if let Some(name) = missing.first() {
        return Err(tensor_error(folder, name, format!("in none of its files ({} missing)", missing.len())));
    }
    let tied = !params.contains_key("lm_head.weight");
    let in_order: BTreeMap<_, _> = tensors.iter().collect();
    for (name, (path, view)) in in_order {
        match params.get(name.as_str()) {
            Some(param) if view.shape() != param.disk_shape() => {
                let rule = format!("has shape {:?}, config.json says {:?}", view.shape(), param.disk_shape());
                return Err(tensor_error(path, name, rule));
            }
            None if !is_derived(name, tied) => {
                return Err(tensor_error(path, name, "belongs to no parameter of this config.json".into()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The type of the weights in `folder`, told by its embedding: what checkpoints are written in.
pub fn pretrained_dtype(folder: &Path) -> Result<DiskDType> {
    let name = "model.embed_tokens.weight";
    for path in weight_files(folder)? {
        let map = MappedFile::open(&path).map_err(reading(&path))?;
        let tensors = SafeTensors::deserialize(map.as_ref()).map_err(|err| damaged(&path, err.to_string()))?;
        if let Ok(view) = tensors.tensor(name) {
            return disk_dtype(&path, name, view.dtype());
        }
    }
    Err(tensor_error(folder, name, "in none of its files".into()))
}

/// Recognises tensors that older files carry although they follow from others.
fn is_derived(name: &str, tied: bool) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
}

fn disk_dtype(path: &Path, name: &str, dtype: Dtype) -> Result<DiskDType> {
    match dtype {
        Dtype::BF16 => Ok(DiskDType::Bf16),
        Dtype::F16 => Ok(DiskDType::F16),
        Dtype::F32 => Ok(DiskDType::F32),
        other => Err(tensor_error(path, name, format!("has type {other:?}; BF16, F16 and F32 are supported"))),
    }
}
