//! After a job: has `wandb sync` send its offline run, where that is installed and there is a key, or says how to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::env::variable;
use tokio::sync::oneshot;

use crate::output::units;
use crate::process::exit::Exit;
use crate::process::signals::Signals;
use crate::process::spawn::{Process, Sink, Spawner, Spec};
use crate::process::timer::Timer;

/// Sending may take this long.
const LIMIT: Duration = Duration::from_secs(120);
/// And this long after it was asked to stop.
const GRACE: Duration = Duration::from_secs(3);

/// Whether there is time to send a run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// The job has come to its own end.
    Enough,
    /// Somebody wants it to be gone.
    None,
}

/// Sends the run in `folder`, if that can be done now. Returns what became of it, for the user: one line.
pub async fn after(folder: &Path, sends: bool, time: Time, signals: &mut Signals) -> String {
    let how = format!("wandb sync {}", folder.display());
    match program().filter(|_| sends && time == Time::Enough) {
        None => format!("wandb: the run is on this disk only; to send it: {how}"),
        Some(program) => match send(program, folder, signals).await {
            Ok(()) => format!("wandb: the run is sent{}", address(folder)),
            Err(why) => format!("note: wandb: the run is not sent, {why}; to try again: {how}"),
        },
    }
}

/// The program `wandb`, if it is on the search path.
fn program() -> Option<PathBuf> {
    let folders = variable("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join("wandb")).find(|path| path.is_file())
}

async fn send(program: PathBuf, folder: &Path, signals: &mut Signals) -> Result<(), String> {
    let log = log(folder);
    let spec = Spec {
        program,
        args: vec!["sync".into(), folder.into()],
        env: vec![],
        stdout: Sink::File(log.clone()),
        stderr: Sink::File(log.clone()),
        ignore: vec![],
        cgroup: None,
        inherit: vec![],
    };
    let (ended, mut end) = oneshot::channel();
    let spawner = Spawner::start().map_err(|error| format!("no thread can be started: {error}"))?;
    let on_exit = |exit| {
        // Nobody may wait any more.
        let _ = ended.send(exit);
    };
    let process = spawner.spawn(spec, on_exit).map_err(|error| error.to_string())?;
    let mut limit = Timer::after(LIMIT);
    tokio::select! {
        exit = &mut end => match exit {
            Ok(Exit::Code(0)) => Ok(()),
            Ok(exit) => Err(format!("wandb {exit} (see {})", log.display())),
            Err(_) => Err("its end was not seen".to_owned()),
        },
        () = limit.over() => {
            stop(&process, end).await;
            Err(format!("wandb took longer than {}", units::duration(LIMIT)))
        }
        interrupt = signals.next() => {
            stop(&process, end).await;
            Err(format!("stopped by {}", interrupt.name()))
        }
    }
}

/// Ends it, and returns once it is gone or does not even die of SIGKILL.
async fn stop(process: &Process, mut end: oneshot::Receiver<Exit>) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // Whoever cannot be signalled any more is gone.
        let _ = process.signal_group(signal);
        let mut grace = Timer::after(GRACE);
        tokio::select! {
            _ = &mut end => return,
            () = grace.over() => {}
        }
    }
}

/// What wandb says, beside the run's log.
fn log(folder: &Path) -> PathBuf {
    folder.join("sync.log")
}

/// `: https://...`, as wandb has named it, or nothing.
fn address(folder: &Path) -> String {
    let said = fs::read(log(folder)).unwrap_or_default();
    address_in(&String::from_utf8_lossy(&said)).map_or(String::new(), |address| format!(": {address}"))
}

fn address_in(said: &str) -> Option<String> {
    let is_address = |word: &&str| ["https://", "http://"].iter().any(|start| word.starts_with(start));
    said.split_whitespace().rfind(|word| is_address(word) && word.contains("/runs/")).map(units::printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_run_is_what_wandb_says_last() {
        let said = "wandb: Syncing https://wandb.ai/me/p\nSyncing: https://wandb.ai/me/p/runs/abc ... \ndone.\n";
        assert_eq!(address_in(said).as_deref(), Some("https://wandb.ai/me/p/runs/abc"));
        assert_eq!(address_in("done."), None);
    }
}
