//! Signals to the launcher: which ones mean that the user wants the job to stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The user wants the job to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM, or a terminal that was closed.
    Terminate,
}

impl Interrupt {
    /// The launcher's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Interrupt::Interrupt => 130,
            Interrupt::Terminate => 143,
        }
    }

    /// The signal, to be passed on.
    pub fn signal(self) -> nix::sys::signal::Signal {
        match self {
            Interrupt::Interrupt => nix::sys::signal::Signal::SIGINT,
            Interrupt::Terminate => nix::sys::signal::Signal::SIGTERM,
        }
    }

    /// The signal's name.
    pub fn name(self) -> &'static str {
        self.signal().as_str()
    }
}

/// The signals that have arrived since [`Signals::listen`].
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` when SIGHUP was ignored at start: nohup's wish is kept.
    hangup: Option<Signal>,
}

impl Signals {
    /// Takes the signals over from their default, which would end the launcher. Needs a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if hangup_is_ignored()? { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next one. Cancel safe.
    pub async fn next(&mut self) -> Interrupt {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Interrupt::Interrupt,
            _ = self.terminate.recv() => Interrupt::Terminate,
            _ = hangup => Interrupt::Terminate,
        }
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

    #[test]
    fn nohup_is_seen() {
        assert!(ignores_hangup("Name:\tdslaunch\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("Name:\tdslaunch\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
