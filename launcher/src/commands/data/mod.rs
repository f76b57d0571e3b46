//! `dslaunch data`: what a job's data is. `check_report` is what `check` prints, and pure.

mod check;
mod check_report;
mod show;

use clap::Subcommand;

use self::check::CheckArgs;
use self::show::ShowArgs;
use crate::error::LaunchError;
use crate::output::terminal::Terminal;

/// Look at the data of a job as it will be trained
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum DataTask {
    /// Show samples as the model will see them, with what is trained of them: in colour, or between double brackets
    ///
    /// The data is prepared in output_dir as for training: no other dslaunch may be using that folder.
    Show(ShowArgs),
    /// Find rows that are truncated, dropped, empty, not trained or there twice, and say how long samples are
    ///
    /// The data is prepared in output_dir as for training, and used by it: no other dslaunch may be using that folder. Exit
    /// codes: 0 all rows are trained once and whole; 1 some are not, and the last lines say which; 2 bad usage, or rows that
    /// cannot be trained on.
    Check(CheckArgs),
}

/// `dslaunch data`. Returns the exit code.
pub fn run(task: &DataTask, terminal: &Terminal) -> Result<u8, LaunchError> {
    match task {
        DataTask::Show(args) => show::run(args, terminal),
        DataTask::Check(args) => check::run(args, terminal),
    }
}
