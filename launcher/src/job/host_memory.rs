//! Reads the memory that this host has left for ranks: the kernel's figure, or the control group's if that is lower.

use std::fs;
use std::path::Path;

/// Bytes that new processes can use; `None` where the kernel does not say.
pub fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let available = available_in(&meminfo)?;
    Some(group_limit(Path::new("/sys/fs/cgroup")).map_or(available, |limit| limit.min(available)))
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
}

/// Returns the bytes that our control group (version 2) may still use. In a container it is the root of what we see.
fn group_limit(root: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(root.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    // Files that it has read count as used, and give way.
    let stat = fs::read_to_string(root.join("memory.stat")).unwrap_or_default();
    let file = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_is_available() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available_in(meminfo), Some(20_000_000 * 1024));
        assert_eq!(available_in("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_control_group_may_allow_less() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        assert_eq!(group_limit(group.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "500\n");
        assert_eq!(group_limit(group.path()), None);
        write("memory.max", "2000\n");
        assert_eq!(group_limit(group.path()), Some(1500));
        write("memory.stat", "anon 100\ninactive_file 400\n");
        assert_eq!(group_limit(group.path()), Some(1900));
    }
}
