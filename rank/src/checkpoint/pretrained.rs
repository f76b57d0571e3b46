//! Reads weights from a Hugging Face folder's safetensors files, memory-mapped, some rows of a tensor copied at a time.

use std::collections::HashMap;
use std::ops::Range;
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
use crate::engine::row_chunks::{row_chunks, take};
use proto::layout::ParamLayout;

/// Fills the parameters that this rank needs from the safetensors files in `folder`.
///
/// A tensor that is missing, has another shape, belongs to no parameter or holds NaN is an error naming
/// file and tensor.
pub fn load_pretrained(folder: &Path, config: &ModelConfig, memory: &mut Memory) -> Result<()> {
    check_weights(folder, config)?;
    let paths = weight_files(folder)?;
    let maps = paths.iter().map(|path| MappedFile::open(path).map_err(reading(path))).collect::<Result<Vec<_>>>()?;
    let mut tensors: HashMap<String, (&Path, &MappedFile, TensorView)> = HashMap::new();
    for (path, map) in paths.iter().zip(&maps) {
        let file = SafeTensors::deserialize(map.as_ref()).map_err(|err| damaged(path, err.to_string()))?;
        tensors.extend(file.tensors().into_iter().map(|(name, view)| (name, (path.as_path(), map, view))));
    }
    for unit in 0..memory.num_units() {
        memory.fill(unit, |param, to| {
            let (path, map, view) = &tensors[&param.name];
            let mut num_nan = 0;
            for rows in row_chunks(rows_in_file(param), view.shape()[1..].iter().product()) {
                let values = rows_of(view, &rows);
                num_nan += values.isnan().sum(Kind::Int64).int64_value(&[]);
                take(param, &to, rows, &values);
                // So no rank ever holds more of the files than that.
                map.release().map_err(reading(path))?;
            }
            // An infinite one shows in the steps that meet it, which are skipped; a NaN would be taken for divergence.
            if num_nan > 0 {
                let rule = format!("NaN in {num_nan} of its {} values", view.shape().iter().product::<usize>());
                return Err(tensor_error(path, &param.name, rule));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The rows in a file that this rank needs anything of.
fn rows_in_file(param: &ParamLayout) -> Range<usize> {
    if param.is_transposed { 0..param.disk_shape()[0] } else { param.rows.clone() }
}

/// Copies some rows of a tensor whose bytes lie in a file.
fn rows_of(view: &TensorView, rows: &Range<usize>) -> Tensor {
    let mut shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    let row_bytes = view.data().len() / view.shape()[0];
    shape[0] = rows.len() as i64;
    Tensor::from_data_size(&view.data()[rows.start * row_bytes..rows.end * row_bytes], &shape, kind(view.dtype()))
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
