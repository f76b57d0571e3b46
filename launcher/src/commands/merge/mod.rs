//! `dslaunch merge`: makes a model of an adapter and the model that it was trained beside. Starts nothing and needs no libtorch.

mod index;
mod model;
mod tensor;

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;
use proto::adapter_folder::{AdapterFile, AdapterFileError, check_adapter};
use proto::model_config::{ModelConfig, ModelConfigFile};
use proto::weights_folder::{WeightFilesError, check_weights};

use crate::error::LaunchError;
use crate::machine::cores;
use crate::output::console::Console;
use crate::output::terminal::Terminal;

/// Make a model of an adapter: add what it has learnt to the weights of the model that it was trained beside
///
/// The new folder is a model like the base model: the same tensors and types, in the same files; those that torch.save wrote
/// (pytorch_model*.bin) become safetensors. Exit codes: 0 done; 2 a folder is not what it
/// has to be; 3 the system refused.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct MergeArgs {
    /// The adapter's folder: adapter_config.json and adapter_model.safetensors
    #[arg(value_name = "ADAPTER_DIR")]
    adapter: PathBuf,
    /// The model that it was trained beside, if it is not where the adapter says
    #[arg(long, value_name = "MODEL_DIR")]
    base: Option<PathBuf>,
    /// The folder of the new model, which must not be there
    #[arg(short, long = "output", value_name = "DIR")]
    output: PathBuf,
}

/// The adapter cannot be merged.
#[derive(Debug, thiserror::Error)]
enum MergeError {
    #[error("{}: {rule}", path.display())]
    Damaged { path: PathBuf, rule: String },
    #[error("{}: is there already, and nothing is written over", path.display())]
    Exists { path: PathBuf },
    #[error(transparent)]
    Description(#[from] AdapterFileError),
    #[error(transparent)]
    Weights(#[from] WeightFilesError),
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

impl MergeError {
    fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

impl From<MergeError> for LaunchError {
    fn from(error: MergeError) -> Self {
        let exit_code = if matches!(error, MergeError::Io { .. }) { 3 } else { 2 };
        Self::refused(error, exit_code)
    }
}

/// Does it. Returns the exit code.
pub fn run(args: &MergeArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut console = Console::new(terminal.clone(), true);
    let file = AdapterFile::load(&args.adapter).map_err(MergeError::from)?;
    let base = file.base_folder(&args.adapter, args.base.as_deref()).map_err(MergeError::from)?;
    let ModelConfigFile { config, notes } = ModelConfigFile::load(&base.join("config.json"))?;
    notes.iter().for_each(|note| console.warn(&format!("note: {note}")));
    check(&args.adapter, &base, &config, &file)?;
    if fs::symlink_metadata(&args.output).is_ok() {
        return Err(MergeError::Exists { path: args.output.clone() }.into());
    }
    let merged = model::write(&base, &args.adapter, &file.adapter, &args.output, cores::available())?;
    console.say(&format!("{}: {merged} of the tensors of {} are changed", args.output.display(), base.display()));
    Ok(0)
}

fn check(folder: &Path, base: &Path, config: &ModelConfig, file: &AdapterFile) -> Result<(), MergeError> {
    check_weights(base, config)?;
    Ok(check_adapter(folder, config, &file.adapter)?)
}
