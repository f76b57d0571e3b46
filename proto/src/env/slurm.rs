//! The variables that Slurm sets for a task of a step: the machines that it runs on. Pure.

use std::ffi::OsString;

/// The first port that a step's dslaunch processes may meet at.
const FIRST_PORT: u16 = 15_000;
/// How many there are: below the ports that kernels give out by themselves.
const NUM_PORTS: u64 = 10_000;

/// A step with one task on each of several machines, of which this process is one: who is to meet whom, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlurmStep {
    /// Number of machines (`SLURM_STEP_NUM_NODES`).
    pub num_nodes: u32,
    /// This machine's rank among them (`SLURM_NODEID`).
    pub node_rank: u32,
    /// Name of the first one (`SLURM_STEP_NODELIST`).
    pub first_host: String,
    /// The machine that started the step (`SLURM_LAUNCH_NODE_IPADDR`): in a batch job the first machine, too.
    pub launch_address: Option<String>,
    /// A port that no other step of the cluster is likely to use: 15000 + (16 * job id + step id) % 10000.
    pub port: u16,
    /// A name of the step that no other has.
    pub name: String,
}

impl SlurmStep {
    /// `None` if this process is no task of such a step: several tasks on a machine are nobody's agents.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let text = |names: &[&str]| names.iter().find_map(|name| lookup(name)?.into_string().ok());
        let number = |names: &[&str]| text(names)?.parse::<u64>().ok();
        let job = number(&["SLURM_JOB_ID"])?;
        let step = number(&["SLURM_STEP_ID", "SLURM_STEPID"])?;
        let num_nodes = number(&["SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES"])?;
        let num_tasks = number(&["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])?;
        let node_rank = number(&["SLURM_NODEID"])?;
        if num_nodes < 2 || num_tasks != num_nodes || node_rank >= num_nodes {
            return None;
        }
        let offset = job.wrapping_mul(16).wrapping_add(step) % NUM_PORTS;
        Some(Self {
            num_nodes: num_nodes.try_into().ok()?,
            node_rank: node_rank.try_into().ok()?,
            first_host: first_host(&text(&["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"])?)?,
            launch_address: text(&["SLURM_LAUNCH_NODE_IPADDR"]).filter(|address| !address.is_empty()),
            port: FIRST_PORT + u16::try_from(offset).expect("below 10000"),
            name: format!("slurm-{job}.{step}"),
        })
    }
}

/// The first of `n[001-010,15],m1`: `n001`. Brackets may stand anywhere, and more than once.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list);
    loop {
        let Some(at) = rest.find(['[', ',']) else {
            host += rest;
            break;
        };
        host += &rest[..at];
        if rest[at..].starts_with(',') {
            break;
        }
        let (choices, after) = rest[at + 1..].split_once(']')?;
        host += choices.split([',', '-']).next()?;
        rest = after;
    }
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_list_is_found() {
        let check = |list: &str, expected: Option<&str>| assert_eq!(first_host(list).as_deref(), expected, "{list}");
        check("n1", Some("n1"));
        check("n1,n2", Some("n1"));
        check("n[1-2]", Some("n1"));
        check("n[001-010,15],m1", Some("n001"));
        check("n[7,9-12].cluster", Some("n7.cluster"));
        check("rack[2-3]n[04-06]", Some("rack2n04"));
        check("gpu-a,n[1-2]", Some("gpu-a"));
        for none in ["", "n[1", ","] {
            check(none, None);
        }
    }

    const STEP: [(&str, &str); 8] = [
        ("SLURM_JOB_ID", "700"),
        ("SLURM_STEP_ID", "3"),
        ("SLURM_STEP_NUM_NODES", "2"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_NODEID", "1"),
        ("SLURM_STEP_NODELIST", "n[4-5]"),
        ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.4"),
        ("SLURM_NNODES", "9"),
    ];

    /// Reads the step above with some variables changed; an empty value takes one away.
    fn read(changes: &[(&str, &str)]) -> Option<SlurmStep> {
        SlurmStep::read(|name| {
            let found = changes.iter().chain(&STEP).find(|var| var.0 == name)?;
            (!found.1.is_empty()).then(|| found.1.into())
        })
    }

    #[test]
    fn a_step_says_who_meets_where() {
        let step = SlurmStep {
            num_nodes: 2,
            node_rank: 1,
            first_host: "n4".into(),
            launch_address: Some("10.0.0.4".into()),
            port: 15_000 + 11_203 % 10_000,
            name: "slurm-700.3".into(),
        };
        assert_eq!(read(&[]), Some(step.clone()));
        let without = read(&[("SLURM_LAUNCH_NODE_IPADDR", "")]);
        assert_eq!(without, Some(SlurmStep { launch_address: None, ..step.clone() }));
        // Where the step does not say it, the job does.
        let of_the_job = read(&[("SLURM_STEP_NODELIST", ""), ("SLURM_JOB_NODELIST", "n[4-7]")]);
        assert_eq!(of_the_job, Some(step));
        assert!(read(&[("SLURM_JOB_ID", "4294967295"), ("SLURM_STEP_ID", "4294967295")]).unwrap().port < 25_000);
    }

    #[test]
    fn what_is_no_task_for_each_of_several_machines_says_nothing() {
        for change in [
            ("SLURM_JOB_ID", ""),
            ("SLURM_STEP_ID", ""),
            ("SLURM_STEP_NUM_NODES", "1"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_NODEID", "2"),
            ("SLURM_NODEID", "x"),
            ("SLURM_STEP_NODELIST", ""),
        ] {
            assert_eq!(read(&[change]), None, "{change:?}");
        }
    }
}
