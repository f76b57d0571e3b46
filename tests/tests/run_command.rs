//! `dslaunch run`: any program as ranks. Most of them are shells; real torch programs come last. LCH-1, LCH-3.

#![allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::job::{send, wait_until_gone};
use tests::run::names_in;
use tests::{program, repository};

/// A run with a folder of its own for what it may leave.
struct Run {
    scratch: tempfile::TempDir,
    command: Command,
}

/// How a run ended.
#[derive(Debug)]
struct End {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    /// `dslaunch run FLAGS`, the flags separated by spaces; temporary folders are made in [`Run::tmp`].
    fn new(flags: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("dslaunch"));
        command.arg("run").args(flags.split_whitespace()).current_dir(scratch.path());
        fs::create_dir(scratch.path().join("tmp")).unwrap();
        command.env("TMPDIR", scratch.path().join("tmp")).env_remove("OMP_NUM_THREADS");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { scratch, command }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// `-- /bin/sh -c SCRIPT`
    fn shell(self, script: &str) -> Self {
        self.args(&["--", "/bin/sh", "-c", script])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes a FIFO of this name in the folder that ranks run in, to meet them.
    fn fifo(&self) -> PathBuf {
        let path = self.path("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    fn end(&mut self) -> End {
        let output = self.command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        End { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn start(&mut self) -> Started {
        let mut child = self.command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Started { child, stdout }
    }
}

/// A run that is going on.
struct Started {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Started {
    /// The next lines of standard output.
    fn lines(&mut self, count: usize) -> Vec<String> {
        (&mut self.stdout).lines().take(count).map(Result::unwrap).collect()
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits for the end; how long that took.
    fn end(mut self) -> (End, Duration) {
        let since = Instant::now();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (End { code: self.child.wait().unwrap().code(), stdout, stderr }, since.elapsed())
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort();
    lines
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn ranks_get_torchruns_environment() {
    let names = [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "ROLE_NAME",
        "MASTER_ADDR",
        "TORCHELASTIC_RESTART_COUNT",
        "TORCHELASTIC_MAX_RESTARTS",
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_USE_AGENT_STORE",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "OMP_NUM_THREADS",
    ];
    let script = format!("echo {}", names.map(|name| format!("${name}")).join(" "));
    let end = Run::new("--nproc-per-node 2 --max-restarts 1 --rdzv-id id").shell(&script).end();
    let line = |rank| format!("{rank} {rank} 2 2 0 1 {rank} 2 default 127.0.0.1 0 1 id False 1 1");
    assert_eq!(sorted(&end.stdout), [line(0), line(1)], "{end:?}");
    let end =
        Run::new("--master-port 4000").env("OMP_NUM_THREADS", "3").shell("echo $MASTER_PORT $OMP_NUM_THREADS").end();
    assert_eq!(end.stdout, "4000 3\n");
    let end = Run::new("--nproc 2").shell("echo $MASTER_PORT; [ $MASTER_PORT -gt 1023 ]").end();
    assert_eq!(
        (end.code, end.stdout.lines().next()),
        (Some(0), end.stdout.lines().nth(1)),
        "one port for all: {end:?}"
    );
}

#[test]
fn the_exit_code_is_the_failing_ranks() {
    let check = |script: &str, code: i32, text: &str| {
        let end = Run::new("--nproc 2").shell(script).end();
        assert_eq!(end.code, Some(code), "{script}: {end:?}");
        assert!(end.stderr.contains(text), "{script}: {end:?}");
    };
    check("exit 0", 0, "");
    check("[ $RANK = 0 ] || exit 7", 7, "rank 1 failed in attempt 0: exited with code 7");
    check("[ $RANK = 1 ] || kill -SEGV $$", 139, "rank 0 failed in attempt 0: killed by SIGSEGV");
    // LCH-3: the others, which would wait for ever, are stopped and are not the cause.
    check(
        "[ $RANK = 1 ] && exit 5; trap 'exit 6' TERM; sleep 1000",
        5,
        "rank 1 failed in attempt 0: exited with code 5",
    );
    let end = Run::new("--nproc 2").args(&["--", "/no/such/program"]).end();
    assert_eq!(end.code, Some(3));
    assert!(end.stderr.contains("cannot start /no/such/program: No such file"), "{end:?}");
}

#[test]
fn what_is_not_there_is_refused_and_nothing_starts() {
    let check = |flags: &str, env: (&str, &str), code: i32, text: &str| {
        let end = Run::new(flags).env(env.0, env.1).shell("echo started").end();
        assert_eq!((end.code, end.stdout.as_str()), (Some(code), ""), "{flags}: {end:?}");
        assert!(end.stderr.contains(text), "{flags}: {end:?}");
    };
    check("--nnodes 2", ("A", "b"), 2, "--nnodes 2: --node-rank is missing");
    check("--nnodes 1:4", ("A", "b"), 2, "--nnodes 1:4: a number of machines that changes is not there yet");
    check("--nnodes 1 --node-rank 1", ("A", "b"), 2, "--node-rank 1: with --nnodes 1 the last one is 0");
    check("--redirects 0:9", ("A", "b"), 2, "--redirects");
    check("", ("PET_TEE", "7"), 2, "PET_TEE = 7: expected 0 (neither)");
    check("--nproc gpu", ("CUDA_VISIBLE_DEVICES", ""), 3, "--nproc-per-node gpu: this machine has no NVIDIA GPU");
    check("--log-dir /dev/null", ("A", "b"), 3, "--log-dir /dev/null");
}

#[test]
fn variables_stand_for_flags() {
    let count = |flags: &str| {
        let run =
            Run::new(flags).env("PET_NPROC_PER_NODE", "3").env("PET_MAX_RESTARTS", "4").env("PET_RDZV_ENDPOINT", "");
        run.shell("echo $TORCHELASTIC_MAX_RESTARTS").end().stdout
    };
    assert_eq!(count(""), "4\n4\n4\n");
    assert_eq!(count("--nproc_per_node 1 --max_restarts 0"), "0\n");
}

#[test]
fn all_ranks_are_started_again_while_the_budget_lasts() {
    let fails_twice = "echo rank $RANK attempt $TORCHELASTIC_RESTART_COUNT
        [ $RANK = 1 ] && [ $TORCHELASTIC_RESTART_COUNT -lt 2 ] && exit 5
        [ $TORCHELASTIC_RESTART_COUNT = 2 ] || sleep 1000";
    let end = Run::new("--nproc 2 --max-restarts 3").shell(fails_twice).end();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(end.stderr.contains("starting all ranks again (restart 2 of 3)"), "the same failure twice is tried again");
    assert!(end.stdout.contains("rank 0 attempt 2") && !end.stdout.contains("attempt 3"), "{end:?}");
    let end = Run::new("--nproc 2 --max-restarts 1").shell(fails_twice).end();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert!(end.stderr.contains("rank 1 failed in attempt 1: exited with code 5"), "{end:?}");
    assert!(end.stderr.contains("giving up: the restart budget is used up (--max-restarts = 1)"), "{end:?}");
}

#[test]
fn the_reason_in_an_error_file_is_told() {
    let script = r#"[ $RANK = 1 ] || exec sleep 1000
        echo '{"message": {"message": "ValueError: boom", "extraInfo": {"timestamp": "1"}}}' > $TORCHELASTIC_ERROR_FILE
        exit 1"#;
    let mut run = Run::new("--nproc 2").shell(script);
    let end = run.end();
    assert_eq!(end.code, Some(1));
    assert!(end.stderr.contains("exited with code 1\n  ValueError: boom\n  what it left is in "), "{end:?}");
    let folder = run.path("tmp").join(&names_in(&run.path("tmp"))[0]);
    assert!(folder.join("attempt-0/1/error.json").exists() && !folder.join("attempt-0/0").exists());
    let mut run = Run::new("--nproc 2").shell("echo '{\"message\": \"no\"}' > $TORCHELASTIC_ERROR_FILE");
    assert_eq!((run.end().code, names_in(&run.path("tmp")).len()), (Some(0), 0), "nothing is left of a success");
    let mut run = Run::new("--nproc 2").shell("exit 1");
    assert_eq!((run.end().code, names_in(&run.path("tmp")).len()), (Some(1), 0), "nor of nothing");
}

#[test]
fn redirected_streams_are_in_files_and_their_end_in_the_report() {
    // Rank 1 waits until rank 0 has said its part: a rank that is stopped says nothing more.
    let script = "echo to out $RANK; echo last words >&2
        [ $RANK = 1 ] && read line < fifo && kill -KILL $$
        echo > fifo; sleep 1000";
    let mut run = Run::new("--nproc 2 -r 0:2,1:3 --log-dir logs").shell(script);
    run.fifo();
    let end = run.end();
    assert_eq!((end.code, end.stdout.as_str()), (Some(137), "to out 0\n"), "{end:?}");
    let log = |name: &str| read(&run.path("logs").join(name));
    assert_eq!(
        (log("attempt-0/1/stdout.log"), log("attempt-0/1/stderr.log")),
        ("to out 1\n".into(), "last words\n".into())
    );
    assert!(!run.path("logs/attempt-0/0/stdout.log").exists());
    assert!(end.stderr.contains("killed by SIGKILL") && end.stderr.contains("  | last words\n"), "{end:?}");
    run.end();
    assert_eq!(read(&run.path("logs/launch/attempt-0/1/stdout.log")), "to out 1\n", "earlier logs are kept apart");

    let mut run = Run::new("-r 1").shell("echo hello");
    let end = run.end();
    let folder = run.path("tmp").join(&names_in(&run.path("tmp"))[0]);
    assert_eq!(end.stderr, format!("logs are in {}\n", folder.display()), "what was asked for in files stays");
    assert_eq!(read(&folder.join("attempt-0/0/stdout.log")), "hello\n");
}

#[test]
fn teed_lines_have_their_rank_and_are_whole() {
    let script = "i=0; while [ $i -lt 500 ]; do echo $RANK line $i; i=$((i+1)); done; printf 'last of %s' $RANK >&2";
    let mut run = Run::new("--nproc 3 -t 3 --log-dir logs").shell(script);
    let end = run.end();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(sorted(&end.stderr), ["[default0]:last of 0", "[default1]:last of 1", "[default2]:last of 2"]);
    for rank in 0..3 {
        let prefix = format!("[default{rank}]:");
        let lines: Vec<_> = end.stdout.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let expected: Vec<_> = (0..500).map(|line| format!("{rank} line {line}")).collect();
        assert_eq!(lines, expected);
        assert_eq!(read(&run.path(&format!("logs/attempt-0/{rank}/stdout.log"))).lines().count(), 500);
    }
    assert_eq!(end.stdout.lines().count(), 1500);
    let end = Run::new("-t 0:1 --role trainer").shell("echo last words; kill -KILL $$").end();
    assert_eq!(end.stdout, "[trainer0]:last words\n", "nothing is lost to SIGKILL: {end:?}");
}

#[test]
fn teed_lines_are_shown_as_they_come() {
    let mut run = Run::new("-t 1").shell("echo first; read line < fifo; echo $line");
    let fifo = run.fifo();
    let mut started = run.start();
    assert_eq!(started.lines(1), ["[default0]:first"]);
    fs::write(&fifo, "second\n").unwrap();
    assert_eq!(started.lines(1), ["[default0]:second"]);
    assert_eq!(started.end().0.code, Some(0));
}

#[test]
fn the_filter_knows_ranks_above_nine() {
    let flags = "--nproc 13 --local-ranks-filter 1,12 -r 11:3,12:2 -t 10:1 --log-dir logs";
    let mut run = Run::new(flags).shell("echo out $RANK; echo err $RANK >&2");
    let end = run.end();
    assert_eq!(sorted(&end.stdout), ["out 1", "out 12"], "{end:?}");
    assert_eq!(end.stderr, "err 1\n", "{end:?}");
    let log = |name: &str| read(&run.path("logs/attempt-0").join(name));
    assert_eq!((log("11/stdout.log"), log("11/stderr.log")), ("out 11\n".into(), "err 11\n".into()));
    assert_eq!((log("12/stderr.log"), log("10/stdout.log")), ("err 12\n".into(), "out 10\n".into()));
    assert!(!run.path("logs/attempt-0/0/stdout.log").exists());
}

#[test]
fn signals_are_passed_on_and_ranks_have_time() {
    for (signal, name, code) in [(Signal::SIGTERM, "TERM", 143), (Signal::SIGINT, "INT", 130)] {
        // Saving takes longer than the grace after a failure. Short sleeps: a shell that gets the signal just before it
        // starts one looks at it after that.
        let script = format!("trap 'sleep 0.5; echo saved; exit 0' {name}; echo ready; while :; do sleep 0.05; done");
        let mut run = Run::new("--nproc 2 --max-restarts 3").shell(&script);
        let mut started = run.start();
        assert_eq!(started.lines(2), ["ready", "ready"]);
        started.signal(signal);
        let (end, took) = started.end();
        assert_eq!((end.code, end.stdout.as_str()), (Some(code), "saved\nsaved\n"), "{end:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(end.stderr.contains(&format!("stopped by SIG{name}: no rank is left")), "{end:?}");
    }
}

#[test]
fn a_second_signal_kills_at_once() {
    // Neither is lost, whichever of the launcher's threads it comes to.
    for _ in 0..20 {
        let mut run = Run::new("--nproc 2").shell("trap '' INT TERM; echo ready; while :; do sleep 1000; done");
        let mut started = run.start();
        assert_eq!(started.lines(2), ["ready", "ready"]);
        started.signal(Signal::SIGTERM);
        started.signal(Signal::SIGINT);
        let (end, took) = started.end();
        assert!(matches!(end.code, Some(130 | 143)), "{end:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

#[test]
fn a_terminal_that_nobody_reads_stops_nothing() {
    for flags in ["-t 3", ""] {
        let (_reader, mut writer) = std::io::pipe().unwrap();
        let capacity = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
        writer.write_all(&vec![b'.'; capacity as usize]).unwrap();
        let mut run = Run::new(&format!("--nproc 2 {flags}"));
        run.command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let fifo = run.fifo();
        // The FIFO says that a rank runs. More than the queue and the pipe hold together.
        run.command.args([
            "--",
            "/bin/sh",
            "-c",
            "[ $RANK = 1 ] || echo > fifo; while :; do head -c 1000000 /dev/zero; done",
        ]);
        let mut child = run.command.spawn().unwrap();
        fs::read(&fifo).unwrap();
        let since = Instant::now();
        send(child.id(), Signal::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(143), "{flags}");
        assert!(since.elapsed() < Duration::from_secs(10), "{flags}: {:?}", since.elapsed());
    }
}

/// LCH-1.
#[test]
fn no_rank_outlives_a_killed_launcher() {
    let mut run = Run::new("--nproc 3").shell("trap '' TERM INT HUP; echo $$; exec sleep 1000");
    let mut started = run.start();
    let pids: Vec<u32> = started.lines(3).iter().map(|pid| pid.parse().unwrap()).collect();
    started.signal(Signal::SIGKILL);
    wait_until_gone(&pids, Duration::from_secs(5));
    started.child.wait().unwrap();
}

fn python() -> String {
    tests::interpreter().into_os_string().into_string().unwrap()
}

fn ddp_script() -> String {
    repository().join("scripts/peers/ddp_gloo.py").into_os_string().into_string().unwrap()
}

#[test]
fn torch_trains_unchanged() {
    // Teed, because Python may write a line in two parts.
    let end = Run::new("--nproc-per-node 2 -t 1").args(&["--", &python(), &ddp_script()]).end();
    assert_eq!(end.code, Some(0), "{end:?}");
    let line = |rank| format!("[default{rank}]:rank {rank} of 2 in attempt 0: same weights");
    assert_eq!(sorted(&end.stdout), [line(0), line(1)], "{end:?}");
}

#[test]
fn a_torch_program_that_raises_is_reported_and_started_again() {
    // As torchrun takes it: the script stands alone.
    let run = Run::new("--nproc-per-node 2 --max-restarts 1 --standalone -r 2 --log-dir logs");
    let end = run.env("PYTHON_EXEC", &python()).args(&[&ddp_script(), "--fail-rank", "1"]).end();
    assert_eq!(end.code, Some(0), "{end:?}");
    let told = "rank 1 failed in attempt 0: exited with code 1\n  ValueError: rank 1 fails as it was told to\n";
    assert!(end.stderr.contains(told), "{end:?}");
    let quoted = "ValueError: rank 1 fails as it was told to\n  what it left is in ";
    assert!(end.stderr.contains(quoted), "the end of its stderr is quoted: {end:?}");
    assert!(end.stdout.contains("rank 0 of 2 in attempt 1: same weights"), "{end:?}");
}
