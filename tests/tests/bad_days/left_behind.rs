//! Launcher and guardian are killed in the same moment: the next start of the job goes on at once, ends what the killed one has left
//! in its control group, and comes to the result of a quiet run. A run directory that moves away ends its job.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::job::{Job, send};
use tests::process::family;
use tests::trials::Trials;

fn job(folder: &Path, name: &str) -> Job {
    super::job(folder, name).set("train.steps=300").set("checkpoint.every_steps=50")
}

/// How much rather than others the kernel ends a process when memory runs out.
fn oom_score(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("the process runs").trim().to_owned()
}

/// Whether nobody else may look into a folder.
fn is_private(folder: &Path) -> bool {
    fs::metadata(folder).expect("a folder").permissions().mode() & 0o077 == 0
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
        // The guardian's one child.
        let launcher = family(running.pid())[1];
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

#[test]
fn the_kernel_takes_ranks_first_and_nobody_else_reads_logs_and_rows() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "private");
    let mut running = job.start();
    running.wait_for("step 10/");
    let (own, launcher) = (oom_score(std::process::id()), family(running.pid())[1]);
    assert_eq!([running.pid(), launcher].map(oom_score), [own.clone(), own]);
    running.ranks().into_iter().for_each(|rank| assert_eq!(oom_score(rank), "300"));
    for private in ["logs", "data"] {
        assert!(is_private(&job.run_dir().path(private)), "{private}");
    }
    running.signal(Signal::SIGTERM);
    running.wait();
}
