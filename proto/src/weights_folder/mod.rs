//! The weights of a Hugging Face folder: which files hold them ([`weight_files`]), and whether they are those of its config.json
//! ([`check_weights`]).

mod check;
mod headers;
mod new_header;
mod torch_file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;

use crate::regular_file;
pub use check::{check_tensor, check_weights, pretrained_dtype};
pub use headers::{TensorHeader, file_headers, is_torch_file};
pub use new_header::{NewTensor, safetensors_header};

/// A folder's weights cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum WeightFilesError {
    /// The folder or its index cannot be read.
    #[error("{}: cannot be read", .path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The index is not one.
    #[error("{}: damaged: {rule}", .path.display())]
    Damaged {
        /// The index.
        path: PathBuf,
        /// The rule that is broken.
        rule: String,
    },
    /// A tensor is not what config.json says.
    #[error("{}: tensor {name}: {rule}", .path.display())]
    Tensor {
        /// The file, or the folder when the tensor is in none of its files.
        path: PathBuf,
        /// Hugging Face name.
        name: String,
        /// The rule that is broken.
        rule: String,
    },
    /// There are none.
    #[error("{}: neither model*.safetensors nor pytorch_model*.bin is here", .folder.display())]
    None {
        /// The folder.
        folder: PathBuf,
    },
}

/// Which tensor is in which file, where there are several.
pub const INDEX: &str = "model.safetensors.index.json";

/// The same of files that `torch.save` wrote.
pub const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// The files beside the weights that a model takes along, if they are there: config.json, tokenizer, chat template.
pub const COMPANIONS: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// How a folder may hold its weights.
struct Kind {
    index: &'static str,
    single: &'static str,
    /// What the names of several begin and end with.
    several: (&'static str, &'static str),
}

/// In the order in which transformers looks for them.
const KINDS: [Kind; 2] = [
    Kind { index: INDEX, single: "model.safetensors", several: ("model", ".safetensors") },
    Kind { index: TORCH_INDEX, single: "pytorch_model.bin", several: ("pytorch_model", ".bin") },
];

/// The weight files in `folder`, safetensors before what PyTorch pickles: those that the index names, or the single file, or
/// whatever there are of the kind.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, WeightFilesError> {
    let entries = fs::read_dir(folder).map_err(reading(folder))?;
    let names: BTreeSet<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    for Kind { index, single, several: (start, end) } in &KINDS {
        if names.contains(*index) {
            return indexed(folder, &folder.join(index));
        }
        if names.contains(*single) {
            return Ok(vec![folder.join(single)]);
        }
        let is_weights = |name: &&String| name.starts_with(start) && name.ends_with(end);
        let found: Vec<PathBuf> = names.iter().filter(is_weights).map(|name| folder.join(name)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(WeightFilesError::None { folder: folder.into() })
}

fn reading(path: &Path) -> impl Fn(io::Error) -> WeightFilesError + use<> {
    let path = path.to_owned();
    move |source| WeightFilesError::Read { path: path.clone(), source }
}

/// The files that an index names.
fn indexed(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, WeightFilesError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = regular_file::read_to_string(index).map_err(reading(index))?;
    let damaged = |rule: String| WeightFilesError::Damaged { path: index.to_owned(), rule };
    let parsed: Index = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if let Some(outside) = names.iter().find(|name| !is_in_the_folder(name)) {
        return Err(damaged(format!("names {outside:?}: the files of an index lie beside it")));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn is_in_the_folder(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that are found in a folder of these files, or the error without the folder's name.
    fn found(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        let name = |path: PathBuf| path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned();
        let found = weight_files(folder.path()).map(|paths| paths.into_iter().map(name).collect());
        found.map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), "F"))
    }

    fn files(names: &[&str]) -> Result<Vec<String>, String> {
        Ok(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn the_index_counts_before_the_single_file_and_that_before_others() {
        let index =
            (INDEX, r#"{"weight_map": {"a": "model-2.safetensors", "b": "x.safetensors", "c": "x.safetensors"}}"#);
        let (single, part) = (("model.safetensors", ""), ("model-1.safetensors", ""));
        assert_eq!(found(&[index, single, part]), files(&["model-2.safetensors", "x.safetensors"]));
        assert_eq!(found(&[single, part]), files(&["model.safetensors"]));
        let others = [part, ("model-0.safetensors", ""), ("consolidated.safetensors", ""), ("model.bin", "")];
        assert_eq!(found(&others), files(&["model-0.safetensors", "model-1.safetensors"]));
    }

    #[test]
    fn a_folder_without_weights_is_named() {
        assert_eq!(
            found(&[("config.json", "")]),
            Err("F: neither model*.safetensors nor pytorch_model*.bin is here".into())
        );
        assert!(found(&[("consolidated.00.pth", "")]).unwrap_err().contains("nor pytorch_model*.bin is here"));
        assert_eq!(found(&[("pytorch_model.bin", ""), ("model.bin", "")]), files(&["pytorch_model.bin"]));
        let parts = [("pytorch_model-2.bin", ""), ("pytorch_model-1.bin", "")];
        assert_eq!(found(&parts), files(&["pytorch_model-1.bin", "pytorch_model-2.bin"]));
        let both = [("pytorch_model.bin.index.json", "{}"), ("model.safetensors", "")];
        assert_eq!(found(&both), files(&["model.safetensors"]));
        for outside in ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""] {
            let index = format!("{{\"weight_map\": {{\"a\": \"{outside}\"}}}}");
            let error = found(&[(INDEX, &index)]).unwrap_err();
            assert_eq!(error, format!("F/{INDEX}: damaged: names {outside:?}: the files of an index lie beside it"));
        }
        assert!(found(&[(INDEX, "{")]).unwrap_err().starts_with(&format!("F/{INDEX}: damaged: ")));
    }
}
