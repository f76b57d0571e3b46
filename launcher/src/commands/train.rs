//! `dslaunch train.toml`: where it trains. What it does is [`job`](crate::job)'s.

use clap::Args;
use proto::env::SlurmStep;

use super::Task;
use super::run::nodes::NumNodes;
use super::run::rendezvous::Endpoint;
use crate::job::args::JobArgs;

/// The word that may stand before a job.
pub const TRAIN: &str = "train";

/// Train: the same as `dslaunch train.toml`, with the same flags before or after the word
#[derive(Debug, Args)]
pub struct TrainCommand {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
    /// The rest.
    #[command(flatten)]
    pub flags: TrainFlags,
}

/// The flags of `dslaunch train.toml` that are not about which job.
#[derive(Debug, Args)]
pub struct TrainFlags {
    /// Train in the background: return when the job has begun, or with its error if it cannot
    ///
    /// Its console is <output_dir>/logs/console.log; `dslaunch status`, `stop` and `attach` take <output_dir>.
    #[arg(long, requires = "train_toml")]
    detach: bool,
    /// Number of machines; only 1: training on several waits for what ranks would talk over
    #[arg(long, value_name = "N", requires = "train_toml")]
    nnodes: Option<NumNodes>,
    /// This machine's rank among them
    #[arg(long, value_name = "R", requires = "train_toml", hide = true)]
    node_rank: Option<u32>,
    /// Where they meet
    #[arg(long, value_name = "HOST:PORT", requires = "train_toml", hide = true)]
    rendezvous: Option<Endpoint>,
    /// Train here, as the process that --detach starts.
    #[arg(long, hide = true, requires = "train_toml", conflicts_with = "detach")]
    in_background: bool,
}

impl TrainFlags {
    /// Refuses more than one machine, with the reason. `slurm`: the step that this process is a task of.
    pub fn several_machines(&self, slurm: Option<&SlurmStep>) -> Option<String> {
        let waits = "training across nodes waits for comm's tcp backend and NCCL";
        let flag = match self {
            Self { nnodes: Some(nnodes), .. } if *nnodes != NumNodes::ONE => "--nnodes",
            Self { node_rank: Some(1..), .. } => "--node-rank",
            Self { rendezvous: Some(_), .. } => "--rendezvous",
            Self { nnodes: None, in_background: false, .. } => {
                let step = slurm?;
                let alone = "give --nnodes 1 to train on each of them by itself";
                return Some(format!("--nnodes: the Slurm step has {} nodes: {waits}; {alone}", step.num_nodes));
            }
            _ => return None,
        };
        Some(format!("{flag}: {waits}: one machine only, for now"))
    }

    /// Returns the task that the flags ask for.
    pub fn task(self, job: JobArgs) -> Task {
        match self {
            Self { detach: true, .. } => Task::Detach(job),
            Self { in_background: true, .. } => Task::TrainInBackground(job),
            Self { .. } => Task::Train(job),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::Cli;
    use crate::cli::tests::parse;

    #[test]
    fn the_main_command_trains() {
        assert_eq!(parse("train.toml"), Ok(Task::Train(JobArgs::example(None, &[]))));
        assert_eq!(parse("--nproc 4 train.toml"), Ok(Task::Train(JobArgs::example(Some(4), &[]))));
        let sets = ["train.steps=3", "job.name=a=b"];
        assert_eq!(
            parse("--set train.steps=3 train.toml --set job.name=a=b"),
            Ok(Task::Train(JobArgs::example(None, &sets)))
        );
    }

    #[test]
    fn the_word_train_may_stand_before_a_job() {
        for line in [
            "train.toml",
            "--nproc 4 train.toml",
            "--nproc=4 --set job.name=plan train.toml --set=train.steps=3",
            "--share-gpu --detach train.toml",
            "--nnodes 1 --node-rank 0 train.toml",
            "--in-background -- train.toml",
            "--detach -- -x",
            "--set train train.toml",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            let expected = parse(line).unwrap();
            // Where a flag's value, or what follows `--`, would be cut off from it, the word is none.
            let is_flags_place = |idx: usize| {
                let before = &words[..idx];
                let is_value =
                    before.last().is_some_and(|flag| ["--nproc", "--set", "--nnodes", "--node-rank"].contains(flag));
                let is_first = before.iter().all(|word| word.starts_with("--") || !word.contains(".toml"));
                !is_value && is_first && !before.contains(&"--")
            };
            for idx in (0..words.len()).filter(|&idx| is_flags_place(idx)) {
                let line = [&words[..idx], &["train"], &words[idx..]].concat().join(" ");
                assert_eq!(parse(&line).as_ref(), Ok(&expected), "{line}");
            }
        }
    }

    #[test]
    fn a_job_may_have_the_name_of_a_command() {
        let job = |train_toml: &str| {
            Ok(Task::Train(JobArgs { train_toml: train_toml.into(), ..JobArgs::example(None, &[]) }))
        };
        assert_eq!(parse("train plan"), job("plan"));
        assert_eq!(parse("train train"), job("train"));
        assert_eq!(parse("-- train"), job("train"));
        assert_eq!(parse("train -- --nproc"), job("--nproc"));
        for line in ["train", "--nproc 2 train", "train --detach"] {
            assert_eq!(parse(line), Err(ErrorKind::MissingRequiredArgument), "{line}");
        }
        for line in ["train a.toml b.toml", "train --bogus a.toml", "--nproc 2 plan train a.toml"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(parse("train --help"), Err(ErrorKind::DisplayHelp));
    }

    #[test]
    fn the_help_does_not_say_everything_twice() {
        let words: Vec<_> = ["dslaunch", "--help"].map(OsString::from).into();
        let help = Cli::parse_task(&words).unwrap_err().to_string();
        assert!(help.lines().count() < 60 && !help.contains("  train  "), "{help}");
    }

    #[test]
    fn training_has_one_machine() {
        assert_eq!(parse("--nnodes 1 --node-rank 0 train.toml"), Ok(Task::Train(JobArgs::example(None, &[]))));
        for flag in ["--nnodes 2", "--node-rank 1", "--rendezvous h:1", "train --nnodes 2"] {
            let line = format!("dslaunch {flag} train.toml");
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            let error = Cli::parse_task(&words).unwrap_err();
            let (name, text) = (flag.split(' ').find(|word| word.starts_with("--")).unwrap(), error.to_string());
            assert!(text.contains(&format!("{name}: training across nodes waits for comm's tcp backend")), "{text}");
            assert_eq!(error.exit_code(), 2);
        }
        let step = SlurmStep {
            num_nodes: 2,
            node_rank: 1,
            first_host: "n1".into(),
            launch_address: None,
            port: 15_000,
            name: "slurm-1.0".into(),
        };
        let in_step = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            Cli::parse_in(&words, Some(step.clone())).map_err(|error| error.to_string())
        };
        let refusal = in_step("dslaunch train.toml").unwrap_err();
        assert!(refusal.contains("--nnodes: the Slurm step has 2 nodes: training across nodes waits"), "{refusal}");
        assert_eq!(in_step("dslaunch --nnodes 1 train.toml"), Ok(Task::Train(JobArgs::example(None, &[]))));
        assert_eq!(
            in_step("dslaunch --in-background train.toml"),
            Ok(Task::TrainInBackground(JobArgs::example(None, &[])))
        );
        assert!(in_step("dslaunch plan train.toml").is_ok() && in_step("dslaunch run -- cmd").is_ok());
    }
}
