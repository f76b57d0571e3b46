//! LCH-1 and LCH-2: whatever is killed, nothing that dslaunch started is left after a second, whatever it forked, whichever
//! session it went to, whatever it ignores; and no stranger is touched.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]
#![allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::daemons::WORKER;
use tests::job::send;
use tests::program;

const TRIALS: usize = 200;

/// Until nothing may be left.
const LIMIT: Duration = Duration::from_secs(1);

/// Whether attempts may have control groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cgroups {
    /// Where the machine lets them.
    With,
    Without,
}

/// A run of [`WORKER`]s.
struct Run {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    workers: Vec<u32>,
}

impl Run {
    fn start(num_workers: usize, cgroups: Cgroups) -> Self {
        let mut command = Command::new(program("dslaunch"));
        if cgroups == Cgroups::Without {
            command.env("DSLAUNCH_CGROUP", "off");
        }
        command.args(["run", "--nproc-per-node", &num_workers.to_string(), "--", "/bin/sh", "-c", WORKER]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let workers = (0..num_workers).map(|_| {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            line.trim().parse().unwrap()
        });
        let workers = workers.collect();
        Self { child, stdout, workers }
    }

    /// The process that the user has started.
    fn guardian(&self) -> u32 {
        self.child.id()
    }

    /// The process that has started the workers.
    fn launcher(&self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.workers[0])).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        parent.trim().parse().unwrap()
    }

    /// Waits until nobody holds standard output any more. How long that took, and how dslaunch ended.
    fn end(mut self) -> (Duration, ExitStatus) {
        let start = Instant::now();
        self.stdout.read_to_string(&mut String::new()).unwrap();
        (start.elapsed(), self.child.wait().unwrap())
    }
}

/// Kills `victim` of a run again and again; the longest that anything lived on.
fn check(what: &str, cgroups: Cgroups, victim: impl Fn(&Run, usize) -> u32, code: Option<i32>) {
    // Same program, same user, same session.
    let decoys: Vec<Child> = (0..3).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
    let mut times: Vec<Duration> = (0..TRIALS)
        .map(|trial| {
            let run = Run::start(2, cgroups);
            assert_ne!(run.launcher(), run.guardian());
            send(victim(&run, trial), Signal::SIGKILL);
            let (time, status) = run.end();
            assert!(time < LIMIT, "{what}, trial {trial}: something lived on for {time:?}");
            assert_eq!(status.code(), code, "{what}, trial {trial}: {status}");
            time
        })
        .collect();
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, last) = (times[TRIALS / 2], times[TRIALS - 1]);
    println!(
        "{what} killed {TRIALS} times: all gone after {:.1} ms (median), {:.1} ms (longest)",
        ms(median),
        ms(last)
    );
    for mut decoy in decoys {
        assert_eq!(decoy.try_wait().unwrap(), None, "{what}: a stranger was killed");
        decoy.kill().unwrap();
        decoy.wait().unwrap();
    }
}

#[test]
fn nothing_outlives_a_killed_guardian() {
    check("the guardian", Cgroups::With, |run, _| run.guardian(), None);
}

#[test]
fn nothing_outlives_a_killed_launcher() {
    check("the launcher", Cgroups::With, |run, _| run.launcher(), Some(128 + 9));
}

#[test]
fn nothing_outlives_a_killed_rank() {
    check("a rank", Cgroups::With, |run, trial| run.workers[trial % 2], Some(128 + 9));
}

#[test]
fn without_control_groups_it_is_the_same() {
    check("the guardian", Cgroups::Without, |run, _| run.guardian(), None);
    check("the launcher", Cgroups::Without, |run, _| run.launcher(), Some(128 + 9));
    check("a rank", Cgroups::Without, |run, trial| run.workers[trial % 2], Some(128 + 9));
}

/// The v2 control group of a process, as the kernel names it.
fn cgroup(pid: u32) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

#[test]
fn control_groups_are_used_where_they_can_be_and_leave_nothing() {
    let run = Run::start(2, Cgroups::With);
    let (guardian, group) = (run.guardian(), cgroup(run.workers[0]));
    if !(group.contains(&format!("/dslaunch-{guardian}-")) && group.ends_with("/attempt-0")) {
        println!("SKIPPED control_groups_are_used_where_they_can_be: no control group (v2) can be made here");
        send(guardian, Signal::SIGKILL);
        run.end();
        return;
    }
    assert_eq!(cgroup(run.workers[1]), group);
    assert!(!cgroup(run.launcher()).contains("dslaunch-"), "the launcher itself stays where it was");
    let own = group.split("/dslaunch-").next().unwrap().to_owned();
    // Of a job whose guardian had this process id.
    let is_there = |guardian: u32| {
        let own = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|mount| format!("{mount}{own}"));
        let names = own.iter().flat_map(|own| fs::read_dir(own).into_iter().flatten().flatten());
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("dslaunch-{guardian}-")))
    };
    assert!(is_there(guardian));
    for victim in ["launcher", "guardian", "rank"] {
        let run = Run::start(1, Cgroups::With);
        let pid = match victim {
            "launcher" => run.launcher(),
            "guardian" => run.guardian(),
            _ => run.workers[0],
        };
        let guardian = run.guardian();
        send(pid, Signal::SIGKILL);
        run.end();
        let start = Instant::now();
        // The last process removes it after its output is closed.
        while is_there(guardian) {
            assert!(start.elapsed() < LIMIT, "{victim} killed: a control group is left");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    send(run.workers[0], Signal::SIGKILL);
    run.end();
    assert!(!is_there(guardian));
}
