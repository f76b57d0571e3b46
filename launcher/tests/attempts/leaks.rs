//! A launcher holds the same resources after many restarts as after a few.

use std::fs;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::harness::{Run, wait_until};

pub const CHECK: (&str, fn()) = ("a_thousand_restarts_leave_nothing_behind", a_thousand_restarts_leave_nothing_behind);

/// The resources of a launcher.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: Vec<String>,
    threads: usize,
    children: Vec<String>,
    temporary: Vec<String>,
    shared_memory: Vec<String>,
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn children(pid: u32) -> Vec<u32> {
    // Whichever thread has started them.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()).collect()
}

/// The kind of what a descriptor is: numbers of sockets and pipes differ, and so do folders.
fn kind_of(target: &Path) -> String {
    let name = target.file_name().unwrap_or(target.as_os_str()).to_string_lossy();
    name.split('[').next().unwrap().to_owned()
}

impl Holdings {
    fn of(launcher: u32, temporary: &Path) -> Self {
        let descriptors = fs::read_dir(format!("/proc/{launcher}/fd")).unwrap();
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let mut descriptors: Vec<_> = targets.map(|target| kind_of(&target)).collect();
        descriptors.sort();
        let state = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1[..1].replace('R', "S")
        };
        Self {
            descriptors,
            threads: fs::read_dir(format!("/proc/{launcher}/task")).unwrap().count(),
            children: children(launcher).iter().map(state).collect(),
            temporary: names(temporary),
            // Others on the machine have theirs.
            shared_memory: names(Path::new("/dev/shm")).into_iter().filter(|name| name.contains("dslaunch")).collect(),
        }
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Returns the resources of a launcher that has restarted its ranks so often, and the KiB that it takes.
fn after(restarts: u32, fault: &'static str) -> (Holdings, u64) {
    let run = Run::new(fault);
    run.edit("train.toml", "steps = 6\n", "steps = 100000\n");
    run.edit("train.toml", "every_steps = 2\n", "every_steps = 1\n");
    run.edit("data.jsonl", "{\"input_ids\": [1, 2, 3, 4]}\n", "{\"input_ids\": [1, 2, 3, 4]}\n{\"input_ids\": [5]}\n");
    let temporary = run.beside("tmp");
    fs::create_dir(&temporary).unwrap();
    let budget = format!("restart.max_restarts={restarts}");
    let args = ["--nproc", "2", "--set", &budget, "train.toml"];
    let start = Instant::now();
    let launch = run.start_with(&args, "often", &[("TMPDIR", temporary.to_str().unwrap())]);
    // Each wait has a deadline of its own.
    for attempt in (0..=restarts).step_by(100).chain([restarts]) {
        let log = run.path(&format!("logs/attempt-{attempt}/rank-1.err"));
        wait_until(&format!("attempt {attempt}"), || log.exists());
    }
    wait_until("training", || run.rows().iter().any(|row| row["attempt"] == restarts && row["event"] == "started"));
    println!("{restarts} restarts in {:.1} s", start.elapsed().as_secs_f64());
    let [launcher] = children(launch.pid())[..] else { panic!("the guardian has one child") };
    let held = (Holdings::of(launcher, &temporary), resident_kib(launcher));
    let end = launch.stop(Signal::SIGUSR1);
    assert_eq!(end.code, 75, "{end:?}");
    assert_eq!(names(&temporary), [""; 0]);
    held
}

fn a_thousand_restarts_leave_nothing_behind() {
    let (few, few_kib) = after(5, "restarts 5");
    let (many, many_kib) = after(1000, "restarts 1000");
    assert_eq!(few, many);
    assert_eq!(few.children, ["S", "S"], "the ranks of the last attempt and no zombie");
    println!("{few_kib} KiB resident after 5 restarts, {many_kib} after 1000");
    assert!(many_kib < few_kib + 4096, "{few_kib} KiB have become {many_kib}");
}
