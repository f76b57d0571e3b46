//! Which tensor of a model, or of an adapter, lies in which safetensors file, and how large it is there. Pure: ranks write by it
//! and the plan predicts by it, so that both say the same.

use std::collections::HashMap;

use crate::adapter_folder;
use crate::config::{Adapter, Trained};
use crate::layout::{ParamLayout, UnitLayout};
use crate::model_config::DiskDType;

/// Largest weights file. Larger models are cut into several, which the ranks write in turn.
pub const WEIGHT_FILE_BYTES: usize = 5_000_000_000;

/// One tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The parameter's Hugging Face name, of an adapter PEFT's.
    pub name: String,
    /// Type in the file.
    pub dtype: DiskDType,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// Length in the file.
    pub bytes: usize,
}

/// One weights file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFile {
    /// Name in the model's folder.
    pub name: String,
    /// In the order of their bytes.
    pub tensors: Vec<TensorEntry>,
}

/// The weights files of a model, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFiles {
    files: Vec<WeightFile>,
    /// The file of each parameter that is written.
    of_param: HashMap<String, usize>,
}

impl WeightFiles {
    /// Of a job that trains `trained` of these units, whole: an adapter's alone where that is what it trains, else all of the model's.
    /// The tensors are of type `dtype` on disk.
    pub fn of(units: &[UnitLayout], trained: &Trained, dtype: DiskDType) -> Self {
        match trained {
            Trained::Adapter(adapter) => Self::of_adapter(units, adapter, dtype),
            Trained::All | Trained::Containing(_) => Self::new(units, dtype),
        }
    }

    /// Of a model with these units, whole, whose tensors are of type `dtype` on disk.
    pub fn new(units: &[UnitLayout], dtype: DiskDType) -> Self {
        Self::with_file_bytes(units, dtype, WEIGHT_FILE_BYTES)
    }

    /// All that is trained with an adapter, in one file.
    fn of_adapter(units: &[UnitLayout], adapter: &Adapter, dtype: DiskDType) -> Self {
        let params = || units.iter().flat_map(|unit| &unit.params).filter(|param| adapter.saves(&param.name));
        let tensors = params().map(|param| entry(param, adapter_folder::tensor_name(&param.name), dtype)).collect();
        Self {
            of_param: params().map(|param| (param.name.clone(), 0)).collect(),
            files: vec![WeightFile { name: adapter_folder::TENSORS.to_owned(), tensors }],
        }
    }

    /// Consecutive tensors, as many as fit into `file_bytes`; a larger one has a file of its own.
    fn with_file_bytes(units: &[UnitLayout], dtype: DiskDType, file_bytes: usize) -> Self {
        let mut files: Vec<Vec<TensorEntry>> = Vec::new();
        let mut room = 0;
        for param in units.iter().flat_map(|unit| &unit.params) {
            let tensor = entry(param, param.name.clone(), dtype);
            let bytes = tensor.bytes;
            if bytes > room || files.is_empty() {
                files.push(Vec::new());
                room = file_bytes;
            }
            room = room.saturating_sub(bytes);
            files.last_mut().expect("the first tensor opened one").push(tensor);
        }
        let count = files.len();
        let name = |idx: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", idx + 1),
        };
        let file = |(idx, tensors)| WeightFile { name: name(idx), tensors };
        let files: Vec<WeightFile> = files.into_iter().enumerate().map(file).collect();
        let names = |(idx, file): (usize, &WeightFile)| -> Vec<(String, usize)> {
            file.tensors.iter().map(|tensor| (tensor.name.clone(), idx)).collect()
        };
        Self { of_param: files.iter().enumerate().flat_map(names).collect(), files }
    }

    /// The files, in order.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The number of the file that holds a parameter, if it is written.
    pub fn file_of(&self, param: &str) -> Option<usize> {
        self.of_param.get(param).copied()
    }

    /// The rank that writes a file: they take turns.
    pub fn writer_of(&self, file: usize, world_size: usize) -> usize {
        file % world_size
    }
}

fn entry(param: &ParamLayout, name: String, dtype: DiskDType) -> TensorEntry {
    let shape = param.disk_shape();
    let bytes = shape.iter().product::<usize>() * dtype.element_bytes();
    TensorEntry { name, dtype, shape, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{TensorSplit, model_layout};
    use crate::model_config::ModelConfig;

    fn units() -> Vec<UnitLayout> {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
                       "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}"#;
        model_layout(&ModelConfig::parse("config.json".as_ref(), text).unwrap(), TensorSplit::WHOLE)
    }

    #[test]
    fn a_small_model_is_one_file_that_holds_every_parameter_as_files_have_it() {
        let files = WeightFiles::new(&units(), DiskDType::Bf16);
        let [file] = files.files() else { panic!("{files:?}") };
        assert_eq!(file.name, "model.safetensors");
        let params: Vec<_> = units().into_iter().flat_map(|unit| unit.params).map(|param| param.name).collect();
        let names: Vec<_> = file.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        assert_eq!(names, params);
        let down = file.tensors.iter().find(|tensor| tensor.name.ends_with("down_proj.weight")).unwrap();
        assert_eq!((&down.shape[..], down.bytes), (&[8, 12][..], 8 * 12 * 2));
    }

    #[test]
    fn a_file_takes_what_fits_and_a_larger_tensor_has_one_of_its_own() {
        // In fp32 the embedding has 512 bytes, a square projection 256, the feed-forward's 384 each and a norm 32.
        let files = |dtype, bytes| {
            let files = WeightFiles::with_file_bytes(&units(), dtype, bytes);
            let sizes = |file: &WeightFile| file.tensors.iter().map(|tensor| tensor.bytes).sum::<usize>();
            files.files().iter().map(sizes).collect::<Vec<_>>()
        };
        assert_eq!(files(DiskDType::F32, 512), [512, 288, 512, 288, 384, 384, 416, 512]);
        assert_eq!(files(DiskDType::F32, 511), [512, 288, 256, 256, 288, 384, 384, 416, 512]);
        assert_eq!(files(DiskDType::Bf16, 512), [400, 400, 384, 464]);
        assert_eq!(files(DiskDType::F32, 1), vec![512, 32, 256, 256, 256, 256, 32, 384, 384, 384, 32, 512]);
    }

    #[test]
    fn several_files_are_numbered_and_every_parameter_is_found_in_its_own() {
        let files = WeightFiles::with_file_bytes(&units(), DiskDType::F32, 512);
        for (idx, file) in files.files().iter().enumerate() {
            assert_eq!(file.name, format!("model-{:05}-of-00008.safetensors", idx + 1));
            assert!(file.tensors.iter().all(|tensor| files.file_of(&tensor.name) == Some(idx)));
            assert_eq!(files.writer_of(idx, 3), [0, 1, 2, 0, 1, 2, 0, 1][idx]);
        }
    }
}
