//! What the user types. Parsing only: nothing is read from disk here, and of the environment only what Slurm says.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use proto::env::{SlurmStep, variable};

use crate::commands::run::nodes::NumNodes;
use crate::commands::run::rendezvous::Endpoint;
use crate::commands::run::{CommandForm, RunArgs, RunFlags};

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
    place: PlaceArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run any program as ranks of one or several machines, with torchrun's flags and worker environment
    ///
    /// Each flag can also be given as a variable (PET_NPROC_PER_NODE for --nproc-per-node); what is typed wins. All ranks are
    /// stopped when one fails, and started again while --max-restarts lasts. A free MASTER_PORT is held for rank 0.
    ///
    /// With several machines, each runs the same command with its own --node-rank; node 0 leads, and its --max-restarts
    /// counts. A dslaunch that was killed can be started again in its place. Under Slurm, srun with one task on each machine
    /// needs none of these flags.
    ///
    /// Exit codes: 0; that of the rank that failed first, 128 + N if signal N killed it; 2 bad usage; 3 the command cannot
    /// be started; 130, 143 stopped by SIGINT, SIGTERM, which are passed on: ranks have 30 s, or until the second signal.
    Run(Box<RunFlags>),
    /// Print the resolved plan: layout, steps, tokens, memory per rank. Starts no rank
    ///
    /// Steps depend on the data, which is prepared in output_dir as for training: no other dslaunch may be using that
    /// folder.
    ///
    /// With --deepspeed, nothing is planned: the train.toml that says what a DeepSpeed config says is printed on
    /// standard output, and on standard error a line for each key that is not in it: it has no effect here, is "auto",
    /// refused or unknown. Exit codes then: 0; 2 a key is refused or unknown, or the file is damaged.
    Plan(PlanCommand),
    /// Look at a checkpoint: what it holds, and whether it is still what was written
    #[command(subcommand)]
    Checkpoint(CheckpointTask),
    #[command(flatten)]
    Control(ControlTask),
    /// Print a systemd unit that runs this job, starts it again after a failure and watches its progress
    Systemd(JobArgs),
    /// Print an sbatch script that runs this job on one node and puts it back into the queue when it was preempted
    Slurm(SlurmArgs),
    /// Say what this machine offers for training, and what is missing: GPUs, libtorch, NCCL, memory, limits, disk
    ///
    /// Exit codes: 0 a job can run here; 1 something that it needs is missing.
    Doctor(DoctorArgs),
}

/// Where `dslaunch train.toml` trains.
#[derive(Debug, Args)]
struct PlaceArgs {
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
    /// What --detach starts.
    #[arg(long, hide = true, requires = "train_toml", conflicts_with = "detach")]
    in_background: bool,
}

/// `dslaunch plan`, as it is typed.
#[derive(Debug, Args)]
struct PlanCommand {
    /// Print the plan as JSON, as ranks read it
    #[arg(long)]
    json: bool,
    /// Map a DeepSpeed config to a train.toml, key by key
    #[arg(long, value_name = "ds_config.json", conflicts_with_all = ["json", "sets", "train_toml", "gpu_memory"])]
    deepspeed: Option<PathBuf>,
    /// Plan for GPUs with this much memory each (80GiB, 24GB), which need not be there, and look at no data: rows are
    /// taken as data.seq_len long. Exit code 3 if the job does not fit
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    gpu_memory: Option<u64>,
    /// Number of ranks [default: the number of GPUs, or 1 without one; with --deepspeed: as many as the config's batch
    /// sizes need]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nproc: Option<u16>,
    /// Set a key of train.toml, overriding the file; may be repeated
    #[arg(long = "set", value_name = "section.key=value")]
    sets: Vec<String>,
    /// The job
    #[arg(value_name = "train.toml", required_unless_present = "deepspeed")]
    train_toml: Option<PathBuf>,
}

/// What to do with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum CheckpointTask {
    /// Print what a checkpoint holds: step, rows, model, files, and which ranks wrote which part of the optimizer state
    ///
    /// Reads the manifest and the files' lengths. Exit codes: 0 printed; 2 no checkpoint there, or files are missing or
    /// have other lengths.
    Inspect {
        /// A checkpoint, or a run directory: its newest complete checkpoint
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every file of a checkpoint and compare it with the manifest: length, hash, nothing missing or too much
    ///
    /// Prints one line for each problem. Exit codes: 0 all as written; 2 damaged, or no checkpoint there.
    Verify {
        /// A checkpoint, or a run directory: its newest complete checkpoint
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// What to do with a job that runs, or has run.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ControlTask {
    /// Say where a job stands: step, loss, speed, restarts, processes; or how it ended
    ///
    /// Exit codes: 0 it runs or is done; 1 it failed, was stopped or was killed; 2 no run there.
    Status {
        /// The run directory: output_dir of the job
        #[arg(value_name = "RUN_DIR")]
        dir: PathBuf,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop a job as SIGTERM does, and wait until it has ended
    ///
    /// Exit codes: 0 it does not run (any more); 1 it still does after --timeout, or does not answer; 2 no run there.
    Stop {
        /// The run directory: output_dir of the job
        #[arg(value_name = "RUN_DIR")]
        dir: PathBuf,
        /// Seconds to wait for its end
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        timeout: u64,
    },
    /// Follow a running job's progress. Ctrl-C leaves it running
    ///
    /// Exit codes: 0 left it, or it is done; if it ends in another way its exit code; 1 it does not run; 2 no run there.
    Attach {
        /// The run directory: output_dir of the job
        #[arg(value_name = "RUN_DIR")]
        dir: PathBuf,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// `dslaunch run -- CMD`
    Run(Box<RunArgs>),
    /// `dslaunch train.toml`
    Train(JobArgs),
    /// `dslaunch --detach train.toml`
    Detach(JobArgs),
    /// What `dslaunch --detach` starts.
    TrainInBackground(JobArgs),
    /// `dslaunch plan train.toml`
    Plan(PlanArgs),
    /// `dslaunch plan --deepspeed ds_config.json`
    MapDeepspeed(DeepspeedArgs),
    /// `dslaunch checkpoint inspect DIR` and `verify DIR`
    Checkpoint(CheckpointTask),
    /// `dslaunch status RUN_DIR`, `stop RUN_DIR` and `attach RUN_DIR`
    Control(ControlTask),
    /// `dslaunch systemd train.toml`
    Systemd(JobArgs),
    /// `dslaunch slurm train.toml`
    Slurm(SlurmArgs),
    /// `dslaunch doctor`
    Doctor(DoctorArgs),
}

/// How to look at this machine.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DoctorArgs {
    /// Print the report as JSON, with the facts that it was made of
    #[arg(long)]
    pub json: bool,
    /// The folder whose disk is measured: where the training data lies. Needs 256 MiB there for a moment
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub disk: PathBuf,
}

/// Which job, and what sbatch is told of it.
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
    /// Which job.
    #[command(flatten)]
    pub job: JobArgs,
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

impl JobArgs {
    /// The command line of this job in the background.
    pub fn words_in_background(&self) -> Vec<OsString> {
        let mut words = vec!["--in-background".into()];
        words.extend(self.words());
        words
    }

    /// The command line of this job.
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![];
        words.extend(self.nproc.map(|nproc| format!("--nproc={nproc}").into()));
        words.extend(self.sets.iter().map(|set| format!("--set={set}").into()));
        words.extend(["--".into(), self.train_toml.clone().into()]);
        words
    }
}

impl PlaceArgs {
    /// Why this is more than training on one machine. `slurm`: the step that this process is a task of.
    fn several_machines(&self, slurm: Option<&SlurmStep>) -> Option<String> {
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

    fn task(self, job: JobArgs) -> Task {
        match self {
            Self { detach: true, .. } => Task::Detach(job),
            Self { in_background: true, .. } => Task::TrainInBackground(job),
            Self { .. } => Task::Train(job),
        }
    }
}

/// `80GiB`, `24 GB`: bytes.
fn memory_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 6] = [
        ("MiB", (1u64 << 20) as f64),
        ("GiB", (1u64 << 30) as f64),
        ("TiB", (1u64 << 40) as f64),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
    ];
    let found = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), bytes)));
    let size = found.and_then(|(number, bytes)| Some(number.parse::<f64>().ok()? * bytes));
    match size {
        Some(size) if size.is_finite() && size > 0.0 => Ok(size as u64),
        _ => Err("a number and a unit, like 80GiB or 24GB".into()),
    }
}

/// Which job's plan, and how it is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanArgs {
    /// Whether it is printed as JSON.
    pub json: bool,
    /// Bytes of each rank's GPU, where it is for GPUs that need not be there.
    pub gpu_memory: Option<u64>,
    /// Which job.
    pub job: JobArgs,
}

/// Which DeepSpeed config is mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeepspeedArgs {
    /// The file.
    pub config: PathBuf,
    /// Number of ranks, if the user says one.
    pub nproc: Option<u16>,
}

impl PlanCommand {
    fn task(self) -> Task {
        let Self { json, deepspeed, gpu_memory, nproc, sets, train_toml } = self;
        match (deepspeed, train_toml) {
            (Some(config), _) => Task::MapDeepspeed(DeepspeedArgs { config, nproc }),
            (None, Some(train_toml)) => {
                Task::Plan(PlanArgs { json, gpu_memory, job: JobArgs { nproc, sets, train_toml } })
            }
            (None, None) => unreachable!("clap asks for one of them"),
        }
    }
}

/// `words` is the command line, whose end is the command.
fn run_args(flags: RunFlags, words: &[OsString]) -> RunArgs {
    let before = words.len().checked_sub(flags.command.len() + 1).and_then(|at| words.get(at));
    let form = if before.is_some_and(|word| word == "--") { CommandForm::Verbatim } else { CommandForm::Script };
    RunArgs { flags, form }
}

impl Cli {
    /// Reads a command line, the program's name first.
    pub fn parse_task(words: &[OsString]) -> Result<Task, clap::Error> {
        Self::parse_in(words, SlurmStep::read(variable))
    }

    /// The pure half of [`Cli::parse_task`].
    fn parse_in(words: &[OsString], slurm: Option<SlurmStep>) -> Result<Task, clap::Error> {
        let cli = Cli::try_parse_from(words)?;
        let refusal = cli.train.as_ref().and_then(|_| cli.place.several_machines(slurm.as_ref()));
        match refusal {
            Some(rule) => Err(Cli::command().error(ErrorKind::ValueValidation, rule)),
            None => Ok(cli.task(words)),
        }
    }

    fn task(self, words: &[OsString]) -> Task {
        match (self.command, self.train) {
            (Some(Command::Run(flags)), _) => Task::Run(Box::new(run_args(*flags, words))),
            (Some(Command::Plan(command)), _) => command.task(),
            (Some(Command::Checkpoint(task)), _) => Task::Checkpoint(task),
            (Some(Command::Control(task)), _) => Task::Control(task),
            (Some(Command::Systemd(args)), _) => Task::Systemd(args),
            (Some(Command::Slurm(args)), _) => Task::Slurm(args),
            (Some(Command::Doctor(args)), _) => Task::Doctor(args),
            (None, Some(job)) => self.place.task(job),
            (None, None) => unreachable!("clap asks for help when there are no arguments"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, ErrorKind> {
        let words: Vec<_> = std::iter::once("dslaunch").chain(line.split_whitespace()).map(OsString::from).collect();
        Cli::parse_task(&words).map_err(|error| {
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
    fn a_job_in_the_background_is_the_same_job() {
        assert_eq!(parse("--detach --nproc 4 train.toml"), Ok(Task::Detach(job(Some(4), &[]))));
        for args in [job(None, &[]), job(Some(4), &["train.steps=3", "job.name=a=b", "job.name=\"-x y\""])] {
            for train_toml in ["train.toml", "-x", "plan", "--detach"] {
                let args = JobArgs { train_toml: train_toml.into(), ..args.clone() };
                let words: Vec<_> = std::iter::once("dslaunch".into()).chain(args.words_in_background()).collect();
                assert_eq!(Cli::parse_task(&words).unwrap(), Task::TrainInBackground(args));
            }
        }
    }

    #[test]
    fn jobs_are_looked_at_stopped_and_followed() {
        let control = |task| Ok(Task::Control(task));
        assert_eq!(parse("status --json runs/x"), control(ControlTask::Status { dir: "runs/x".into(), json: true }));
        assert_eq!(parse("stop runs/x"), control(ControlTask::Stop { dir: "runs/x".into(), timeout: 300 }));
        let stop = ControlTask::Stop { dir: "runs/x".into(), timeout: 5 };
        assert_eq!(parse("stop --timeout 5 runs/x"), control(stop));
        assert_eq!(parse("attach runs/x"), control(ControlTask::Attach { dir: "runs/x".into() }));
    }

    #[test]
    fn schedulers_get_the_job_and_their_options() {
        assert_eq!(parse("systemd --nproc 4 train.toml"), Ok(Task::Systemd(job(Some(4), &[]))));
        let line = "slurm --time 1-00:00:00 --sbatch --gpus-per-node=4 --sbatch=-x=node7 --nproc 4 train.toml";
        let args = SlurmArgs {
            time: Some("1-00:00:00".into()),
            partition: None,
            sbatch: vec!["--gpus-per-node=4".into(), "-x=node7".into()],
            job: job(Some(4), &[]),
        };
        assert_eq!(parse(line), Ok(Task::Slurm(args)));
    }

    #[test]
    fn the_doctor_is_called() {
        assert_eq!(parse("doctor"), Ok(Task::Doctor(DoctorArgs { json: false, disk: ".".into() })));
        let args = DoctorArgs { json: true, disk: "/data".into() };
        assert_eq!(parse("doctor --json --disk /data"), Ok(Task::Doctor(args)));
    }

    #[test]
    fn plan_prints() {
        assert_eq!(
            parse("plan train.toml"),
            Ok(Task::Plan(PlanArgs { json: false, gpu_memory: None, job: job(None, &[]) }))
        );
        let args = PlanArgs { json: true, gpu_memory: None, job: job(Some(2), &["zero.stage=0"]) };
        assert_eq!(parse("plan --json --nproc 2 --set zero.stage=0 train.toml"), Ok(Task::Plan(args)));
    }

    #[test]
    fn memory_has_a_unit() {
        assert_eq!(memory_size("80GiB"), Ok(80 << 30));
        assert_eq!(memory_size("24 GB"), Ok(24_000_000_000));
        assert_eq!(memory_size("1.5TiB"), Ok(3 << 39));
        for wrong in ["", "80", "GiB", "-1GiB", "80gib", "1e400GiB", "NaN GiB"] {
            assert!(memory_size(wrong).is_err(), "{wrong}");
        }
        let args = PlanArgs { json: false, gpu_memory: Some(80 << 30), job: job(Some(4), &[]) };
        assert_eq!(parse("plan --nproc 4 --gpu-memory 80GiB train.toml"), Ok(Task::Plan(args)));
    }

    #[test]
    fn plan_maps_a_deepspeed_config() {
        let args = |nproc| Ok(Task::MapDeepspeed(DeepspeedArgs { config: "ds.json".into(), nproc }));
        assert_eq!(parse("plan --deepspeed ds.json"), args(None));
        assert_eq!(parse("plan --nproc 4 --deepspeed ds.json"), args(Some(4)));
    }

    #[test]
    fn run_takes_a_command_with_or_without_dashes() {
        let check = |line: &str, form: CommandForm, command: &[&str]| match parse(line) {
            Ok(Task::Run(args)) => assert_eq!(
                (args.form, args.flags.command),
                (form, command.iter().map(OsString::from).collect()),
                "{line}"
            ),
            other => panic!("{line}: {other:?}"),
        };
        check("run --nproc 2 -- train.py -x --y 1", CommandForm::Verbatim, &["train.py", "-x", "--y", "1"]);
        check("run --nproc 2 train.py -x --y 1", CommandForm::Script, &["train.py", "-x", "--y", "1"]);
        check("run train.py -- --nproc 2", CommandForm::Script, &["train.py", "--", "--nproc", "2"]);
        check("run -- cmd -- x", CommandForm::Verbatim, &["cmd", "--", "x"]);
        check("run -r 3 -- --odd", CommandForm::Verbatim, &["--odd"]);
    }

    #[test]
    fn training_has_one_machine() {
        assert_eq!(parse("--nnodes 1 --node-rank 0 train.toml"), Ok(Task::Train(job(None, &[]))));
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
        assert_eq!(in_step("dslaunch --nnodes 1 train.toml"), Ok(Task::Train(job(None, &[]))));
        assert_eq!(in_step("dslaunch --in-background train.toml"), Ok(Task::TrainInBackground(job(None, &[]))));
        assert!(in_step("dslaunch plan train.toml").is_ok() && in_step("dslaunch run -- cmd").is_ok());
    }

    #[test]
    fn checkpoint_looks_at_a_folder() {
        let inspect = |json| Ok(Task::Checkpoint(CheckpointTask::Inspect { dir: "runs/x".into(), json }));
        assert_eq!(parse("checkpoint inspect runs/x"), inspect(false));
        assert_eq!(parse("checkpoint inspect --json runs/x"), inspect(true));
        let verify = Task::Checkpoint(CheckpointTask::Verify { dir: "runs/x".into() });
        assert_eq!(parse("checkpoint verify runs/x"), Ok(verify));
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
