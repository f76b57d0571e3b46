//! A control group (cgroup v2) for each attempt, where the kernel lets us make one: one write then kills all of an attempt,
//! however fast it forks. It adds to what [`descendants`] does, and nothing relies on it.
//!
//! Groups lie below the launcher's own, so a scheduler's limits and its own way to kill a job hold for them too:
//! `<own>/dslaunch-<pid>-<random>/attempt-<n>`, `<pid>` being the one that the user knows, which another namespace may have
//! too. No controller is asked for.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use proto::env::Cgroups;

use crate::machine::control_groups::{ControlGroups, Hierarchy};
use crate::process::descendants::{self, Swept};
use crate::process::sweeper;
use crate::random::random_hex;

/// The name of this job's groups, the same in guardian and launcher.
static NAME: OnceLock<String> = OnceLock::new();

/// Names the groups of the job whose guardian this is. Before the launcher is split off.
pub fn name_job() -> io::Result<()> {
    let suffix = random_hex(4)?;
    NAME.get_or_init(|| format!("dslaunch-{}-{suffix}", std::process::id()));
    Ok(())
}

/// How long what a killed job has left may take to end.
const LEFT_BEHIND_DEADLINE: Duration = Duration::from_secs(2);

/// Everything of one attempt.
#[derive(Debug)]
pub struct AttemptGroup {
    group: Option<Group>,
}

#[derive(Debug)]
struct Group {
    folder: PathBuf,
    procs: Arc<OwnedFd>,
}

impl AttemptGroup {
    /// For attempt `number`. Where there is no cgroup v2, or none that may be written, it holds nobody.
    pub fn create(number: u32) -> Self {
        let group = match Cgroups::from_process() {
            Cgroups::Auto => own().and_then(|own| Group::create(&own, number).ok()),
            Cgroups::Off => None,
        };
        Self { group }
    }

    /// The file to which a process writes 0 to enter.
    pub fn procs(&self) -> Option<Arc<OwnedFd>> {
        self.group.as_ref().map(|group| group.procs.clone())
    }

    /// Kills whatever is left of the attempt and returns when it is gone. What could not be ended is in the answer.
    pub async fn clear(self) -> Swept {
        let folder = self.group.map(|group| group.folder);
        sweeper::run(move || {
            // Those who left it are found below all the same.
            let _ = folder.as_deref().map(kill);
            let swept = descendants::end_all();
            let _ = folder.as_deref().map(remove);
            swept
        })
        .await
    }
}

impl Group {
    fn create(own: &Path, number: u32) -> io::Result<Self> {
        let job = named(own).ok_or(io::ErrorKind::NotFound)?;
        let folder = job.join(format!("attempt-{number}"));
        fs::create_dir_all(&job)?;
        if let Err(error) = fs::create_dir(&folder) {
            let _ = fs::remove_dir(job);
            return Err(error);
        }
        let procs = OpenOptions::new().write(true).open(folder.join("cgroup.procs"));
        // Before Linux 5.14 a group cannot be killed.
        match procs.and_then(|procs| File::open(folder.join("cgroup.kill")).map(|_| procs)) {
            Ok(procs) => Ok(Self { folder, procs: Arc::new(procs.into()) }),
            Err(error) => {
                remove(&folder);
                Err(error)
            }
        }
    }
}

/// For whoever outlives the other of guardian and launcher: kills all that is left in the job's groups.
pub fn end_all() {
    // What cannot be killed here is found among the descendants.
    attempts().iter().for_each(|attempt| drop(kill(attempt)));
}

/// Removes the job's groups once nobody is left.
pub fn remove_all() {
    attempts().iter().for_each(|attempt| remove(attempt));
}

/// Ends what a job that nobody looks after any more has left in its groups, by the folder that it wrote down, and removes them.
/// Only where that is such a folder: the text may be old, or somebody else's.
pub fn end_left_behind(job: &Path) {
    let is_below = own().and_then(|own| Some(job.parent()? == own)).unwrap_or(false);
    let name = job.file_name().unwrap_or_default().to_string_lossy();
    if !is_below || !is_of_a_job(&name) {
        return;
    }
    let attempts = attempts_in(job);
    attempts.iter().for_each(|attempt| drop(kill(attempt)));
    let deadline = Instant::now() + LEFT_BEHIND_DEADLINE;
    while job.exists() && Instant::now() < deadline {
        attempts.iter().for_each(|attempt| remove(attempt));
        let _ = fs::remove_dir(job);
        // The kernel takes a moment to end them, and tells nobody when.
        thread::sleep(Duration::from_millis(1));
    }
}

/// `dslaunch-<pid>-<random>`.
fn is_of_a_job(name: &str) -> bool {
    let parts = name.strip_prefix("dslaunch-").and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(pid, random)| {
        pid.parse::<u32>().is_ok() && random.len() == 8 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn attempts() -> Vec<PathBuf> {
    job_folder().map_or(vec![], |job| attempts_in(&job))
}

fn attempts_in(job: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(job).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The folder of this job's groups, where there is one for them.
pub fn job_folder() -> Option<PathBuf> {
    own().and_then(|own| named(&own))
}

fn named(own: &Path) -> Option<PathBuf> {
    Some(own.join(NAME.get()?))
}

fn kill(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.kill"), "1")
}

/// Removes an attempt's group with those that its processes have made below it, and the job's with the last attempt. A group
/// that is not empty stays: its processes hang in the kernel.
fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
    if folder.parent().is_some_and(|parent| parent.file_name() == NAME.get().map(|name| name.as_ref())) {
        let _ = folder.parent().map(fs::remove_dir);
    }
}

/// This process's own group, where cgroup v2 is mounted: alone at /sys/fs/cgroup or, beside v1, below it.
fn own() -> Option<PathBuf> {
    ControlGroups::of_process().own(Hierarchy::Unified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_jobs_are_taken_for_some() {
        assert!(is_of_a_job("dslaunch-4711-0123abcd"));
        for name in
            ["", "dslaunch-", "dslaunch-x-0123abcd", "dslaunch-4711-0123abc", "dslaunch-4711-0123abcg", "user.slice"]
        {
            assert!(!is_of_a_job(name), "{name}");
        }
    }
}
