//! Checkpoints under fire: kills while saving, damage, strangers among them, and jobs that change between runs. CKP-1.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proto::manifest::Manifest;
use tests::fixtures::Scratch;
use tests::job::Job;
use tests::run::{RunDir, names_in};

/// A job in the folder `name` on two ranks; `extra`: sections of train.toml beside model and data.
fn job_in(scratch: &Scratch, name: &str, extra: &str) -> Job {
    let (model, data) = (&scratch.model, &scratch.data);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n\
         [data]\ntrain = {data:?}\nseq_len = 32\npacking = false\n[log]\nevery_steps = 1\n{extra}"
    );
    Job::new(&scratch.folder.path().join(name), &toml).nproc(2)
}

/// Flips one bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_hundred_kills_while_saving_leave_only_whole_checkpoints() {
    let scratch = Scratch::new(64);
    let extra = |steps: u64, every_steps: u64| {
        format!(
            "[train]\nsteps = {steps}\ngradient_accumulation_steps = 1\n[schedule]\nkind = \"constant\"\n\
             [checkpoint]\nevery_steps = {every_steps}\nkeep_last = 2\n"
        )
    };
    let job = job_in(&scratch, "shot at", &extra(4000, 1));
    let mut state = 7u64;
    for kill in 0..100 {
        let mut running = job.start();
        running.wait_for("checkpoint in");
        // Anywhere in the two or three saves that follow.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        spin(Duration::from_micros(state >> 33 & 0x3fff));
        running.signal(Signal::SIGKILL);
        running.wait();
        let run = job.run_dir();
        let names: Vec<String> = run.checkpoints().into_iter().filter(|name| !name.starts_with('.')).collect();
        assert!(!names.is_empty(), "kill {kill}");
        for name in names {
            let checkpoint = run.path("checkpoints").join(&name);
            Manifest::load(&checkpoint).unwrap_or_else(|err| panic!("kill {kill}: {err}"));
        }
    }
    let done = steps_done(&job.run_dir());
    assert!(done > 100, "{done} steps in 100 launches");
    // ENG-3: what came of it is what a run has that nobody shot at.
    let quiet = job_in(&scratch, "quiet", &extra(done + 1, 5000)).succeed();
    let shot_at = job_in(&scratch, "shot at", &extra(done + 1, 1)).succeed();
    assert_eq!(shot_at.steps(), quiet.steps());
    assert!(shot_at.final_weights() == quiet.final_weights(), "final weights differ in bits");
    tests::python("check_load.py", &[newest(&shot_at).to_str().unwrap()]);
    assert!(names_in(&shot_at.path("checkpoints")).iter().all(|name| !name.starts_with('.')), "nothing is left over");
}

fn newest(run: &RunDir) -> PathBuf {
    run.path("checkpoints").join(run.checkpoints().pop().expect("a checkpoint"))
}

fn steps_done(run: &RunDir) -> u64 {
    run.checkpoints().iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().expect("a checkpoint")
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    let scratch = Scratch::new(64);
    let extra = |steps: u64| format!("[train]\nsteps = {steps}\n[checkpoint]\nevery_steps = 2\n");
    let run = job_in(&scratch, "job", &extra(2)).succeed();
    damage(&newest(&run).join("optimizer-00002-of-00002.safetensors"));
    let finished = job_in(&scratch, "job", &extra(4)).finish();
    assert_eq!(finished.status.code(), Some(2), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("optimizer-00002-of-00002.safetensors: damaged"), "{}", finished.stderr);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let scratch = Scratch::new(64);
    let extra = "[train]\nsteps = 6\n[checkpoint]\nevery_steps = 2\nkeep_last = 3\n";
    let quiet = job_in(&scratch, "quiet", extra).succeed();
    let run = job_in(&scratch, "job", extra).succeed();
    fs::write(newest(&run).join("optimizer-00001-of-00002.safetensors"), "short").unwrap();
    // As if it had been stopped before its end.
    fs::remove_dir_all(run.path("final")).unwrap();
    let finished = job_in(&scratch, "job", extra).finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("step-00000006"), "{}", finished.stderr);
    assert_eq!(finished.run.steps(), quiet.steps());
    assert!(finished.run.final_weights() == quiet.final_weights());
}

#[test]
fn pruning_keeps_the_newest_whatever_lies_beside_them() {
    let scratch = Scratch::new(64);
    let extra = "[train]\nsteps = 10\n[checkpoint]\nevery_steps = 3\nkeep_last = 2\n";
    let job = job_in(&scratch, "job", extra);
    fs::create_dir_all(job.run_dir().path("checkpoints/step-00000999")).unwrap();
    let run = job.succeed();
    assert_eq!(run.checkpoints(), ["step-00000009", "step-00000010", "step-00000999"]);
}

#[test]
fn a_run_by_epochs_takes_every_row_whatever_the_ranks() {
    let scratch = Scratch::new(64);
    let extra = "[train]\nepochs = 2\nmicro_batch_size = 1\ngradient_accumulation_steps = 4\n\
                 [checkpoint]\nevery_steps = 4\n";
    let full = job_in(&scratch, "full", extra).nproc(1).succeed();
    let tokens = full.steps().last().unwrap().tokens;
    for nproc in [2, 4] {
        let name = format!("on {nproc}");
        let mut running = job_in(&scratch, &name, extra).nproc(1).start();
        running.wait_for("step 12: checkpoint");
        running.signal(Signal::SIGKILL);
        running.wait();
        let run = job_in(&scratch, &name, extra).nproc(nproc).succeed();
        // 64 rows twice; each step takes 4 rows per rank.
        let steps = run.steps();
        assert!(steps.last().unwrap().tokens >= tokens, "{name}: {:?}", steps.last());
        assert!(steps.len() < 32, "{name}: {} steps", steps.len());
    }
}

#[test]
fn a_model_that_moves_away_during_training_is_saved_all_the_same() {
    let scratch = Scratch::new(64);
    let extra = "[train]\nsteps = 400\n[checkpoint]\nevery_steps = 1000\n";
    let mut running = job_in(&scratch, "job", extra).start();
    running.wait_for("step 1/");
    fs::rename(&scratch.model, scratch.folder.path().join("elsewhere")).unwrap();
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    tests::python("check_load.py", &[finished.run.path("final").to_str().unwrap()]);
}

#[test]
fn training_that_diverges_leaves_the_sound_checkpoints() {
    let scratch = Scratch::new(64);
    let extra = |steps: u64, learning_rate: &str| {
        format!(
            "[train]\nsteps = {steps}\nmax_grad_norm = 0.0\n[optimizer]\nlearning_rate = {learning_rate}\n\
             [schedule]\nkind = \"constant\"\n[checkpoint]\nevery_steps = 1\nkeep_last = 1\n"
        )
    };
    let sound = job_in(&scratch, "job", &extra(3, "1e-3")).succeed().checkpoints();
    assert_eq!(sound, ["step-00000003"]);
    let diverged = job_in(&scratch, "job", &extra(30, "1e38")).finish();
    assert_eq!(diverged.status.code(), Some(1), "{}{}", diverged.stdout, diverged.stderr);
    let left = diverged.run.checkpoints();
    assert!(left.contains(&sound[0]), "{left:?}");
    // What was made with weights that had just gone wrong is not the one before it.
    assert!(left.len() <= 2, "{left:?}");
}

#[test]
fn training_that_diverges_stops_and_saves_nothing() {
    let scratch = Scratch::new(64);
    let extra = "[train]\nsteps = 50\n[optimizer]\nlearning_rate = 1e38\nweight_decay = 1e3\n";
    let finished = job_in(&scratch, "job", extra).finish();
    assert_eq!(finished.status.code(), Some(1), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("training has diverged"), "{}", finished.stderr);
    assert!(!finished.run.path("final").exists());
}
