//! What the user types. Parsing only: nothing is read from disk here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Fine-tunes LLaMA-family models on one machine and keeps going when something breaks.
#[derive(Debug, Parser)]
#[command(name = "dslaunch", version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done; 1 a rank failed and the restart budget is used up; 2 bad usage or bad \
                        train.toml;\n3 the environment cannot run this plan; 130, 143 stopped by SIGINT, SIGTERM")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: Option<JobArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the resolved plan: layout, steps, tokens, memory per rank. Starts no rank
    ///
    /// Steps depend on the data, which is prepared in output_dir as for training: no other dslaunch may be using that
    /// folder.
    Plan(PlanArgs),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// `dslaunch train.toml`
    Train(JobArgs),
    /// `dslaunch plan train.toml`
    Plan(PlanArgs),
}

/// Which job.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct JobArgs {
    /// Number of ranks [default: the number of GPUs, or 1 without one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub nproc: Option<u16>,
    /// Set a key of train.toml, overriding the file; may be repeated
    #[arg(long = "set", value_name = "section.key=value")]
    pub sets: Vec<String>,
    /// The job
    #[arg(value_name = "train.toml")]
    pub train_toml: PathBuf,
}

/// Which job's plan, and how it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PlanArgs {
    /// Print the plan as JSON, as ranks read it
    #[arg(long)]
    pub json: bool,
    /// Which job.
    #[command(flatten)]
    pub job: JobArgs,
}

impl Cli {
    /// What the command line asks for.
    pub fn task(self) -> Task {
        match (self.command, self.train) {
            (Some(Command::Plan(args)), _) => Task::Plan(args),
            (None, Some(args)) => Task::Train(args),
            (None, None) => unreachable!("clap asks for help when there are no arguments"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Task, ErrorKind> {
        let words = std::iter::once("dslaunch").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(Cli::task).map_err(|error| {
            let code = if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) { 0 } else { 2 };
            assert_eq!(error.exit_code(), code, "{line}");
            error.kind()
        })
    }

    fn job(nproc: Option<u16>, sets: &[&str]) -> JobArgs {
        JobArgs { nproc, sets: sets.iter().map(|&set| set.into()).collect(), train_toml: "train.toml".into() }
    }

    #[test]
    fn the_main_command_trains() {
        assert_eq!(parse("train.toml"), Ok(Task::Train(job(None, &[]))));
        assert_eq!(parse("--nproc 4 train.toml"), Ok(Task::Train(job(Some(4), &[]))));
        let sets = ["train.steps=3", "job.name=a=b"];
        assert_eq!(parse("--set train.steps=3 train.toml --set job.name=a=b"), Ok(Task::Train(job(None, &sets))));
    }

    #[test]
    fn plan_prints() {
        assert_eq!(parse("plan train.toml"), Ok(Task::Plan(PlanArgs { json: false, job: job(None, &[]) })));
        let args = PlanArgs { json: true, job: job(Some(2), &["zero.stage=0"]) };
        assert_eq!(parse("plan --json --nproc 2 --set zero.stage=0 train.toml"), Ok(Task::Plan(args)));
    }

    #[test]
    fn bad_usage_exits_with_2() {
        let check = |line: &str, kind: ErrorKind| assert_eq!(parse(line), Err(kind), "{line}");
        check("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        check("--nproc 0 train.toml", ErrorKind::ValueValidation);
        check("--nproc -1 train.toml", ErrorKind::UnknownArgument);
        check("--nproc x train.toml", ErrorKind::ValueValidation);
        check("--nproc 2", ErrorKind::MissingRequiredArgument);
        check("--bogus train.toml", ErrorKind::UnknownArgument);
        check("a.toml b.toml", ErrorKind::ArgumentConflict);
        check("plan", ErrorKind::MissingRequiredArgument);
        check("--nproc 2 plan train.toml", ErrorKind::ArgumentConflict);
        check("--help", ErrorKind::DisplayHelp);
        check("--version", ErrorKind::DisplayVersion);
    }

    #[test]
    fn the_declaration_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
