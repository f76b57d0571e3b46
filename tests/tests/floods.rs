//! Strangers from the network harm nothing: a flood of any kind against a coordinator loses nothing of its run, and takes
//! neither memory, nor descriptors, nor, once it is over, the processor. GAT-1 to GAT-4, CTL-2.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]
#![allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use tests::fixtures::Scratch;
use tests::flood::{Flood, Running};
use tests::job::{Job, send};
use tests::nodes::Cluster;
use tests::process::{cpu_time, family, network_listeners, num_descriptors, peak_bytes};
use tests::program;
use tests::trials::{Draw, Trials};

/// What dslaunch may have resident, whatever strangers do.
const MEMORY_BYTES: u64 = 64 << 20;
/// What it may have open: strangers, and itself.
const DESCRIPTORS: usize = 1000;
/// Until all is as it was after a flood: longer than a stranger may take to say who it is.
const CALM: Duration = Duration::from_secs(10);
/// Part of one processor that a process takes that only waits.
const IDLE: f64 = 0.2;
/// What a rank says, so that something could be lost.
const LINES: usize = 500;

/// Both ends of a flood take descriptors here.
fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16), hard).unwrap();
}

fn pid_in(cluster: &Cluster, name: &str) -> u32 {
    fs::read_to_string(cluster.path(name)).unwrap().trim().parse().unwrap()
}

/// Waits until somebody listens.
fn wait_for_listener(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {address}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether `is_so` comes true within [`CALM`]. Nobody tells a stranger, so this asks.
fn becomes(is_so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + CALM;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A run of two nodes that is flooded from before node 1 joins until after a rank has died and both were started again.
fn a_flooded_run_loses_nothing(cluster: &Cluster, flood: Flood, lasts: Duration, draw: &mut Draw) {
    let script = format!(
        "echo $$ > pid.$RANK.tmp; mv pid.$RANK.tmp pid.$RANK.$TORCHELASTIC_RESTART_COUNT; \
         if [ $TORCHELASTIC_RESTART_COUNT = 0 ]; then exec sleep 1000; fi; \
         while [ ! -e go ]; do sleep 0.05; done; seq 1 {LINES}"
    );
    let zero = cluster.shell(0, "--nproc 1 --max-restarts 1", &script);
    let address = cluster.endpoint().parse().unwrap();
    wait_for_listener(address);
    let start = Instant::now();
    let strangers = Running::start(flood, address, Duration::from_secs(60), draw);
    let one = cluster.shell(1, "--nproc 1", &script);
    for rank in 0..2 {
        cluster.wait_for(&format!("pid.{rank}.0"));
    }
    let joined = start.elapsed();
    send(pid_in(cluster, &format!("pid.{}.0", draw.below(2))), Signal::SIGKILL);
    for rank in 0..2 {
        cluster.wait_for(&format!("pid.{rank}.1"));
    }
    let restarted = start.elapsed();
    let [_, launcher] = zero.processes()[..] else { panic!("a guardian and a launcher") };
    let mut most_descriptors = 0;
    while start.elapsed() < lasts {
        most_descriptors = most_descriptors.max(num_descriptors(launcher));
        thread::sleep(Duration::from_millis(20));
    }
    let connections = strangers.end();
    let peak = zero.processes().into_iter().chain(one.processes()).map(peak_bytes).max().unwrap();
    println!(
        "{flood:?}: {connections} connections in {:.1} s; joined after {joined:.1?}, restarted after {restarted:.1?}; \
         {most_descriptors} descriptors, {} MiB",
        start.elapsed().as_secs_f64(),
        peak >> 20
    );
    assert!(connections > 0, "{flood:?}: there was a flood");
    assert!(peak < MEMORY_BYTES, "{flood:?}: {peak} bytes resident");
    assert!(most_descriptors < DESCRIPTORS, "{flood:?}: {most_descriptors} descriptors");
    assert!(becomes(|| num_descriptors(launcher) < 100), "{flood:?}: strangers keep their places");
    let before = cpu_time(launcher);
    thread::sleep(Duration::from_secs(1));
    let busy = (cpu_time(launcher) - before).as_secs_f64();
    assert!(busy < IDLE, "{flood:?}: it spins: {busy} s of a second");
    fs::write(cluster.path("go"), "").unwrap();
    for end in [zero.end(), one.end()] {
        assert_eq!(end.code, Some(0), "{flood:?}: {end:?}");
        assert!(
            end.stdout.lines().map(str::to_owned).eq((1..=LINES).map(|line| line.to_string())),
            "{flood:?}: {end:?}"
        );
        assert_eq!(end.stderr.matches("starting all ranks again").count(), 1, "{flood:?}: {}", end.stderr);
    }
    cluster.assert_no_rank_is_left();
}

#[test]
fn no_flood_harms_a_run_on_several_nodes() {
    raise_limit();
    // In the usual run of the tests some kinds, for a moment each; all of them, for longer, in many trials.
    let trials = Trials::or_else(3);
    let lasts = Duration::from_secs(if trials.count > Flood::ALL.len() { 30 } else { 3 });
    for (trial, mut draw) in trials.draws() {
        let flood = Flood::ALL[(trials.seed as usize + trial) % Flood::ALL.len()];
        a_flooded_run_loses_nothing(&Cluster::new(2), flood, lasts, &mut draw);
    }
}

#[test]
fn with_few_descriptors_those_that_are_left_are_for_the_ranks() {
    raise_limit();
    let cluster = Cluster::new(2).with_descriptors(64);
    a_flooded_run_loses_nothing(&cluster, Flood::Silent, Duration::from_secs(3), &mut Draw::from_seed(1));
}

#[test]
fn the_launcher_takes_more_descriptors_and_its_ranks_have_what_the_user_has_set() {
    let script = "ulimit -Sn; ulimit -Hn; awk '/Max open files/ { print $4 }' /proc/$PPID/limits";
    let mut command = Command::new("prlimit");
    command
        .arg("--nofile=300:4000")
        .arg(program("dslaunch"))
        .args(["run", "--nproc", "1", "--", "/bin/sh", "-c", script]);
    let end = command.output().unwrap();
    let said = String::from_utf8(end.stdout).unwrap();
    assert_eq!(said, "300\n4000\n4000\n", "{}", String::from_utf8_lossy(&end.stderr));
}

fn job(scratch: &Scratch) -> Job {
    let (model, data) = (&scratch.model, &scratch.data);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 24\n\
         [train]\nsteps = 12\nmicro_batch_size = 2\nglobal_batch_size = 4\n[optimizer]\nlearning_rate = 1e-3\n\
         [checkpoint]\nevery_steps = 4\n[restart]\nhang_timeout_seconds = 0\n[log]\nevery_steps = 1\n"
    );
    Job::new(&scratch.folder.path().join("job"), &toml).nproc(2)
}

#[test]
fn training_on_one_machine_listens_to_nobody_from_the_network() {
    let scratch = Scratch::new(32);
    let mut running = job(&scratch).env("DSLAUNCH_FAULT", "slow=1000 rank=1 phase=forward step=4 unit=1").start();
    running.wait_for("step 3/");
    let processes = family(running.pid());
    assert!(running.ranks().iter().all(|rank| processes.contains(rank)), "{processes:?}");
    assert_eq!(network_listeners(&processes), [""; 0]);
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
}

#[test]
fn who_says_nothing_to_the_control_socket_keeps_nobody_from_being_heard() {
    raise_limit();
    let scratch = Scratch::new(32);
    let job = job(&scratch).env("DSLAUNCH_FAULT", "slow=8000 rank=1 phase=forward step=4 unit=1 attempt=0");
    let mut running = job.start();
    running.wait_for("step 3/");
    let socket = job.run_dir().path("control.sock");
    // The guardian's one child.
    let launcher = family(running.pid())[1];
    let silent: Vec<_> = (0..1000).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let since = Instant::now();
    let status = Command::new(program("dslaunch")).arg("status").arg(job.run_dir().path("")).output().unwrap();
    println!("{} silent connections; an answer after {:.1?}", silent.len(), since.elapsed());
    let said = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success() && said.contains("training, process"), "{said}");
    assert!(num_descriptors(launcher) < 200, "{} descriptors", num_descriptors(launcher));
    // A rank that dies meanwhile is started again.
    send(running.ranks()[1], Signal::SIGKILL);
    let finished = running.wait();
    drop(silent);
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.run.steps().len(), 12);
    assert_eq!(finished.run.events().iter().filter(|event| event["event"] == "restarted").count(), 1);
}

#[test]
fn followers_keep_nobody_from_asking_and_stopping() {
    let scratch = Scratch::new(32);
    let job = job(&scratch).env("DSLAUNCH_FAULT", "slow=60000 rank=1 phase=forward step=4 unit=1 attempt=0");
    let mut running = job.start();
    running.wait_for("step 3/");
    let socket = job.run_dir().path("control.sock");
    // As many as may follow, and more; none of them reads.
    let followers: Vec<_> = (0..40)
        .map(|_| {
            let mut follower = UnixStream::connect(&socket).unwrap();
            follower.write_all(b"attach\n").unwrap();
            follower
        })
        .collect();
    let status = job.dslaunch(&["status", "run"]);
    assert!(status.status.success(), "{status:?}");
    let ranks = running.ranks();
    let since = Instant::now();
    let stopped = job.dslaunch(&["stop", "run"]);
    assert!(stopped.status.success() && since.elapsed() < Duration::from_secs(5), "{:?}: {stopped:?}", since.elapsed());
    // It has waited for the end, not only asked for it.
    assert!(String::from_utf8_lossy(&stopped.stdout).contains("stopped by the user"), "{stopped:?}");
    tests::job::wait_until_gone(&ranks, Duration::ZERO);
    assert_eq!(running.wait().status.code(), Some(143));
    drop(followers);
}
