//! Finds the folders of a model that is named: its own, or an adapter's and its base's.

use std::path::{Path, PathBuf};

use proto::adapter_folder::{self, AdapterFile, check_adapter};
use proto::config::Trained;
use proto::model_config::{ModelConfig, ModelConfigFile};
use proto::run_dir::RunDir;
use proto::weights_folder::check_weights;

use super::error::GenerateError;
use crate::error::LaunchError;
use crate::job::model_folder;

/// A model that is there, whole, and of a kind that can be computed.
#[derive(Debug)]
pub struct Source {
    /// The folder of its weights and config.json; with an adapter, its base's.
    pub model: PathBuf,
    /// The folder of the adapter, if there is one.
    pub adapter: Option<PathBuf>,
    /// The folder of its tokenizer and chat template.
    pub files: PathBuf,
    /// Sizes of the model.
    pub config: ModelConfig,
    /// What its parameters are: the adapter's count as trained.
    pub trained: Trained,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl Source {
    /// Looks at the headers of all files; reads no weights.
    pub fn find(named: &Path, base: Option<&Path>) -> Result<Self, LaunchError> {
        if let Some(rule) = not_a_model(named) {
            return Err(GenerateError::NoModel { path: named.to_owned(), rule }.into());
        }
        let named = absolute(named)?;
        if !named.join(adapter_folder::CONFIG).is_file() {
            if base.is_some() {
                let rule = format!("is no adapter ({} is not there), and --base is for those", adapter_folder::CONFIG);
                return Err(GenerateError::NoModel { path: named, rule }.into());
            }
            let ModelConfigFile { config, notes } = ModelConfigFile::load(&named.join("config.json"))?;
            check_weights(&named, &config).map_err(GenerateError::from)?;
            let (adapter, trained) = (None, Trained::Containing(vec![]));
            return Ok(Self { files: named.clone(), model: named, adapter, config, trained, notes });
        }
        let file = AdapterFile::load(&named).map_err(GenerateError::from)?;
        let model = absolute(&file.base_folder(&named, base).map_err(GenerateError::from)?)?;
        let ModelConfigFile { config, notes } = ModelConfigFile::load(&model.join("config.json"))?;
        check_weights(&model, &config).map_err(GenerateError::from)?;
        check_adapter(&named, &config, &file.adapter).map_err(GenerateError::from)?;
        let files = if named.join("tokenizer.json").is_file() { named.clone() } else { model.clone() };
        Ok(Self { model, adapter: Some(named), files, config, trained: Trained::Adapter(file.adapter), notes })
    }

    /// The folders in which settings are looked for, one after the other.
    pub fn folders(&self) -> Vec<&Path> {
        if self.files == self.model { vec![&self.model] } else { vec![&self.files, &self.model] }
    }
}

/// The rank has the same current folder, but errors name the whole path.
fn absolute(path: &Path) -> Result<PathBuf, LaunchError> {
    std::path::absolute(path).map_err(LaunchError::io(format!("find {}", path.display())))
}

/// What can be said of a folder before any file of a model is read.
fn not_a_model(named: &Path) -> Option<String> {
    if let Some(rule) = model_folder::rule(&named.to_string_lossy(), named) {
        return Some(rule);
    }
    let run = RunDir::new(named);
    let is_run = run.plan().is_file() && !named.join("config.json").exists();
    is_run.then(|| {
        let last = run.final_model();
        let what =
            if last.is_dir() { format!("name {}", last.display()) } else { "name one of its checkpoints".to_owned() };
        format!("is a run directory: {what}, or a folder in {}", run.checkpoints().display())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn refusal(named: &Path, base: Option<&Path>) -> String {
        Source::find(named, base).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_that_is_no_model_is_named_with_what_would_be_one() {
        assert!(refusal("meta/llama".as_ref(), None).contains("`hf download meta/llama"));
        assert!(refusal("/proc/version".as_ref(), None).contains("is a file"));
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(dir.path(), None).contains("config.json"));
        assert!(refusal(dir.path(), Some(dir.path())).contains("is no adapter"));
        fs::write(dir.path().join("plan.json"), "{}").unwrap();
        assert!(refusal(dir.path(), None).contains("is a run directory: name one of its checkpoints"));
        fs::create_dir(dir.path().join("final")).unwrap();
        assert!(refusal(dir.path(), None).contains(&format!("name {}/final", dir.path().display())));
    }

    #[test]
    fn an_adapter_needs_its_base() {
        let dir = tempfile::tempdir().unwrap();
        let write = |base: &str| {
            let text = format!(r#"{{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]{base}}}"#);
            fs::write(dir.path().join("adapter_config.json"), text).unwrap();
        };
        write("");
        assert!(refusal(dir.path(), None).contains("with --base MODEL_DIR"));
        write(r#", "base_model_name_or_path": "no/such""#);
        assert!(refusal(dir.path(), None).contains("is not at no/such"));
        let base = tempfile::tempdir().unwrap();
        assert!(refusal(dir.path(), Some(base.path())).contains("config.json"));
    }
}
