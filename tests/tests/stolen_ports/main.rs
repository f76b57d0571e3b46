//! A process that is not rank 0 listens at MASTER_PORT of `dslaunch run`: the attempt ends by its name, and the next one has
//! another port. Nobody else is taken for a thief. PRT-1, LST-1 to LST-3.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]
#![allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::interpreter;
use tests::nodes::{Cluster, Node};
use tests::program;
use tests::trials::{Draw, Trials};

/// A thief is found this soon after it listens: a look, the next one, and what a busy machine adds.
const FOUND_WITHIN: Duration = Duration::from_secs(2);
/// Whose process cannot be one of ours, where this user may make such a one.
const NOBODY: u32 = 65_534;

/// Listens at a port, with SO_REUSEADDR as every server does, and says so. Arguments: address, port, user (-1: this one).
const THIEF: &str = "
import os, socket, sys, time
address, port, uid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if uid >= 0:
    os.setuid(uid)
listener = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((address, port))
listener.listen()
print('listening', flush=True)
time.sleep(60)
";

struct Thief(Child);

impl Thief {
    /// Returns once it listens.
    fn listen(address: &str, port: &str, user: Option<u32>) -> Self {
        let uid = user.map_or("-1".to_owned(), |uid| uid.to_string());
        let mut thief = Command::new(interpreter());
        thief.args(["-c", THIEF, address, port, &uid]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut thief = thief.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(thief.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n", "it has the port");
        Self(thief)
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

struct Run {
    scratch: tempfile::TempDir,
}

impl Run {
    fn new() -> Self {
        Self { scratch: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn start(&self, flags: &str, script: &str) -> Child {
        let mut command = Command::new(program("dslaunch"));
        command.arg("run").args(flags.split_whitespace()).args(["--", "/bin/sh", "-c", script]);
        command.current_dir(self.scratch.path()).env("TMPDIR", self.scratch.path()).env("PYTHON", interpreter());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What the file of this name says, once it is there.
    fn read(&self, name: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        // Nobody tells a stranger that a file is there, so this asks.
        while !self.path(name).exists() {
            assert!(Instant::now() < deadline, "nobody has made {name}");
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::read_to_string(self.path(name)).unwrap().trim().to_owned()
    }
}

/// Each rank says its port; in the first attempt all of them wait for ever.
const WAITS: &str = "name=port-$RANK-$TORCHELASTIC_RESTART_COUNT; echo $MASTER_PORT > $name.tmp; mv $name.tmp $name
    [ $TORCHELASTIC_RESTART_COUNT = 1 ] || exec sleep 1000";

/// How long the thief had the port before the next attempt began elsewhere.
fn a_thief_is_found(draw: &mut Draw) -> Duration {
    let run = Run::new();
    let dslaunch = run.start("--nproc 2 --max-restarts 1", WAITS);
    let port = run.read("port-0-0");
    std::thread::sleep(Duration::from_millis(draw.below(300) as u64));
    let address = draw.one_of(&["127.0.0.1", "0.0.0.0", "::1", "::"]);
    let is_root = nix::unistd::geteuid().is_root();
    let user = draw.one_of(&[None, Some(NOBODY)]).filter(|_| is_root);
    let thief = Thief::listen(address, &port, user);
    let since = Instant::now();
    let next = run.read("port-0-1");
    let took = since.elapsed();
    let end = dslaunch.wait_with_output().unwrap();
    let stderr = String::from_utf8(end.stderr).unwrap();
    let told = format!(
        "rank 0 failed in attempt 0: process {} (python, of uid {}) listens at MASTER_PORT {port}, which was held for it\n",
        thief.0.id(),
        user.unwrap_or(nix::unistd::geteuid().as_raw())
    );
    let told = |name: &str| stderr.contains(&told.replace("(python,", &format!("({name},")));
    assert!(["python", "python3"].into_iter().any(told), "{address} {user:?}: {stderr}");
    assert_eq!(end.status.code(), Some(0), "{stderr}");
    assert_ne!(next, port, "{stderr}");
    assert!(took < FOUND_WITHIN, "{address} {user:?}: {took:?}");
    took
}

#[test]
fn prt_1_whoever_takes_rank_0s_port_ends_the_attempt_by_name_and_the_next_has_another() {
    let trials = Trials::or_else(5);
    let mut took: Vec<_> = trials.draws().map(|(_, mut draw)| a_thief_is_found(&mut draw)).collect();
    took.sort();
    println!(
        "{} ports stolen, all found: the next attempt began {:?} after the theft, median; longest {:?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
}

#[test]
fn a_thief_is_told_of_on_all_nodes() {
    let cluster = Cluster::new(2);
    let nodes = [0, 1].map(|node| cluster.shell(node, "--max-restarts 1", WAITS));
    cluster.wait_for("port-0-0");
    let port = fs::read_to_string(cluster.path("port-0-0")).unwrap().trim().to_owned();
    let _thief = Thief::listen("127.0.0.1", &port, None);
    let ends = nodes.map(Node::end);
    for end in ends {
        assert_eq!(end.code, Some(0), "{end:#?}");
        let told = format!("listens at MASTER_PORT {port}, which was held for it");
        assert!(end.stderr.contains("rank 0 on node 0 failed in attempt 0") && end.stderr.contains(&told), "{end:#?}");
    }
}

#[test]
fn a_rank_that_fails_of_a_theft_is_not_the_cause() {
    // Without a pause between the theft and its end.
    let run = Run::new();
    let script = "[ $RANK = 0 ] && exec sleep 1000
        $PYTHON -c \"$THIEF\" 127.0.0.1 $MASTER_PORT -1 | read said; exit 3";
    let mut command = Command::new("env");
    command
        .arg(format!("THIEF={THIEF}"))
        .arg(program("dslaunch"))
        .args(["run", "--nproc", "2", "--", "/bin/sh", "-c", script]);
    command.current_dir(run.scratch.path()).env("TMPDIR", run.scratch.path()).env("PYTHON", interpreter());
    // A rank other than rank 0 is no better than a stranger.
    let end = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(end.stderr).unwrap();
    assert!(stderr.contains("rank 0 failed in attempt 0: process "), "{stderr}");
    assert!(stderr.contains("which was held for it"), "{stderr}");
}

/// Ranks that meet at the port, as they should.
#[test]
fn who_listens_for_rank_0_is_no_thief() {
    let serve = "import os, socket
if os.environ.get('DAEMON'):
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
listener = socket.create_server(('', int(os.environ['MASTER_PORT'])))
listener.accept()[0].send(b'hello')
";
    let ask = "import os, socket, time
for _ in range(600):
    try:
        print(socket.create_connection(('127.0.0.1', int(os.environ['MASTER_PORT']))).recv(5).decode())
        break
    except OSError:
        time.sleep(0.05)
";
    // A process of rank 0's shell, or one that has left it and its session; and long enough for many looks.
    for (daemon, waits) in [("", "wait"), ("1", "while [ ! -e met ]; do sleep 0.05; done")] {
        let run = Run::new();
        fs::write(run.path("serve.py"), serve).unwrap();
        fs::write(run.path("ask.py"), ask).unwrap();
        let script = format!(
            "if [ $RANK = 0 ]; then DAEMON={daemon} $PYTHON serve.py & {waits}; else sleep 1; $PYTHON ask.py; echo > met; fi"
        );
        let end = run.start("--nproc 2", &script).wait_with_output().unwrap();
        let said = (String::from_utf8(end.stdout).unwrap(), String::from_utf8(end.stderr).unwrap());
        assert_eq!((end.status.code(), said.0.as_str(), said.1.as_str()), (Some(0), "hello\n", ""));
    }
}

#[test]
fn a_port_that_the_user_names_may_be_anybodys() {
    let run = Run::new();
    let port = tests::nodes::free_port().to_string();
    let _other = Thief::listen("127.0.0.1", &port, None);
    let end = run.start(&format!("--master-port {port}"), "sleep 0.5").wait_with_output().unwrap();
    assert_eq!(end.status.code(), Some(0), "{end:?}");
}
