//! Weights in files that `torch.save` wrote: a merged model has them as safetensors.

use std::path::Path;

use proto::weights_folder::TensorHeader;
use serde_json::{Map, Value, json};

/// The name that the weights of such a file have as safetensors.
pub fn safetensors_name(name: &str) -> String {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    format!("{}.safetensors", stem.strip_prefix("pytorch_").unwrap_or(&stem))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_named_as_those_of_safetensors_are() {
        for (name, expected) in [
            ("pytorch_model.bin", "model.safetensors"),
            ("pytorch_model-00002-of-00002.bin", "model-00002-of-00002.safetensors"),
            ("part.pt", "part.safetensors"),
            ("model.safetensors", "model.safetensors"),
        ] {
            assert_eq!(safetensors_name(name), expected);
        }
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
