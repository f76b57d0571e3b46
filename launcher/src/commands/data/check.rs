//! `dslaunch data check`: what of the data is lost, doubled or not trained.

use clap::Args;

use super::check_report::{self, SplitReport};
use crate::data::{Checked, DataError, Split};
use crate::error::LaunchError;
use crate::job::args::JobArgs;
use crate::job::note;
use crate::job::setup::Setup;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use crate::process::signals::Signals;
use crate::run_dir::lock::RunLock;
use crate::runtime::on_runtime;

/// Something is lost or doubled.
const FOUND: u8 = 1;

/// What to check.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// How many rows of each kind are named
    #[arg(short = 'n', long = "rows", value_name = "N", default_value_t = 10)]
    limit: usize,
    /// Print all of it as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    job: JobArgs,
}

/// `dslaunch data check`. Returns the exit code.
pub fn run(args: &CheckArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let setup = Setup::load_for_data(&args.job)?;
    on_runtime(async {
        let mut signals = Signals::listen().map_err(LaunchError::io("listen for signals"))?;
        let mut console = Console::new(terminal.clone(), true);
        note(&setup.notes, &mut console);
        let _lock = RunLock::acquire(setup.run_dir().root())?;
        let mut splits =
            vec![(Split::Train, setup.check(&Split::Train, args.limit, &mut signals, &mut console).await?)];
        for split in setup.validation_splits() {
            let mut checked = setup.check(&split, args.limit, &mut signals, &mut console).await?;
            if let (Ok(train), Ok(validation)) = (&splits[0].1, &mut checked) {
                validation.compare(train);
            }
            splits.push((split, checked));
        }
        let mut code = 0;
        let mut report = |(split, checked): (Split, Result<Checked, DataError>)| {
            let (report, of_split) = reported(checked, &mut console);
            code = code.max(of_split);
            (split, report)
        };
        let reports: Vec<_> = splits.into_iter().map(&mut report).collect();
        console.say(&if args.json { check_report::json(&reports) } else { check_report::text(&reports) });
        Ok(code)
    })
}

/// What is printed of a split, and its exit code. An error is told on standard error at once.
fn reported(checked: Result<Checked, DataError>, console: &mut Console) -> (SplitReport, u8) {
    match checked {
        Ok(checked) => {
            let code = if checked.findings.faults().is_empty() { 0 } else { FOUND };
            (SplitReport::Sound(Box::new(checked.findings)), code)
        }
        Err(error) => {
            let report = SplitReport::of_error(&error);
            let error = LaunchError::from(error);
            console.warn(&error.explanation());
            (report, error.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;
    use crate::commands::data::DataTask;

    #[test]
    fn data_check_is_a_command() {
        let args = |limit, json, job| Ok(Task::Data(DataTask::Check(CheckArgs { limit, json, job })));
        assert_eq!(parse("data check train.toml"), args(10, false, JobArgs::example(None, &[])));
        let job = JobArgs::example(None, &["data.seq_len=9"]);
        assert_eq!(parse("data check -n 3 --json --set data.seq_len=9 train.toml"), args(3, true, job));
    }
}
