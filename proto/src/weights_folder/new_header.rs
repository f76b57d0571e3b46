//! The header of a safetensors file that is to be written.

use serde_json::{Map, Value, json};

/// A tensor of such a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTensor<'t> {
    /// Its name.
    pub name: &'t str,
    /// Its type in safetensors' words: `BF16`, `F32` and so on.
    pub dtype: &'t str,
    /// Its shape.
    pub shape: &'t [usize],
    /// The length of its data.
    pub bytes: u64,
}

/// The file's first bytes, up to the data of the tensors, which lie one behind the other: the header and its length.
pub fn safetensors_header<'t>(tensors: impl IntoIterator<Item = NewTensor<'t>>) -> Vec<u8> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut begin = 0;
    for NewTensor { name, dtype, shape, bytes } in tensors {
        let end = begin + bytes;
        header.insert(name.to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}));
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

    use super::super::file_headers;
    use super::*;

    #[test]
    fn tensors_are_read_where_they_are_to_lie() {
        let tensors = [
            NewTensor { name: "b", dtype: "F32", shape: &[2], bytes: 8 },
            NewTensor { name: "a", dtype: "BF16", shape: &[1, 6], bytes: 12 },
        ];
        let header = safetensors_header(tensors);
        assert_eq!(header.len() % 8, 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, [&header[..], &[0; 20]].concat()).unwrap();
        let data = header.len() as u64;
        let read: Vec<_> = file_headers(&path)
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.dtype, tensor.shape, tensor.begin - data..tensor.end - data))
            .collect();
        let expected = [("a".into(), "BF16".into(), vec![1, 6], 8..20), ("b".into(), "F32".into(), vec![2], 0..8)];
        assert_eq!(read, expected);
    }
}
