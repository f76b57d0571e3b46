//! Interprets `--nnodes` and its companions: the number of machines, this machine's place, and the address where they
//! meet. Pure.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use proto::env::SlurmStep;

use super::error::RunError;
use super::flags::RunFlags;
use super::rendezvous::{Backend, Endpoint};

/// Machines may take this long to come, unless `--rdzv-conf join_timeout=SECONDS` says otherwise.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);

/// The variables that hold the run's token, or name its file. For the launcher alone: no rank inherits them.
pub const TOKEN_VARIABLES: [&str; 2] = ["DSLAUNCH_JOB_TOKEN", "DSLAUNCH_JOB_TOKEN_FILE"];

/// The number of machines that the user wants: `min`, or anything up to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumNodes {
    min: u32,
    max: u32,
}

impl FromStr for NumNodes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once(':').unwrap_or((text, text));
        match (min.parse(), max.parse()) {
            // No cluster has more.
            (Ok(min), Ok(max)) if 1 <= min && min <= max && max <= 1_000_000 => Ok(Self { min, max }),
            _ => Err("expected N or MIN:MAX, from 1 on".to_owned()),
        }
    }
}

impl NumNodes {
    /// One machine: this one.
    pub const ONE: Self = Self { min: 1, max: 1 };

    fn exactly(self) -> Result<u32, RunError> {
        let Self { min, max } = self;
        if min == max { Ok(min) } else { Err(RunError::ElasticNodes { min, max }) }
    }
}

/// This machine among several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// Their number, at least two.
    pub num_nodes: u32,
    /// This machine's rank among them.
    pub node_rank: u32,
    /// Node 0 listens for the others at the first of these names that is an address, or has one.
    pub hosts: Vec<String>,
    /// Its port.
    pub port: u16,
    /// The token, by which the run's nodes know each other.
    pub token: TokenSource,
    /// They may take this long to come.
    pub join_timeout: Duration,
    /// The run's name, if a scheduler gives it one.
    pub name: Option<String>,
}

/// The source of the run's token.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// In a file.
    File(PathBuf),
    /// In the variable.
    Variable(OsString),
    /// Nowhere.
    None,
}

/// A token does not belong into a log.
impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Variable(_) => f.write_str("Variable(..)"),
            Self::None => f.write_str("None"),
        }
    }
}

impl Nodes {
    /// Reads the flags and fills the rest from `slurm`, the step that this process is a task of. `None`: this machine alone.
    pub fn resolve(
        flags: &RunFlags,
        slurm: Option<SlurmStep>,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, RunError> {
        let typed = flags.nnodes.map(NumNodes::exactly).transpose()?;
        // A step of another size has nothing to do with this run.
        let slurm = slurm.filter(|step| typed.is_none_or(|typed| typed == step.num_nodes) && !flags.standalone);
        let num_nodes = typed.or(slurm.as_ref().map(|step| step.num_nodes)).unwrap_or(1);
        if num_nodes == 1 {
            return match flags.node_rank {
                None | Some(0) => Ok(None),
                Some(node_rank) => Err(RunError::NodeRank { node_rank, num_nodes }),
            };
        }
        if flags.standalone {
            return Err(RunError::StandaloneNodes(num_nodes));
        }
        let node_rank = flags.node_rank.or(slurm.as_ref().map(|step| step.node_rank));
        let node_rank = node_rank.ok_or(RunError::NoNodeRank(num_nodes))?;
        if node_rank >= num_nodes {
            return Err(RunError::NodeRank { node_rank, num_nodes });
        }
        let (hosts, port) = meeting(flags, slurm.as_ref()).ok_or(RunError::NoRendezvous(num_nodes))?;
        let variable = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let file = flags.token_file.clone().or_else(|| variable(TOKEN_VARIABLES[1]).map(PathBuf::from));
        let token = match (file, variable(TOKEN_VARIABLES[0])) {
            (Some(file), _) => TokenSource::File(file),
            (None, Some(token)) => TokenSource::Variable(token),
            (None, None) => TokenSource::None,
        };
        let join_timeout = flags.rdzv_conf.as_ref().and_then(|conf| conf.join_timeout).unwrap_or(JOIN_TIMEOUT);
        let name = slurm.map(|step| step.name);
        Ok(Some(Self { num_nodes, node_rank, hosts, port, token, join_timeout, name }))
    }
}

/// Returns node 0's names, in order of preference, and its port. A port that is not said is torchrun's.
fn meeting(flags: &RunFlags, slurm: Option<&SlurmStep>) -> Option<(Vec<String>, u16)> {
    let default_port = if flags.rdzv_backend == Some(Backend::C10d) { 29_400 } else { 29_500 };
    let port = |port: Option<u16>| port.filter(|&port| port != 0).unwrap_or(default_port);
    if let Some(Endpoint { host, port: said }) = flags.rendezvous.as_ref().or(flags.rdzv_endpoint.as_ref()) {
        return Some((vec![host.clone()], port(*said)));
    }
    if let Some(host) = &flags.master_addr {
        return Some((vec![host.clone()], port(flags.master_port)));
    }
    let step = slurm?;
    let hosts = [Some(step.first_host.clone()), step.launch_address.clone()].into_iter().flatten();
    Some((hosts.collect(), step.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::commands::run::flags::tests::parse;

    fn step() -> SlurmStep {
        SlurmStep {
            num_nodes: 2,
            node_rank: 1,
            first_host: "n1".into(),
            launch_address: Some("10.0.0.1".into()),
            port: 15_016,
            name: "slurm-1.0".into(),
        }
    }

    fn resolve(line: &str, slurm: Option<SlurmStep>) -> Result<Option<Nodes>, String> {
        Nodes::resolve(&parse(&format!("{line} cmd")), slurm, |_| None).map_err(|error| error.to_string())
    }

    /// Number of nodes, rank, where they meet.
    fn check(line: &str, slurm: Option<SlurmStep>, expected: Option<(u32, u32, &str)>) {
        let found = resolve(line, slurm).unwrap().map(|nodes| {
            let Nodes { num_nodes, node_rank, hosts, port, .. } = nodes;
            (num_nodes, node_rank, format!("{}:{port}", hosts.join("|")))
        });
        let found = found.as_ref().map(|(nodes, rank, place)| (*nodes, *rank, place.as_str()));
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn flags_say_how_many_and_where() {
        check("", None, None);
        check("--nnodes 1 --node-rank 0", None, None);
        check("--nnodes 1:1 --rdzv-endpoint h:1", None, None);
        check("--nnodes 2 --node-rank 1 --rendezvous h:1", None, Some((2, 1, "h:1")));
        check("--nnodes 2:2 --node-rank 0 --rdzv-endpoint h:1 --master-addr m", None, Some((2, 0, "h:1")));
        check("--nnodes 2 --node-rank 0 --rendezvous h:1 --rdzv-endpoint g:2", None, Some((2, 0, "h:1")));
        check("--nnodes 3 --node-rank 2 --master-addr m --master-port 7", None, Some((3, 2, "m:7")));
        check("--nnodes 3 --node-rank 2 --master-addr m", None, Some((3, 2, "m:29500")));
        check("--nnodes 2 --node-rank 0 --rdzv-backend c10d --rdzv-endpoint h", None, Some((2, 0, "h:29400")));
    }

    #[test]
    fn slurm_says_what_flags_do_not() {
        check("", Some(step()), Some((2, 1, "n1|10.0.0.1:15016")));
        check("--nnodes 2", Some(step()), Some((2, 1, "n1|10.0.0.1:15016")));
        check("--rendezvous h:1", Some(step()), Some((2, 1, "h:1")));
        check("--node-rank 0", Some(step()), Some((2, 0, "n1|10.0.0.1:15016")));
        check("--nnodes 1", Some(step()), None);
        check("--standalone", Some(step()), None);
        let alone = SlurmStep { launch_address: None, ..step() };
        check("", Some(alone), Some((2, 1, "n1:15016")));
        assert_eq!(resolve("", Some(step())).unwrap().unwrap().name, Some("slurm-1.0".into()));
        let error = resolve("--nnodes 3", Some(step())).unwrap_err();
        assert!(error.starts_with("--nnodes 3: --node-rank is missing"), "{error}");
    }

    #[test]
    fn what_is_missing_or_impossible_is_named() {
        let refused = |line: &str, text: &str| assert_eq!(resolve(line, None).unwrap_err(), text, "{line}");
        refused(
            "--nnodes 1:4",
            "--nnodes 1:4: a number of machines that changes is not there yet: give one number for all of them",
        );
        refused("--node-rank 1", "--node-rank 1: with --nnodes 1 the last one is 0");
        refused("--nnodes 2 --node-rank 2", "--node-rank 2: with --nnodes 2 the last one is 1");
        refused("--nnodes 2 --standalone", "--nnodes 2 --standalone: a standalone run has one machine");
        refused("--nnodes 2", "--nnodes 2: --node-rank is missing: a number from 0 on, another one on each machine");
        refused(
            "--nnodes 2 --node-rank 1",
            "--nnodes 2: --rendezvous HOST:PORT is missing: where node 0 listens, the same on all machines",
        );
        for wrong in ["", "0", "2:1", "a", "1:2:3", "1:", "-1", "9999999"] {
            assert!(wrong.parse::<NumNodes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_in_a_file_or_in_a_variable() {
        let check = |line: &str, vars: &[(&str, &str)], expected: TokenSource| {
            let flags = parse(&format!("--nnodes 2 --node-rank 0 --rendezvous h:1 {line} cmd"));
            let lookup = |name: &str| vars.iter().find(|var| var.0 == name).map(|var| OsString::from(var.1));
            assert_eq!(Nodes::resolve(&flags, None, lookup).unwrap().unwrap().token, expected, "{line} {vars:?}");
        };
        let (file, variable) = (("DSLAUNCH_JOB_TOKEN_FILE", "f"), ("DSLAUNCH_JOB_TOKEN", "secret"));
        check("", &[], TokenSource::None);
        check("", &[("DSLAUNCH_JOB_TOKEN", "")], TokenSource::None);
        check("", &[variable], TokenSource::Variable("secret".into()));
        check("", &[file, variable], TokenSource::File("f".into()));
        check("--token-file g", &[file, variable], TokenSource::File("g".into()));
        assert_eq!(format!("{:?}", TokenSource::Variable("secret".into())), "Variable(..)");
    }
}
