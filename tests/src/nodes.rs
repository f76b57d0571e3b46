//! A `dslaunch run` over several machines, all of which are this one: a dslaunch process for each node.

use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::job::{send, wait_until_gone};
use crate::{interpreter, program, repository};

/// The nodes of a run: their meeting point, and the folder that its ranks run in.
pub struct Cluster {
    scratch: tempfile::TempDir,
    num_nodes: u32,
    port: u16,
    /// Descriptors that each dslaunch may have, where not as many as anybody.
    descriptors: Option<usize>,
}

/// A node's dslaunch that runs.
pub struct Node {
    child: Child,
    stdout: JoinHandle<io::Result<String>>,
    stderr: JoinHandle<io::Result<String>>,
}

/// How a node's dslaunch ended.
#[derive(Debug)]
pub struct End {
    /// Its exit code.
    pub code: Option<i32>,
    /// The output of its ranks.
    pub stdout: String,
    /// Its own messages.
    pub stderr: String,
}

impl Cluster {
    /// Nobody runs yet. Ranks leave their process ids in a folder `pids`: see [`Cluster::shell`].
    pub fn new(num_nodes: u32) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        for folder in ["tmp", "pids", "cache"] {
            fs::create_dir(scratch.path().join(folder)).expect("a scratch folder");
        }
        Self { scratch, num_nodes, port: free_port(), descriptors: None }
    }

    /// Lets each dslaunch have only so many descriptors.
    pub fn with_descriptors(self, limit: usize) -> Self {
        Self { descriptors: Some(limit), ..self }
    }

    /// A file in the folder that ranks run in.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `dslaunch run FLAGS` as this node; the flags are separated by spaces.
    #[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
    pub fn command(&self, node_rank: u32, flags: &str) -> Command {
        let mut command = match self.descriptors {
            Some(limit) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={limit}:{limit}")).arg(program("dslaunch"));
                command
            }
            None => Command::new(program("dslaunch")),
        };
        command.args(["run", "--nnodes", &self.num_nodes.to_string(), "--node-rank", &node_rank.to_string()]);
        if !flags.contains("--rendezvous") {
            command.args(["--rendezvous", &self.endpoint()]);
        }
        command.args(flags.split_whitespace()).current_dir(self.scratch.path());
        command
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("GLOO_SOCKET_IFNAME", "lo")
            .env_remove("OMP_NUM_THREADS");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts this node with ranks that are shells; each leaves its process id before it does anything else.
    pub fn shell(&self, node_rank: u32, flags: &str, script: &str) -> Node {
        let script = format!("echo > pids/$$; {script}");
        let mut command = self.command(node_rank, flags);
        command.args(["--", "/bin/sh", "-c", &script]);
        Node::start(command)
    }

    /// Starts this node with ranks that run `scripts/peers/allreduce_gloo.py`.
    pub fn allreduce(&self, node_rank: u32, flags: &str, arguments: &[&str]) -> Node {
        let mut command = self.command(node_rank, flags);
        command.arg("--").arg(interpreter()).arg(repository().join("scripts/peers/allreduce_gloo.py"));
        command.args(arguments);
        Node::start(command)
    }

    /// Starts this node with `script`, as [`Cluster::shell`] does, and a folder of caches that no other node has: it finds
    /// another token there.
    pub fn elsewhere(&self, node_rank: u32, script: &str) -> Node {
        let mut command = self.command(node_rank, "");
        command.env("XDG_CACHE_HOME", self.path("elsewhere")).args(["--", "/bin/sh", "-c", script]);
        Node::start(command)
    }

    /// Waits until ranks have made a file of this name.
    pub fn wait_for(&self, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        // Nobody tells a stranger that a file is there, so this asks.
        while !self.path(name).exists() {
            assert!(Instant::now() < deadline, "nobody has made {name}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// No rank is left, or what it has started by the names that [`Cluster::shell`] knows.
    pub fn assert_no_rank_is_left(&self) {
        let pids = crate::run::names_in(&self.path("pids"));
        let pids: Vec<_> = pids.iter().map(|pid| pid.parse().expect("a process id")).collect();
        wait_until_gone(&pids, Duration::from_secs(2));
    }
}

impl Node {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("dslaunch starts");
        let stdout = reader(child.stdout.take().expect("piped"));
        let stderr = reader(child.stderr.take().expect("piped"));
        Self { child, stdout, stderr }
    }

    /// Sends `signal` to the process that the user has started.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// The process that the user has started, and what it has started, if they are there.
    pub fn processes(&self) -> Vec<u32> {
        let guardian = self.child.id();
        let children = fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children")).unwrap_or_default();
        let launcher = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        [guardian].into_iter().chain(launcher).collect()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// Waits for its end.
    pub fn end(mut self) -> End {
        let text = |reader: JoinHandle<io::Result<String>>| reader.join().expect("it lives").expect("text");
        let (stdout, stderr) = (text(self.stdout), text(self.stderr));
        End { code: self.child.wait().expect("a child of ours").code(), stdout, stderr }
    }
}

/// Pipes are read all the time: a full one would stop who writes.
fn reader(mut pipe: impl Read + Send + 'static) -> JoinHandle<io::Result<String>> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text)
    })
}

/// A port that nobody listens at now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}
