//! `dslaunch doctor`: what this machine offers, and whether something is missing that training needs.
//!
//! The files named for what they look at ([`host`], [`gpus`], [`libraries`], [`disk`]) read facts and judge nothing;
//! [`report`] judges them and is pure.

pub mod disk;
pub mod gpus;
pub mod host;
pub mod libraries;
mod nccl;
pub mod report;

use std::path::Path;

use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::error::LaunchError;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use disk::DiskSpeed;
use gpus::Gpus;
use host::Host;
use libraries::Libraries;

/// All that was found out.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Processors, memory, limits.
    pub host: Host,
    /// NVIDIA GPUs.
    pub gpus: Gpus,
    /// The worker, libtorch, NCCL.
    pub libraries: Libraries,
    /// How fast a folder is, or why that is not known.
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
