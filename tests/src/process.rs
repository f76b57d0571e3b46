//! The kernel's account of processes: memory, descriptors, processor time, sockets that listen.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

/// Ticks of the processor time in `/proc/PID/stat`: the same on every Linux machine that there is.
const TICKS_PER_SECOND: u64 = 100;

/// The most memory that the process has ever had resident, in bytes.
pub fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel counts it");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

/// How many descriptors the process has open.
pub fn num_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count()
}

/// Processor time of all its threads so far.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // After the name in brackets, which may hold anything: state is field 3, utime 14, stime 15.
    let fields: Vec<_> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
    Duration::from_millis((ticks(14) + ticks(15)) * 1000 / TICKS_PER_SECOND)
}

/// Local addresses, in the kernel's hexadecimal, of sockets of these processes that take connections from the network.
pub fn network_listeners(pids: &[u32]) -> Vec<String> {
    let owned: HashSet<String> = pids.iter().flat_map(|pid| sockets(*pid)).collect();
    let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let rows = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Field 2 is the local address, 4 the state (0A: it listens), 10 the inode.
    let listening = rows.filter(|fields| fields[3] == "0A" && owned.contains(fields[9]));
    listening.map(|fields| fields[1].to_owned()).collect()
}

/// The inodes of the process's sockets.
fn sockets(pid: u32) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let targets = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inode =
        |target: std::path::PathBuf| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    targets.filter_map(inode).collect()
}

/// The process, its children, theirs and so on.
pub fn family(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    [pid].into_iter().chain(children.into_iter().flat_map(family)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_listens_is_found_and_one_that_does_not_is_not() {
        let own = std::process::id();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shown = format!("0100007F:{:04X}", address.port());
        assert!(network_listeners(&[own]).contains(&shown));
        let connected = std::net::TcpStream::connect(address).unwrap();
        drop(listener);
        assert!(!network_listeners(&[own]).contains(&shown));
        drop(connected);
        assert!(family(own).contains(&own) && num_descriptors(own) > 0 && peak_bytes(own) > 1 << 20);
    }
}
