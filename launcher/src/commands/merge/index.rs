//! The index of a model in several files: which tensor is in which of them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use proto::weights_folder::{INDEX, TORCH_INDEX};
use serde_json::{Map, Value};

use super::MergeError;
use crate::files::write_atomically;

/// Writes the index of the merged model into the folder `to`, if the model in `base` has one. `names`: of each of its files, the one
/// that the new file has.
pub fn write(base: &Path, to: &Path, names: &HashMap<String, String>) -> Result<(), MergeError> {
    for from in [INDEX, TORCH_INDEX].map(|name| base.join(name)) {
        if !from.is_file() {
            continue;
        }
        let text = fs::read(&from).map_err(MergeError::io("read", &from))?;
        let damaged = |rule: String| MergeError::Damaged { path: from.clone(), rule };
        let mut index: Value = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let files = index.get_mut("weight_map").and_then(Value::as_object_mut);
        let files = files.ok_or_else(|| damaged("weight_map must be an object".to_owned()))?;
        if !renamed(files, names) {
            // Of files that are not those of the model's weights.
            continue;
        }
        let path = to.join(INDEX);
        return write_atomically(&path, index.to_string().as_bytes()).map_err(MergeError::io("write", &path));
    }
    Ok(())
}

/// Gives each file its new name. Returns whether all have one.
fn renamed(files: &mut Map<String, Value>, names: &HashMap<String, String>) -> bool {
    files.values_mut().all(|file| match file.as_str().and_then(|name| names.get(name)) {
        Some(name) => {
            *file = name.as_str().into();
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written of these files of a base model whose weights have these names, old and new.
    fn written(files: &[(&str, &str)], names: &[(&str, &str)]) -> Result<Option<Value>, String> {
        let (base, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, text)| fs::write(base.path().join(name), text).unwrap());
        let names = names.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect();
        write(base.path(), to.path(), &names).map_err(|error| error.to_string())?;
        Ok(fs::read(to.path().join(INDEX)).ok().map(|text| serde_json::from_slice(&text).unwrap()))
    }

    #[test]
    fn an_index_names_the_new_files() {
        let kept = (INDEX, r#"{"weight_map": {"a": "x.safetensors"}}"#);
        let torch = (TORCH_INDEX, r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "pytorch_model-1.bin"}}"#);
        let names = [("pytorch_model-1.bin", "model-1.safetensors")];
        let expected = r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors"}}"#;
        assert_eq!(written(&[torch], &names).unwrap(), Some(serde_json::from_str(expected).unwrap()));
        let same = written(&[kept, torch], &[("x.safetensors", "x.safetensors")]).unwrap();
        assert_eq!(same, Some(serde_json::from_str(kept.1).unwrap()));
        // One file, beside the index of others.
        assert_eq!(written(&[torch], &[("model.safetensors", "model.safetensors")]).unwrap(), None);
        assert_eq!(written(&[], &names).unwrap(), None);
        let error = written(&[(TORCH_INDEX, "{}")], &names).unwrap_err();
        assert!(error.ends_with("pytorch_model.bin.index.json: weight_map must be an object"), "{error}");
    }
}
