//! A disk that is full, whatever its size was: it is said to be, with exit code 3, nothing that was announced is lost, and with room
//! the job goes on to the result of a quiet one. `ulimit -f` likewise.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::geteuid;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Finished, Job};
use tests::run::RunDir;
use tests::trials::Trials;

/// What all of the job needs, and a little more.
const ALL_KIB: usize = 2600;

fn job(folder: &Path, name: &str) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = 12\nmicro_batch_size = 2\nglobal_batch_size = 8\n[checkpoint]\nevery_steps = 4\n[log]\nevery_steps = 1\n"
    );
    Job::new(&folder.join(name), &toml).nproc(2)
}

/// It ended with 0, or with 3 and the words of the system, once.
fn check_end(what: &str, finished: &Finished, words: &[&str]) {
    let output = format!("{what}: {:?}\n{}{}", finished.status, finished.stdout, finished.stderr);
    match finished.status.code() {
        Some(0) => {}
        Some(3) => assert!(words.iter().any(|words| output.contains(words)), "{output}"),
        _ => panic!("{output}"),
    }
    let restarts = finished.run.path("events.jsonl").exists()
        && finished.run.events().iter().any(|event| event["event"] == "restarted");
    assert!(!restarts, "a restart was wasted on it: {output}");
}

fn check_goes_on(what: &str, job: &Job, quiet: &RunDir) {
    let finished = job.finish();
    assert!(finished.status.success(), "{what}, with room: {}{}", finished.stdout, finished.stderr);
    assert!(finished.run.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
}

#[test]
fn a_full_disk_is_always_said_to_be_one() {
    if !geteuid().is_root() {
        println!("SKIPPED full disks: only root can mount a small file system");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(folder.path(), "quiet").succeed();
    for (trial, mut draw) in Trials::or_else(5).draws() {
        let job = job(folder.path(), &format!("full-{trial}"));
        let run = job.run_dir().path("");
        fs::create_dir_all(&run).unwrap();
        let kib = 4 + 4 * draw.below(ALL_KIB / 4);
        let mounted = |options: &str, flags| mount(Some("none"), &run, Some("tmpfs"), flags, Some(options));
        if let Err(errno) = mounted(&format!("size={kib}k"), MsFlags::empty()) {
            println!("SKIPPED full disks: no file system can be mounted here: {errno}");
            return;
        }
        let what = format!("trial {trial}, {kib} KiB");
        let outcome = std::panic::catch_unwind(|| {
            check_end(&what, &job.finish(), &["No space left on device", "is full"]);
            mounted("size=64m", MsFlags::MS_REMOUNT).unwrap();
            check_goes_on(&what, &job, &quiet);
        });
        umount2(&run, MntFlags::MNT_DETACH).unwrap();
        outcome.unwrap();
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_no_signal() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(folder.path(), "quiet").succeed();
    for (trial, mut draw) in Trials::or_else(4).draws() {
        let job = job(folder.path(), &format!("limited-{trial}"));
        let blocks = 1 + draw.below(400);
        let what = format!("trial {trial}, ulimit -f {blocks}");
        let limit = format!("ulimit -f {blocks}; exec \"$@\"");
        let finished = job.finish_under(&["sh", "-c", &limit, "sh"]);
        check_end(&what, &finished, &["File too large"]);
        check_goes_on(&what, &job, &quiet);
    }
}
