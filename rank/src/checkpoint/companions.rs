//! The files that a model takes along beside its weights: config.json as it is, tokenizer, chat template; an adapter has a
//! description of its own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use proto::adapter_folder::{self, AdapterFile};
use proto::plan::ModelPlan;
use proto::regular_file;
use proto::weights_folder::COMPANIONS;

use super::error::{Result, reading};
use super::files::write;

/// The files' names and contents, as they were when training began.
pub(super) struct Companions(Vec<(&'static str, Vec<u8>)>);

impl Companions {
    /// Reads them from a model's folder, of which an adapter takes what belongs to the tokenizer. Without config.json there is no
    /// model.
    pub fn read(model: &ModelPlan) -> Result<Self> {
        let (required, optional) = match model.trained.adapter() {
            Some(adapter) => {
                let base = Some(model.path.display().to_string());
                let description = AdapterFile { adapter: adapter.clone(), dropout: model.adapter_dropout, base };
                ((adapter_folder::CONFIG, description.to_text().into_bytes()), &COMPANIONS[2..])
            }
            None => {
                let config = model.path.join("config.json");
                (("config.json", regular_file::read(&config).map_err(reading(&config))?), &COMPANIONS[1..])
            }
        };
        let mut files = vec![required];
        for name in optional {
            let path = model.path.join(name);
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
