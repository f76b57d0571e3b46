//! Under a real Slurm, started by the tests: skipped, with a loud line, where there is none.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]
#![allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]

use std::fs;
use std::time::{Duration, Instant};

use tests::fixtures::{tiny_model, token_rows};
use tests::interpreter;
use tests::job::Job;
use tests::slurm::Slurm;
use tests::{program, repository};

/// How long a job may take.
const JOB: Duration = Duration::from_secs(60);
const STEPS: u64 = 300;

/// A real torch program on two nodes. One node's dslaunch, both of its processes, is killed in the middle, and started again
/// by the step's script: all nodes begin again, and end with the right result.
#[test]
fn a_node_dies_and_comes_back() {
    let Some(slurm) = Slurm::start(2) else { return };
    let (step, job, output) = (slurm.path("step.sh"), slurm.path("job.sh"), slurm.path("job.out"));
    let run = format!(
        "{} run --nproc-per-node 2 --max-restarts 3 -- {} {} --kill-node 1",
        program("dslaunch").display(),
        interpreter().display(),
        repository().join("scripts/peers/allreduce_gloo.py").display()
    );
    let again = "echo \"node $SLURM_NODEID: started again\"";
    fs::write(&step, format!("export GLOO_SOCKET_IFNAME=lo\nuntil {run}; do [ $? = 137 ] || exit 1; {again}; done\n"))
        .unwrap();
    let token = "export DSLAUNCH_JOB_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')";
    let srun = format!("srun -N2 --ntasks-per-node=1 -K1 --wait=0 bash {}", step.display());
    // Outside of a step there is nobody to meet.
    let alone = format!("{} run -- sh -c 'echo alone: $WORLD_SIZE'", program("dslaunch").display());
    let lines = ["#!/bin/bash", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", token, &alone, &srun];
    fs::write(&job, lines.join("\n") + "\n").unwrap();
    let since = Instant::now();
    let id = slurm.submit(&job, &output);
    let state = slurm.wait_for_end(&id, JOB);
    let text = fs::read_to_string(&output).unwrap();
    assert_eq!(state, "COMPLETED", "{text}");
    println!("two nodes, one killed and started again: {:?}", since.elapsed());
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with("rank ") && line.contains(" of 4 ")).collect();
    lines.sort();
    let line = |rank: u32| format!("rank {rank} of 4 on node {} in attempt 1: 150", rank / 2);
    assert_eq!(lines, (0..4).map(line).collect::<Vec<_>>(), "{text}");
    assert!(text.contains("alone: 1\n") && text.contains("node 1: started again\n"), "{text}");
    assert!(text.contains("node 1 failed in attempt 0: its dslaunch "), "{text}");
    assert!(text.contains("starting all ranks again (restart 1 of 3)"), "{text}");
}

/// The script that `dslaunch slurm` prints: a job that is told that its time is nearly over makes a checkpoint, puts itself
/// back into the queue, goes on there, and ends as if nothing had been.
#[test]
fn a_preempted_job_is_requeued_and_goes_on() {
    let Some(slurm) = Slurm::start(1) else { return };
    let folder = slurm.path("training");
    fs::create_dir(&folder).unwrap();
    let (model, data) = (tiny_model(&folder.join("model")), token_rows(&folder.join("rows.jsonl"), 64, 32));
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n[train]\nsteps = {STEPS}\n\
         micro_batch_size = 2\nglobal_batch_size = 8\n[optimizer]\nlearning_rate = 1e-3\n[checkpoint]\n\
         every_steps = 1000\n[log]\nevery_steps = 1\n"
    );
    let quiet = Job::new(&folder.join("quiet"), &toml).nproc(2).succeed();
    let job = Job::new(&folder.join("preempted"), &toml).nproc(2);
    // Writes train.toml, too.
    let train = job.command();
    let args: Vec<_> = train.get_args().collect();
    let printed = std::process::Command::new(train.get_program()).arg("slurm").args(&args).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let (script, output) = (slurm.path("job.sh"), slurm.path("job.out"));
    fs::write(&script, printed.stdout).unwrap();
    let since = Instant::now();
    let id = slurm.submit(&script, &output);
    let (run, metrics) = (job.run_dir(), job.run_dir().path("metrics.jsonl"));
    let steps = || fs::read_to_string(&metrics).unwrap_or_default().lines().count();
    slurm.wait_until("60 steps are done", JOB, |_| steps() >= 60);
    slurm.signal(&id, "USR1");
    slurm.wait_until("the job is back in the queue", JOB, |slurm| slurm.value(&id, "Restarts") == "1");
    let preempted = run.events().pop().expect("events");
    assert_eq!(preempted["event"], "preempted");
    let state = slurm.wait_for_end(&id, JOB);
    let text = fs::read_to_string(&output).unwrap();
    assert_eq!(state, "COMPLETED", "{text}");
    println!("preempted after step {}, requeued, done after {:?}", preempted["step"], since.elapsed());
    let resumed = run.events().into_iter().rfind(|event| event["event"] == "resumed_step").expect("it resumed");
    assert_eq!(resumed["resumed_step"], preempted["step"], "{text}");
    assert_eq!(run.steps(), quiet.steps());
    assert!(run.final_weights() == quiet.final_weights(), "final weights differ in bits");
}
