//! Compares a folder's weights with its config.json, by their headers: before anything is prepared or started.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::WeightFilesError;
use super::headers::{TensorHeader, read_headers};
use crate::layout::{ParamLayout, TensorSplit, model_layout};
use crate::model_config::{DiskDType, ModelConfig};
use crate::regular_file;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Checks that every parameter of `config` has its tensor in `folder`, of a type that is read and in the right shape, and every
/// tensor its parameter.
pub fn check_weights(folder: &Path, config: &ModelConfig) -> Result<(), WeightFilesError> {
    let tensors = read_headers(folder)?;
    let layouts = model_layout(config, TensorSplit::WHOLE);
    let params: BTreeMap<&str, &ParamLayout> =
        layouts.iter().flat_map(|layout| &layout.params).map(|param| (param.name.as_str(), param)).collect();
    let missing: Vec<&str> = params.keys().filter(|name| !tensors.contains_key(**name)).copied().collect();
    if let Some(name) = missing.first() {
        let rule = match (params.len() - missing.len(), tensors.keys().next()) {
            // Those of a bare LlamaModel lack the prefix, and those of an adapter have another.
            (0, Some(other)) => {
                format!("in none of its files, nor is any other of config.json; they hold {other} and the like")
            }
            _ => format!("in none of its files ({} missing)", missing.len()),
        };
        return Err(of_tensor(folder, name, rule));
    }
    for (name, tensor) in &tensors {
        match params.get(name.as_str()) {
            Some(param) => check_tensor(name, tensor, param, config)?,
            None if name.ends_with("rotary_emb.inv_freq") => {}
            None if name == HEAD && config.tie_word_embeddings => check_tied(tensor, &tensors[EMBEDDING])?,
            None => return Err(of_tensor(&tensor.file, name, "belongs to no parameter of this config.json".into())),
        }
    }
    Ok(())
}

/// The type of the weights in `folder`, told by its embedding: what checkpoints are written in.
pub fn pretrained_dtype(folder: &Path) -> Result<DiskDType, WeightFilesError> {
    match read_headers(folder)?.get(EMBEDDING) {
        Some(tensor) => tensor.disk_dtype(EMBEDDING),
        None => Err(of_tensor(folder, EMBEDDING, "in none of its files".into())),
    }
}

/// Checks that a tensor has the shape of `param`, a type that is read, and as many bytes as both need.
pub fn check_tensor(
    name: &str,
    tensor: &TensorHeader,
    param: &ParamLayout,
    config: &ModelConfig,
) -> Result<(), WeightFilesError> {
    let expected = param.disk_shape();
    if tensor.shape != expected {
        let is_of_words = [EMBEDDING, HEAD].contains(&name) && tensor.shape.get(1..) == expected.get(1..);
        let vocabulary = if is_of_words { format!(" (vocab_size = {})", config.vocab_size) } else { String::new() };
        let rule = format!("has shape {:?}, config.json says {expected:?}{vocabulary}", tensor.shape);
        return Err(of_tensor(&tensor.file, name, rule));
    }
    let dtype = tensor.disk_dtype(name)?;
    let bytes = expected.iter().product::<usize>() as u64 * dtype.element_bytes() as u64;
    let found = tensor.end - tensor.begin;
    if found != bytes {
        return Err(of_tensor(&tensor.file, name, format!("has {found} bytes, and its shape and type need {bytes}")));
    }
    Ok(())
}

/// A head that is in the file although it is tied has to be the embedding: transformers does not tie them otherwise.
fn check_tied(head: &TensorHeader, embedding: &TensorHeader) -> Result<(), WeightFilesError> {
    let reading = |source| WeightFilesError::Read { path: head.file.clone(), source };
    if (&head.dtype, &head.shape) == (&embedding.dtype, &embedding.shape)
        && have_same_data(head, embedding).map_err(reading)?
    {
        return Ok(());
    }
    let rule = format!(
        "differs from {EMBEDDING}, but config.json says tie_word_embeddings = true: transformers does not tie them then; \
         say false to train both, or leave {HEAD} out of the file"
    );
    Err(of_tensor(&head.file, HEAD, rule))
}

/// Those that differ mostly do so at their first bytes; only those that are equal are read to their ends.
fn have_same_data(a: &TensorHeader, b: &TensorHeader) -> io::Result<bool> {
    let data = |tensor: &TensorHeader| {
        let mut file = regular_file::open(&tensor.file)?;
        file.seek(SeekFrom::Start(tensor.begin))?;
        Ok::<_, io::Error>(BufReader::with_capacity(1 << 20, file).take(tensor.end - tensor.begin))
    };
    let (mut of_a, mut of_b) = (data(a)?, data(b)?);
    let (mut part_a, mut part_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut left = a.end - a.begin;
    while left > 0 {
        let part = left.min(1 << 20) as usize;
        of_a.read_exact(&mut part_a[..part])?;
        of_b.read_exact(&mut part_b[..part])?;
        if part_a[..part] != part_b[..part] {
            return Ok(false);
        }
        left -= part as u64;
    }
    Ok(true)
}

impl TensorHeader {
    /// Its type, which is one that is read. `name`: of the tensor, for the error.
    pub fn disk_dtype(&self, name: &str) -> Result<DiskDType, WeightFilesError> {
        match self.dtype.as_str() {
            "BF16" => Ok(DiskDType::Bf16),
            "F16" => Ok(DiskDType::F16),
            "F32" => Ok(DiskDType::F32),
            other => Err(of_tensor(&self.file, name, format!("has type {other}; BF16, F16 and F32 are supported"))),
        }
    }
}

fn of_tensor(path: &Path, name: &str, rule: String) -> WeightFilesError {
    WeightFilesError::Tensor { path: path.to_owned(), name: name.to_owned(), rule }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    fn config(changes: Value) -> ModelConfig {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 5
        });
        changes.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        ModelConfig::parse(Path::new("config.json"), &config.to_string()).unwrap()
    }

    /// A tensor of a test's file: type, shape, and the byte that its data consists of.
    type Tensor = (&'static str, Vec<usize>, u8);

    fn tensors(config: &ModelConfig) -> BTreeMap<String, Tensor> {
        let layouts = model_layout(config, TensorSplit::WHOLE);
        let params = layouts.iter().flat_map(|layout| &layout.params);
        params.map(|param| (param.name.clone(), ("BF16", param.disk_shape(), 1))).collect()
    }

    fn write(folder: &Path, tensors: &BTreeMap<String, Tensor>) {
        let (mut header, mut data) = (serde_json::Map::new(), vec![]);
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        for (name, (dtype, shape, byte)) in tensors {
            let (begin, element) = (data.len(), if *dtype == "F32" { 4 } else { 2 });
            data.resize(begin + shape.iter().product::<usize>() * element, *byte);
            header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}));
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        fs::write(folder.join("model.safetensors"), file).unwrap();
    }

    /// What is said of a folder, without its name, once `change` was made to right tensors.
    fn check(config: &ModelConfig, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = tensors(config);
        change(&mut tensors);
        write(folder.path(), &tensors);
        let name = folder.path().to_str().unwrap();
        check_weights(folder.path(), config).map_err(|error| error.to_string().replace(name, "F"))
    }

    #[test]
    fn right_weights_are_right() {
        let plain = config(json!({}));
        assert_eq!(check(&plain, |_| {}), Ok(()));
        let inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq";
        assert_eq!(check(&plain, |of| drop(of.insert(inv_freq.into(), ("F32", vec![1], 0)))), Ok(()));
        let norm = "model.norm.weight";
        assert_eq!(check(&plain, |of| drop(of.insert(norm.into(), ("F32", vec![4], 0)))), Ok(()));
    }

    #[test]
    fn every_mistake_is_named_with_its_tensor() {
        let plain = config(json!({}));
        let is = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), expected: &str| {
            assert_eq!(check(&plain, change).unwrap_err(), expected);
        };
        is(&|of| drop(of.remove(HEAD)), "F: tensor lm_head.weight: in none of its files (1 missing)");
        is(
            &|of| drop(of.insert(EMBEDDING.into(), ("BF16", vec![7, 4], 1))),
            "F/model.safetensors: tensor model.embed_tokens.weight: has shape [7, 4], config.json says [5, 4] (vocab_size = 5)",
        );
        is(
            &|of| drop(of.insert("model.norm.weight".into(), ("I8", vec![4], 1))),
            "F/model.safetensors: tensor model.norm.weight: has type I8; BF16, F16 and F32 are supported",
        );
        is(
            &|of| drop(of.insert("model.norm.bias".into(), ("BF16", vec![4], 1))),
            "F/model.safetensors: tensor model.norm.bias: belongs to no parameter of this config.json",
        );
        is(
            &|of| *of = of.iter().map(|(name, tensor)| (name.replacen("model.", "", 1), tensor.clone())).collect(),
            "F: tensor model.embed_tokens.weight: in none of its files (11 missing)",
        );
    }

    #[test]
    fn a_tied_head_in_the_file_has_to_be_the_embedding() {
        let tied = config(json!({"tie_word_embeddings": true}));
        let with_head = |byte: u8| check(&tied, |of| drop(of.insert(HEAD.into(), ("BF16", vec![5, 4], byte))));
        assert_eq!(with_head(1), Ok(()));
        let error = with_head(2).unwrap_err();
        assert!(
            error.starts_with("F/model.safetensors: tensor lm_head.weight: differs from model.embed_tokens.weight"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let said = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            let error = check_weights(folder.path(), &config(json!({}))).unwrap_err().to_string();
            error.replace(path.to_str().unwrap(), "F")
        };
        assert_eq!(said(b"x"), "F: damaged: has 1 bytes, too few for a safetensors file");
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        assert_eq!(said(pointer), format!("F: damaged: {}", regular_file::GIT_LFS_RULE));
        assert!(said(&[255; 32]).contains("no safetensors file, or cut short"));
        let cut_short =
            [&60u64.to_le_bytes()[..], br#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     "#].concat();
        assert!(said(&cut_short).contains("tensor a lies at 68 to 104: it is cut short"), "{}", said(&cut_short));
    }
}
