//! The variables that a scheduler or a service manager sets for the launcher that it starts.

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

/// The scheduler that has started the launcher and may want the machine back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerEnv {
    /// Slurm (`SLURM_JOB_ID`).
    Slurm {
        /// When the job's time is over (`SLURM_JOB_END_TIME`), if that is known.
        job_end: Option<SystemTime>,
    },
    /// systemd, or who speaks its protocol (`NOTIFY_SOCKET`).
    Systemd,
    /// Somebody who does not say.
    Nobody,
}

impl SchedulerEnv {
    /// Reads the variables of this process.
    #[allow(clippy::disallowed_methods, reason = "this is where it is read")]
    pub fn from_process() -> Self {
        Self::read(|name| std::env::var_os(name))
    }

    /// The pure half of [`SchedulerEnv::from_process`].
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        if lookup("SLURM_JOB_ID").is_some() {
            let seconds = lookup("SLURM_JOB_END_TIME").and_then(|time| time.to_str()?.parse::<u64>().ok());
            let job_end = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
            return Self::Slurm { job_end };
        }
        if lookup("NOTIFY_SOCKET").is_some_and(|address| !address.is_empty()) { Self::Systemd } else { Self::Nobody }
    }

    /// Whether SIGTERM is a scheduler's word, which comes before SIGKILL and leaves time for a checkpoint.
    pub fn terminates_to_preempt(self) -> bool {
        self != Self::Nobody
    }
}

/// The variables that a service manager (systemd) sets for the launcher that it has started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEnv {
    /// The socket at which it wants to hear about the service (`NOTIFY_SOCKET`): a path, or `@NAME`.
    pub notify_socket: Option<OsString>,
    /// After how much silence it takes the service for dead (`WATCHDOG_USEC`, if `WATCHDOG_PID` is what it has started).
    pub watchdog: Option<Duration>,
}

impl ServiceEnv {
    /// Its variables, which are for the launcher alone: no rank may speak for it.
    pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

    /// Reads the variables of this process. `pid`: the process that the service manager has started.
    #[allow(clippy::disallowed_methods, reason = "this is where it is read")]
    pub fn from_process(pid: u32) -> Self {
        Self::read(|name| std::env::var_os(name), pid)
    }

    /// The pure half of [`ServiceEnv::from_process`]. What makes no sense is as if it were not there.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let number = |name: &str| lookup(name)?.to_str()?.parse::<u64>().ok();
        let is_for_us = lookup("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(pid.into());
        Self {
            notify_socket: lookup("NOTIFY_SOCKET").filter(|address| !address.is_empty()),
            watchdog: number("WATCHDOG_USEC").filter(|&usec| is_for_us && usec > 0).map(Duration::from_micros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_is_known_by_its_variables() {
        let read = |vars: &[(&str, &str)]| {
            SchedulerEnv::read(|name| vars.iter().find(|var| var.0 == name).map(|var| OsString::from(var.1)))
        };
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_END_TIME", "1800000000"), ("NOTIFY_SOCKET", "/run/x")];
        assert_eq!(read(&slurm), SchedulerEnv::Slurm { job_end: Some(end) });
        assert_eq!(read(&[("SLURM_JOB_ID", "7"), ("SLURM_JOB_END_TIME", "?")]), SchedulerEnv::Slurm { job_end: None });
        assert_eq!(read(&[("NOTIFY_SOCKET", "@x")]), SchedulerEnv::Systemd);
        assert_eq!(read(&[("NOTIFY_SOCKET", "")]), SchedulerEnv::Nobody);
    }

    #[test]
    fn a_service_manager_is_heard_if_it_means_this_process() {
        let read = |vars: &[(&str, &str)]| {
            let lookup = |name: &str| vars.iter().find(|var| var.0 == name).map(|var| OsString::from(var.1));
            ServiceEnv::read(lookup, 7)
        };
        let watchdog = |vars| read(vars).watchdog;
        assert_eq!(read(&[]), ServiceEnv::default());
        assert_eq!(read(&[("NOTIFY_SOCKET", "@x")]).notify_socket, Some("@x".into()));
        assert_eq!(read(&[("NOTIFY_SOCKET", "")]).notify_socket, None);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "2000000")]), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "7")]), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "8")]), None);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "soon")]), None);
    }
}
