//! Snapshots in the launcher's memory: whoever dies, at most one step is lost, and no bit. SNP-1, SNP-2, ENG-3.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use proto::plan::Plan;
use proto::snapshot::{SLOTS, SnapshotLayout};
use serde_json::Value;
use tempfile::TempDir;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Finished, Job, send};
use tests::run::RunDir;

const STEPS: u64 = 200;

/// Without a checkpoint before step 1000: whatever is not lost was in memory.
fn toml(folder: &Path, extra: &str) -> String {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 40\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 2\nglobal_batch_size = 8\n[optimizer]\nlearning_rate = 1e-3\n\
         [validation]\nevery_steps = 70\nkeep_best = 0\n[log]\nevery_steps = 1\n{extra}"
    )
}

fn job(folder: &TempDir, name: &str, extra: &str) -> Job {
    Job::new(&folder.path().join(name), &toml(folder.path(), extra)).set("checkpoint.every_steps=1000")
}

fn assert_same_result(what: &str, got: &Finished, quiet: &RunDir) {
    assert!(got.status.success(), "{what}: {}{}", got.stdout, got.stderr);
    assert_eq!(got.run.steps(), quiet.steps(), "{what}");
    assert_eq!(got.run.eval_losses(), quiet.eval_losses(), "{what}");
    assert!(got.run.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
}

/// The events of restarts: where each attempt went on.
fn resumed(run: &RunDir) -> Vec<(u64, String)> {
    let events = run.events().into_iter().filter(|event| event["event"] == "resumed_step");
    let text = |value: &Value| value.as_str().expect("a word").to_owned();
    events.map(|event| (event["resumed_step"].as_u64().expect("a step"), text(&event["from"]))).collect()
}

#[test]
fn all_ranks_dying_at_once_lose_at_most_one_step() {
    let folder = tempfile::tempdir().unwrap();
    for (name, nproc, extra) in [
        ("zero-1", 2, ""),
        ("zero-0", 2, "[zero]\nstage = 0\n"),
        ("zero-3-offload", 3, "[zero]\nstage = 3\noffload_optimizer = \"cpu\"\n[parallel]\n"),
        ("tensor-2", 2, "[parallel]\ntensor = 2\n"),
        ("pipeline-2", 4, "[parallel]\npipeline = 2\n[zero]\nstage = 2\n"),
    ] {
        let sets = |name: &str| {
            let job = job(&folder, name, extra).nproc(nproc);
            let batch = if nproc == 3 { "train.global_batch_size=6" } else { "train.global_batch_size=8" };
            let dtype = if name.starts_with("tensor") { "model.dtype=\"bf16\"" } else { "model.dtype=\"fp32\"" };
            job.set(batch).set(dtype)
        };
        let quiet = sets(&format!("{name}-quiet")).set("restart.snapshot_every_steps=0").succeed();
        let mut running = sets(&format!("{name}-killed")).start();
        let seen = [3, 141];
        for step in seen {
            running.wait_for(&format!("step {step}/"));
            running.ranks().into_iter().for_each(|rank| send(rank, Signal::SIGKILL));
        }
        let finished = running.wait();
        let resumed = resumed(&finished.run);
        for ((step, from), seen) in resumed.iter().zip(seen) {
            // What was seen on the screen is older than what has happened by then.
            assert!(from == "snapshot" && *step + 1 >= seen, "{name}: {resumed:?}, seen {seen}");
        }
        assert_eq!(resumed.len(), 2, "{name}: {resumed:?}");
        assert_same_result(name, &finished, &quiet);
    }
}

#[test]
fn between_snapshots_no_more_is_lost_than_was_agreed() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet", "").nproc(2).succeed();
    let mut running = job(&folder, "killed", "").set("restart.snapshot_every_steps=7").nproc(2).start();
    running.wait_for("step 100/");
    send(running.ranks()[1], Signal::SIGKILL);
    let finished = running.wait();
    let resumed = resumed(&finished.run);
    assert!(resumed.len() == 1 && resumed[0].0 >= 91 && resumed[0].0.is_multiple_of(7), "{resumed:?}");
    assert_same_result("every 7 steps", &finished, &quiet);
}

#[test]
fn without_snapshots_the_newest_checkpoint_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = job(&folder, "killed", "").set("checkpoint.every_steps=50").nproc(2);
    running = running.set("restart.snapshot_every_steps=0");
    let mut running = running.start();
    running.wait_for("step 120/");
    send(running.ranks()[0], Signal::SIGKILL);
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    let resumed = resumed(&finished.run);
    assert!(resumed.len() == 1 && resumed[0].0 >= 100 && resumed[0].1 == "checkpoint", "{resumed:?}");
}

/// The snapshot memory, as a rank has it open.
fn snapshot_memory(rank: u32) -> PathBuf {
    let descriptors = fs::read_dir(format!("/proc/{rank}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:dslaunch-snapshots"))
    };
    descriptors.into_iter().find(is_it).expect("a rank has it open")
}

#[test]
fn a_damaged_snapshot_is_named_and_never_used() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet", "").nproc(2).succeed();
    let job = job(&folder, "damaged", "").nproc(2);
    let mut running = job.start();
    running.wait_for("step 60/");
    let ranks = running.ranks();
    ranks.iter().for_each(|&rank| send(rank, Signal::SIGSTOP));
    let plan: Plan = serde_json::from_slice(&fs::read(job.run_dir().path("plan.json")).unwrap()).unwrap();
    let layout = SnapshotLayout::of(&plan);
    let memory = OpenOptions::new().read(true).write(true).open(snapshot_memory(ranks[0])).unwrap();
    let (unit, region) = ("model.layers.1", &layout.regions()[1]);
    let unit = region.ranges.keys().find(|name| name.contains(unit) || name.contains("layers.1")).expect("a block");
    for slot in 0..SLOTS {
        let (at, mut byte) = (region.part(slot, unit, 1) + 5, [0]);
        memory.read_exact_at(&mut byte, at).unwrap();
        memory.write_all_at(&[!byte[0]], at).unwrap();
    }
    ranks.iter().for_each(|&rank| send(rank, Signal::SIGKILL));
    let finished = running.wait();
    let told = finished.stderr.matches("is damaged on rank 1").count();
    assert!(told >= 1, "{}", finished.stderr);
    // Both slots are bad, if nobody was writing to one of them just then.
    assert!(resumed(&finished.run).len() <= 2, "{:?}", finished.run.events());
    assert_same_result("damaged", &finished, &quiet);
}

#[test]
fn kills_at_any_moment_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet", "").nproc(2).succeed();
    let mut running = job(&folder, "unlucky", "").set("restart.max_restarts=100").nproc(2).start();
    for kill in 0..18u64 {
        running.wait_for(&format!("step {}/", 10 * kill + 4));
        // A different moment of the step each time.
        std::thread::sleep(std::time::Duration::from_micros(kill * 397 % 4000));
        send(running.ranks()[(kill % 2) as usize], Signal::SIGKILL);
    }
    let finished = running.wait();
    let resumed = resumed(&finished.run);
    assert!(resumed.iter().all(|(_, from)| from == "snapshot"), "{resumed:?}");
    assert_eq!(resumed.len(), 18);
    assert_same_result("18 kills", &finished, &quiet);
}

#[test]
fn a_second_failure_in_the_same_step_loses_no_more_than_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet", "").nproc(2).succeed();
    // Rank 1 has sealed step 60, which rank 0 never has: in the first attempt, and again in the second.
    let fault = "slow=200 rank=0 phase=snapshot step=60 unit=1; kill rank=0 phase=snapshot step=60 unit=2; \
                 slow=200 rank=0 phase=snapshot step=60 unit=1 attempt=1; \
                 kill rank=0 phase=snapshot step=60 unit=2 attempt=1";
    let finished = job(&folder, "twice", "").nproc(2).env("DSLAUNCH_FAULT", fault).finish();
    let expected = [(59, "snapshot".to_owned()), (59, "snapshot".to_owned())];
    assert_eq!(resumed(&finished.run), expected, "{}{}", finished.stdout, finished.stderr);
    assert_same_result("twice", &finished, &quiet);
}
