//! Finds this process's control groups, of version 1 and 2, and all those above them, whose limits hold for it too.
//!
//! Reads below a root folder: `/`, or a tree that a test has made.

use std::fs;
use std::path::{Path, PathBuf};

/// A tree of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 2, which has all controllers.
    Unified,
    /// Version 1, of this controller.
    Of(&'static str),
}

/// The mounts and groups of this process.
#[derive(Debug)]
pub struct ControlGroups {
    root: PathBuf,
    /// mountinfo(5).
    mounts: String,
    /// cgroups(7).
    groups: String,
}

impl ControlGroups {
    /// As the kernel says now.
    pub fn of_process() -> Self {
        Self::below(Path::new("/"))
    }

    /// The same in a tree with a `proc` and mounts of its own. What cannot be read is empty.
    pub fn below(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        Self { root: root.to_owned(), mounts: read("proc/self/mountinfo"), groups: read("proc/self/cgroup") }
    }

    /// The folder of the process's own group, if a mount shows it.
    pub fn own(&self, hierarchy: Hierarchy) -> Option<PathBuf> {
        let mount = self.mount(hierarchy)?;
        // A mount may show only a part of the tree.
        let below = Path::new(self.group(hierarchy)?).strip_prefix(mount.shows).ok()?;
        Some(mount.folder(&self.root).join(below))
    }

    /// The folders of the groups whose limits hold for the process: its own first, then those above. A mount that shows none of
    /// them, as in some containers, is taken for them all.
    pub fn own_and_above(&self, hierarchy: Hierarchy) -> Vec<PathBuf> {
        let Some(top) = self.mount(hierarchy).map(|mount| mount.folder(&self.root)) else { return vec![] };
        let own = self.own(hierarchy).unwrap_or_else(|| top.clone());
        own.ancestors().take_while(|folder| folder.starts_with(&top)).map(Path::to_owned).collect()
    }

    /// The path of the process's group in its tree.
    fn group(&self, hierarchy: Hierarchy) -> Option<&str> {
        self.groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, group) = rest.split_once(':')?;
            let is_it = match hierarchy {
                Hierarchy::Unified => controllers.is_empty(),
                Hierarchy::Of(controller) => controllers.split(',').any(|name| name == controller),
            };
            is_it.then_some(group)
        })
    }

    fn mount(&self, hierarchy: Hierarchy) -> Option<Mount<'_>> {
        self.mounts.lines().find_map(|line| {
            let (fields, of_type) = line.split_once(" - ")?;
            let mut fields = fields.split(' ').skip(3);
            let (shows, at) = (fields.next()?, fields.next()?);
            let mut of_type = of_type.split(' ');
            let (kind, options) = (of_type.next()?, of_type.nth(1).unwrap_or_default());
            let is_it = match hierarchy {
                Hierarchy::Unified => kind == "cgroup2",
                Hierarchy::Of(controller) => kind == "cgroup" && options.split(',').any(|name| name == controller),
            };
            is_it.then_some(Mount { shows, at })
        })
    }
}

/// A mount of a tree.
struct Mount<'a> {
    /// The group that lies at its top.
    shows: &'a str,
    at: &'a str,
}

impl Mount<'_> {
    fn folder(&self, root: &Path) -> PathBuf {
        root.join(self.at.trim_start_matches('/'))
    }
}

#[cfg(test)]
pub(in crate::machine) mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                          33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const GROUPS: &str = "5:cpu,cpuacct:/share\n4:memory:/box/job\n0::/user.slice/user-1000.slice\n";

    /// A tree in which a process is in `groups`, with these files.
    pub fn tree(mounts: &str, groups: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [("proc/self/mountinfo", mounts), ("proc/self/cgroup", groups)].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    /// A tree of version 2 with the process in `/slice/job`.
    pub fn unified(files: &[(&str, &str)]) -> tempfile::TempDir {
        tree(UNIFIED, "0::/slice/job\n", files)
    }

    /// A tree of version 1 with the process in `/box/job` for memory and in `/share` for cores.
    pub fn separate(files: &[(&str, &str)]) -> tempfile::TempDir {
        tree(HYBRID, GROUPS, files)
    }

    fn own(mounts: &str, groups: &str, hierarchy: Hierarchy) -> Option<String> {
        let tree = tree(mounts, groups, &[]);
        let path = ControlGroups::below(tree.path()).own(hierarchy)?;
        Some(path.strip_prefix(tree.path()).unwrap().display().to_string())
    }

    #[test]
    fn the_own_group_is_found_in_both_kinds_of_trees() {
        let unified = |mounts: &str, groups: &str| own(mounts, groups, Hierarchy::Unified);
        assert_eq!(unified(UNIFIED, GROUPS).as_deref(), Some("sys/fs/cgroup/user.slice/user-1000.slice"));
        assert_eq!(unified(HYBRID, GROUPS).as_deref(), Some("sys/fs/cgroup/unified/user.slice/user-1000.slice"));
        assert_eq!(unified(HYBRID, "0::/\n").as_deref(), Some("sys/fs/cgroup/unified"));
        assert_eq!(unified(&HYBRID.replace("cgroup2", "tmpfs"), GROUPS), None);
        assert_eq!(unified(UNIFIED, "4:memory:/box\n"), None);
        let part = UNIFIED.replace(" / /sys", " /user.slice /sys");
        assert_eq!(unified(&part, GROUPS).as_deref(), Some("sys/fs/cgroup/user-1000.slice"));
        assert_eq!(unified(&part, "0::/system.slice\n"), None);
        assert_eq!(unified(&part, "0::/user.slices/x\n"), None);
        let of = |controller| own(HYBRID, GROUPS, Hierarchy::Of(controller));
        assert_eq!(of("memory").as_deref(), Some("sys/fs/cgroup/memory/box/job"));
        assert_eq!(of("cpu").as_deref(), Some("sys/fs/cgroup/cpu,cpuacct/share"));
        assert_eq!(of("pids"), None);
    }

    #[test]
    fn groups_above_count_as_far_as_the_mount_shows_them() {
        let above = |mounts: &str, groups: &str| {
            let tree = tree(mounts, groups, &[]);
            let folders = ControlGroups::below(tree.path()).own_and_above(Hierarchy::Unified);
            let name = |path: PathBuf| path.strip_prefix(tree.path()).unwrap().display().to_string();
            folders.into_iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(above(UNIFIED, "0::/a/b\n"), ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup"]);
        let part = UNIFIED.replace(" / /sys", " /a /sys");
        assert_eq!(above(&part, "0::/a/b\n"), ["sys/fs/cgroup/b", "sys/fs/cgroup"]);
        // A container that is told its path outside.
        assert_eq!(above(&part, "0::/docker/x\n"), ["sys/fs/cgroup"]);
        assert_eq!(above("", "0::/a\n"), [""; 0]);
    }
}
