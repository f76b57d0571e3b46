//! Limits of control groups are seen where the kernel sets them, version 1 for real: the plan counts the cores and the memory that a
//! group leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::fixtures::{tiny_model, token_rows, write_model};
use tests::job::Job;
use tests::program;

/// A group of version 1, for as long as this lives.
struct Group(PathBuf);

impl Group {
    /// A group of `controller` with these files. `None` where none can be made.
    fn make(controller: &str, files: &[(&str, &str)]) -> Option<Self> {
        let folder = Path::new("/sys/fs/cgroup").join(controller).join(format!("dslaunch-test-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        let written = files.iter().all(|(name, text)| fs::write(group.0.join(name), text).is_ok());
        written.then_some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// What `dslaunch plan` says in `group`: exit code and all words.
#[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
fn plan_in(group: &Group, job: &Job) -> (Option<i32>, String) {
    let planned = job.command();
    let mut arguments: Vec<_> = planned.get_args().map(|argument| argument.to_owned()).collect();
    arguments.insert(0, "plan".into());
    let mut command = Command::new("sh");
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.0.display());
    command.args(["-c", &enter, "sh"]).arg(program("dslaunch")).args(arguments);
    let output = command.current_dir(planned.get_current_dir().expect("a folder")).output().expect("sh starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

fn toml(model: &Path, data: &Path) -> String {
    format!("[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 32\n[train]\nsteps = 2\n")
}

#[test]
fn a_groups_memory_is_what_a_job_may_need() {
    let Some(group) = Group::make("memory", &[("memory.limit_in_bytes", "300M")]) else {
        println!("SKIPPED a group's memory: no control group of version 1 can be made here");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(&folder.path().join("rows.jsonl"), 64, 32);
    let tiny = Job::new(&folder.path().join("tiny"), &toml(&tiny_model(&folder.path().join("model")), &data));
    let (code, said) = plan_in(&group, &tiny);
    assert_eq!(code, Some(0), "{said}");
    // Some 40 million parameters of 16 bytes.
    let model = write_model(&folder.path().join("wider"), &[512, 2048, 8, 8, 8, 8000]);
    let (code, said) = plan_in(&group, &Job::new(&folder.path().join("wide"), &toml(&model, &data)));
    assert!(code == Some(3) && said.contains("are available"), "{code:?}: {said}");
}

#[test]
fn a_groups_share_of_time_is_what_ranks_have_for_cores() {
    let files = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")];
    let Some(group) = Group::make("cpu", &files) else {
        println!("SKIPPED a group's cores: no control group of version 1 can be made here");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(&folder.path().join("rows.jsonl"), 64, 32);
    let job = Job::new(&folder.path().join("job"), &toml(&tiny_model(&folder.path().join("model")), &data)).nproc(1);
    let (code, said) = plan_in(&group, &job);
    assert!(code == Some(0) && said.contains("1 thread each"), "{code:?}: {said}");
}
