//! A job in the background leaves the terminal once it has begun; `dslaunch --detach` waits for it to do so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use nix::unistd::{dup2_stderr, dup2_stdout};
use proto::run_dir::RunDir;

use crate::error::LaunchError;
use crate::process::guardian;
use crate::process::job_control::JobControl;

/// The job writes this byte when it has begun. No text holds it.
pub const BEGUN: u8 = 0;

/// The job has begun: its run directory is locked and its plan is made. From now on a job in the background writes to its
/// console log, and no terminal reaches it.
pub fn begun(job_control: JobControl, run_dir: &RunDir) -> Result<(), LaunchError> {
    match job_control {
        JobControl::Foreground => Ok(()),
        JobControl::Background => {
            let path = run_dir.console_log();
            let log = open_log(&path).map_err(LaunchError::io(format!("open {}", path.display())))?;
            leave(&log).map_err(LaunchError::io("leave the terminal"))
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    fs::create_dir_all(path.parent().expect("a file in the run directory"))?;
    OpenOptions::new().create(true).append(true).open(path)
}

/// From now on nobody hears us but the log. Fails if the command that the user typed is gone: nobody knows of this job.
fn leave(log: &File) -> io::Result<()> {
    guardian::leave_terminal()?;
    let mut pipe = io::stdout();
    pipe.write_all(&[BEGUN])?;
    pipe.flush()?;
    dup2_stdout(log)?;
    dup2_stderr(log)?;
    Ok(())
}
