//! `dslaunch plan`: prints what a job would do, and starts no rank.

use std::path::PathBuf;

use clap::Args;
use proto::memory::Room;
use proto::plan::Plan;

use super::Task;
use super::deepspeed::{DeepspeedArgs, Detail};
use crate::error::LaunchError;
use crate::job::args::JobArgs;
use crate::job::ownership::Ownership;
use crate::job::resume::Wish;
use crate::job::setup::{Planned, Setup};
use crate::job::{note, notes, start_of};
use crate::output::console::Console;
use crate::output::plan_table::{plan_table, plan_table_without_data};
use crate::output::terminal::Terminal;
use crate::process::signals::Signals;
use crate::run_dir::lock::RunLock;
use crate::runtime::on_runtime;

/// Print the resolved plan: layout, steps, tokens, memory per rank. Starts no rank
///
/// Steps depend on the data, which is prepared in output_dir as for training: no other dslaunch may be using that
/// folder.
///
/// With --deepspeed, nothing is planned: the train.toml that says what a DeepSpeed config says is printed on
/// standard output, and on standard error what became of the keys that are not in it: refused, unknown, replaced by something
/// close, left open by "auto", or without effect here. Exit codes then: 0; 2 a key is refused or unknown, or the file is damaged.
#[derive(Debug, Args)]
pub struct PlanCommand {
    /// Print the plan as JSON, as ranks read it
    #[arg(long)]
    json: bool,
    /// Map a DeepSpeed config to a train.toml, key by key
    #[arg(long, value_name = "ds_config.json", conflicts_with_all = ["json", "sets", "train_toml", "gpu_memory", "host_memory"])]
    deepspeed: Option<PathBuf>,
    /// With --deepspeed: say of each key without effect why it has none
    #[arg(long, requires = "deepspeed", conflicts_with = "train_toml")]
    explain: bool,
    /// Plan for GPUs with this much memory each (80GiB, 24GB), which need not be there, and look at no data: rows are
    /// taken as data.seq_len long. Exit code 3 if the job does not fit
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    gpu_memory: Option<u64>,
    /// With --gpu-memory: the memory of the machine that the GPUs are in. Without it, what the job needs there is printed
    /// and not checked
    #[arg(long, value_name = "SIZE", value_parser = memory_size, requires = "gpu_memory")]
    host_memory: Option<u64>,
    /// Number of ranks [default: the number of GPUs, or 1 without one; with --deepspeed: as many as the config's batch
    /// sizes need]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nproc: Option<u16>,
    /// Plan for ranks that share a GPU
    #[arg(long, conflicts_with_all = ["deepspeed", "gpu_memory"])]
    share_gpu: bool,
    /// Set a key of train.toml, overriding the file; may be repeated
    #[arg(long = "set", value_name = "section.key=value")]
    sets: Vec<String>,
    /// The job
    #[arg(value_name = "train.toml", required_unless_present = "deepspeed")]
    train_toml: Option<PathBuf>,
}

/// The job to plan, and the form to print it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanArgs {
    /// True for JSON.
    pub json: bool,
    /// The memory of the machine, where it is for GPUs that need not be there.
    pub imagined: Option<Room>,
    /// The job.
    pub job: JobArgs,
}

/// `dslaunch plan`: prints the resolved plan. Prepares the data; starts no rank. Returns the exit code.
pub fn run(args: &PlanArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let setup = Setup::load(&args.job, args.imagined)?;
    let json = |plan: &Plan| serde_json::to_string_pretty(plan).expect("a plan is plain data");
    if args.imagined.is_some() {
        let plan = setup.plan_without_data()?;
        let mut console = Console::new(terminal.clone(), !args.json);
        note(&setup.notes, &mut console);
        note(&setup.notes_on(&plan), &mut console);
        console.say(&if args.json { json(&plan) } else { plan_table_without_data(&plan, setup.room()) });
        return Ok(0);
    }
    let wish = Wish::of(&setup)?;
    on_runtime(async {
        let mut signals = Signals::listen().map_err(LaunchError::io("listen for signals"))?;
        let mut console = Console::new(terminal.clone(), !args.json);
        note(&setup.notes, &mut console);
        let _lock = RunLock::acquire(setup.run_dir().root())?;
        let owned = Ownership::check(&wish, &setup, &mut console)?;
        let from = wish.checkpoint(&setup, &mut console)?;
        let Planned { plan, .. } = setup.plan(start_of(from.as_ref()), &mut signals, &mut console).await?;
        note(&notes(&setup, &owned, from.as_ref(), &plan), &mut console);
        console.say(&if args.json { json(&plan) } else { plan_table(&plan, setup.room()) });
        Ok(0)
    })
}

impl PlanCommand {
    /// Returns the task that was meant: a plan, or a config that is mapped.
    pub fn task(self) -> Task {
        let Self { json, deepspeed, explain, gpu_memory, host_memory, nproc, share_gpu, sets, train_toml } = self;
        let imagined = gpu_memory.map(|gpu| Room { gpu: Some(gpu), host: host_memory });
        let detail = if explain { Detail::EachKey } else { Detail::Grouped };
        match (deepspeed, train_toml) {
            (Some(config), _) => Task::MapDeepspeed(DeepspeedArgs { config, nproc, detail }),
            (None, Some(train_toml)) => {
                Task::Plan(PlanArgs { json, imagined, job: JobArgs { nproc, share_gpu, sets, train_toml } })
            }
            (None, None) => unreachable!("clap asks for one of them"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;

    #[test]
    fn plan_prints() {
        assert_eq!(
            parse("plan train.toml"),
            Ok(Task::Plan(PlanArgs { json: false, imagined: None, job: JobArgs::example(None, &[]) }))
        );
        let args = PlanArgs { json: true, imagined: None, job: JobArgs::example(Some(2), &["zero.stage=0"]) };
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
        let args = |host| {
            let imagined = Some(Room { gpu: Some(80 << 30), host });
            Ok(Task::Plan(PlanArgs { json: false, imagined, job: JobArgs::example(Some(4), &[]) }))
        };
        assert_eq!(parse("plan --nproc 4 --gpu-memory 80GiB train.toml"), args(None));
        assert_eq!(parse("plan --nproc 4 --gpu-memory 80GiB --host-memory 1TiB train.toml"), args(Some(1 << 40)));
        assert!(parse("plan --host-memory 1TiB train.toml").is_err(), "of a machine with GPUs");
    }

    #[test]
    fn plan_maps_a_deepspeed_config() {
        let detail = Detail::Grouped;
        let args = |nproc| Ok(Task::MapDeepspeed(DeepspeedArgs { config: "ds.json".into(), nproc, detail }));
        assert_eq!(parse("plan --deepspeed ds.json"), args(None));
        assert_eq!(parse("plan --nproc 4 --deepspeed ds.json"), args(Some(4)));
        assert!(parse("plan --deepspeed ds.json --host-memory 1TiB").is_err(), "nothing is planned");
        let each = DeepspeedArgs { config: "ds.json".into(), nproc: None, detail: Detail::EachKey };
        assert_eq!(parse("plan --deepspeed ds.json --explain"), Ok(Task::MapDeepspeed(each)));
        assert!(parse("plan train.toml --explain").is_err(), "there is nothing to explain");
    }
}
