//! Launcher and guardian are killed in the same moment: the next start of the job goes on at once, ends what the killed one has left
//! in its control group, and comes to the result of a quiet run. A run directory that moves away ends its job.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Job, Running, send};
use tests::trials::Trials;

fn job(folder: &Path, name: &str) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = 300\nmicro_batch_size = 2\nglobal_batch_size = 8\n[checkpoint]\nevery_steps = 50\n[log]\nevery_steps = 1\n"
    );
    Job::new(&folder.join(name), &toml).nproc(2)
}

/// The launcher: the guardian's only child.
fn launcher(running: &Running) -> u32 {
    let pid = running.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the guardian runs");
    children.split_whitespace().next().expect("a launcher").parse().expect("a process id")
}

/// The folder of the job's control groups, as the lock says.
fn control_groups(job: &Job) -> Option<std::path::PathBuf> {
    let lock = fs::read_to_string(job.run_dir().path(".lock")).expect("a lock");
    lock.lines()
        .nth(2)
        .filter(|line| !line.is_empty())
        .map(Into::into)
        .filter(|path: &std::path::PathBuf| path.exists())
}

#[test]
fn after_both_are_killed_the_next_start_goes_on_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(folder.path(), "quiet").succeed();
    for (trial, mut draw) in Trials::or_else(3).draws() {
        let job = job(folder.path(), &format!("killed-{trial}"));
        let mut running = job.start();
        running.wait_for(&format!("step {}/", 1 + draw.below(200)));
        let groups = control_groups(&job);
        let launcher = launcher(&running);
        let mut both = [running.pid(), launcher];
        if draw.below(2) == 0 {
            both.reverse();
        }
        both.iter().for_each(|&pid| send(pid, Signal::SIGKILL));
        let killed = running.wait();
        assert_eq!(killed.status.code(), None, "the guardian was killed");
        // At once.
        let finished = job.finish();
        let output = format!("trial {trial}: {}{}", finished.stdout, finished.stderr);
        assert!(finished.status.success(), "{output}");
        assert_eq!(finished.run.steps(), quiet.steps(), "{output}");
        assert!(finished.run.final_weights() == quiet.final_weights(), "{output}");
        if let Some(groups) = groups {
            assert!(!groups.exists(), "{} is left; {output}", groups.display());
        }
    }
}

#[test]
fn a_job_whose_folder_moves_away_ends_and_lets_nobody_in_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "moved").set("train.steps=100000").set("checkpoint.every_steps=1000000");
    let mut running = job.start();
    running.wait_for("step 20/");
    let ranks = running.ranks();
    fs::rename(job.run_dir().path(""), folder.path().join("elsewhere")).unwrap();
    let finished = running.wait_within(Duration::from_secs(20)).expect("it ends");
    assert_eq!(finished.status.code(), Some(3), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("was moved or replaced while the job ran"), "{}", finished.stderr);
    tests::job::wait_until_gone(&ranks, Duration::from_secs(1));
}
