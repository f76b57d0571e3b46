//! `dslaunch systemd` and `dslaunch slurm`: print a unit file or a batch script for the user to look at and install.
//!
//! Owns their formats and how words are quoted in them. Both are pure: text from [`Command`].

pub mod slurm;
pub mod systemd;

use std::env;
use std::ffi::OsString;

use clap::Args;
use proto::config::{Resume, TrainConfig};

use crate::error::LaunchError;
use crate::job::args::JobArgs;
use crate::output::console::Console;
use crate::output::terminal::Terminal;

/// Print a systemd unit that runs this job, starts it again after a failure and watches its progress
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SystemdArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
}

/// Print an sbatch script that runs this job on one node and puts it back into the queue when it was preempted
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SlurmArgs {
    /// Longest time the job may run at once, as sbatch takes it
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// The partition
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// An option of sbatch for the script, like --sbatch=--gpus-per-node=4; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub sbatch: Vec<String>,
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
}

/// The command that runs the job, from wherever it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The job's name.
    pub name: String,
    /// dslaunch, from the root.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The folder that relative paths of the job start from.
    pub folder: String,
    /// Ranks, if the user says how many.
    pub nproc: Option<u16>,
    /// Longest wait of a rank for another one, in seconds.
    pub comm_timeout_seconds: u64,
}

/// A reason why a job cannot be put into a scheduler's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchedulerError {
    /// It is no text, or would begin a new line.
    #[error("{what} = {text:?} cannot stand in a unit file or a script: it is not UTF-8, or has control characters")]
    NotALine {
        /// The kind of text.
        what: &'static str,
        /// The text.
        text: OsString,
    },
    /// A job that is started again would not go on.
    #[error(
        "checkpoint.resume = {resume}: started again, the job would not go on from its own checkpoint; use \"auto\""
    )]
    BeginsAnew {
        /// The key's value.
        resume: String,
    },
    /// An option of sbatch that is none.
    #[error("--sbatch {option:?} is no option of sbatch: it has to begin with a dash")]
    NotAnOption {
        /// The option as typed.
        option: String,
    },
}

impl From<SchedulerError> for LaunchError {
    fn from(error: SchedulerError) -> Self {
        Self::refused(error, 2)
    }
}

impl Command {
    /// The command for a job that is checked as far as its train.toml goes: model and data may lie on another machine.
    fn of(args: &JobArgs) -> Result<Self, LaunchError> {
        let config = TrainConfig::load(&args.train_toml, &args.sets)?;
        let resume = match &config.checkpoint.resume {
            Resume::Auto => None,
            Resume::Never => Some("\"never\"".to_owned()),
            Resume::Path(path) => Some(format!("{path:?}")),
        };
        if let Some(resume) = resume {
            return Err(SchedulerError::BeginsAnew { resume }.into());
        }
        let folder = env::current_dir().map_err(LaunchError::io("find the current folder"))?;
        let program = env::current_exe().map_err(LaunchError::io("find out where dslaunch lies"))?;
        let job = JobArgs { train_toml: folder.join(&args.train_toml), ..args.clone() };
        let words: Result<_, _> = job.words().into_iter().map(|word| line("an argument", word)).collect();
        Ok(Self {
            name: line("job.name", config.job.name.into())?,
            program: line("the path of dslaunch", program.into())?,
            args: words?,
            folder: line("the current folder", folder.into())?,
            nproc: args.nproc,
            comm_timeout_seconds: config.comm.timeout_seconds,
        })
    }
}

/// `dslaunch systemd train.toml`. Returns the exit code.
pub fn print_systemd(args: &SystemdArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let unit = systemd::unit(&Command::of(&args.job)?);
    Console::new(terminal.clone(), true).say(unit.trim_end());
    Ok(0)
}

/// `dslaunch slurm train.toml`. Returns the exit code.
pub fn print_slurm(args: &SlurmArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let command = Command::of(&args.job)?;
    let mut options = vec![];
    options.extend(args.time.as_ref().map(|time| format!("--time={time}")));
    options.extend(args.partition.as_ref().map(|partition| format!("--partition={partition}")));
    options.extend(args.sbatch.iter().cloned());
    let options: Result<Vec<_>, _> = options.into_iter().map(sbatch_option).collect();
    let script = slurm::script(&command, &options?);
    Console::new(terminal.clone(), true).say(script.trim_end());
    Ok(0)
}

fn line(what: &'static str, text: OsString) -> Result<String, SchedulerError> {
    match text.into_string() {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text),
        Ok(text) => Err(SchedulerError::NotALine { what, text: text.into() }),
        Err(text) => Err(SchedulerError::NotALine { what, text }),
    }
}

fn sbatch_option(option: String) -> Result<String, SchedulerError> {
    let option = line("an option of sbatch", option.into())?;
    if option.starts_with('-') { Ok(option) } else { Err(SchedulerError::NotAnOption { option }) }
}

/// A name for a file or a job that no tool takes for anything else: `my job/7` is `my-job-7`.
fn plain_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.chars().map(|c| if is_plain(c) { c } else { '-' }).collect()
}

/// A job in `folder` with every character in it that some tool takes for something else.
#[cfg(test)]
fn example(folder: &std::path::Path) -> Command {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    Command {
        name: "a \"job\" 100%".into(),
        program: path("dslaunch"),
        args: vec![
            "--nproc=2".into(),
            "--set=job.name=\"it's $HOME; \\n 100%\"".into(),
            "--".into(),
            path("train it's.toml"),
        ],
        folder: folder.to_str().unwrap().to_owned(),
        nproc: Some(2),
        comm_timeout_seconds: 600,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    #[test]
    fn what_would_begin_a_new_line_is_refused() {
        assert_eq!(line("x", "a b".into()), Ok("a b".into()));
        for wrong in ["a\nb", "a\rb", "\0"] {
            assert_eq!(line("x", wrong.into()), Err(SchedulerError::NotALine { what: "x", text: wrong.into() }));
        }
        assert_eq!(sbatch_option("--gpus=4".into()), Ok("--gpus=4".into()));
        let error = sbatch_option("gpus=4".into()).unwrap_err();
        assert_eq!(error.to_string(), "--sbatch \"gpus=4\" is no option of sbatch: it has to begin with a dash");
    }

    #[test]
    fn a_plain_name_is_one_word() {
        assert_eq!(plain_name("my job/7"), "my-job-7");
        assert_eq!(plain_name("sft_1.5"), "sft_1.5");
    }

    #[test]
    fn schedulers_get_the_job_and_their_options() {
        assert_eq!(
            parse("systemd --nproc 4 train.toml"),
            Ok(Task::Systemd(SystemdArgs { job: JobArgs::example(Some(4), &[]) }))
        );
        let line = "slurm --time 1-00:00:00 --sbatch --gpus-per-node=4 --sbatch=-x=node7 --nproc 4 train.toml";
        let args = SlurmArgs {
            time: Some("1-00:00:00".into()),
            partition: None,
            sbatch: vec!["--gpus-per-node=4".into(), "-x=node7".into()],
            job: JobArgs::example(Some(4), &[]),
        };
        assert_eq!(parse(line), Ok(Task::Slurm(args)));
    }
}
