//! `dslaunch run`: runs any program as ranks of one or several machines, with torchrun's flags and worker environment.
//!
//! In reading order: [`flags`] (what was typed, and variables that stand for it), [`job`] (everything resolved),
//! [`attempt`] (all ranks of this machine once), [`rounds`] (round after round on several machines, which
//! [`agents`](crate::agents) agree on), then what they are made of: [`nodes`], [`num_workers`], [`rendezvous`] and
//! [`streams`] (torchrun's grammars and what they mean), [`peer_nodes`] (the other machines during an attempt),
//! [`port_watch`] (who takes rank 0's port), [`token`] (what nodes know each other by), [`logs`] (folders), [`tee`] over
//! [`lines`] (the terminal), [`error_file`] and [`report`] (what went wrong). Processes, the event loop, supervision and the
//! restart budget are those of training.

pub mod attempt;
mod error;
pub mod error_file;
pub mod flags;
pub mod job;
pub mod lines;
pub mod logs;
pub mod nodes;
pub mod num_workers;
pub mod peer_nodes;
pub mod port_watch;
pub mod rendezvous;
pub mod report;
pub mod rounds;
pub mod streams;
pub mod tee;
pub mod token;

use proto::env::variable;

use self::attempt::{AttemptEnd, Edge, Outside};
use self::job::CommandJob;
use self::logs::{Ending, LogFolder};
use self::num_workers::{Devices, visible_gpus};
use self::peer_nodes::PeerNodes;
use self::port_watch::PortWatch;
use self::rendezvous::HeldPort;
use crate::agents::{Meeting, NodePlace};
use crate::error::LaunchError;
use crate::gpus;
use crate::machine::cores;
use crate::output::terminal::{Item, Stream, Terminal};
use crate::process::exit::Exit;
use crate::process::signals::{Interrupt, Signals};
use crate::process::spawn::Spawner;
use crate::random::random_hex;
use crate::runtime::on_runtime;
use crate::supervise::Outcome;
use crate::supervise::restart::Budget;

pub use self::error::RunError;
pub use self::flags::RunFlags;
pub use self::job::{CommandForm, RunArgs};

/// Runs the command. Returns the exit code: 0, or the first failing rank's own.
pub fn run(args: RunArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let gpus = visible_gpus(gpus::listed(), variable("CUDA_VISIBLE_DEVICES").as_deref());
    let fresh_id = random_hex(16).map_err(LaunchError::io("draw a random run id"))?;
    let job = CommandJob::new(args, Devices { gpus, cores: cores::available() }, fresh_id, variable)?;
    on_runtime(async {
        let mut signals = Signals::listen().map_err(LaunchError::io("listen for signals"))?;
        let spawner = Spawner::start().map_err(LaunchError::io("start the spawning thread"))?;
        let logs = LogFolder::open(&job)?;
        if let Some(folder) = logs.unnamed() {
            say(terminal, format!("logs are in {}", folder.display()));
        }
        let mut edge = Edge { spawner: &spawner, signals: &mut signals, output: terminal };
        let result = match &job.nodes {
            None => attempts(&job, &logs, &mut edge).await,
            Some(nodes) => rounds::run(&job, nodes, &logs, &mut edge).await,
        };
        logs.close(if matches!(result, Ok(0)) { Ending::Success } else { Ending::Failure });
        result
    })
}

/// Attempt after attempt on this machine alone.
async fn attempts(job: &CommandJob, logs: &LogFolder, edge: &mut Edge<'_>) -> Result<u8, LaunchError> {
    let mut budget = Budget::new("--max-restarts", job.max_restarts);
    loop {
        let number = budget.used();
        let attempt_logs = logs.begin_attempt(number, job.num_workers)?;
        let port = HeldPort::take(&job.master).map_err(LaunchError::io("find a free port for rank 0"))?;
        let place = alone(job, number, &port);
        let mut outside = Outside { peer_nodes: PeerNodes::none(), port: PortWatch::over(Some(&port)) };
        let AttemptEnd { outcome, interrupt } = attempt::run(job, &place, &attempt_logs, edge, &mut outside).await?;
        let (cause, follow_ons) = match outcome {
            Outcome::Done => return Ok(0),
            Outcome::Interrupted(interrupt) => return Ok(stopped(interrupt, edge.output)),
            Outcome::Stuck { ranks } => {
                say(edge.output, format!("giving up: ranks {ranks:?} hang in the kernel and do not die of SIGKILL"));
                return Ok(1);
            }
            Outcome::Failed { cause, follow_ons } => (cause, follow_ons),
            Outcome::Recalled => unreachable!("there is nobody else"),
        };
        say(edge.output, report::report(job, &place, &attempt_logs, &cause, &follow_ons));
        if let Some(interrupt) = interrupt {
            return Ok(stopped(interrupt, edge.output));
        }
        match budget.spend() {
            Ok(()) => {
                let spent = format!("restart {} of {}", budget.used(), job.max_restarts);
                say(edge.output, format!("starting all ranks again ({spent})"));
            }
            // Without a budget nobody expects a restart.
            Err(_) if job.max_restarts == 0 => return Ok(exit_code(cause.exit)),
            Err(reason) => {
                say(edge.output, format!("giving up: {reason}"));
                return Ok(exit_code(cause.exit));
            }
        }
    }
}

/// The place of a machine that is alone.
fn alone(job: &CommandJob, round: u32, port: &HeldPort) -> NodePlace {
    let meeting = Meeting { addr: job.master.addr.clone(), port: port.number() };
    let world_size = job.num_workers as u32;
    NodePlace { round, first_rank: 0, world_size, max_restarts: job.max_restarts, meeting }
}

fn stopped(interrupt: Interrupt, terminal: &Terminal) -> u8 {
    say(terminal, format!("stopped by {}: no rank is left", interrupt.name()));
    terminal.hurry();
    interrupt.exit_code()
}

/// The launcher's exit code for a rank that failed: its own, or as a shell tells of a signal.
fn exit_code(exit: Option<Exit>) -> u8 {
    match exit {
        Some(Exit::Code(code)) => u8::try_from(code).unwrap_or(1),
        Some(Exit::Signal { number, .. }) => u8::try_from(128 + number).unwrap_or(1),
        None => 1,
    }
}

/// Standard output is the ranks' own.
fn say(terminal: &Terminal, text: String) {
    terminal.show(Item::Text(Stream::Err, text));
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    #[test]
    fn a_failure_is_told_as_a_shell_does() {
        assert_eq!(exit_code(Some(Exit::Code(3))), 3);
        assert_eq!(exit_code(Some(Exit::Signal { number: libc::SIGKILL, core_dumped: false })), 137);
        assert_eq!(exit_code(Some(Exit::Signal { number: 64, core_dumped: false })), 192);
        assert_eq!(exit_code(None), 1);
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
}
