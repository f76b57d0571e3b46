//! Reads the memory that this host has left for ranks: the kernel's figure, or the least that control groups leave if that is lower.

use std::fs;
use std::path::Path;

use super::control_groups::{ControlGroups, Hierarchy};

/// Bytes that new processes can use; `None` where the kernel does not say.
pub fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let available = available_in(&meminfo)?;
    Some(left_by(&ControlGroups::of_process()).map_or(available, |left| left.min(available)))
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
}

/// The files in which a group says how much it may have and has.
struct Names {
    limit: &'static str,
    used: &'static str,
    /// In memory.stat: bytes of files that were read, which count as used and give way.
    files: &'static str,
}

const UNIFIED: Names = Names { limit: "memory.max", used: "memory.current", files: "inactive_file " };
const SEPARATE: Names =
    Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", files: "total_inactive_file " };

/// The least that a group on the way to the root leaves to the process.
fn left_by(groups: &ControlGroups) -> Option<u64> {
    let kinds = [(Hierarchy::Unified, UNIFIED), (Hierarchy::Of("memory"), SEPARATE)];
    let folders = kinds
        .iter()
        .flat_map(|(hierarchy, names)| groups.own_and_above(*hierarchy).into_iter().map(move |folder| (folder, names)));
    folders.filter_map(|(folder, names)| left_by_one(&folder, names)).min()
}

/// A limit that is none, of version 1, is more than any machine has.
fn left_by_one(folder: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = (number(names.limit)?, number(names.used)?);
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let files = stat.lines().find_map(|line| line.strip_prefix(names.files)?.parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::control_groups::tests::{separate, unified};

    #[test]
    fn the_kernel_says_what_is_available() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available_in(meminfo), Some(20_000_000 * 1024));
        assert_eq!(available_in("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts() {
        let check = |tree: tempfile::TempDir, expected: Option<u64>| {
            assert_eq!(left_by(&ControlGroups::below(tree.path())), expected);
        };
        let used = ("sys/fs/cgroup/slice/job/memory.current", "500\n");
        check(unified(&[]), None);
        check(unified(&[("sys/fs/cgroup/slice/job/memory.max", "max\n"), used]), None);
        let own = ("sys/fs/cgroup/slice/job/memory.max", "2000\n");
        check(unified(&[own, used]), Some(1500));
        check(
            unified(&[own, used, ("sys/fs/cgroup/slice/job/memory.stat", "anon 100\ninactive_file 400\n")]),
            Some(1900),
        );
        let above = [("sys/fs/cgroup/slice/memory.max", "1200\n"), ("sys/fs/cgroup/slice/memory.current", "900\n")];
        check(unified(&[own, used, above[0], above[1]]), Some(300));
        let of_version_1 = [
            ("sys/fs/cgroup/memory/box/job/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/box/job/memory.usage_in_bytes", "700\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "700\n"),
            ("sys/fs/cgroup/memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n"),
        ];
        check(separate(&of_version_1), Some(350));
    }
}
