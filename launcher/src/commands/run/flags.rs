//! The flags of `dslaunch run`, which are torchrun's, and the variables that stand for them. Parsing only.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::error::RunError;
use super::nodes::NumNodes;
use super::num_workers::NumWorkers;
use super::rendezvous::{Backend, Endpoint, RendezvousConf};
use super::streams::{RankFilter, RankStreams};

/// Run any program as ranks of one or several machines, with torchrun's flags and worker environment
///
/// Each flag can also be given as a variable (PET_NPROC_PER_NODE for --nproc-per-node); what is typed wins. All ranks are
/// stopped when one fails, and started again while --max-restarts lasts. A free MASTER_PORT is held for rank 0; an
/// attempt ends when another process listens there.
///
/// With several machines, each runs the same command with its own --node-rank; node 0 leads, and its --max-restarts
/// counts. A dslaunch that was killed can be started again in its place. Under Slurm, srun with one task on each machine
/// needs none of these flags.
///
/// Exit codes: 0; that of the rank that failed first, 128 + N if signal N killed it; 2 bad usage; 3 the command cannot
/// be started; 130, 143 stopped by SIGINT, SIGTERM, which are passed on: ranks have 30 s, or until the second signal.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RunFlags {
    /// Number of ranks: a number, gpu (one for each), cpu (one for each core), auto (gpu where there is one, else cpu)
    /// [default: 1]
    #[arg(long, visible_alias = "nproc", alias = "nproc_per_node", value_name = "N|gpu|cpu|auto")]
    pub nproc_per_node: Option<NumWorkers>,
    /// Number of machines: all of them run the same command, each with its own --node-rank. Under Slurm that of the step,
    /// where it has one task on each [default: 1]
    #[arg(long, value_name = "N|MIN:MAX")]
    pub nnodes: Option<NumNodes>,
    /// This machine's rank among them, from 0 on [default: 0, or Slurm's]
    #[arg(long, alias = "node_rank", value_name = "R")]
    pub node_rank: Option<u32>,
    /// Where node 0's dslaunch listens for the others; other flags of torchrun that say the same are --rdzv-endpoint and
    /// --master-addr with --master-port [default: the first machine of the Slurm step, port 15000 + (16 * job + step) %
    /// 10000]
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<Endpoint>,
    /// File with a secret that all nodes of the run have, and nobody else (also DSLAUNCH_JOB_TOKEN_FILE, or the secret itself
    /// in DSLAUNCH_JOB_TOKEN). Needed with several nodes unless --rendezvous is a loopback address: then the nodes share a
    /// random one in a file of the user's own
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How many times all ranks are started again after a failure [default: 0]
    #[arg(long, alias = "max_restarts", value_name = "N")]
    pub max_restarts: Option<u32>,
    /// Folder for logs: attempt-K/RANK/{stdout.log,stderr.log,error.json}; earlier ones there are set aside [default: a
    /// fresh temporary folder, where one is needed]
    #[arg(long, alias = "log_dir", value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// What goes to files instead of the terminal: 0 nothing, 1 stdout, 2 stderr, 3 both, or by local rank
    /// [default: 0]
    #[arg(short, long, value_name = "0..3|RANK:0..3,...")]
    pub redirects: Option<RankStreams>,
    /// What goes to files and, each line with its rank, to the terminal [default: 0]
    #[arg(short, long, value_name = "0..3|RANK:0..3,...")]
    pub tee: Option<RankStreams>,
    /// Local ranks that the terminal shows; files are not concerned [default: all]
    #[arg(long, alias = "local_ranks_filter", value_name = "RANK,...")]
    pub local_ranks_filter: Option<RankFilter>,
    /// What ranks are called [default: default]
    #[arg(long, value_name = "NAME")]
    pub role: Option<String>,
    /// CMD is a Python module, run by python3 -m (PYTHON_EXEC names another Python)
    #[arg(short, long, conflicts_with = "no_python")]
    pub module: bool,
    /// CMD runs as it is, also one that ends in .py and does not stand after --
    #[arg(long, alias = "no_python")]
    pub no_python: bool,
    /// Where ranks find rank 0 (MASTER_ADDR) [default: 127.0.0.1, with several machines the host of --rendezvous]
    #[arg(long, alias = "master_addr", value_name = "HOST")]
    pub master_addr: Option<String>,
    /// Its port (MASTER_PORT); 0 is a free one, another in every attempt [default: 0]
    #[arg(long, alias = "master_port", value_name = "PORT")]
    pub master_port: Option<u16>,
    /// This machine's address, where --rdzv-backend is c10d [default: 127.0.0.1]
    #[arg(long, alias = "local_addr", value_name = "HOST")]
    pub local_addr: Option<String>,
    /// With one machine: whether --rdzv-endpoint names rank 0 (static) or says nothing (c10d). With several: the port where
    /// --rdzv-endpoint says none, 29500 or 29400
    /// [default: static]
    #[arg(long, alias = "rdzv_backend", value_name = "static|c10d")]
    pub rdzv_backend: Option<Backend>,
    /// With one machine --master-addr and --master-port in one, with several --rendezvous
    #[arg(long, alias = "rdzv_endpoint", value_name = "HOST[:PORT]")]
    pub rdzv_endpoint: Option<Endpoint>,
    /// The run's name for ranks (TORCHELASTIC_RUN_ID), the same on all machines [default: none, or slurm-JOB.STEP]
    #[arg(long, alias = "rdzv_id", value_name = "ID")]
    pub rdzv_id: Option<String>,
    /// join_timeout=SECONDS (or timeout=): how long machines may take to come [default: 300]; other keys are without effect
    #[arg(long, alias = "rdzv_conf", value_name = "KEY=VALUE,...")]
    pub rdzv_conf: Option<RendezvousConf>,
    /// One machine that nobody else knows of: a free port and a random --rdzv-id
    #[arg(long)]
    pub standalone: bool,
    /// Accepted for torchrun's sake; without effect: the end of a rank is noticed at once
    #[arg(long, alias = "monitor_interval", value_name = "SECONDS")]
    pub monitor_interval: Option<Interval>,
    /// Accepted for torchrun's sake; without effect: ranks are programs
    #[arg(long, alias = "start_method", value_name = "spawn|fork|forkserver")]
    pub start_method: Option<StartMethod>,
    /// The command and its arguments. After -- it runs as it is; without --, a script that ends in .py is run by python3 -u
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `--monitor-interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval(Duration);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        seconds.map(Self).ok_or_else(|| "expected seconds".to_owned())
    }
}

/// `--start-method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartMethod;

impl FromStr for StartMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = ["spawn", "fork", "forkserver"].contains(&text);
        known.then_some(Self).ok_or_else(|| "expected spawn, fork or forkserver".to_owned())
    }
}

impl RunFlags {
    /// Fills what was not typed from torchrun's variables `PET_<FLAG>`. What is typed wins; an empty variable is none.
    pub fn or_variables(self, lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, RunError> {
        let pet = Variables { lookup };
        Ok(Self {
            nproc_per_node: pet.or(self.nproc_per_node, "PET_NPROC_PER_NODE")?,
            nnodes: pet.or(self.nnodes, "PET_NNODES")?,
            node_rank: pet.or(self.node_rank, "PET_NODE_RANK")?,
            rendezvous: pet.or(self.rendezvous, "PET_RENDEZVOUS")?,
            token_file: self.token_file,
            max_restarts: pet.or(self.max_restarts, "PET_MAX_RESTARTS")?,
            log_dir: pet.or(self.log_dir, "PET_LOG_DIR")?,
            redirects: pet.or(self.redirects, "PET_REDIRECTS")?,
            tee: pet.or(self.tee, "PET_TEE")?,
            local_ranks_filter: pet.or(self.local_ranks_filter, "PET_LOCAL_RANKS_FILTER")?,
            role: pet.or(self.role, "PET_ROLE")?,
            module: pet.or_switch(self.module, "PET_MODULE")?,
            no_python: pet.or_switch(self.no_python, "PET_NO_PYTHON")?,
            master_addr: pet.or(self.master_addr, "PET_MASTER_ADDR")?,
            master_port: pet.or(self.master_port, "PET_MASTER_PORT")?,
            local_addr: pet.or(self.local_addr, "PET_LOCAL_ADDR")?,
            rdzv_backend: pet.or(self.rdzv_backend, "PET_RDZV_BACKEND")?,
            rdzv_endpoint: pet.or(self.rdzv_endpoint, "PET_RDZV_ENDPOINT")?,
            rdzv_id: pet.or(self.rdzv_id, "PET_RDZV_ID")?,
            rdzv_conf: pet.or(self.rdzv_conf, "PET_RDZV_CONF")?,
            standalone: pet.or_switch(self.standalone, "PET_STANDALONE")?,
            monitor_interval: pet.or(self.monitor_interval, "PET_MONITOR_INTERVAL")?,
            start_method: pet.or(self.start_method, "PET_START_METHOD")?,
            command: self.command,
        })
    }
}

struct Variables<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    fn or<T: FromStr<Err: Display>>(&self, typed: Option<T>, name: &'static str) -> Result<Option<T>, RunError> {
        let value = (self.lookup)(name).filter(|value| typed.is_none() && !value.is_empty());
        let Some(value) = value else { return Ok(typed) };
        let parsed = value.to_str().ok_or_else(|| "expected valid UTF-8".to_owned());
        match parsed.and_then(|text| text.parse().map_err(|rule: T::Err| rule.to_string())) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(rule) => Err(RunError::Variable { name, value, rule }),
        }
    }

    /// torchrun's switches are numbers: 0 is off.
    fn or_switch(&self, typed: bool, name: &'static str) -> Result<bool, RunError> {
        Ok(typed || self.or::<Switch>(None, name)?.is_some_and(|Switch(number)| number != 0))
    }
}

struct Switch(i64);

impl FromStr for Switch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "expected 0 or 1")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    use clap::Parser;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        flags: RunFlags,
    }

    /// The flags of a command line, for tests of what is made of them.
    pub(in super::super) fn parse(line: &str) -> RunFlags {
        Typed::try_parse_from(format!("run {line}").split_whitespace())
            .unwrap_or_else(|error| panic!("{line}: {error}"))
            .flags
    }

    fn with(line: &str, vars: &[(&str, &str)]) -> Result<RunFlags, String> {
        let lookup = |name: &str| vars.iter().find(|(var, _)| *var == name).map(|(_, value)| value.into());
        parse(line).or_variables(lookup).map_err(|error| error.to_string())
    }

    #[test]
    fn hyphens_and_underscores_are_the_same() {
        let hyphens = "--nproc-per-node 2 --nnodes 1:1 --node-rank 0 --max-restarts 3 --log-dir l -r 3 -t 0:1 \
                       --local-ranks-filter 0,11 --role r --no-python --master-addr a --master-port 1 --local-addr b \
                       --rdzv-backend c10d --rdzv-endpoint c:2 --rdzv-id i --rdzv-conf k=v --standalone --rendezvous r:1 \
                       --monitor-interval 0.5 --start-method fork";
        let words: Vec<_> = hyphens.split_whitespace().collect();
        let underscore = |word: &&str| match word.strip_prefix("--") {
            Some(name) => format!("--{}", name.replace('-', "_")),
            None => (*word).to_owned(),
        };
        let underscores: Vec<_> = words.iter().map(underscore).collect();
        let flags = parse(&format!("{} cmd -x --y", words.join(" ")));
        assert_eq!(flags, parse(&format!("{} cmd -x --y", underscores.join(" "))));
        assert_eq!(flags, parse(&format!("{} -- cmd -x --y", words.join(" ").replace("--nproc-per-node", "--nproc"))));
        assert_eq!(flags.command, ["cmd", "-x", "--y"]);
        assert_eq!(flags.nproc_per_node, Some(NumWorkers::Exactly(2)));
    }

    #[test]
    fn what_is_typed_wins_over_a_variable() {
        let vars = [("PET_NPROC_PER_NODE", "4"), ("PET_MAX_RESTARTS", "2"), ("PET_ROLE", ""), ("PET_STANDALONE", "1")];
        let flags = with("--nproc 2 cmd", &vars).unwrap();
        assert_eq!(flags.nproc_per_node, Some(NumWorkers::Exactly(2)));
        assert_eq!((flags.max_restarts, flags.role, flags.standalone), (Some(2), None, true));
        assert!(!with("cmd", &[("PET_STANDALONE", "0")]).unwrap().standalone);
        assert_eq!(with("cmd", &vars).unwrap().nproc_per_node, Some(NumWorkers::Exactly(4)));
        // Not even looked at.
        assert!(with("--max-restarts 1 cmd", &[("PET_MAX_RESTARTS", "x")]).is_ok());
    }

    #[test]
    fn a_wrong_variable_is_named_with_the_rule() {
        let check = |name: &str, value: &str, message: &str| {
            assert_eq!(with("cmd", &[(name, value)]).unwrap_err(), message);
        };
        check("PET_RDZV_BACKEND", "etcd", "PET_RDZV_BACKEND = etcd: expected static or c10d");
        check("PET_NO_PYTHON", "yes", "PET_NO_PYTHON = yes: expected 0 or 1");
        check("PET_MAX_RESTARTS", "-1", "PET_MAX_RESTARTS = -1: invalid digit found in string");
    }
}
