//! Counts the cores that this process may use: those of its affinity, or the control groups' share of time if that is less.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use super::control_groups::{ControlGroups, Hierarchy};

/// Cores that this process may use, at least one. Part of a core's time counts only beside whole ones.
pub fn available() -> usize {
    let quota = quota(&ControlGroups::of_process());
    let of_affinity = of_affinity();
    quota.map_or(of_affinity, |quota| of_affinity.min((quota as usize).max(1)))
}

fn of_affinity() -> usize {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok().map(|set| {
        let cores = 0..nix::sched::CpuSet::count();
        cores.filter(|&core| set.is_set(core).unwrap_or(false)).count()
    });
    // More cores than the set has room for.
    let available = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    allowed.filter(|&cores| cores > 0).unwrap_or_else(available)
}

/// The least share of time, in cores, that a group on the way to the root leaves to the process.
fn quota(groups: &ControlGroups) -> Option<f64> {
    let unified = groups.own_and_above(Hierarchy::Unified);
    let separate = groups.own_and_above(Hierarchy::Of("cpu"));
    let quotas = unified.iter().filter_map(|group| unified_quota(group));
    quotas.chain(separate.iter().filter_map(|group| separate_quota(group))).min_by(f64::total_cmp)
}

/// Version 2: `QUOTA PERIOD`, or `max PERIOD`.
fn unified_quota(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota, period)
}

/// Version 1: a file for each; a quota of -1 is none.
fn separate_quota(group: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    share(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
}

fn share(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (quota.trim().parse::<u64>().ok()?, period.trim().parse::<u64>().ok()?);
    (period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::control_groups::tests::{separate, unified};

    #[test]
    fn this_process_may_use_a_core() {
        assert!(available() > 0);
    }

    #[test]
    fn the_least_quota_on_the_way_to_the_root_counts() {
        let check = |tree: tempfile::TempDir, expected: Option<f64>| {
            assert_eq!(quota(&ControlGroups::below(tree.path())), expected);
        };
        check(unified(&[("sys/fs/cgroup/slice/job/cpu.max", "max 100000\n")]), None);
        check(unified(&[("sys/fs/cgroup/slice/job/cpu.max", "150000 100000\n")]), Some(1.5));
        let of_both = [
            ("sys/fs/cgroup/slice/job/cpu.max", "400000 100000\n"),
            ("sys/fs/cgroup/slice/cpu.max", "200000 100000\n"),
        ];
        check(unified(&of_both), Some(2.0));
        let period = ("sys/fs/cgroup/cpu,cpuacct/share/cpu.cfs_period_us", "100000\n");
        check(separate(&[("sys/fs/cgroup/cpu,cpuacct/share/cpu.cfs_quota_us", "-1\n"), period]), None);
        check(separate(&[("sys/fs/cgroup/cpu,cpuacct/share/cpu.cfs_quota_us", "100000\n"), period]), Some(1.0));
    }
}
