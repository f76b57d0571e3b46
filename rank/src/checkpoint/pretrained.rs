//! Reads weights from a Hugging Face folder's safetensors files, memory-mapped, one tensor copied at a time.

use std::collections::HashMap;
use std::path::Path;

use proto::model_config::ModelConfig;
use proto::weights_folder::{check_weights, weight_files};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Kind, Tensor};

use super::error::{Result, damaged, reading};
use super::weights::tensor_error;
use crate::data::MappedFile;
use crate::engine::Memory;
use proto::layout::ParamLayout;

/// Fills the parameters that this rank needs from the safetensors files in `folder`.
///
/// A tensor that is missing, has another shape, belongs to no parameter or holds what is no finite number is an error naming
/// file and tensor.
pub fn load_pretrained(folder: &Path, config: &ModelConfig, memory: &mut Memory) -> Result<()> {
    check_weights(folder, config)?;
    let paths = weight_files(folder)?;
    let maps = paths.iter().map(|path| MappedFile::open(path).map_err(reading(path))).collect::<Result<Vec<_>>>()?;
    let mut tensors: HashMap<String, (&Path, TensorView)> = HashMap::new();
    for (path, map) in paths.iter().zip(&maps) {
        let file = SafeTensors::deserialize(map.as_ref()).map_err(|err| damaged(path, err.to_string()))?;
        tensors.extend(file.tensors().into_iter().map(|(name, view)| (name, (path.as_path(), view))));
    }
    for unit in 0..memory.num_units() {
        memory.fill(unit, |param, mut to| {
            let (path, view) = &tensors[&param.name];
            let values = part(param, view.data(), kind(view.dtype()));
            let not_finite = values.numel() as i64 - values.isfinite().sum(Kind::Int64).int64_value(&[]);
            if not_finite > 0 {
                let rule = format!("holds {not_finite} values that are not finite (NaN or infinity)");
                return Err(tensor_error(path, &param.name, rule));
            }
            to.copy_(&values);
            Ok(())
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

/// libtorch's name of a type that [`check_weights`] lets pass.
fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        Dtype::F32 => Kind::Float,
        other => unreachable!("the weights were checked, and {other:?} is not read"),
    }
}
