//! `dslaunch doctor`: reports on this machine, and on anything missing that training needs.
//!
//! The files named for what they look at ([`host`], [`libraries`], [`disk`]) read facts and judge nothing;
//! [`report`] judges them and is pure.

pub mod disk;
pub mod host;
pub mod libraries;
mod nccl;
pub mod report;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::error::LaunchError;
use crate::gpus::Gpus;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use disk::DiskSpeed;
use host::Host;
use libraries::Libraries;

/// Say what this machine offers for training, and what is missing: GPUs, libtorch, NCCL, memory, limits, disk
///
/// Exit codes: 0 a job can run here; 1 something that it needs is missing.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DoctorArgs {
    /// Print the report as JSON, with the facts that it was made of
    #[arg(long)]
    pub json: bool,
    /// The folder whose disk is measured: where the training data lies. Needs 256 MiB there for a moment
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub disk: PathBuf,
}

/// All that was found out.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Processors, memory, limits.
    pub host: Host,
    /// NVIDIA GPUs.
    pub gpus: Gpus,
    /// The worker, libtorch, NCCL.
    pub libraries: Libraries,
    /// The folder's speed, or the reason why it is not known.
    pub disk: Result<DiskSpeed, String>,
}

/// Looks at everything and says what it found. Returns the exit code: 0, or 1 if something needed is missing.
pub fn run(args: &DoctorArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut console = Console::new(terminal.clone(), !args.json);
    console.wait(&format!("measuring the disk of {}", args.disk.display()));
    let libraries = Libraries::look();
    let disk = disk::measure(&args.disk).map_err(|error| format!("{}: {error}", args.disk.display()));
    let facts = Facts { host: Host::look(Path::new("/")), gpus: Gpus::look(), libraries, disk };
    console.end_wait();
    let report = report::Report::of(&facts);
    console.say(&if args.json { report.json(&facts) } else { report.table() });
    Ok(report.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    #[test]
    fn the_doctor_is_called() {
        assert_eq!(parse("doctor"), Ok(Task::Doctor(DoctorArgs { json: false, disk: ".".into() })));
        let args = DoctorArgs { json: true, disk: "/data".into() };
        assert_eq!(parse("doctor --json --disk /data"), Ok(Task::Doctor(args)));
    }
}
