//! The story of an evaluation: a job without steps. Its ranks load the model as those of any job, on any layout, score the
//! validation sets once, and end.
//!
//! It has a run directory for as long as it lasts: nothing of it stays, and nothing of another job is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use proto::config::{Sink, TrainConfig};
use proto::control::EvalMetrics;
use proto::env::variable;

use super::attempt::{self, AttemptEnd, Edge};
use super::{explain, note, prepare};
use crate::error::LaunchError;
use crate::files::create_private_folder;
use crate::job::args::JobArgs;
use crate::job::setup::{Setup, worker_binary};
use crate::output::Output;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use crate::output::units;
use crate::process::signals::Signals;
use crate::process::spawn::Spawner;
use crate::random::random_hex;
use crate::run_dir::lock::RunLock;
use crate::run_dir::starting_point::StartingPoint;
use crate::runtime::on_runtime;
use crate::supervise::{Kind, Outcome};

/// What an evaluation comes to.
#[derive(Debug)]
pub enum Evaluated {
    /// Its numbers.
    Scored(EvalMetrics),
    /// It did not come to any, which has been told. dslaunch's exit code.
    Ended(u8),
}

/// Whether the user sees what is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// On the terminal.
    Shown,
    /// Only warnings and errors are shown.
    Quiet,
}

/// A folder that goes when this is dropped.
#[derive(Debug)]
pub struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// A new one that nobody else may look into, where the user has temporary files.
    pub fn create() -> Result<Self, LaunchError> {
        let name = random_hex(8).map_err(LaunchError::io("draw a random name"))?;
        let parent = variable("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        let path = parent.join(format!("dslaunch-evaluate-{name}"));
        create_private_folder(&path).map_err(LaunchError::io(format!("create {}", path.display())))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What is left of it is in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Scores the validation sets of `config`, whose output folder is temporary. Of `args` only the ranks count. `start` is when the
/// launcher started.
pub fn evaluate(
    config: TrainConfig,
    args: &JobArgs,
    progress: Progress,
    terminal: &Terminal,
    start: Instant,
) -> Result<Evaluated, LaunchError> {
    let setup = Setup::of(config, args, None)?;
    let worker = worker_binary()?;
    on_runtime(async {
        let mut signals = Signals::listen().map_err(LaunchError::io("listen for signals"))?;
        let run_dir = setup.run_dir();
        let lock = Arc::new(RunLock::acquire(run_dir.root())?);
        let sinks: &[Sink] = if progress == Progress::Shown { &[Sink::Console] } else { &[] };
        let output = Output::open(&run_dir, sinks, terminal.clone(), start);
        let mut output = output.map_err(LaunchError::io(format!("write {}", run_dir.events().display())))?;
        note(&setup.notes, output.console());
        let plan = setup.plan_of_evaluation(&mut signals, output.console()).await?;
        let job = prepare(plan, &setup, &worker, &lock)?;
        let ranks = units::plural(job.plan.mesh.world_size() as u64, "rank");
        output.console().wait(&format!("scoring on {ranks}"));
        let spawner = Spawner::start().map_err(LaunchError::io("start the spawning thread"))?;
        let mut edge = Edge { spawner: &spawner, signals: &mut signals, output: &mut output };
        let ended = attempt::run(&job, 0, &StartingPoint::Beginning, &mut edge).await?;
        output.console().end_wait();
        let evaluated = match (&ended.outcome, output.latest().eval.clone()) {
            (Outcome::Done, Some(eval)) => Evaluated::Scored(eval),
            (Outcome::Done, None) => unreachable!("rank 0 reports before it ends"),
            (Outcome::Failed { .. }, _) => {
                let cause = explain(&job, 0, ended, &mut output);
                output.console().release("the model was not scored");
                Evaluated::Ended(match cause.kind {
                    Kind::Input | Kind::Damaged => 2,
                    Kind::Environment => 3,
                    _ => 1,
                })
            }
            (_, _) => Evaluated::Ended(stopped(&ended, output.console())),
        };
        let _ = output.end(0).await;
        Ok(evaluated)
    })
}

/// The exit code of an evaluation that neither failed nor came to its end.
fn stopped(ended: &AttemptEnd, console: &mut Console) -> u8 {
    match &ended.outcome {
        Outcome::Interrupted(interrupt) => {
            console.hurry();
            console.warn(&format!("stopped by {}: no rank is left", interrupt.name()));
            interrupt.exit_code()
        }
        Outcome::Stuck { ranks } => {
            console.warn(&format!("giving up: ranks {ranks:?} hang in the kernel and do not die of SIGKILL"));
            1
        }
        Outcome::Done | Outcome::Failed { .. } | Outcome::Recalled => unreachable!("an evaluation has one machine"),
    }
}
