//! Decides whether a failed job is started again. Pure.
//!
//! Owns the restart budget and the memory of the last failure. It does not know how ranks are stopped or started.
//!
//! - RST-1 What a restart cannot help (the user's files, the machine) is not restarted.
//! - RST-2 The same failure at the same step twice in a row, without anything kept in between, is not tried a third time.
//! - RST-3 A restart comes at once if the attempt before it made progress. Others wait, twice as long each time: a
//!   fault of the machine may pass.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::supervise::{Failure, Kind};

/// How many times a job may be started again.
#[derive(Debug)]
pub struct Budget {
    /// The name of the setting that the user knows.
    setting: &'static str,
    max: u32,
    used: u32,
}

impl Budget {
    /// `max` restarts, as `setting` says.
    pub fn new(setting: &'static str, max: u32) -> Self {
        Self { setting, max, used: 0 }
    }

    /// Restarts so far.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Counts one restart, or says why there is none left.
    pub fn spend(&mut self) -> Result<(), String> {
        match exhausted(self.setting, self.max, self.used) {
            Some(reason) => Err(reason),
            None => {
                self.used += 1;
                Ok(())
            }
        }
    }
}

/// Returns the reason that no restart is left after `used` of `max`, as `setting` says; `None` if one is.
pub fn exhausted(setting: &str, max: u32, used: u32) -> Option<String> {
    match max {
        max if used < max => None,
        0 => Some(format!("{setting} = 0 allows no restart")),
        max => Some(format!("the restart budget is used up ({setting} = {max})")),
    }
}

/// The wait before the second restart from the same step.
const BACK_OFF: Duration = Duration::from_secs(1);
/// The longest wait.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// The restart policy of a training job.
#[derive(Debug)]
pub struct RestartPolicy {
    budget: Budget,
    last: Option<Signature>,
    /// The step that the latest restart went on from, and how many have in a row.
    stuck_at: Option<(u64, u32)>,
}

/// The facts that make two failures the same one.
#[derive(Debug, PartialEq, Eq)]
struct Signature {
    step: u64,
    summary: String,
    /// The step that a restart goes on from.
    resume_step: u64,
}

/// The decision after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Start again.
    Restart {
        /// After this time.
        after: Duration,
    },
    /// The user's files are wrong (exit code 2).
    Input,
    /// The machine cannot do it (exit code 3).
    Environment,
    /// Give up (exit code 1), for this reason.
    GiveUp(String),
}

impl RestartPolicy {
    /// A fresh budget.
    pub fn new(max_restarts: u32) -> Self {
        Self { budget: Budget::new("restart.max_restarts", max_restarts), last: None, stuck_at: None }
    }

    /// Restarts so far.
    pub fn restarts(&self) -> u32 {
        self.budget.used()
    }

    /// Decides after a failure, and counts the restart if it is one. `resume_step` is the step that a restart would go on
    /// from, 0 for the beginning.
    pub fn decide(&mut self, cause: &Failure, resume_step: u64) -> Verdict {
        match cause.kind {
            Kind::Input => return Verdict::Input,
            Kind::Environment => return Verdict::Environment,
            Kind::Diverged => return Verdict::GiveUp("training has diverged, and would again".to_owned()),
            Kind::Peer | Kind::Internal | Kind::Damaged | Kind::Died | Kind::Missing | Kind::Hung | Kind::Robbed => {}
        }
        let signature = signature(cause, resume_step);
        if signature.is_some() && signature == self.last {
            let place =
                if cause.step == 0 { "before the first step".to_owned() } else { format!("at step {}", cause.step) };
            return Verdict::GiveUp(format!("the same failure {place} twice in a row: another restart would not help"));
        }
        self.last = signature;
        match self.budget.spend() {
            Ok(()) => Verdict::Restart { after: self.back_off(resume_step) },
            Err(reason) => Verdict::GiveUp(reason),
        }
    }

    /// RST-3.
    fn back_off(&mut self, resume_step: u64) -> Duration {
        let in_a_row = match self.stuck_at {
            Some((step, in_a_row)) if step == resume_step => in_a_row + 1,
            _ => 0,
        };
        self.stuck_at = Some((resume_step, in_a_row));
        match in_a_row {
            0 => Duration::ZERO,
            _ => BACK_OFF.saturating_mul(1 << (in_a_row - 1).min(16)).min(BACK_OFF_MAX),
        }
    }
}

/// `None` for deaths that were brought in from outside and say nothing about the next attempt.
fn signature(cause: &Failure, resume_step: u64) -> Option<Signature> {
    let from_outside = |signal| cause.message.is_none() && cause.exit.is_some_and(|exit| exit.is_signal(signal));
    if [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().any(from_outside) {
        return None;
    }
    Some(Signature { step: cause.step, summary: cause.summary(), resume_step })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::exit::Exit;

    fn failure(kind: Kind, step: u64, message: &str) -> Failure {
        Failure { rank: 0, kind, step, message: Some(message.into()), exit: Some(Exit::Code(1)) }
    }

    fn died(number: i32) -> Failure {
        let exit = Exit::Signal { number, core_dumped: false };
        Failure { rank: 0, kind: Kind::Died, step: 5, message: None, exit: Some(exit) }
    }

    /// Feeds failures with the step a restart would resume from; all but the last must be restarted.
    fn check(max_restarts: u32, failures: &[(Failure, u64)], last: Verdict) {
        let mut policy = RestartPolicy::new(max_restarts);
        let verdicts: Vec<_> = failures.iter().map(|(cause, resume_step)| policy.decide(cause, *resume_step)).collect();
        let (end, before) = verdicts.split_last().unwrap();
        assert!(before.iter().all(|verdict| matches!(verdict, Verdict::Restart { .. })), "{verdicts:?}");
        assert_eq!(*end, last);
    }

    fn restart_after(seconds: u64) -> Verdict {
        Verdict::Restart { after: Duration::from_secs(seconds) }
    }

    fn gives_up(reason: &str) -> Verdict {
        Verdict::GiveUp(reason.into())
    }

    #[test]
    fn what_a_restart_cannot_help_is_not_restarted() {
        check(3, &[(failure(Kind::Input, 0, "bad row"), 0)], Verdict::Input);
        check(3, &[(failure(Kind::Environment, 7, "disk full"), 0)], Verdict::Environment);
        check(3, &[(failure(Kind::Diverged, 7, "loss NaN"), 0)], gives_up("training has diverged, and would again"));
    }

    #[test]
    fn the_budget_is_used_up_after_max_restarts() {
        check(0, &[(died(libc::SIGKILL), 0)], gives_up("restart.max_restarts = 0 allows no restart"));
        let reason = gives_up("the restart budget is used up (restart.max_restarts = 2)");
        check(2, &[(died(libc::SIGKILL), 0), (died(libc::SIGKILL), 0), (died(libc::SIGKILL), 0)], reason);
        check(1, &[(failure(Kind::Peer, 3, "rank 1 hangs"), 0)], restart_after(0));
        check(1, &[(failure(Kind::Missing, 0, "rendezvous"), 0)], restart_after(0));
    }

    #[test]
    fn the_same_failure_twice_without_progress_ends_it() {
        let boom = |step| failure(Kind::Internal, step, "boom\ndetails");
        let at_five = gives_up("the same failure at step 5 twice in a row: another restart would not help");
        check(9, &[(boom(5), 0), (boom(5), 0)], at_five.clone());
        let at_start =
            gives_up("the same failure before the first step twice in a row: another restart would not help");
        check(9, &[(boom(0), 0), (boom(0), 0)], at_start);
        // Another step, another message, a new checkpoint, or something else in between: go on.
        check(9, &[(boom(5), 0), (boom(6), 0)], restart_after(1));
        check(9, &[(boom(5), 0), (failure(Kind::Internal, 5, "bang"), 0)], restart_after(1));
        check(9, &[(boom(5), 0), (boom(5), 4)], restart_after(0));
        check(9, &[(boom(5), 0), (boom(6), 0), (boom(5), 0)], restart_after(2));
        check(9, &[(died(libc::SIGSEGV), 0), (died(libc::SIGSEGV), 0)], at_five);
    }

    #[test]
    fn restarts_that_get_nowhere_come_later_and_later() {
        let mut policy = RestartPolicy::new(100);
        let mut after = |resume_step| match policy.decide(&died(libc::SIGKILL), resume_step) {
            Verdict::Restart { after } => after.as_secs(),
            other => panic!("{other:?}"),
        };
        let waits: Vec<u64> = (0..9).map(|_| after(7)).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(
            [after(8), after(9), after(9), after(10)],
            [0, 0, 1, 0],
            "an attempt that got on is no reason to wait"
        );
    }
}
