//! `dslaunch train.toml`: where it trains. What it does is [`job`](crate::job)'s.

use clap::Args;
use proto::env::SlurmStep;

use super::Task;
use super::run::nodes::NumNodes;
use super::run::rendezvous::Endpoint;
use crate::job::args::JobArgs;

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
    fn training_has_one_machine() {
        assert_eq!(parse("--nnodes 1 --node-rank 0 train.toml"), Ok(Task::Train(JobArgs::example(None, &[]))));
        for flag in ["--nnodes 2", "--node-rank 1", "--rendezvous h:1"] {
            let line = format!("dslaunch {flag} train.toml");
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            let error = Cli::parse_task(&words).unwrap_err();
            let (name, text) = (flag.split_once(' ').unwrap().0, error.to_string());
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
