//! Tests of running jobs from other terminals: asked, stopped, followed, started in the background.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, geteuid, getsid};
use serde_json::Value;

use crate::harness::{Launch, Run, wait_until};

/// A user who is nobody in particular.
const NOBODY: u32 = 65534;

pub const CHECKS: [(&str, fn()); 8] = [
    ("a_running_job_is_asked_and_stopped", a_running_job_is_asked_and_stopped),
    ("a_run_in_a_deep_folder_is_reached", a_run_in_a_deep_folder_is_reached),
    ("a_job_is_followed_and_left", a_job_is_followed_and_left),
    ("nonsense_on_the_socket_harms_nothing", nonsense_on_the_socket_harms_nothing),
    ("another_user_gets_nothing_and_changes_nothing", another_user_gets_nothing_and_changes_nothing),
    ("a_killed_launcher_leaves_nothing_in_the_way", a_killed_launcher_leaves_nothing_in_the_way),
    ("a_job_goes_on_in_the_background", a_job_goes_on_in_the_background),
    (
        "a_job_that_cannot_begin_does_not_go_into_the_background",
        a_job_that_cannot_begin_does_not_go_into_the_background,
    ),
];

fn hanging(run: &Run) -> Launch {
    let launch = run.launch(&[]);
    launch.wait_for_step(2);
    launch
}

fn status(run: &Run) -> (i32, Value) {
    let (code, stdout, stderr) = run.command(&["status", "--json", "run"]);
    assert_eq!(stderr, "");
    (code, serde_json::from_str(&stdout).unwrap())
}

fn a_running_job_is_asked_and_stopped() {
    let run = Run::new("hang at 3");
    let (code, stdout, stderr) = run.command(&["status", "run"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(stderr, "error: run: there is no run (it holds no events.jsonl)\n");
    let launch = run.launch(&[]);
    let pids = launch.wait_for_step(2);
    let (code, stdout, stderr) = run.command(&["status", "run"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let headline = format!("run: training, process {}\n", launch.pid());
    assert!(stdout.starts_with(&headline) && stdout.contains("step        2 of 6\nloss        1.5000\n"), "{stdout}");
    let (code, json) = status(&run);
    assert_eq!((code, json["state"].as_str(), json["step"].as_u64()), (0, Some("training"), Some(2)));
    assert_eq!(json["rank_pids"], Value::from(pids));
    let socket = fs::metadata(run.path("control.sock")).unwrap();
    assert!(socket.file_type().is_socket() && socket.permissions().mode() & 0o777 == 0o600);

    let stopped = "run: stopped by the user with exit code 143: SIGTERM\n".to_owned();
    let (code, stdout, _) = run.command(&["stop", "run"]);
    assert_eq!((code, &stdout), (0, &stopped));
    assert_eq!(launch.end().code, 143);
    assert!(!run.path("control.sock").exists());
    let (code, json) = status(&run);
    assert_eq!((code, json["state"].as_str(), json["exit_code"].as_u64()), (1, Some("interrupted"), Some(143)));
    assert_eq!((json["step"].as_u64(), json["steps"].as_u64()), (Some(2), Some(6)), "from the run's files");
    assert_eq!(run.command(&["stop", "run"]), (0, stopped.clone(), String::new()), "it does not run: as wished");
    assert_eq!(run.command(&["attach", "run"]), (1, stopped, String::new()));
}

fn a_run_in_a_deep_folder_is_reached() {
    let run = Run::deep("hang at 3");
    assert!(run.path("control.sock").as_os_str().len() > 200);
    let launch = hanging(&run);
    assert_eq!(status(&run).1["step"], 2);
    assert_eq!(run.command(&["stop", "run"]).0, 0);
    assert_eq!(launch.end().code, 143);
}

fn a_job_is_followed_and_left() {
    let run = Run::new("hang at 3 in attempt 0");
    let launch = run.launch(&[]);
    let pids = launch.wait_for_step(2);
    let left = run.start(&["attach", "run"], "left");
    left.wait_for_stdout("at step 2 of 6");
    let end = left.stop(Signal::SIGINT);
    assert_eq!(end.code, 0, "{end:?}");
    assert!(end.stdout.contains("it goes on"), "{end:?}");
    assert_eq!(status(&run).0, 0, "leaving stops nothing");

    let follower = run.start(&["attach", "run"], "follower");
    follower.wait_for_stdout("at step 2 of 6");
    nix::sys::signal::kill(Pid::from_raw(pids[1] as i32), Signal::SIGKILL).unwrap();
    let end = follower.end();
    assert_eq!(end.code, 0, "{end:?}");
    for text in ["Ctrl-C leaves it running", "step 3/6", "step 6/6  loss 0.5000", "done, 6 steps", "run: done\n"] {
        assert!(end.stdout.contains(text), "{text}: {end:?}");
    }
    assert!(end.stderr.contains("rank 1 failed at step 3 of attempt 0: killed by SIGKILL"), "{end:?}");
    assert_eq!(launch.end().code, 0);
}

fn nonsense_on_the_socket_harms_nothing() {
    let run = Run::new("hang at 3");
    let launch = hanging(&run);
    let connect = || UnixStream::connect(run.path("control.sock")).unwrap();
    let mut reply = String::new();
    for nonsense in [&b"\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\0\xff\n", &[b'x'; 100_000]] {
        let mut client = connect();
        // It may be closed while we still write.
        let _ = client.write_all(nonsense);
        reply.clear();
        let _ = std::io::Read::read_to_string(&mut client, &mut reply);
        assert!(reply.is_empty() || reply.starts_with("{\"refused\":"), "{reply}");
    }
    // Clients that say nothing, half of something, or do not read.
    let mut idle: Vec<_> = (0..20).map(|_| connect()).collect();
    idle.iter_mut().take(5).for_each(|client| client.write_all(b"sta").unwrap());
    idle.iter_mut().skip(5).take(5).for_each(|client| client.write_all(b"attach\n").unwrap());
    assert_eq!(status(&run).0, 0);
    let end = launch.stop(Signal::SIGTERM);
    assert_eq!(end.code, 143, "{end:?}");
    assert!(end.after_signal.as_millis() < 2500, "followers that do not read hold nothing up: {:?}", end.after_signal);
}

fn another_user_gets_nothing_and_changes_nothing() {
    if !geteuid().is_root() {
        println!("SKIPPED another_user_gets_nothing_and_changes_nothing: only root can be another user");
        return;
    }
    let run = Run::new("hang at 3");
    let launch = hanging(&run);
    let open = |path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for path in [run.beside(""), run.path("")] {
        open(path, 0o755);
    }
    let ask = |task: &str| {
        let end = run.process(&[task, "run"]).uid(NOBODY).gid(NOBODY).output().unwrap();
        (end.status.code().unwrap(), String::from_utf8(end.stdout).unwrap(), String::from_utf8(end.stderr).unwrap())
    };
    let (code, stdout, stderr) = ask("stop");
    assert_eq!((code, stdout.as_str()), (3, ""));
    assert!(stderr.contains("control.sock\n  Permission denied"), "the file's mode: {stderr}");
    // Even where the mode would let them in, the kernel says who they are.
    open(run.path("control.sock"), 0o666);
    let (code, stdout, stderr) = ask("stop");
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("does not answer"), "{stderr}");
    let (_, stdout, _) = ask("status");
    assert!(!stdout.contains("ranks"), "only what the files say: {stdout}");
    assert_eq!(status(&run).1["state"], "training");
    assert_eq!(launch.stop(Signal::SIGTERM).code, 143);
}

fn a_killed_launcher_leaves_nothing_in_the_way() {
    let run = Run::new("hang at 3");
    hanging(&run).kill();
    assert!(run.path("control.sock").exists());
    // The user's process is gone; the launcher behind it clears up and follows.
    wait_until("the launcher is gone", || run.command(&["status", "run"]).0 == 1);
    let (code, stdout, stderr) = run.command(&["status", "run"]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    assert!(stdout.starts_with("run: not running; it ended without saying how\nstep        2 of 6\n"), "{stdout}");
    let launch = run.launch(&["--set", "train.steps=6"]);
    wait_until("the new launch answers", || status(&run).1["pid"] == launch.pid());
    assert_eq!(run.command(&["stop", "run"]).0, 0);
    assert_eq!(launch.end().code, 143);
}

fn a_job_goes_on_in_the_background() {
    let run = Run::new("hang at 3");
    let (code, stdout, stderr) = run.command(&["--detach", "--nproc", "2", "train.toml"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let pid = run.event("start")["pid"].as_i64().unwrap();
    let dir = run.path("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    let said = format!(
        "{dir}: runs in the background, process {pid}\n  follow   dslaunch attach {dir}\n  stop     dslaunch stop {dir}\n  \
         console  {dir}/logs/console.log\n"
    );
    assert_eq!(stdout, said);
    let pid = Pid::from_raw(pid as i32);
    assert_eq!(getsid(Some(pid)), Ok(pid), "a session of its own");
    let console = || fs::read_to_string(run.path("logs/console.log")).unwrap_or_default();
    wait_until("its console is in a file", || console().contains("step 2/6  loss 1.5000"));
    assert_eq!(run.command(&["--detach", "--nproc", "2", "train.toml"]).0, 3, "it holds the run directory");
    assert_eq!(run.command(&["stop", "run"]).0, 0);
    assert!(console().ends_with("stopped by SIGTERM: no rank is left\n"), "{}", console());
}

fn a_job_that_cannot_begin_does_not_go_into_the_background() {
    let run = Run::new("");
    let detach = |set: &str| run.command(&["--detach", "--nproc", "2", "--set", set, "train.toml"]);
    let (code, stdout, stderr) = detach("train.stpes=3");
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("train.stpes") && !run.path("").exists(), "{stderr}");
    let (code, stdout, stderr) = detach("data.train=\"/nowhere.jsonl\"");
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(stderr.matches("/nowhere.jsonl").count(), 1, "{stderr}");
    assert!(!run.path("logs/console.log").exists(), "what it said was seen");
    assert_eq!(run.events(), ["start", "failed"]);
    // Standard input and output of another kind do not matter.
    let end = run.process(&["--detach", "--nproc", "2", "train.toml"]).stdout(Stdio::null()).status().unwrap();
    assert_eq!(end.code(), Some(0));
    wait_until("it is done", || run.events().last().is_some_and(|event| event == "done"));
}
