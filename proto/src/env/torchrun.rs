//! The variables that torchrun sets for its workers, so that programs written for it run unchanged. Pure.

use std::ffi::OsString;
use std::path::PathBuf;

/// A worker's place, by torchrun's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchrunEnv {
    /// Global rank (`RANK`).
    pub rank: usize,
    /// Rank on this machine (`LOCAL_RANK`).
    pub local_rank: usize,
    /// Number of ranks (`WORLD_SIZE`).
    pub world_size: usize,
    /// Number of ranks on this machine (`LOCAL_WORLD_SIZE`).
    pub local_world_size: usize,
    /// This machine's rank among the machines (`GROUP_RANK`).
    pub node_rank: usize,
    /// Number of machines (`GROUP_WORLD_SIZE`).
    pub num_nodes: usize,
    /// The role of the ranks (`ROLE_NAME`); all have the same.
    pub role: String,
    /// The host at which rank 0 listens (`MASTER_ADDR`).
    pub master_addr: String,
    /// Its port (`MASTER_PORT`).
    pub master_port: u16,
    /// Restarts so far (`TORCHELASTIC_RESTART_COUNT`).
    pub attempt: u32,
    /// Restart budget (`TORCHELASTIC_MAX_RESTARTS`).
    pub max_restarts: u32,
    /// Name of this run, the same for all its ranks (`TORCHELASTIC_RUN_ID`).
    pub run_id: String,
}

impl TorchrunEnv {
    /// The variables as name and value.
    pub fn to_vars(&self) -> Vec<(&'static str, OsString)> {
        let number = |n: usize| OsString::from(n.to_string());
        vec![
            ("RANK", number(self.rank)),
            ("LOCAL_RANK", number(self.local_rank)),
            ("WORLD_SIZE", number(self.world_size)),
            ("LOCAL_WORLD_SIZE", number(self.local_world_size)),
            ("GROUP_RANK", number(self.node_rank)),
            ("GROUP_WORLD_SIZE", number(self.num_nodes)),
            ("ROLE_RANK", number(self.rank)),
            ("ROLE_WORLD_SIZE", number(self.world_size)),
            ("ROLE_NAME", self.role.clone().into()),
            ("MASTER_ADDR", self.master_addr.clone().into()),
            ("MASTER_PORT", number(self.master_port.into())),
            ("TORCHELASTIC_RESTART_COUNT", number(self.attempt as usize)),
            ("TORCHELASTIC_MAX_RESTARTS", number(self.max_restarts as usize)),
            ("TORCHELASTIC_RUN_ID", self.run_id.clone().into()),
        ]
    }
}

/// The variables that `dslaunch run` sets for a worker, which may be any program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramEnv {
    /// The worker's place.
    pub torchrun: TorchrunEnv,
    /// The file in which it may leave the reason of its failure (`TORCHELASTIC_ERROR_FILE`).
    pub error_file: PathBuf,
}

impl ProgramEnv {
    /// The variables as name and value; to be added to [`program_defaults`].
    pub fn to_vars(&self) -> Vec<(&'static str, OsString)> {
        let mut vars = self.torchrun.to_vars();
        // The launcher has no store for tensors' programs: rank 0 listens itself.
        vars.push(("TORCHELASTIC_USE_AGENT_STORE", "False".into()));
        vars.push(("TORCHELASTIC_ERROR_FILE", self.error_file.clone().into()));
        vars
    }
}

/// Lists the variables that `num_workers` workers on one machine get unless the user's environment says otherwise.
pub fn program_defaults(
    num_workers: usize,
    lookup: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, OsString)> {
    let mut defaults = vec![("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")];
    if num_workers > 1 {
        // Each would start as many threads as there are cores.
        defaults.push(("OMP_NUM_THREADS", "1"));
    }
    let unset = defaults.into_iter().filter(|(name, _)| lookup(name).is_none());
    unset.map(|(name, value)| (name, value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_of_torchrun_is_there_once() {
        let torchrun = TorchrunEnv {
            rank: 5,
            local_rank: 1,
            world_size: 6,
            local_world_size: 2,
            node_rank: 2,
            num_nodes: 3,
            role: "trainer".into(),
            master_addr: "127.0.0.1".into(),
            master_port: 4000,
            attempt: 1,
            max_restarts: 3,
            run_id: "none".into(),
        };
        let vars = ProgramEnv { torchrun, error_file: "/logs/error.json".into() }.to_vars();
        let text: Vec<_> = vars.iter().map(|(name, value)| format!("{name}={}", value.display())).collect();
        let expected = "RANK=5 LOCAL_RANK=1 WORLD_SIZE=6 LOCAL_WORLD_SIZE=2 GROUP_RANK=2 GROUP_WORLD_SIZE=3 \
            ROLE_RANK=5 ROLE_WORLD_SIZE=6 ROLE_NAME=trainer MASTER_ADDR=127.0.0.1 MASTER_PORT=4000 \
            TORCHELASTIC_RESTART_COUNT=1 TORCHELASTIC_MAX_RESTARTS=3 TORCHELASTIC_RUN_ID=none \
            TORCHELASTIC_USE_AGENT_STORE=False TORCHELASTIC_ERROR_FILE=/logs/error.json";
        assert_eq!(text.join(" "), expected);
    }

    #[test]
    fn defaults_give_way_to_the_users_environment() {
        let names = |num_workers, set: &str| -> Vec<&str> {
            let vars = program_defaults(num_workers, |name| (name == set).then(|| "8".into()));
            vars.into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(2, ""), ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "OMP_NUM_THREADS"]);
        assert_eq!(names(1, ""), ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]);
        assert_eq!(names(2, "OMP_NUM_THREADS"), ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]);
        assert_eq!(names(2, "TORCH_NCCL_ASYNC_ERROR_HANDLING"), ["OMP_NUM_THREADS"]);
    }
}
