//! `dslaunch status`, `stop` and `attach`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use proto::run_dir::RunDir;
use tokio::signal::ctrl_c;
use tokio::time::timeout;

use crate::control_socket::client::Connection;
use crate::control_socket::protocol::{Reply, Request};
use crate::control_socket::{ControlError, past};
use crate::error::LaunchError;
use crate::output::console::{Console, Shown};
use crate::output::status::{JobStatus, State};
use crate::output::terminal::Terminal;
use crate::output::units;
use crate::process::signals::Stop;
use crate::runtime::on_runtime;

/// The commands for a job that runs, or has run.
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
    /// Stop a job at once, as SIGTERM does, or after a checkpoint, and wait until it has ended
    ///
    /// Exit codes: 0 it does not run (any more); 1 it still does after --timeout, or does not answer; 2 no run there.
    Stop {
        /// The run directory: output_dir of the job
        #[arg(value_name = "RUN_DIR")]
        dir: PathBuf,
        /// Let it finish its step and make a checkpoint first
        #[arg(long)]
        save: bool,
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

/// Does what the command line asks for. Returns the exit code.
pub fn run(task: &ControlTask, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut console = Console::new(terminal.clone(), true);
    on_runtime(async {
        let code = match task {
            ControlTask::Status { dir, json } => {
                let status = status(&RunDir::new(dir)).await?;
                let to_json = || serde_json::to_string_pretty(&status).expect("a status is plain data");
                console.say(&if *json { to_json() } else { status.table(dir) });
                Ok(status.verdict())
            }
            ControlTask::Stop { dir, save, timeout } => {
                let how = if *save { Stop::Saving } else { Stop::AtOnce };
                stop(dir, how, Duration::from_secs(*timeout), &mut console).await
            }
            ControlTask::Attach { dir } => attach(dir, &mut console).await,
        };
        Ok(code?)
    })
}

/// Finds out about the job: it is asked, or its files are.
async fn status(run_dir: &RunDir) -> Result<JobStatus, ControlError> {
    match Connection::ask(run_dir, Request::Status).await {
        Ok(Some((_, Reply::Status(status)))) => Ok(status),
        Ok(Some((_, other))) => Err(unexpected(run_dir.root(), &other)),
        Ok(None) => past::status(run_dir),
        Err(ControlError::NoAnswer { pid, .. }) => {
            let status = past::status(run_dir)?;
            Ok(JobStatus { state: State::Silent, pid, exit_code: None, reason: None, ..status })
        }
        Err(error) => Err(error),
    }
}

/// 0: the job does not run any more. 1: it still does after `limit`.
async fn stop(dir: &Path, how: Stop, limit: Duration, console: &mut Console) -> Result<u8, ControlError> {
    let run_dir = RunDir::new(dir);
    let Some((mut job, reply)) = Connection::ask(&run_dir, Request::Stop(how)).await? else {
        let status = past::status(&run_dir)?;
        if status.state == State::Silent {
            return Err(ControlError::NoAnswer { dir: dir.to_owned(), pid: status.pid });
        }
        console.say(&status.headline(dir));
        return Ok(0);
    };
    if reply != Reply::Stopping {
        return Err(unexpected(dir, &reply));
    }
    console.wait(&format!("{}: stopping", dir.display()));
    let ended = timeout(limit, job.closed()).await;
    console.end_wait();
    match ended {
        Ok(closed) => {
            closed?;
            console.say(&past::status(&run_dir)?.headline(dir));
            Ok(0)
        }
        Err(_) => {
            let limit = units::duration(limit);
            console.warn(&format!("{}: still stopping after {limit}; it goes on doing so", dir.display()));
            Ok(1)
        }
    }
}

/// 0: the user left. Otherwise the exit code that the job ended with, 1 if it did not run or says none.
async fn attach(dir: &Path, console: &mut Console) -> Result<u8, ControlError> {
    let run_dir = RunDir::new(dir);
    let Some((mut job, reply)) = Connection::ask(&run_dir, Request::Attach).await? else {
        console.say(&past::status(&run_dir)?.headline(dir));
        return Ok(1);
    };
    let Reply::Status(status) = reply else { return Err(unexpected(dir, &reply)) };
    console.say(&format!("{}; Ctrl-C leaves it running", status.headline(dir)));
    if status.steps > 0 {
        console.show(Shown::Begin { step: status.step, steps: status.steps });
        if status.step > 0 {
            console.row(&format!("at step {} of {}", status.step, status.steps));
        }
        if let (State::Training, Some(loss)) = (status.state, status.loss) {
            console.show(Shown::of_a_step_before(status.step, loss));
        }
    }
    loop {
        let reply = tokio::select! {
            reply = job.next() => reply?,
            pressed = ctrl_c() => {
                pressed.map_err(|source| ControlError::Io { socket: run_dir.control_socket(), source })?;
                console.clear();
                console.hurry();
                console.say(&format!("{}: it goes on; `dslaunch attach` comes back", dir.display()));
                return Ok(0);
            }
        };
        match reply {
            Some(Reply::Shown(shown)) => console.show(tame(shown)),
            Some(Reply::Missed(lines)) => console.row(&format!("{} not shown", units::plural(lines, "line"))),
            Some(other) => return Err(unexpected(dir, &other)),
            None => break,
        }
    }
    console.clear();
    let status = past::status(&run_dir)?;
    console.say(&status.headline(dir));
    Ok(status.exit_code.unwrap_or(1))
}

/// Root may look at other users' jobs: their texts must not command root's terminal.
fn tame(shown: Shown) -> Shown {
    let clean = |text: String| text.split('\n').map(units::printable).collect::<Vec<_>>().join("\n");
    match shown {
        Shown::Wait(text) => Shown::Wait(clean(text)),
        Shown::Row(text) => Shown::Row(clean(text)),
        Shown::Say(text) => Shown::Say(clean(text)),
        Shown::Warn(text) => Shown::Warn(clean(text)),
        Shown::Step { step, logged, text } => Shown::Step { step, logged, text: text.map(clean) },
        Shown::EndWait | Shown::Begin { .. } | Shown::Still { .. } | Shown::Moves | Shown::Clear => shown,
    }
}

fn unexpected(dir: &Path, reply: &Reply) -> ControlError {
    let answer = String::from_utf8_lossy(&reply.line()).trim_end().to_owned();
    ControlError::Answer { dir: dir.to_owned(), answer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    #[test]
    fn jobs_are_looked_at_stopped_and_followed() {
        let control = |task| Ok(Task::Control(task));
        assert_eq!(parse("status --json runs/x"), control(ControlTask::Status { dir: "runs/x".into(), json: true }));
        let stop = |save, timeout| control(ControlTask::Stop { dir: "runs/x".into(), save, timeout });
        assert_eq!(parse("stop runs/x"), stop(false, 300));
        assert_eq!(parse("stop --save --timeout 5 runs/x"), stop(true, 5));
        assert_eq!(parse("attach runs/x"), control(ControlTask::Attach { dir: "runs/x".into() }));
    }

    #[test]
    fn a_followed_jobs_text_commands_no_terminal() {
        let shown = Shown::Warn("a\x1b]0;title\x07\nb".into());
        assert_eq!(tame(shown), Shown::Warn("a\u{fffd}]0;title\u{fffd}\nb".into()));
    }
}
