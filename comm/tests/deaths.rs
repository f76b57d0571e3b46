//! Faults that need real processes: this binary runs itself again as the ranks.
//!
//! A worker is the test `worker`, run alone with its part in the environment and the memfd as its standard input. It
//! reports on standard error, where the test harness writes nothing.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]
#![allow(clippy::disallowed_methods, reason = "the test is the launcher of its ranks")]

mod common;

use std::io::{BufRead, BufReader, Lines};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use comm::{Channel, Collective, CommError, DType, FlightState, ReduceOp, ShmOptions, ShmWorld, UseOf, Work, World};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The part that a worker plays, its rank and its patience: `part:rank:world_size:timeout_ms`.
const PART: &str = "DSLAUNCH_COMM_TEST_PART";
/// The bound is for loaded machines; an idle one takes about a millisecond.
const DETECTION_MAX: Duration = Duration::from_secs(1);
const PATIENT_MS: u64 = 60_000;

struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Worker {
    fn start(part: &str, rank: usize, world_size: usize, timeout_ms: u64, memfd: &OwnedFd) -> Worker {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["worker", "--exact", "--nocapture"])
            .env(PART, format!("{part}:{rank}:{world_size}:{timeout_ms}"))
            .stdin(memfd.try_clone().expect("dup"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start a worker");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        Worker { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the worker has more to say").expect("a line")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signal a worker");
    }

    fn finish(mut self) {
        let success = self.child.wait().expect("wait").success();
        assert!(success, "{:?}", self.lines.by_ref().collect::<Vec<_>>());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_world(part: &str, world_size: usize, timeout_ms: u64) -> Vec<Worker> {
    let memfd = common::new_memfd();
    let start = |rank| Worker::start(part, rank, world_size, timeout_ms, &memfd);
    let mut workers: Vec<Worker> = (0..world_size).map(start).collect();
    for worker in &mut workers {
        assert_eq!(worker.line(), "ready");
    }
    workers
}

/// Takes `victim` down with `signal` and returns how long each survivor took to say `expected`.
fn strike(mut workers: Vec<Worker>, victim: usize, signal: Signal, expected: &str) -> Vec<Duration> {
    let begin = Instant::now();
    workers[victim].signal(signal);
    let _victim = workers.remove(victim);
    let mut elapsed = Vec::new();
    for mut worker in workers {
        let line = worker.line();
        assert!(line.contains(expected), "{line:?} lacks {expected:?}");
        elapsed.push(begin.elapsed());
        assert_eq!(worker.line(), "poisoned");
        worker.finish();
    }
    elapsed
}

#[test]
fn a_peer_killed_in_mid_collective_is_named_at_once() {
    for (part, world_size, victim) in [
        ("reduce", 3, 1),
        ("reduce", 2, 0),
        ("reduce", 4, 3),
        ("exchange", 3, 1),
        ("exchange", 2, 0),
        ("absent", 3, 1),
        ("mail", 2, 1),
        ("mail", 2, 0),
        ("untaken", 2, 1),
        ("full", 2, 1),
    ] {
        let workers = start_world(part, world_size, PATIENT_MS);
        let elapsed = strike(workers, victim, Signal::SIGKILL, &format!("rank {victim} died (last seen in "));
        println!("{part}, {world_size} ranks: survivors knew after {elapsed:?}");
        assert!(elapsed.iter().all(|elapsed| *elapsed < DETECTION_MAX), "{elapsed:?}");
    }
}

#[test]
fn a_stopped_peer_is_named_at_the_deadline() {
    const TIMEOUT_MS: u64 = 400;
    for part in ["reduce", "exchange"] {
        let workers = start_world(part, 3, TIMEOUT_MS);
        let elapsed = strike(workers, 1, Signal::SIGSTOP, "timed out after 400ms, missing ranks [1]: rank 1 is ");
        println!("{part}: survivors gave up after {elapsed:?}");
        assert!(elapsed.iter().all(|elapsed| *elapsed >= Duration::from_millis(TIMEOUT_MS - 100)), "{elapsed:?}");
        assert!(elapsed.iter().all(|elapsed| *elapsed < DETECTION_MAX * 10), "{elapsed:?}");
    }
}

#[test]
fn a_peer_that_dies_right_after_joining_is_named() {
    let memfd = common::new_memfd();
    let mut workers: Vec<Worker> = (0..2).map(|rank| Worker::start("reduce", rank, 3, PATIENT_MS, &memfd)).collect();
    // It dies as soon as it has joined, which the others may or may not have seen by then.
    let third = Worker::start("kill_self", 2, 3, PATIENT_MS, &memfd);
    for worker in &mut workers {
        let line = worker.line();
        let line = if line == "ready" { worker.line() } else { line };
        assert!(line.contains("rank 2 died (last seen in join #0)"), "{line}");
    }
    drop(third);
}

#[test]
fn a_peer_that_left_may_exit() {
    let mut workers = start_world("leave", 2, PATIENT_MS);
    let zero = workers.remove(0);
    workers.remove(0).finish();
    zero.finish();
}

/// Not a test of its own: the body of the worker processes.
#[test]
fn worker() {
    let Ok(part) = std::env::var(PART) else { return };
    let fields: Vec<&str> = part.split(':').collect();
    let [part, rank, world_size, timeout_ms] = fields[..] else { panic!("{part}") };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let world = ShmWorld::join(ShmOptions {
        rank: number(rank) as usize,
        world_size: number(world_size) as usize,
        fd: std::io::stdin().as_fd().try_clone_to_owned().expect("dup"),
        arena_bytes: 4 << 20,
        timeout: Duration::from_millis(number(timeout_ms)),
    });
    let world = match world {
        Ok(world) => world,
        Err(error) => return eprintln!("{error}"),
    };
    let group = world.world();
    if part == "kill_self" {
        kill(Pid::this(), Signal::SIGKILL).expect("kill");
    }
    if let Err(error) = group.barrier() {
        return eprintln!("{error}");
    }
    eprintln!("ready");
    match part {
        "leave" => leave(world),
        part => {
            let error = work_until_fault(&world, &*group, part);
            eprintln!("{error}");
            assert_eq!(group.barrier(), Err(error.clone()));
            assert_eq!(world.check(), Err(error));
            eprintln!("poisoned");
        }
    }
}

fn work_until_fault(world: &ShmWorld, group: &dyn Collective, part: &str) -> CommError {
    let buf = world.alloc(DType::F32, 250_000).expect("alloc");
    let whole_slices = buf.slice(0, buf.numel() / group.size() * group.size());
    loop {
        let outcome = match (part, group.rank()) {
            ("reduce", _) => group.all_reduce(buf, ReduceOp::Sum).and_then(Work::wait),
            ("exchange", _) => group.all_to_all(whole_slices).and_then(Work::wait),
            ("absent" | "untaken" | "full", 1) => loop {
                std::thread::park();
            },
            ("absent", _) => group.barrier(),
            ("full", 0) => group.send(buf, 1, Channel::Forward).map(drop),
            ("mail" | "untaken", 0) => group.send(buf, 1, Channel::Forward).and_then(Work::wait),
            ("mail", _) => group.recv(buf, 0, Channel::Forward).and_then(Work::wait),
            other => panic!("{other:?}"),
        };
        if let Err(error) = outcome {
            return error;
        }
    }
}

/// Rank 1 leaves and exits; rank 0 outlives it and still works.
fn leave(world: ShmWorld) {
    if world.rank() == 0 {
        let pid = Pid::from_raw(world.flight(1).pid as i32);
        while kill(pid, None) != Err(Errno::ESRCH) {
            std::thread::yield_now();
        }
        assert_eq!(world.flight(1).state, FlightState::Left);
        world.group(1, &[0], UseOf::Collectives).and_then(|own| own.barrier()).expect("rank 1 is not needed");
        world.check().expect("rank 1 left in good order");
    }
    world.leave();
}
