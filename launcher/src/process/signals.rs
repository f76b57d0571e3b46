//! Interprets the signals to the launcher: some mean that the user wants the job to stop, others that a scheduler wants
//! the machine back.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use proto::env::SchedulerEnv;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long Slurm leaves a job between SIGTERM and SIGKILL unless its configuration says otherwise (KillWait=30), and a
/// second less.
const KILL_WAIT: Duration = Duration::from_secs(29);

/// How long a checkpoint may take where nobody says when the machine is wanted back. Ranks that hang are found sooner.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The signals of one Ctrl-C: a scheduler sends its own to every process of a job, so that it comes twice, by way of the
/// guardian too.
const ONE_PRESS: Duration = Duration::from_millis(300);

/// The job is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// SIGINT: Ctrl-C. The first one leaves time for a checkpoint.
    Interrupt,
    /// SIGTERM, or a terminal that was closed: at once.
    Terminate,
    /// `dslaunch stop --save`: after a step, with a checkpoint.
    SaveAndTerminate,
    /// SIGUSR1, or a scheduler's SIGTERM: after a step, with a checkpoint, to be started again.
    Preempt,
}

impl Interrupt {
    /// One for each signal.
    pub const BY_SIGNAL: [Interrupt; 3] = [Interrupt::Interrupt, Interrupt::Terminate, Interrupt::Preempt];

    /// The launcher's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Interrupt::Interrupt => 130,
            Interrupt::Terminate | Interrupt::SaveAndTerminate => 143,
            Interrupt::Preempt => 75,
        }
    }

    /// The signal, to be passed on.
    pub fn signal(self) -> nix::sys::signal::Signal {
        match self {
            Interrupt::Interrupt => nix::sys::signal::Signal::SIGINT,
            Interrupt::Terminate | Interrupt::SaveAndTerminate => nix::sys::signal::Signal::SIGTERM,
            Interrupt::Preempt => nix::sys::signal::Signal::SIGUSR1,
        }
    }

    /// The signal's name.
    pub fn name(self) -> &'static str {
        self.signal().as_str()
    }
}

/// How `dslaunch stop` ends a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// At once.
    AtOnce,
    /// After a step, with a checkpoint.
    Saving,
}

/// Whether `dslaunch stop` has asked for the end, and whether with a checkpoint: then SIGTERM means that, whoever has started
/// the launcher.
static STOPPED: AtomicBool = AtomicBool::new(false);
static SAVES: AtomicBool = AtomicBool::new(false);

/// Stops this process as SIGTERM from its user does: whatever the job waits for, signals are listened for there.
pub fn stop_this_process(how: Stop) -> io::Result<()> {
    SAVES.store(how == Stop::Saving, Relaxed);
    STOPPED.store(true, Relaxed);
    Ok(kill(Pid::this(), nix::sys::signal::Signal::SIGTERM)?)
}

/// The job is on its way to the end, with a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    /// Why.
    pub interrupt: Interrupt,
    /// When it ends without.
    pub deadline: Instant,
}

/// The signals that have arrived since they were listened for.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` when SIGHUP was ignored at start: nohup's wish is kept.
    hangup: Option<Signal>,
    /// `None` where a job cannot be preempted.
    preempt: Option<Preempt>,
    leaving: Option<Leaving>,
    /// The latest Ctrl-C.
    pressed: Option<Instant>,
}

#[derive(Debug)]
struct Preempt {
    warning: Signal,
    scheduler: SchedulerEnv,
}

impl Signals {
    /// Takes over the signals that end a job from their default, which would end the launcher. Needs a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if hangup_is_ignored()? { None } else { Some(signal(SignalKind::hangup())?) },
            preempt: None,
            leaving: None,
            pressed: None,
        })
    }

    /// The same for a job that can make a checkpoint before it goes. `scheduler`: who has started the launcher.
    pub fn listen_with_preemption(scheduler: SchedulerEnv) -> io::Result<Self> {
        let preempt = Preempt { warning: signal(SignalKind::user_defined1())?, scheduler };
        Ok(Self { preempt: Some(preempt), ..Self::listen()? })
    }

    /// Waits for the next one. Cancel safe.
    pub async fn next(&mut self) -> Interrupt {
        loop {
            let interrupt = self.next_signal().await;
            let is_press = interrupt == Interrupt::Interrupt;
            let before = if is_press { self.pressed.replace(Instant::now()) } else { None };
            if before.is_none_or(|before| before.elapsed() >= ONE_PRESS) {
                return interrupt;
            }
        }
    }

    async fn next_signal(&mut self) -> Interrupt {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let warning = async {
            match &mut self.preempt {
                Some(preempt) => preempt.warning.recv().await,
                None => std::future::pending().await,
            }
        };
        let interrupt = tokio::select! {
            _ = self.interrupt.recv() => Interrupt::Interrupt,
            _ = hangup => Interrupt::Terminate,
            _ = warning => Interrupt::Preempt,
            _ = self.terminate.recv() => match &self.preempt {
                Some(preempt) if preempt.scheduler.terminates_to_preempt() && !STOPPED.load(Relaxed) => {
                    return self.preempted(nix::sys::signal::Signal::SIGTERM);
                }
                _ if SAVES.load(Relaxed) => Interrupt::SaveAndTerminate,
                _ => Interrupt::Terminate,
            },
        };
        if interrupt == Interrupt::Preempt { self.preempted(interrupt.signal()) } else { interrupt }
    }

    /// The way to the end, once the job is on it.
    pub fn leaving(&self) -> Option<Leaving> {
        self.leaving
    }

    /// The job sets out for its end, which comes after `patience` at the latest.
    pub fn leave(&mut self, interrupt: Interrupt, patience: Duration) {
        // A later wish can only bring the end nearer.
        let deadline = Instant::now() + patience;
        let deadline = self.leaving.map_or(deadline, |leaving| leaving.deadline.min(deadline));
        self.leaving = Some(Leaving { interrupt, deadline });
    }

    /// A scheduler sends its signals to every process of a job, so that the same one comes twice, by way of the guardian too.
    fn preempted(&mut self, by: nix::sys::signal::Signal) -> Interrupt {
        let preempt = self.preempt.as_ref().expect("only heard by a job that can be preempted");
        let patience = patience(&preempt.scheduler, by, SystemTime::now());
        self.leave(Interrupt::Preempt, patience);
        Interrupt::Preempt
    }
}

/// How long a job has from `signal` on. Pure.
fn patience(scheduler: &SchedulerEnv, signal: nix::sys::signal::Signal, now: SystemTime) -> Duration {
    match scheduler {
        SchedulerEnv::Slurm { .. } if signal == nix::sys::signal::Signal::SIGTERM => KILL_WAIT,
        // At its end the job gets SIGTERM first. A clock that says that it has been killed is wrong.
        SchedulerEnv::Slurm { job_end: Some(end) } => (*end + KILL_WAIT).duration_since(now).unwrap_or(PATIENCE),
        // systemd waits as long as it is told that something happens.
        SchedulerEnv::Slurm { job_end: None } | SchedulerEnv::Systemd | SchedulerEnv::Nobody => PATIENCE,
    }
}

fn hangup_is_ignored() -> io::Result<bool> {
    Ok(ignores_hangup(&std::fs::read_to_string("/proc/self/status")?))
}

/// `status` is the text of /proc/PID/status, whose `SigIgn` line is a mask in hex: bit n - 1 is signal n.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (SignalKind::hangup().as_raw_value() - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn nohup_is_seen() {
        assert!(ignores_hangup("Name:\tdslaunch\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("Name:\tdslaunch\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }

    #[test]
    fn a_job_has_until_the_scheduler_kills_it() {
        let (now, second) = (SystemTime::now(), Duration::from_secs(1));
        let slurm = |job_end| SchedulerEnv::Slurm { job_end };
        let ends_in = |left| slurm(Some(now + left));
        assert_eq!(patience(&ends_in(120 * second), Signal::SIGUSR1, now), 120 * second + KILL_WAIT);
        assert_eq!(patience(&ends_in(120 * second), Signal::SIGTERM, now), KILL_WAIT, "it is preempted before its end");
        assert_eq!(patience(&slurm(None), Signal::SIGTERM, now), KILL_WAIT);
        assert_eq!(patience(&slurm(None), Signal::SIGUSR1, now), PATIENCE);
        assert_eq!(patience(&slurm(Some(now - 20 * second)), Signal::SIGUSR1, now), 9 * second);
        assert_eq!(patience(&slurm(Some(now - 60 * second)), Signal::SIGUSR1, now), PATIENCE);
        assert_eq!(patience(&SchedulerEnv::Systemd, Signal::SIGTERM, now), PATIENCE);
    }
}
