//! Reads weights from their files, memory-mapped, some rows of a tensor copied at a time.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use proto::adapter_folder::{self, check_adapter};
use proto::config::Adapter;
use proto::layout::ParamLayout;
use proto::model_config::{DiskDType, ModelConfig};
use proto::quantized::NotFinite;
use proto::weights_folder::{TensorHeader, check_weights, file_headers, weight_files};
use tch::{Kind, Tensor};

use super::error::{Result, damaged, reading};
use super::weights::{kind_of, tensor_error};
use crate::data::MappedFile;
use crate::device::host;
use crate::engine::row_chunks::{norms, row_chunks, take};

/// What a value is shown to says of it.
type Verdict = std::result::Result<(), NotFinite>;

/// Files whose tensors are those of a model, or of an adapter.
pub struct Pretrained {
    /// Where each tensor lies: in which file, in which bytes of it.
    tensors: HashMap<String, Place>,
    files: Vec<(PathBuf, MappedFile)>,
    /// Stands before the name of each parameter.
    prefix: &'static str,
}

struct Place {
    file: usize,
    dtype: DiskDType,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Pretrained {
    /// The weights of the model in `folder`.
    ///
    /// A tensor that is missing, has another shape or belongs to no parameter is an error naming file and tensor.
    pub fn model(folder: &Path, config: &ModelConfig) -> Result<Self> {
        check_weights(folder, config)?;
        Self::open(weight_files(folder)?, "")
    }

    /// As [`Pretrained::model`], of the `adapter` in `folder`.
    pub fn adapter(folder: &Path, config: &ModelConfig, adapter: &Adapter) -> Result<Self> {
        check_adapter(folder, config, adapter)?;
        Self::open(vec![folder.join(adapter_folder::TENSORS)], adapter_folder::PREFIX)
    }

    fn open(paths: Vec<PathBuf>, prefix: &'static str) -> Result<Self> {
        let (mut tensors, mut files) = (HashMap::new(), Vec::new());
        for (file, path) in paths.into_iter().enumerate() {
            for (name, header) in file_headers(&path)? {
                // What is of another type belongs to no parameter.
                let Ok(dtype) = header.disk_dtype(&name) else { continue };
                let TensorHeader { shape, begin, end, .. } = header;
                tensors.insert(name, Place { file, dtype, shape, bytes: begin as usize..end as usize });
            }
            let map = MappedFile::open(&path).map_err(reading(&path))?;
            files.push((path, map));
        }
        Ok(Self { tensors, files, prefix })
    }

    /// Fills `to`, this rank's part of a parameter as files have it. NaN in it is an error naming file and tensor.
    pub fn fill(&self, param: &ParamLayout, to: &Tensor) -> Result<()> {
        self.fill_by_rows(&self.name_of(param), rows_in_file(param), |rows, values| take(param, to, rows, values))
    }

    /// Fills `to`, this rank's part of the magnitudes of a weight's rows, with their lengths.
    pub fn fill_norms(&self, weight: &str, magnitudes: &ParamLayout, to: &Tensor) -> Result<()> {
        let put = |rows: Range<usize>, values: &Tensor| take(magnitudes, to, rows, &norms(values));
        self.fill_by_rows(&format!("{}{weight}", self.prefix), rows_in_file(magnitudes), put)
    }

    /// Shows `put` some rows of a tensor, in chunks. NaN in them is an error naming file and tensor.
    fn fill_by_rows(&self, name: &str, rows: Range<usize>, put: impl Fn(Range<usize>, &Tensor)) -> Result<()> {
        let mut num_nan = 0;
        let Place { shape, .. } = &self.tensors[name];
        let path = self.by_rows(name, rows, |rows, values| {
            num_nan += values.isnan().sum(Kind::Int64).int64_value(&[]);
            put(rows, &values);
            Ok(())
        })?;
        // An infinite one shows in the steps that meet it, which are skipped; a NaN would be taken for divergence.
        if num_nan > 0 {
            let rule = format!("NaN in {num_nan} of its {} values", shape.iter().product::<usize>());
            return Err(tensor_error(path, name, rule));
        }
        Ok(())
    }

    /// Shows `take` all of a parameter, some rows at a time, in fp32. What it refuses is an error naming file and tensor.
    pub fn show(&self, param: &ParamLayout, take: &mut dyn FnMut(&[f32]) -> Verdict) -> Result<()> {
        let name = self.name_of(param);
        self.by_rows(&name, 0..param.disk_shape()[0], |_, values| {
            let path = &self.files[self.tensors[&name].file].0;
            take(host::slice(&values.to_kind(Kind::Float)))
                .map_err(|refused| tensor_error(path, &name, format!("{refused} (lora.quantize)")))
        })?;
        Ok(())
    }

    fn name_of(&self, param: &ParamLayout) -> String {
        format!("{}{}", self.prefix, param.name)
    }

    /// Shows `take` some rows of a tensor, in chunks. Returns the tensor's file.
    fn by_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        mut take: impl FnMut(Range<usize>, Tensor) -> Result<()>,
    ) -> Result<&Path> {
        let Place { file, dtype, shape, bytes } = &self.tensors[name];
        let (path, map) = &self.files[*file];
        for rows in row_chunks(rows, shape[1..].iter().product()) {
            let whole = map.as_ref().get(bytes.clone()).ok_or_else(|| damaged(path, format!("{name} is cut short")))?;
            take(rows.clone(), rows_of(whole, shape, *dtype, &rows))?;
            // So no rank ever holds more of the files than that.
            map.release().map_err(reading(path))?;
        }
        Ok(path)
    }
}

/// The rows in a file that this rank needs anything of.
fn rows_in_file(param: &ParamLayout) -> Range<usize> {
    if param.is_transposed { 0..param.disk_shape()[0] } else { param.rows.clone() }
}

/// Copies some rows of a tensor whose bytes lie in a file.
fn rows_of(bytes: &[u8], shape: &[usize], dtype: DiskDType, rows: &Range<usize>) -> Tensor {
    let row_bytes = bytes.len() / shape[0];
    let mut shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    shape[0] = rows.len() as i64;
    Tensor::from_data_size(&bytes[rows.start * row_bytes..rows.end * row_bytes], &shape, kind_of(dtype))
}
