//! Faults that a rank cannot cause by itself: strangers, disks, damaged files, a rank that is slow.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tests::process::{family, network_listeners};

use crate::scene::Scene;

/// A name and what is checked.
pub type Check = (&'static str, fn(&Scene));

pub const CHECKS: [Check; 5] = [
    ("false rank", a_rank_that_the_launcher_has_not_started_changes_nothing),
    ("nonsense from outside", nonsense_from_outside_changes_nothing),
    ("torn checkpoint", a_torn_checkpoint_is_passed_over),
    ("disk full", a_full_disk_is_named_and_ends_the_job),
    ("slow rank", a_slow_rank_is_named),
];

/// A rank's environment, as the launcher made it.
fn environment(rank: u32) -> Vec<(String, String)> {
    let text = fs::read(format!("/proc/{rank}/environ")).expect("the rank runs");
    let text = String::from_utf8(text).expect("text");
    text.split('\0').filter_map(|var| var.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

fn a_rank_that_the_launcher_has_not_started_changes_nothing(scene: &Scene) {
    // Rank 1 is slow for a while, so that there is time.
    let job = scene
        .job("false-rank")
        .set("restart.hang_timeout_seconds=0")
        .env("DSLAUNCH_FAULT", "slow=5000 rank=1 phase=forward step=3 unit=1");
    let mut running = job.start();
    running.wait_for("step 2/");
    let rank = running.ranks()[1];
    let environment = environment(rank);
    let (_, hatch) = environment.iter().find(|(name, _)| name == "DSLAUNCH_CONTROL_FD").expect("a way to the launcher");
    let open = OpenOptions::new().read(true).write(true).open(format!("/proc/{rank}/fd/{hatch}"));
    assert_eq!(open.unwrap_err().raw_os_error(), Some(Errno::ENXIO as i32), "a socket without a name cannot be opened");
    for _ in 0..2 {
        #[allow(clippy::disallowed_methods, reason = "a stranger that poses as rank 1")]
        let mut stranger = Command::new(tests::program("dslaunch-rank"));
        stranger.env_clear().envs(environment.clone());
        // Descriptors that it has: nothing is behind them but itself.
        let page = tempfile::tempfile().unwrap();
        page.set_len(4096).unwrap();
        stranger.env("DSLAUNCH_PROGRESS_FD", "0").stdin(page).stdout(Stdio::null()).stderr(Stdio::piped());
        let end = stranger.output().unwrap();
        let said = String::from_utf8_lossy(&end.stderr).into_owned();
        assert_eq!(end.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("the launcher cannot be reached through descriptor {hatch}")), "{said}");
    }
    let finished = running.wait();
    assert!(!finished.run.events().iter().any(|event| event["event"] == "restarted"));
    scene.assert_quiet_result(&finished);
}

fn nonsense_from_outside_changes_nothing(scene: &Scene) {
    let job = scene.job("nonsense").env("DSLAUNCH_FAULT", "slow=1000 rank=1 phase=forward step=3 unit=1");
    let mut running = job.start();
    running.wait_for("step 2/");
    // The network leads nowhere; what is left is the socket for `dslaunch status` and the like.
    assert_eq!(network_listeners(&family(running.pid())), [""; 0]);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 4096], preface, &preface[..9], b""] {
        let mut stream = UnixStream::connect(job.run_dir().path("control.sock")).unwrap();
        // It may be closed while we still write.
        let _ = stream.write_all(nonsense).and_then(|()| stream.write_all(&[0x5a; 100]));
    }
    let finished = running.wait();
    assert!(!finished.run.events().iter().any(|event| event["event"] == "restarted"));
    scene.assert_quiet_result(&finished);
}

fn a_torn_checkpoint_is_passed_over(scene: &Scene) {
    for (name, tear) in [("torn-file", tear_file as fn(&Path)), ("torn-manifest", tear_manifest), ("bits", flip_bits)] {
        let job = scene.job(name).set("restart.hang_timeout_seconds=0");
        // All goes once the checkpoint of step 8 is on the disk, and the memory for snapshots with it.
        let fault = "slow=5000 rank=1 phase=forward step=12 unit=1";
        let mut running = job.clone().env("DSLAUNCH_FAULT", fault).start();
        running.wait_for("step 8: checkpoint in");
        running.signal(Signal::SIGKILL);
        let killed = running.wait();
        let mut checkpoints = killed.run.checkpoints();
        // One that was being written.
        checkpoints.retain(|name| !name.starts_with('.'));
        assert_eq!(checkpoints, ["step-00000004", "step-00000008"]);
        tear(&killed.run.path("checkpoints/step-00000008"));
        let finished = scene.finish(&job);
        let output = format!("{}{}", finished.stdout, finished.stderr);
        scene.assert_quiet_result(&finished);
        assert!(output.contains("step-00000008"), "{name}: it is named: {output}");
    }
}

fn optimizer_file(checkpoint: &Path) -> std::path::PathBuf {
    let names = fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path());
    names.into_iter().find(|path| path.to_string_lossy().contains("optimizer-00002")).unwrap()
}

fn tear_file(checkpoint: &Path) {
    let file = OpenOptions::new().write(true).open(optimizer_file(checkpoint)).unwrap();
    let half = file.metadata().unwrap().len() / 2;
    file.set_len(half).unwrap();
}

fn tear_manifest(checkpoint: &Path) {
    let path = checkpoint.join("manifest.json");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
}

fn flip_bits(checkpoint: &Path) {
    let path = optimizer_file(checkpoint);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).unwrap();
}

fn a_full_disk_is_named_and_ends_the_job(scene: &Scene) {
    if !geteuid().is_root() {
        println!("SKIPPED disk full: only root can mount a small file system");
        return;
    }
    let job = scene.job("disk-full");
    let run = job.run_dir().path("");
    fs::create_dir_all(&run).unwrap();
    if let Err(errno) = mount(Some("none"), &run, Some("tmpfs"), MsFlags::empty(), Some("size=400k")) {
        println!("SKIPPED disk full: no file system can be mounted here: {errno}");
        return;
    }
    let outcome = crate::scene::caught(|| {
        let finished = scene.finish(&job);
        let output = format!("{}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.status.code(), Some(3), "{output}");
        assert!(output.contains("cannot be written") && output.contains("No space left on device"), "{output}");
        assert!(output.contains("step-0000000"), "the file is named: {output}");
    });
    umount2(&run, MntFlags::MNT_DETACH).unwrap();
    outcome.unwrap();
}

fn a_slow_rank_is_named(scene: &Scene) {
    let job = scene.job("slow").set("train.steps=70").env("DSLAUNCH_FAULT", "slow=90 rank=1 phase=update");
    let finished = scene.finish(&job);
    let output = format!("{}{}", finished.stdout, finished.stderr);
    assert!(finished.status.success(), "{output}");
    let events = finished.run.events();
    let named: Vec<_> = events.iter().filter(|event| event["event"] == "straggler").collect();
    assert_eq!(named.len(), 1, "{output}");
    assert_eq!(named[0]["rank"], 1, "{output}");
    assert!(output.contains("the others wait for rank 1"), "{output}");
}
