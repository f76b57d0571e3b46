//! Why nothing can be generated, and the exit codes.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use proto::adapter_folder::AdapterFileError;
use proto::weights_folder::WeightFilesError;

use crate::data::PromptError;
use crate::error::LaunchError;
use crate::gpus::Unfit;
use crate::process::exit::Exit;

/// Nothing can be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("{}: {rule}", path.display())]
    NoModel { path: PathBuf, rule: String },
    #[error(transparent)]
    Adapter(#[from] AdapterFileError),
    #[error(transparent)]
    Weights(#[from] WeightFilesError),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error("nothing is asked: give --prompt TEXT, --prompts FILE, prompts on standard input, or --chat")]
    NothingAsked,
    #[error("{}: cannot be read", path.display())]
    PromptsUnreadable { path: PathBuf, source: io::Error },
    #[error("{}: there is no prompt in it", path.display())]
    NoPrompts { path: PathBuf },
    #[error("standard input: cannot be read")]
    InputUnreadable { source: io::Error },
    #[error("--device cuda: there is no NVIDIA GPU here")]
    NoGpu,
    #[error("--device cuda: {0}")]
    UnfitGpu(Unfit),
    #[error("the model does not fit: {what} {needed} are needed, and {place} has {available} left; {hint}")]
    Memory { what: String, place: String, needed: String, available: String, hint: &'static str },
    #[error("{message}")]
    Failed { message: String },
    #[error("the process that computes (dslaunch-rank) has ended while it {doing}: {exit}{}", hint(*exit))]
    Died { doing: &'static str, exit: Exit },
    #[error("the process that computes (dslaunch-rank, {pid}) has said nothing for {} s while it {doing}", silence.as_secs())]
    Silent { doing: &'static str, pid: u32, silence: Duration },
    #[error("the process that computes (dslaunch-rank) cannot be told anything")]
    Wire(#[source] io::Error),
    #[error("the tokenizer cannot make a text of the tokens that the model writes: {0}")]
    Text(String),
}

fn hint(exit: Exit) -> String {
    exit.hint().map_or_else(String::new, |hint| format!(" ({hint})"))
}

impl From<GenerateError> for LaunchError {
    fn from(error: GenerateError) -> Self {
        let exit_code = match &error {
            GenerateError::NoModel { .. }
            | GenerateError::Adapter(_)
            | GenerateError::Weights(_)
            | GenerateError::Prompt(_)
            | GenerateError::NothingAsked
            | GenerateError::NoPrompts { .. } => 2,
            GenerateError::Failed { .. } | GenerateError::Died { .. } | GenerateError::Silent { .. } => 1,
            GenerateError::PromptsUnreadable { .. }
            | GenerateError::InputUnreadable { .. }
            | GenerateError::NoGpu
            | GenerateError::UnfitGpu(_)
            | GenerateError::Memory { .. }
            | GenerateError::Wire(_)
            | GenerateError::Text(_) => 3,
        };
        Self::refused(error, exit_code)
    }
}
