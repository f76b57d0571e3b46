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

use proto::env::Cgroups;

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
        let job = job_folder(own).ok_or(io::ErrorKind::NotFound)?;
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

fn attempts() -> Vec<PathBuf> {
    let job = own().and_then(|own| job_folder(&own));
    let entries = job.and_then(|job| fs::read_dir(job).ok()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn job_folder(own: &Path) -> Option<PathBuf> {
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
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    own_in(&mounts, &groups)
}

/// From the texts of mountinfo(5) and cgroups(7). Pure.
fn own_in(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = mounts.lines().find_map(|line| {
        let (fields, of_type) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        of_type.starts_with("cgroup2 ").then_some((root, mount))
    });
    let (root, mount) = mount?;
    // A mount may show only a part of the tree.
    let below = Path::new(group).strip_prefix(root).ok()?;
    Some(Path::new(mount).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_both_kinds_of_trees() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/box\n0::/user.slice/user-1000.slice\n";
        let at = |mounts, groups| own_in(mounts, groups).map(|path| path.display().to_string());
        assert_eq!(at(unified, groups).as_deref(), Some("/sys/fs/cgroup/user.slice/user-1000.slice"));
        assert_eq!(at(hybrid, groups).as_deref(), Some("/sys/fs/cgroup/unified/user.slice/user-1000.slice"));
        assert_eq!(at(hybrid, "0::/\n").as_deref(), Some("/sys/fs/cgroup/unified/"));
        assert_eq!(at("31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", groups), None);
        assert_eq!(at(unified, "4:memory:/box\n"), None);
        let part = unified.replace(" / /sys", " /user.slice /sys");
        assert_eq!(at(&part, groups).as_deref(), Some("/sys/fs/cgroup/user-1000.slice"));
        assert_eq!(at(&part, "0::/system.slice\n"), None);
        assert_eq!(at(&part, "0::/user.slices/x\n"), None);
    }
}
