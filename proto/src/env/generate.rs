//! What dslaunch tells a rank that generates text by its environment: it takes part in no job, and has none of a job's variables.

use std::ffi::OsString;

use super::{EnvError, Vars};

/// The variables of a rank that generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateEnv {
    /// Inherited descriptor of its end of the sockets (`DSLAUNCH_GENERATE_FD`): [`crate::generate`].
    pub fd: i32,
    /// Number of its GPU among those that it sees, where it computes on one (`DSLAUNCH_GPU`).
    pub gpu: usize,
    /// Compute threads (`OMP_NUM_THREADS`).
    pub threads: usize,
}

const FD: &str = "DSLAUNCH_GENERATE_FD";

impl GenerateEnv {
    /// The variables as name and value, for the launcher to set.
    pub fn to_vars(self) -> Vec<(&'static str, OsString)> {
        let Self { fd, gpu, threads } = self;
        vec![
            (FD, fd.to_string().into()),
            ("DSLAUNCH_GPU", gpu.to_string().into()),
            ("OMP_NUM_THREADS", threads.to_string().into()),
        ]
    }

    /// Reads the variables of this process; `None`: it was not started to generate.
    #[allow(clippy::disallowed_methods, reason = "this is where it is read")]
    pub fn from_process() -> Result<Option<Self>, EnvError> {
        Self::read(|name| std::env::var_os(name))
    }

    /// The pure half of [`GenerateEnv::from_process`].
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, EnvError> {
        let vars = Vars { lookup };
        let Some(fd) = vars.optional_number(FD)? else { return Ok(None) };
        Ok(Some(Self { fd, gpu: vars.number("DSLAUNCH_GPU")?, threads: vars.number("OMP_NUM_THREADS")? }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_the_launcher_writes_is_what_the_rank_reads() {
        let env = GenerateEnv { fd: 5, gpu: 1, threads: 8 };
        let mut vars: HashMap<_, _> = env.to_vars().into_iter().collect();
        assert_eq!(GenerateEnv::read(|name| vars.get(name).cloned()), Ok(Some(env)));
        vars.insert(FD, "x".into());
        let wrong = GenerateEnv::read(|name| vars.get(name).cloned()).unwrap_err();
        assert_eq!(wrong.to_string(), "DSLAUNCH_GENERATE_FD = \"x\" is not a whole number");
        vars.remove(FD);
        assert_eq!(GenerateEnv::read(|name| vars.get(name).cloned()), Ok(None));
    }
}
