//! The words of a command line that name a job: shared by every command that is about one.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// The job.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct JobArgs {
    /// Number of ranks [default: the number of GPUs, or 1 without one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub nproc: Option<u16>,
    /// Let several ranks share a GPU: to try a layout, not to be fast
    #[arg(long)]
    pub share_gpu: bool,
    /// Set a key of train.toml, overriding the file; may be repeated
    #[arg(long = "set", value_name = "section.key=value")]
    pub sets: Vec<String>,
    /// The job
    #[arg(value_name = "train.toml")]
    pub train_toml: PathBuf,
}

impl JobArgs {
    /// The command line of this job.
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![];
        words.extend(self.nproc.map(|nproc| format!("--nproc={nproc}").into()));
        words.extend(self.share_gpu.then(|| "--share-gpu".into()));
        words.extend(self.sets.iter().map(|set| format!("--set={set}").into()));
        words.extend(["--".into(), self.train_toml.clone().into()]);
        words
    }
}

#[cfg(test)]
impl JobArgs {
    /// `train.toml`, for tests.
    pub fn example(nproc: Option<u16>, sets: &[&str]) -> Self {
        Self {
            nproc,
            share_gpu: false,
            sets: sets.iter().map(|&set| set.into()).collect(),
            train_toml: "train.toml".into(),
        }
    }
}
