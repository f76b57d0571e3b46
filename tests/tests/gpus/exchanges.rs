//! Ranks on a GPU each, all of it emulated, of which one is killed or stands still in an exchange over NCCL: whoever waits for it ends,
//! it is named, and the job goes on as if nothing had been.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::fixtures::Scratch;
use tests::job::{Finished, Job, Running, send, wait_until_gone};

/// How long a rank may outlive another that is killed.
const SURVIVES: Duration = Duration::from_secs(1);

fn job(scratch: &Scratch, name: &str, layout: &[&str]) -> Job {
    let (model, data) = (&scratch.model, &scratch.data);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 32\n[train]\nsteps = 12\n\
         micro_batch_size = 1\nglobal_batch_size = 4\n[optimizer]\nlearning_rate = 1e-3\n[log]\nevery_steps = 1\n"
    );
    let job = Job::new(&scratch.folder.path().join(name), &toml).nproc(2).on_gpus(&json!([{}, {}]));
    layout.iter().fold(job, |job, set| job.set(set))
}

/// Where ranks exchange: the layout, and where on the way a rank is.
const EXCHANGES: [(&[&str], &str); 6] = [
    // Gradients leave while others are computed.
    (&["zero.stage=0"], "phase=backward unit=1"),
    (&["zero.stage=1", "zero.overlap_comm=false"], "phase=reduce"),
    // Parameters come ahead of their use.
    (&["zero.stage=3"], "phase=forward unit=1"),
    (&["parallel.tensor=2"], "phase=forward unit=1"),
    (&["parallel.pipeline=2"], "phase=backward"),
    // Numbers of the host.
    (&["zero.stage=0", "zero.overlap_comm=false"], "phase=backward unit=0"),
];

fn check_named(finished: &Finished, victim: usize, what: &str) {
    let output = format!("{}{}", finished.stdout, finished.stderr);
    assert!(finished.status.success(), "{what}: {output}");
    let first = finished.stderr.lines().find(|line| line.contains(" failed at step ")).unwrap_or_default();
    assert!(first.starts_with(&format!("rank {victim} failed at step ")), "{what}: {output}");
    let stops: Vec<Value> = finished.run.events().into_iter().filter(|event| event["event"] == "stopped").collect();
    assert_eq!(stops.len(), 1, "{what}: {output}");
    assert_eq!(stops[0]["rank"], victim, "{what}: {output}");
}

#[test]
fn a_rank_that_is_killed_in_an_exchange_takes_nobody_with_it_for_long() {
    let scratch = Scratch::new(64);
    for (number, (layout, place)) in EXCHANGES.into_iter().enumerate() {
        let quiet = job(&scratch, &format!("quiet-{number}"), layout).succeed();
        let victim = number % 2;
        let what = format!("{layout:?}: kill-inside rank={victim} {place} step=7");
        let fault = format!("kill-inside rank={victim} {place} step=7");
        let mut running: Running =
            job(&scratch, &format!("killed-{number}"), layout).env("DSLAUNCH_FAULT", &fault).start();
        running.wait_for("step 1/");
        let ranks = running.ranks();
        wait_until_gone(&[ranks[victim]], Duration::from_secs(60));
        let survived = wait_until_gone(&[ranks[1 - victim]], SURVIVES);
        let finished = running.wait();
        check_named(&finished, victim, &what);
        assert_eq!(finished.run.steps(), quiet.steps(), "{what}");
        assert!(finished.run.final_weights() == quiet.final_weights(), "{what}: weights differ in bits");
        assert!(survived < SURVIVES, "{what}");
    }
}

#[test]
fn ranks_may_share_a_gpu_to_try_a_layout() {
    let scratch = Scratch::new(64);
    let own = job(&scratch, "own", &["zero.stage=3"]).succeed();
    let one_gpu = job(&scratch, "shared", &["zero.stage=3"]).on_gpus(&json!([{}]));
    let refused = one_gpu.finish();
    assert_eq!(refused.status.code(), Some(2), "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("2 ranks, and 1 GPU; --share-gpu"), "{}", refused.stderr);
    let mut running = one_gpu.flag("--share-gpu").set("train.steps=60").start();
    running.wait_for("step 1/");
    let variables =
        running.ranks().into_iter().map(|rank| fs::read_to_string(format!("/proc/{rank}/environ")).unwrap());
    let of_nccl = |text: String| text.split('\0').find_map(|line| line.strip_prefix("NCCL_HOSTID=").map(str::to_owned));
    let hosts: Vec<Option<String>> = variables.map(of_nccl).collect();
    assert!(hosts[0].is_some() && hosts[1].is_some() && hosts[0] != hosts[1], "{hosts:?}");
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.run.steps()[0].loss, own.steps()[0].loss);
}

#[test]
fn how_long_gpus_wait_for_exchanges_is_measured_now_and_then() {
    let scratch = Scratch::new(64);
    let finished = job(&scratch, "measured", &["zero.stage=3"]).finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    let rows = fs::read_to_string(finished.run.path("metrics.jsonl")).unwrap();
    let rows = rows.lines().map(|row| serde_json::from_str::<Value>(row).unwrap());
    let measured: Vec<Value> = rows.filter(|row| row.get("exchange_share").is_some()).collect();
    let [row] = &measured[..] else { panic!("{measured:?}") };
    let share = row["exchange_share"].as_f64().unwrap();
    assert!(row["step"] == 3 && share > 0.0 && share < 1.0, "{row}");
    let is_told = finished.run.events().iter().any(|event| event["event"] == "slow_exchanges");
    assert_eq!(is_told, share > 1.0 / 3.0, "{share}");
    assert_eq!(finished.stdout.contains("the GPUs wait for exchanges"), is_told, "{}", finished.stdout);
}

/// HNG-1: a rank whose GPU waits for another is seen in their exchange, so that the other is blamed.
#[test]
fn a_rank_that_stands_still_while_gpus_wait_for_it_is_named() {
    let scratch = Scratch::new(64);
    for (number, (layout, place)) in EXCHANGES.into_iter().enumerate() {
        let victim = (number + 1) % 2;
        let what = format!("{layout:?}: hang rank={victim} {place} step=7");
        let job = job(&scratch, &format!("hangs-{number}"), layout).set("restart.hang_timeout_seconds=2");
        let finished = job.env("DSLAUNCH_FAULT", &format!("hang rank={victim} {place} step=7")).start();
        let finished = finished.wait_within(Duration::from_secs(60)).unwrap_or_else(|| panic!("{what}: not found"));
        check_named(&finished, victim, &what);
    }
    let mut running =
        job(&scratch, "stopped", &["zero.stage=3", "train.steps=200"]).set("restart.hang_timeout_seconds=2").start();
    running.wait_for("step 20/");
    send(running.ranks()[1], Signal::SIGSTOP);
    check_named(&running.wait(), 1, "stopped");
}
