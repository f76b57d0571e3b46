//! The files that a model takes along beside its weights: config.json as it is, tokenizer, chat template.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use proto::regular_file;

use super::error::{Result, reading};
use super::files::write;

/// Files of a model folder that a trained model takes along, if they are there.
const OPTIONAL: &[&str] = &[
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

/// The files' names and contents, as they were when training began.
pub(super) struct Companions(Vec<(&'static str, Vec<u8>)>);

impl Companions {
    /// Reads them from a model folder. Without config.json there is no model.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = folder.join("config.json");
        let mut files = vec![("config.json", regular_file::read(&config).map_err(reading(&config))?)];
        for name in OPTIONAL {
            let path = folder.join(name);
            match regular_file::read(&path) {
                Ok(content) => files.push((name, content)),
                Err(err) if err.kind() == ErrorKind::NotFound => {}
                Err(err) => return Err(reading(&path)(err)),
            }
        }
        Ok(Self(files))
    }

    /// Writes them and says where.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let paths = self.0.iter().map(|(name, content)| (folder.join(name), content));
        paths.map(|(path, content)| write(&path, content).map(|()| path)).collect()
    }
}
