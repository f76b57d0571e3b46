//! Breaks this rank as `DSLAUNCH_FAULT` asks ([`proto::fault`]), at the place that its line on the progress page names.

use std::fs;
use std::hint;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use proto::fault::{Fault, FaultKind};
use proto::progress::Place;
use proto::say;

use crate::control::Breaker;

/// More than any process may have.
const TOO_MANY_BYTES: usize = isize::MAX as usize;

/// The faults of this rank in this attempt.
pub struct Faults {
    faults: Vec<Fault>,
    breaker: Breaker,
}

impl Faults {
    /// Those of `all` that are for this rank, whose connection to the launcher `breaker` breaks.
    pub fn new(all: &[Fault], rank: usize, attempt: u32, breaker: Breaker) -> Self {
        Self { faults: all.iter().copied().filter(|fault| fault.is_for(rank, attempt)).collect(), breaker }
    }

    /// This rank comes to `place`.
    pub fn strike(&self, place: Place) {
        let is_inside = |kind| matches!(kind, FaultKind::HangInside | FaultKind::KillInside);
        for fault in self.faults.iter().filter(|fault| !is_inside(fault.kind) && fault.is_at(place)) {
            // For whoever reads the log: it did come to this.
            let Place { step, phase, .. } = place;
            say::err(format_args!("dslaunch-rank: a fault strikes: {:?} in step {step}, {phase}", fault.kind));
            self.suffer(fault.kind);
        }
    }

    /// This rank is in an exchange, at `place`.
    pub fn strike_inside(&self, place: Place) {
        if self.faults.iter().any(|fault| fault.kind == FaultKind::HangInside && fault.is_at(place)) {
            sleep_for_ever();
        }
    }

    /// This rank has come to the others of an exchange, at `place`.
    pub fn strike_arrived(&self, place: Place) {
        if self.faults.iter().any(|fault| fault.kind == FaultKind::KillInside && fault.is_at(place)) {
            self.suffer(FaultKind::Kill);
        }
    }

    fn suffer(&self, kind: FaultKind) {
        let signalled = match kind {
            FaultKind::Kill | FaultKind::KillInside => raise(Signal::SIGKILL),
            // The first only takes Rust's own handler away, which looks for stack overflows.
            FaultKind::Segv => raise(Signal::SIGSEGV).and_then(|()| raise(Signal::SIGSEGV)),
            FaultKind::Abort => raise(Signal::SIGABRT),
            FaultKind::Stop => raise(Signal::SIGSTOP),
            FaultKind::Term => raise(Signal::SIGTERM),
            FaultKind::Panic => panic!("a fault was asked for"),
            FaultKind::Exit(code) => exit(code),
            FaultKind::Memory => {
                hint::black_box(vec![1u8; TOO_MANY_BYTES]);
                Ok(())
            }
            FaultKind::Hang | FaultKind::HangInside => sleep_for_ever(),
            FaultKind::Spin => loop {
                hint::spin_loop();
            },
            FaultKind::Slow(ms) => {
                thread::sleep(Duration::from_millis(ms));
                Ok(())
            }
            FaultKind::Disconnect => {
                self.breaker.strike();
                Ok(())
            }
            FaultKind::KillLauncher => kill(Pid::parent(), Signal::SIGKILL),
            FaultKind::KillGuardian => kill(parent_of(Pid::parent()), Signal::SIGKILL),
        };
        signalled.expect("a process may signal itself and those that have started it");
    }
}

#[allow(clippy::disallowed_methods, reason = "an end that nothing prepares is the fault")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

fn sleep_for_ever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn parent_of(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("this process's parent runs");
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
    Pid::from_raw(parent.expect("the kernel writes numbers"))
}
