//! A Slurm of the test's own: its own key, ports and folders, with several nodes that are all this machine. It ends with
//! the test, also one that panics, and knows nothing of a Slurm that the machine may have.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::nodes::free_port;

/// The programs that must be installed: Debian's slurm-wlm and munge.
const PROGRAMS: [&str; 7] = ["munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel"];
/// How long the daemons may take to find each other, and to end.
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);
/// How often a tool is asked, since none tells by itself.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A Slurm that runs.
pub struct Slurm {
    scratch: tempfile::TempDir,
    /// In the order in which they were started.
    daemons: Vec<Child>,
}

impl Slurm {
    /// A cluster of nodes `dsltest1`, `dsltest2`, ... with two cores each. `None`, with a loud line, where this machine
    /// cannot have one.
    pub fn start(num_nodes: usize) -> Option<Self> {
        if let Some(reason) = why_not() {
            eprintln!("SKIPPED: no Slurm is started: {reason}");
            return None;
        }
        let scratch = tempfile::tempdir().expect("a scratch folder");
        // Whoever reads the socket of munge must be able to enter the folder.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("a folder of ours");
        let mut slurm = Self { scratch, daemons: vec![] };
        for folder in ["munge", "ctld"] {
            fs::create_dir(slurm.path(folder)).expect("a scratch folder");
        }
        fs::write(slurm.path("slurm.conf"), slurm.configuration(num_nodes)).expect("a scratch file");
        slurm.start_munge();
        let conf = slurm.path("slurm.conf");
        slurm.daemon("slurmctld", &["-D", "-f", text(&conf)]);
        for node in 1..=num_nodes {
            slurm.daemon("slurmd", &["-D", "-N", &format!("dsltest{node}"), "-f", text(&conf)]);
        }
        let is_up = |slurm: &Self| slurm.ask("sinfo", &["-h", "-N", "-o", "%T"]).matches("idle").count() == num_nodes;
        slurm.wait_until("its nodes are idle", DAEMON_DEADLINE, is_up);
        Some(slurm)
    }

    /// A file in a folder that goes with the cluster.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Submits a script; its output goes to the file `output`. Returns the job's id.
    pub fn submit(&self, script: &Path, output: &Path) -> String {
        let output = format!("--output={}", output.display());
        self.ask("sbatch", &["--parsable", &output, text(script)]).trim().to_owned()
    }

    /// Sends `signal` to the steps of a job, as `scancel --signal` does.
    pub fn signal(&self, job: &str, signal: &str) {
        self.ask("scancel", &[&format!("--signal={signal}"), job]);
    }

    /// A value of `scontrol show job`.
    pub fn value(&self, job: &str, key: &str) -> String {
        let shown = self.ask("scontrol", &["show", "job", "-o", job]);
        let value = shown.split_whitespace().find_map(|word| word.strip_prefix(&format!("{key}=")));
        value.unwrap_or_else(|| panic!("no {key} in {shown}")).to_owned()
    }

    /// Waits until a job has ended; in which state.
    pub fn wait_for_end(&self, job: &str, limit: Duration) -> String {
        let ended = |state: &str| !matches!(state, "PENDING" | "CONFIGURING" | "RUNNING" | "COMPLETING" | "REQUEUED");
        self.wait_until(&format!("job {job} has ended"), limit, |slurm| ended(&slurm.value(job, "JobState")));
        self.value(job, "JobState")
    }

    /// Waits until `done`; panics, with the daemons' logs, after `limit`.
    pub fn wait_until(&self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !done(self) {
            assert!(Instant::now() < deadline, "after {limit:?} it is not so that {what}\n{}", self.logs());
            std::thread::sleep(ASK_AGAIN);
        }
    }

    /// Returns the output of one of Slurm's commands; it must succeed.
    pub fn ask(&self, tool: &str, args: &[&str]) -> String {
        let output = self.command(tool).args(args).output().expect("it is installed");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{tool} {args:?}: {output:?}\n{}", self.logs());
        stdout
    }

    /// One of Slurm's commands, for this cluster.
    #[allow(clippy::disallowed_methods, reason = "tests start Slurm as its administrator does")]
    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(installed(tool).expect("looked for at the start"));
        command.env("SLURM_CONF", self.path("slurm.conf")).current_dir(self.scratch.path()).stdin(Stdio::null());
        command
    }

    fn daemon(&mut self, tool: &str, args: &[&str]) {
        let log = self.path(&format!("{}-{tool}.out", self.daemons.len()));
        let output = fs::File::create(log).expect("a scratch file");
        let errors = output.try_clone().expect("a descriptor");
        let daemon = self.command(tool).args(args).stdout(output).stderr(errors).spawn();
        self.daemons.push(daemon.expect("it is installed"));
    }

    fn start_munge(&mut self) {
        let key = self.path("munge/key");
        let random: Vec<u8> = (0..4).flat_map(|_| fs::read("/proc/sys/kernel/random/uuid").expect("Linux")).collect();
        fs::write(&key, random).expect("a scratch file");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a file of ours");
        let option = |name: &str, file: &str| format!("--{name}={}", self.path("munge").join(file).display());
        let options = [
            option("key-file", "key"),
            option("socket", "socket"),
            option("pid-file", "pid"),
            option("log-file", "log"),
            option("seed-file", "seed"),
        ];
        let mut args: Vec<_> = options.iter().map(String::as_str).collect();
        // --force: the folders above belong to others.
        args.extend(["--foreground", "--force", "--num-threads=2"]);
        self.daemon("munged", &args);
        self.wait_until("munge listens", DAEMON_DEADLINE, |slurm| slurm.path("munge/socket").exists());
    }

    /// A job that was put back into the queue waits for as long as credentials live: the least that there is, here.
    fn configuration(&self, num_nodes: usize) -> String {
        let root = self.scratch.path().display();
        let port = free_port();
        let mut lines = format!(
            "ClusterName=dsltest\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort={port}\nSlurmUser=root\n\
             SlurmdUser=root\nAuthType=auth/munge\nAuthInfo=socket={root}/munge/socket,cred_expire=5\n\
             CredType=cred/munge\nMpiDefault=none\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             SchedulerType=sched/backfill\nSchedulerParameters=sched_interval=1,bf_interval=1\nSelectType=select/cons_tres\n\
             SelectTypeParameters=CR_Core\nSlurmdParameters=config_overrides\nReturnToService=2\nJobRequeue=1\n\
             AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none\n\
             JobCompType=jobcomp/none\nSwitchType=switch/none\nStateSaveLocation={root}/ctld\n\
             SlurmctldPidFile={root}/ctld/pid\nSlurmctldLogFile={root}/ctld/log\nSlurmdSpoolDir={root}/%n-spool\n\
             SlurmdPidFile={root}/%n-pid\nSlurmdLogFile={root}/%n-log\n"
        );
        for node in 1..=num_nodes {
            let port = free_port();
            lines += &format!(
                "NodeName=dsltest{node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN\n"
            );
        }
        lines + &format!("PartitionName=all Nodes=dsltest[1-{num_nodes}] Default=YES MaxTime=INFINITE State=UP\n")
    }

    /// The end of every log there is.
    fn logs(&self) -> String {
        let mut text = String::new();
        for name in crate::run::names_in(self.scratch.path()).into_iter().chain(["ctld/log".into(), "munge/log".into()])
        {
            if name.ends_with("log") || name.ends_with(".out") {
                let log = fs::read(self.path(&name)).unwrap_or_default();
                let log = String::from_utf8_lossy(&log).into_owned();
                let lines: Vec<_> = log.lines().collect();
                text += &format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
        text
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // Steps outlive the daemon that has started them.
        let _ = self.command("scancel").args(["--signal=KILL", "--full", "--user=root"]).output();
        let _ = self.command("scancel").args(["--user=root"]).output();
        let deadline = Instant::now() + DAEMON_DEADLINE;
        let is_busy = || self.command("squeue").arg("-h").output().is_ok_and(|output| !output.stdout.is_empty());
        while Instant::now() < deadline && is_busy() {
            std::thread::sleep(ASK_AGAIN);
        }
        for daemon in self.daemons.iter_mut().rev() {
            let _ = kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM);
            while Instant::now() < deadline && matches!(daemon.try_wait(), Ok(None)) {
                std::thread::sleep(ASK_AGAIN);
            }
            // Nothing happens to one that has ended.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn why_not() -> Option<String> {
    if !geteuid().is_root() {
        return Some("slurmd needs root".to_owned());
    }
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|tool| installed(tool).is_none()).collect();
    let packages = "install slurm-wlm and munge (scripts/setup.sh --dev does, as root with apt-get)";
    (!missing.is_empty()).then(|| format!("{} is missing: {packages}", missing.join(", ")))
}

/// Daemons lie where PATH need not look.
fn installed(tool: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    folders.into_iter().map(|folder| Path::new(folder).join(tool)).find(|path| path.exists())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("scratch folders have plain names")
}
