//! The worker environment: every variable that the launcher sets for a rank and that a rank reads, in one place. All
//! reads of this process's own environment go through here too.
//!
//! What torchrun tells a worker has torchrun's names here too, but for `MASTER_ADDR` and `MASTER_PORT`: ranks of one machine
//! meet in memory, and none listens. No secret stands in the environment: a rank reaches its launcher through a descriptor.
//! [`SchedulerEnv`] and [`ServiceEnv`] hold the variables that others set for the launcher.

mod generate;
mod scheduler;
mod slurm;
mod torchrun;
mod wandb;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use generate::GenerateEnv;
pub use scheduler::{SchedulerEnv, ServiceEnv};
pub use slurm::SlurmStep;
pub use torchrun::{ProgramEnv, TorchrunEnv, program_defaults};
pub use wandb::WandbEnv;

/// A variable of this process, for what users say there: flags of `dslaunch run`, and what its workers inherit.
#[allow(clippy::disallowed_methods, reason = "this is where it is read")]
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The user's folder for what can be made again (the XDG base directories), if one is known.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_in(variable)
}

/// A folder of the user's own for what the processes of this machine share: that for what can be made again or, where none is
/// known, the one that lasts for a session (`XDG_RUNTIME_DIR`).
pub fn private_folder() -> Option<PathBuf> {
    let of_session = || variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    cache_folder().or_else(of_session)
}

fn cache_folder_in(lookup: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let of_xdg = lookup("XDG_CACHE_HOME").and_then(absolute);
    of_xdg.or_else(|| Some(lookup("HOME").and_then(absolute)?.join(".cache")))
}

/// Whether attempts have control groups of their own (`DSLAUNCH_CGROUP`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// They are made where the kernel allows it.
    Auto,
    /// The user does not want them (`off`).
    Off,
}

impl Cgroups {
    /// Reads the variable of this process.
    #[allow(clippy::disallowed_methods, reason = "this is where it is read")]
    pub fn from_process() -> Self {
        if std::env::var_os("DSLAUNCH_CGROUP").is_some_and(|value| value == "off") { Self::Off } else { Self::Auto }
    }
}

/// The variables of one rank process: its job and its place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerEnv {
    /// Global rank (`RANK`).
    pub rank: usize,
    /// Rank on this machine (`LOCAL_RANK`).
    pub local_rank: usize,
    /// Number of its GPU among those that the job sees, where it computes on one (`DSLAUNCH_GPU`).
    pub gpu: usize,
    /// Number of ranks (`WORLD_SIZE`).
    pub world_size: usize,
    /// Number of ranks on this machine (`LOCAL_WORLD_SIZE`).
    pub local_world_size: usize,
    /// Restarts so far (`TORCHELASTIC_RESTART_COUNT`, `DSLAUNCH_ATTEMPT`).
    pub attempt: u32,
    /// Restart budget (`TORCHELASTIC_MAX_RESTARTS`).
    pub max_restarts: u32,
    /// Name of this run, the same for all its ranks (`TORCHELASTIC_RUN_ID`).
    pub run_id: String,
    /// Compute threads of this rank (`OMP_NUM_THREADS`).
    pub threads: usize,
    /// Inherited descriptor through which the control service is dialled (`DSLAUNCH_CONTROL_FD`): [`crate::dial`].
    pub control_fd: i32,
    /// Longest wait for the other ranks to register (`DSLAUNCH_RENDEZVOUS_TIMEOUT_MS`).
    pub rendezvous_timeout: Duration,
    /// The resolved plan (`DSLAUNCH_PLAN`).
    pub plan: PathBuf,
    /// How this rank finds the others' tensors.
    pub meeting: Meeting,
    /// Inherited descriptor of the page on which this rank says what it does (`DSLAUNCH_PROGRESS_FD`).
    pub progress_fd: i32,
    /// Inherited descriptor of the memory for snapshots (`DSLAUNCH_SNAPSHOT_FD`); `None` takes none.
    pub snapshot_fd: Option<i32>,
    /// The starting point of training.
    pub beginning: Beginning,
    /// Seed of random delays that must change nothing (`DSLAUNCH_SHAKE`): for tests. `None`: no delays.
    pub shake: Option<u64>,
    /// The step that is profiled (`DSLAUNCH_PROFILE`), for whoever tunes ranks. `None`: none is.
    pub profile: Option<u64>,
    /// Faults that ranks are to suffer (`DSLAUNCH_FAULT`), as [`crate::fault`] has them: for tests, and for whoever wants to
    /// see what becomes of a job.
    pub fault: Option<String>,
}

/// How ranks find each other's tensors: what the plan's backend needs to bring them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meeting {
    /// In shared memory.
    Shm {
        /// Inherited descriptor of that memory (`DSLAUNCH_SHM_FD`): the launcher makes it afresh for every attempt.
        fd: i32,
    },
}

/// The starting point of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// At the first step.
    Start,
    /// After the step of this checkpoint (`DSLAUNCH_RESUME_FROM`).
    Checkpoint(PathBuf),
    /// After this step, of which every rank has a snapshot in memory (`DSLAUNCH_RESUME_SNAPSHOT`).
    Snapshot(u64),
}

impl Beginning {
    /// The variables of all kinds: an attempt has one of them at most.
    pub const VARIABLES: [&str; 2] = ["DSLAUNCH_RESUME_FROM", "DSLAUNCH_RESUME_SNAPSHOT"];
}

/// An error of reading a worker environment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    /// A variable is not there: the process was not started by dslaunch.
    #[error("{0} is not set: dslaunch-rank is started by dslaunch, not by hand")]
    Missing(&'static str),
    /// A variable holds something else than it should.
    #[error("{name} = {value:?} is not {expected}")]
    Invalid {
        /// Name of the variable.
        name: &'static str,
        /// Its value.
        value: OsString,
        /// The value that it should have.
        expected: &'static str,
    },
}

impl WorkerEnv {
    /// The variables as name and value, for the launcher to set.
    pub fn to_vars(&self) -> Vec<(&'static str, OsString)> {
        let number = |n: usize| OsString::from(n.to_string());
        let mut vars = vec![
            ("RANK", number(self.rank)),
            ("LOCAL_RANK", number(self.local_rank)),
            ("DSLAUNCH_GPU", number(self.gpu)),
            ("WORLD_SIZE", number(self.world_size)),
            ("LOCAL_WORLD_SIZE", number(self.local_world_size)),
            ("TORCHELASTIC_RESTART_COUNT", number(self.attempt as usize)),
            ("TORCHELASTIC_MAX_RESTARTS", number(self.max_restarts as usize)),
            ("TORCHELASTIC_RUN_ID", self.run_id.clone().into()),
            ("OMP_NUM_THREADS", number(self.threads)),
            ("DSLAUNCH_ATTEMPT", number(self.attempt as usize)),
            ("DSLAUNCH_CONTROL_FD", self.control_fd.to_string().into()),
            ("DSLAUNCH_RENDEZVOUS_TIMEOUT_MS", self.rendezvous_timeout.as_millis().to_string().into()),
            ("DSLAUNCH_PLAN", self.plan.clone().into()),
            ("DSLAUNCH_PROGRESS_FD", self.progress_fd.to_string().into()),
        ];
        match &self.meeting {
            Meeting::Shm { fd } => vars.push(("DSLAUNCH_SHM_FD", fd.to_string().into())),
        }
        if let Some(fd) = self.snapshot_fd {
            vars.push(("DSLAUNCH_SNAPSHOT_FD", fd.to_string().into()));
        }
        match &self.beginning {
            Beginning::Start => {}
            Beginning::Checkpoint(path) => vars.push(("DSLAUNCH_RESUME_FROM", path.clone().into())),
            Beginning::Snapshot(step) => vars.push(("DSLAUNCH_RESUME_SNAPSHOT", step.to_string().into())),
        }
        if let Some(seed) = self.shake {
            vars.push(("DSLAUNCH_SHAKE", seed.to_string().into()));
        }
        if let Some(step) = self.profile {
            vars.push(("DSLAUNCH_PROFILE", step.to_string().into()));
        }
        if let Some(fault) = &self.fault {
            vars.push(("DSLAUNCH_FAULT", fault.into()));
        }
        vars
    }

    /// Reads the variables of this process. A rank calls this once, first.
    #[allow(clippy::disallowed_methods, reason = "this is where it is read")]
    pub fn from_process() -> Result<Self, EnvError> {
        Self::read(|name| std::env::var_os(name))
    }

    /// The pure half of [`WorkerEnv::from_process`].
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, EnvError> {
        let vars = Vars { lookup };
        Ok(Self {
            rank: vars.number("RANK")?,
            local_rank: vars.number("LOCAL_RANK")?,
            gpu: vars.number("DSLAUNCH_GPU")?,
            world_size: vars.number("WORLD_SIZE")?,
            local_world_size: vars.number("LOCAL_WORLD_SIZE")?,
            attempt: vars.number("DSLAUNCH_ATTEMPT")?,
            max_restarts: vars.number("TORCHELASTIC_MAX_RESTARTS")?,
            run_id: vars.text("TORCHELASTIC_RUN_ID")?,
            threads: vars.number("OMP_NUM_THREADS")?,
            control_fd: vars.number("DSLAUNCH_CONTROL_FD")?,
            rendezvous_timeout: Duration::from_millis(vars.number("DSLAUNCH_RENDEZVOUS_TIMEOUT_MS")?),
            plan: vars.os("DSLAUNCH_PLAN")?.into(),
            meeting: vars.meeting()?,
            progress_fd: vars.number("DSLAUNCH_PROGRESS_FD")?,
            snapshot_fd: vars.optional_number("DSLAUNCH_SNAPSHOT_FD")?,
            beginning: vars.beginning()?,
            shake: vars.optional_number("DSLAUNCH_SHAKE")?,
            profile: vars.optional_number("DSLAUNCH_PROFILE")?,
            fault: (vars.lookup)("DSLAUNCH_FAULT").map(|_| vars.text("DSLAUNCH_FAULT")).transpose()?,
        })
    }
}

struct Vars<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<OsString>> Vars<F> {
    fn os(&self, name: &'static str) -> Result<OsString, EnvError> {
        (self.lookup)(name).ok_or(EnvError::Missing(name))
    }

    fn text(&self, name: &'static str) -> Result<String, EnvError> {
        self.os(name)?.into_string().map_err(|value| EnvError::Invalid { name, value, expected: "valid UTF-8" })
    }

    /// Each kind has variables of its own; those of one kind are there.
    fn meeting(&self) -> Result<Meeting, EnvError> {
        Ok(Meeting::Shm { fd: self.number("DSLAUNCH_SHM_FD")? })
    }

    fn beginning(&self) -> Result<Beginning, EnvError> {
        if let Some(step) = self.optional_number("DSLAUNCH_RESUME_SNAPSHOT")? {
            return Ok(Beginning::Snapshot(step));
        }
        let path = (self.lookup)("DSLAUNCH_RESUME_FROM");
        Ok(path.map_or(Beginning::Start, |path| Beginning::Checkpoint(path.into())))
    }

    fn optional_number<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, EnvError> {
        (self.lookup)(name).map(|_| self.number(name)).transpose()
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, EnvError> {
        let value = self.os(name)?;
        let parsed = value.to_str().and_then(|text| text.parse().ok());
        parsed.ok_or(EnvError::Invalid { name, value, expected: "a whole number" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn example() -> WorkerEnv {
        WorkerEnv {
            rank: 3,
            local_rank: 3,
            gpu: 1,
            world_size: 4,
            local_world_size: 4,
            attempt: 2,
            max_restarts: 3,
            run_id: "sft-1".into(),
            threads: 1,
            control_fd: 9,
            rendezvous_timeout: Duration::from_secs(60),
            plan: "/runs/sft/plan.json".into(),
            meeting: Meeting::Shm { fd: 8 },
            progress_fd: 7,
            snapshot_fd: Some(6),
            beginning: Beginning::Checkpoint("/runs/sft/checkpoints/step-00000010".into()),
            shake: Some(7),
            profile: Some(4),
            fault: Some("kill rank=1".into()),
        }
    }

    #[test]
    fn a_cache_is_where_xdg_has_it() {
        let folder = |vars: &'static [(&str, &str)]| {
            let lookup = move |name: &str| vars.iter().find(|var| var.0 == name).map(|var| OsString::from(var.1));
            cache_folder_in(lookup)
        };
        assert_eq!(folder(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/c")]), Some("/c".into()));
        assert_eq!(folder(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "c")]), Some("/home/u/.cache".into()));
        assert_eq!(folder(&[("HOME", "")]), None);
        assert_eq!(folder(&[]), None);
    }

    #[test]
    fn what_the_launcher_writes_is_what_the_rank_reads() {
        let start = WorkerEnv {
            beginning: Beginning::Start,
            snapshot_fd: None,
            shake: None,
            profile: None,
            fault: None,
            ..example()
        };
        for env in [example(), start, WorkerEnv { beginning: Beginning::Snapshot(12), ..example() }] {
            let vars: HashMap<_, _> = env.to_vars().into_iter().collect();
            assert_eq!(WorkerEnv::read(|name| vars.get(name).cloned()), Ok(env));
        }
    }

    #[test]
    fn a_missing_or_wrong_variable_is_named() {
        let vars: HashMap<_, _> = example().to_vars().into_iter().collect();
        let without = |hidden: &str, name: &str| if name == hidden { None } else { vars.get(name).cloned() };
        for name in ["DSLAUNCH_PLAN", "DSLAUNCH_SHM_FD"] {
            assert_eq!(WorkerEnv::read(|other| without(name, other)), Err(EnvError::Missing(name)));
        }
        let wrong = WorkerEnv::read(|name| if name == "RANK" { Some("x".into()) } else { vars.get(name).cloned() });
        assert_eq!(wrong.unwrap_err().to_string(), "RANK = \"x\" is not a whole number");
    }
}
