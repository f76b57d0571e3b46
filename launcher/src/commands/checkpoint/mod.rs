//! `dslaunch checkpoint`: prints the contents of a checkpoint, or checks that it is still as it was written.
//! Changes nothing, takes no lock and starts nothing.

pub mod inspect;
#[cfg(test)]
mod tests;
pub mod verify;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use proto::manifest::{Manifest, ManifestError};
use proto::run_dir::RunDir;

use crate::error::LaunchError;
use crate::machine::cores;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use crate::output::units;
use crate::run_dir::checkpoints::{self, is_complete};

/// Look at a checkpoint: what it holds, and whether it is still what was written
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum CheckpointTask {
    /// Print what a checkpoint holds: step, rows, model, files, and which ranks wrote which part of the optimizer state
    ///
    /// Reads the manifest and the files' lengths. Exit codes: 0 printed; 2 no checkpoint there, or files are missing or
    /// have other lengths.
    Inspect {
        /// A checkpoint, or a run directory: its newest complete checkpoint
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every file of a checkpoint and compare it with the manifest: length, hash, nothing missing or too much
    ///
    /// Prints one line for each problem. Exit codes: 0 all as written; 2 damaged, or no checkpoint there.
    Verify {
        /// A checkpoint, or a run directory: its newest complete checkpoint
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Reading more than this is announced: it takes a while.
const QUICK_BYTES: u64 = 1 << 30;

/// There is no checkpoint to look at.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder is neither a checkpoint nor a run directory that has one.
    #[error(
        "{}: there is no complete checkpoint (neither {} here nor a folder with one in {})",
        dir.display(),
        Manifest::FILE,
        RunDir::new(dir).checkpoints().display()
    )]
    None {
        /// The folder that was named.
        dir: PathBuf,
    },
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<CheckpointError> for LaunchError {
    fn from(error: CheckpointError) -> Self {
        Self::refused(error, 2)
    }
}

/// Does what the command line asks for. Returns the exit code.
pub fn run(task: &CheckpointTask, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut console = Console::new(terminal.clone(), true);
    match task {
        CheckpointTask::Inspect { dir, json } => {
            let found = Found::at(dir)?;
            let to_json = || serde_json::to_string_pretty(&found.manifest).expect("a manifest is plain data");
            console.say(&if *json { to_json() } else { inspect::table(&found.path, &found.manifest) });
            Ok(found.not_whole.map_or(0, |error| {
                let command = format!("dslaunch checkpoint verify {}", found.path.display());
                console.warn(&format!("warning: {error}; `{command}` names all that is wrong"));
                2
            }))
        }
        CheckpointTask::Verify { dir } => {
            let Found { path, manifest, .. } = Found::at(dir)?;
            let bytes = manifest.files.values().fold(0, |sum: u64, file| sum.saturating_add(file.bytes));
            let size = format!("{}, {}", units::plural(manifest.files.len() as u64, "file"), units::bytes(bytes));
            if bytes > QUICK_BYTES {
                console.wait(&format!("reading {size}"));
            }
            let problems = verify::problems(&path, &manifest, cores::available());
            console.end_wait();
            problems.iter().for_each(|problem| console.warn(&units::printable(problem)));
            if problems.is_empty() {
                console.say(&format!("{}: {size}, all as written{}", name(&path), unsealed_note(&manifest)));
            }
            Ok(if problems.is_empty() { 0 } else { 2 })
        }
    }
}

/// A complete checkpoint, whole or damaged.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    manifest: Manifest,
    /// The first file that is not there in full length.
    not_whole: Option<ManifestError>,
}

impl Found {
    /// The checkpoint `dir`, or the newest complete one of the run directory `dir`.
    fn at(dir: &Path) -> Result<Self, LaunchError> {
        let path = if is_complete(dir) { Some(dir.to_owned()) } else { newest(dir)? };
        let path = path.ok_or_else(|| CheckpointError::None { dir: dir.to_owned() })?;
        let (manifest, not_whole) = read(&path).map_err(CheckpointError::from)?;
        Ok(Self { path, manifest, not_whole })
    }
}

/// A damaged one counts: it is what the user asks about.
fn newest(dir: &Path) -> Result<Option<PathBuf>, LaunchError> {
    let run_dir = RunDir::new(dir);
    let what = format!("list the checkpoints in {}", run_dir.checkpoints().display());
    checkpoints::newest_complete(&run_dir).map_err(LaunchError::io(what))
}

/// The manifest, even if files that it names are not whole.
fn read(checkpoint: &Path) -> Result<(Manifest, Option<ManifestError>), ManifestError> {
    let manifest = Manifest::read(checkpoint)?;
    let not_whole = manifest.check_files(checkpoint).err();
    Ok((manifest, not_whole))
}

/// What cannot be said of a checkpoint of an earlier dslaunch.
fn unsealed_note(manifest: &Manifest) -> &'static str {
    if manifest.is_sealed() {
        ""
    } else {
        " (an earlier dslaunch wrote it: its manifest has no seal, so damage to the manifest itself may go unseen)"
    }
}

/// The folder's name, also where it was named by a link or as `.`.
fn name(checkpoint: &Path) -> String {
    let real = checkpoint.canonicalize().unwrap_or_else(|_| checkpoint.to_owned());
    real.file_name().unwrap_or(real.as_os_str()).to_string_lossy().into_owned()
}
