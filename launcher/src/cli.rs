//! The command line. Parsing only: nothing is read from disk here, and of the environment only Slurm's variables.
//!
//! Lists the commands, whose arguments are their own.

use std::ffi::OsString;
use std::iter;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use proto::env::{SlurmStep, variable};

use crate::commands::Task;
use crate::commands::checkpoint::CheckpointTask;
use crate::commands::completions::{CompletionsArgs, ManArgs};
use crate::commands::control::ControlTask;
use crate::commands::data::DataTask;
use crate::commands::doctor::DoctorArgs;
use crate::commands::evaluate::EvaluateArgs;
use crate::commands::generate::GenerateArgs;
use crate::commands::import::ImportArgs;
use crate::commands::init::InitArgs;
use crate::commands::merge::MergeArgs;
use crate::commands::plan::PlanCommand;
use crate::commands::report::ReportArgs;
use crate::commands::run::{RunArgs, RunFlags};
use crate::commands::schedulers::{SlurmArgs, SystemdArgs};
use crate::commands::schema::SchemaArgs;
use crate::commands::train::{TRAIN, TrainCommand, TrainFlags};
use crate::job::args::JobArgs;

/// Fine-tunes LLaMA-family models on one machine and keeps going when something breaks.
#[derive(Debug, Parser)]
#[command(name = "dslaunch", version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done; 1 a rank failed and the restart budget is used up; 2 bad usage or bad \
                        train.toml;\n3 the environment cannot run this plan; 75 preempted, to be started again;\n130, 143 \
                        stopped by SIGINT, SIGTERM")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: Option<JobArgs>,
    #[command(flatten)]
    flags: TrainFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(hide = true)]
    Train(TrainCommand),
    Run(Box<RunFlags>),
    Plan(PlanCommand),
    Init(InitArgs),
    Import(ImportArgs),
    #[command(subcommand)]
    Checkpoint(CheckpointTask),
    #[command(flatten)]
    Control(ControlTask),
    #[command(subcommand)]
    Data(DataTask),
    Evaluate(EvaluateArgs),
    Merge(MergeArgs),
    Generate(Box<GenerateArgs>),
    Report(ReportArgs),
    Systemd(SystemdArgs),
    Slurm(SlurmArgs),
    Doctor(DoctorArgs),
    Schema(SchemaArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

impl Cli {
    /// Reads a command line, the program's name first.
    pub fn parse_task(words: &[OsString]) -> Result<Task, clap::Error> {
        Self::parse_in(words, SlurmStep::read(variable))
    }

    /// The pure half of [`Cli::parse_task`].
    pub(crate) fn parse_in(words: &[OsString], slurm: Option<SlurmStep>) -> Result<Task, clap::Error> {
        let mut cli = Cli::try_parse_from(train_first(words))?;
        if let Some(Command::Train(TrainCommand { job, flags })) = cli.command {
            cli = Cli { command: None, train: Some(job), flags };
        }
        let refusal = cli.train.as_ref().and_then(|_| cli.flags.several_machines(slurm.as_ref()));
        match refusal {
            Some(rule) => Err(Cli::command().error(ErrorKind::ValueValidation, rule)),
            None => cli.task(words),
        }
    }

    fn task(self, words: &[OsString]) -> Result<Task, clap::Error> {
        Ok(match (self.command, self.train) {
            (Some(Command::Train(TrainCommand { job, flags })), _) => flags.task(job),
            (Some(Command::Run(flags)), _) => Task::Run(Box::new(RunArgs::new(*flags, words))),
            (Some(Command::Plan(command)), _) => command.task(),
            (Some(Command::Import(args)), _) => Task::Import(args),
            (Some(Command::Checkpoint(task)), _) => Task::Checkpoint(task),
            (Some(Command::Control(task)), _) => Task::Control(task),
            (Some(Command::Data(task)), _) => Task::Data(task),
            (Some(Command::Evaluate(args)), _) => Task::Evaluate(args),
            (Some(Command::Merge(args)), _) => Task::Merge(args),
            (Some(Command::Generate(args)), _) => Task::Generate(args),
            (Some(Command::Report(args)), _) => Task::Report(args),
            (Some(Command::Systemd(args)), _) => Task::Systemd(args),
            (Some(Command::Slurm(args)), _) => Task::Slurm(args),
            (Some(Command::Doctor(args)), _) => Task::Doctor(args),
            (Some(Command::Init(args)), _) => Task::Init(args),
            (Some(Command::Schema(_)), _) => Task::Schema,
            (Some(Command::Completions(args)), _) => Task::Print(args.script(Cli::command())),
            (Some(Command::Man(args)), _) => Task::Print(args.page(Cli::command())?),
            (None, Some(job)) => self.flags.task(job),
            (None, None) => unreachable!("clap asks for help when there are no arguments"),
        })
    }
}

/// The same command line with `train` before its flags, where that is the command: `--detach train x.toml` is `train --detach
/// x.toml`. After `--`, and after another command, `train` is a file's name or an argument.
fn train_first(words: &[OsString]) -> Vec<OsString> {
    let cli = Cli::command();
    let takes_value = |word: &OsString| {
        let flag = word.to_str().and_then(|word| word.strip_prefix("--"));
        let argument = cli.get_arguments().find(|argument| flag.is_some() && argument.get_long() == flag);
        argument.is_some_and(|argument| argument.get_action().takes_values())
    };
    let is_flag = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
    let mut rest = words.iter().enumerate().skip(1);
    while let Some((idx, word)) = rest.next() {
        if word == TRAIN {
            let (before, after) = (&words[1..idx], &words[idx + 1..]);
            return iter::once(&words[0]).chain([word]).chain(before).chain(after).cloned().collect();
        }
        if !is_flag(word) || word == "--" {
            break;
        }
        if takes_value(word) {
            rest.next();
        }
    }
    words.to_vec()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The task that a line asks for, or why it is no command.
    pub fn parse(line: &str) -> Result<Task, ErrorKind> {
        let words: Vec<_> = std::iter::once("dslaunch").chain(line.split_whitespace()).map(OsString::from).collect();
        Cli::parse_task(&words).map_err(|error| {
            let code = if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) { 0 } else { 2 };
            assert_eq!(error.exit_code(), code, "{line}");
            error.kind()
        })
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
        check("status", ErrorKind::MissingRequiredArgument);
        check("stop --timeout -1 x", ErrorKind::UnknownArgument);
        check("--detach", ErrorKind::MissingRequiredArgument);
        check("--detach plan train.toml", ErrorKind::ArgumentConflict);
        check("--nproc 2 plan train.toml", ErrorKind::ArgumentConflict);
        check("plan --deepspeed ds.json train.toml", ErrorKind::ArgumentConflict);
        check("plan --deepspeed ds.json --json", ErrorKind::ArgumentConflict);
        check("plan --deepspeed ds.json --set train.steps=1", ErrorKind::ArgumentConflict);
        check("run", ErrorKind::MissingRequiredArgument);
        check("run --", ErrorKind::MissingRequiredArgument);
        check("run --bogus -- cmd", ErrorKind::UnknownArgument);
        check("run --nproc 0 -- cmd", ErrorKind::ValueValidation);
        check("run -r 4 -- cmd", ErrorKind::ValueValidation);
        check("run --rdzv-backend etcd -- cmd", ErrorKind::ValueValidation);
        check("run --no-python -m -- cmd", ErrorKind::ArgumentConflict);
        check("--nproc 2 run -- cmd", ErrorKind::ArgumentConflict);
        check("report", ErrorKind::MissingRequiredArgument);
        check("report --compare", ErrorKind::InvalidValue);
        check("checkpoint", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        check("checkpoint verify", ErrorKind::MissingRequiredArgument);
        check("checkpoint verify --json x", ErrorKind::UnknownArgument);
        check("--help", ErrorKind::DisplayHelp);
        check("--version", ErrorKind::DisplayVersion);
    }

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }
}
