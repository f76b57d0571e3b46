//! Weights in files that `torch.save` wrote: a merged model has them as safetensors.

use std::fs;
use std::path::Path;

use proto::weights_folder::{INDEX, TensorHeader};
use serde_json::{Map, Value, json};

use super::MergeError;
use super::model::sync;

/// Which tensor is in which of several such files.
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// Whether the name is that of such a file.
pub fn is_one(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "bin")
}

/// The name that the same weights have as safetensors; `None` if it is no such file's.
pub fn safetensors_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".bin")?;
    Some(format!("{}.safetensors", stem.strip_prefix("pytorch_").unwrap_or(stem)))
}

/// The length and header of a safetensors file with these tensors, one behind the other.
pub fn safetensors_header(tensors: &[(String, TensorHeader)]) -> Vec<u8> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut begin = 0;
    for (name, tensor) in tensors {
        let end = begin + (tensor.end - tensor.begin);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(name.clone(), entry);
        begin = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    // Padded with spaces, so that the tensors begin aligned.
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..]].concat()
}

/// Writes the index of the files in the folder `to`, if the model in `base` has one.
pub fn write_index(base: &Path, to: &Path) -> Result<(), MergeError> {
    let from = base.join(TORCH_INDEX);
    if !from.is_file() {
        return Ok(());
    }
    let text = fs::read(&from).map_err(MergeError::io("read", &from))?;
    let damaged = |rule: String| MergeError::Damaged { path: from.clone(), rule };
    let mut index: Value = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let files = index.get_mut("weight_map").and_then(Value::as_object_mut);
    for file in files.ok_or_else(|| damaged("weight_map must be an object".to_owned()))?.values_mut() {
        if let Some(name) = file.as_str().and_then(safetensors_name) {
            *file = name.into();
        }
    }
    let path = to.join(INDEX);
    fs::write(&path, index.to_string()).map_err(MergeError::io("write", &path))?;
    sync(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_their_index_are_named_as_safetensors_are() {
        assert_eq!(safetensors_name("pytorch_model.bin").as_deref(), Some("model.safetensors"));
        let second = safetensors_name("pytorch_model-00002-of-00002.bin");
        assert_eq!(second.as_deref(), Some("model-00002-of-00002.safetensors"));
        assert_eq!(safetensors_name("model.safetensors"), None);

        let (base, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_index(base.path(), to.path()).unwrap();
        assert!(!to.path().join(INDEX).exists());
        let index = r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}"#;
        fs::write(base.path().join(TORCH_INDEX), index).unwrap();
        write_index(base.path(), to.path()).unwrap();
        let written: Value = serde_json::from_slice(&fs::read(to.path().join(INDEX)).unwrap()).unwrap();
        let expected = json!({"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00001.safetensors"}});
        assert_eq!(written, expected);

        fs::write(base.path().join(TORCH_INDEX), "{}").unwrap();
        let error = write_index(base.path(), to.path()).unwrap_err().to_string();
        assert!(error.ends_with("pytorch_model.bin.index.json: weight_map must be an object"), "{error}");
    }

    #[test]
    fn a_header_that_is_made_is_read_as_safetensors() {
        let tensor = |shape: &[usize], begin: u64, end: u64| TensorHeader {
            file: "pytorch_model.bin".into(),
            dtype: "F32".into(),
            shape: shape.to_vec(),
            begin,
            end,
        };
        let tensors = [("b".to_owned(), tensor(&[2], 64, 72)), ("a".to_owned(), tensor(&[1, 3], 128, 140))];
        let header = safetensors_header(&tensors);
        assert_eq!(header.len() % 8, 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, [&header[..], &[0; 20]].concat()).unwrap();
        let data = header.len() as u64;
        let read: Vec<_> = proto::weights_folder::file_headers(&path)
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.shape, tensor.begin - data..tensor.end - data))
            .collect();
        assert_eq!(read, [("a".into(), vec![1, 3], 8..20), ("b".into(), vec![2], 0..8)]);
    }
}
