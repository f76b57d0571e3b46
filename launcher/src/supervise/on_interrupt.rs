//! Maps the user's wish to stop to the signal that ranks get. Pure.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::signals::Interrupt;

/// How long SIGKILL takes before it is worth looking again.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// From the signal to SIGKILL where a program may want to save something: torchrun's.
const FORWARD_GRACE: Duration = Duration::from_secs(30);

/// How ranks are asked to stop when the user wants the job to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// By SIGKILL: our own ranks, which have nothing to save. Other signals mean something to the launcher, not to them.
    Kill,
    /// By the signal that the launcher got: any program.
    Forward,
}

impl OnInterrupt {
    /// Returns the signal that they are sent.
    pub fn signal(self, interrupt: Interrupt) -> Signal {
        match self {
            OnInterrupt::Kill => Signal::SIGKILL,
            OnInterrupt::Forward => interrupt.signal(),
        }
    }

    /// How long they have from then on.
    pub fn grace(self) -> Duration {
        match self {
            OnInterrupt::Kill => KILL_GRACE,
            OnInterrupt::Forward => FORWARD_GRACE,
        }
    }
}
