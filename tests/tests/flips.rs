//! Flipped bits: whatever decides how a job goes on and is not what was written is named or made anew, and nothing is silently
//! wrong. CKP-1, SET-4, SEA-1; `scripts/trials.sh flips` plays many.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]
use std::fs;
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::fixtures::Scratch;
use tests::job::{Finished, Job, send};
use tests::run::{RunDir, Step, names_in};
use tests::trials::{Draw, Trials};

const STEPS: u64 = 6;

/// On one rank, with a checkpoint after every second step.
fn job(scratch: &Scratch, folder: &Path) -> Job {
    let (model, data) = (&scratch.model, &scratch.data);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 32\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\n\
         [optimizer]\nlearning_rate = 1e-3\n[checkpoint]\nevery_steps = 2\nkeep_last = 3\n[log]\nevery_steps = 1\n"
    );
    Job::new(folder, &toml)
}

/// A run that nothing was done to, and a folder to copy it into.
struct Scene {
    scratch: Scratch,
    whole: RunDir,
    copies: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scratch = Scratch::new(64);
        let whole = job(&scratch, &scratch.folder.path().join("whole")).succeed();
        Self { scratch, whole, copies: tempfile::tempdir().unwrap() }
    }

    /// The run, as if it had been stopped before its final model was there, and the job that goes on with it.
    fn copy(&self, name: usize) -> (Job, RunDir) {
        let job = job(&self.scratch, &self.copies.path().join(name.to_string()));
        let run = job.run_dir();
        copy_folder(&self.whole.path(""), &run.path(""));
        fs::remove_dir_all(run.path("final")).unwrap();
        (job, run)
    }

    /// All that a user looks at is that of the run that nothing was done to, bit for bit.
    fn assert_same_result(&self, what: &str, finished: &Finished) {
        assert!(finished.status.success(), "{what}: {}{}", finished.stdout, finished.stderr);
        let of = |run: &RunDir| -> (Vec<Step>, Vec<(u64, f64)>) { (run.steps(), run.eval_losses()) };
        assert_eq!(of(&finished.run), of(&self.whole), "{what}");
        assert!(finished.run.final_weights() == self.whole.final_weights(), "{what}: final weights differ in bits");
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// Flips a bit of a file, in place, and says in which byte.
fn flip(path: &Path, draw: &mut Draw) -> usize {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (at, bit) = (draw.below(file.metadata().unwrap().len() as usize), draw.below(8));
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at as u64).unwrap();
    println!("bit {bit} of byte {at} of {}", path.display());
    at
}

/// Where prepared data says of which version it is. Data of another version is made anew without a word.
const VERSION: Range<usize> = 8..12;

/// Says that the file, or another of its name in the same folder, is not what was written.
fn assert_named(what: &str, path: &Path, finished: &Finished) {
    let name = path.strip_prefix(finished.run.path("")).unwrap().to_str().unwrap();
    let named = finished.stderr.lines().any(|line| line.contains(name) && line.starts_with("warning: "));
    assert!(named, "{what} is not named:\n{}{}", finished.stdout, finished.stderr);
}

/// Trials that take seconds each: a tenth of what was asked for.
fn long_trials() -> Trials {
    let trials = Trials::or_else(1);
    Trials { count: trials.count.div_ceil(10), ..trials }
}

fn cached(run: &RunDir, split: &str) -> PathBuf {
    let names = names_in(&run.path("data"));
    let name = names.iter().find(|name| name.starts_with(split) && name.ends_with(".rows"));
    run.path("data").join(name.unwrap_or_else(|| panic!("{names:?}")))
}

#[test]
fn a_flipped_bit_in_prepared_data_is_named_and_the_data_made_anew() {
    let scene = Scene::new();
    for (trial, mut draw) in Trials::or_else(4).draws() {
        let (job, run) = scene.copy(trial);
        // From the first step on: every row counts.
        fs::remove_dir_all(run.path("checkpoints")).unwrap();
        let path = cached(&run, draw.one_of(&["train-", "validation-"]));
        let before = fs::read(&path).unwrap();
        let byte = flip(&path, &mut draw);
        let what = format!("trial {trial}: byte {byte} of {}", path.display());
        let finished = job.finish();
        scene.assert_same_result(&what, &finished);
        if !VERSION.contains(&byte) {
            assert_named(&what, &path, &finished);
        }
        assert!(fs::read(&path).unwrap() == before, "{what}: it is not made anew");
    }
}

#[test]
fn a_flipped_bit_in_a_checkpoint_is_named_and_the_one_before_taken() {
    let scene = Scene::new();
    for (trial, mut draw) in Trials::or_else(6).draws() {
        let (job, run) = scene.copy(trial);
        let newest = run.path("checkpoints").join(run.checkpoints().pop().unwrap());
        let files = ["manifest.json", "manifest.json", "optimizer-00001-of-00001.safetensors", "model.safetensors"];
        let path = newest.join(draw.one_of(&files));
        let what = format!("trial {trial}: byte {} of {}", flip(&path, &mut draw), path.display());
        let verify = job.dslaunch(&["checkpoint", "verify", newest.to_str().unwrap()]);
        assert_eq!(verify.status.code(), Some(2), "{what}: {verify:?}");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(String::from_utf8_lossy(&verify.stderr).contains(name), "{what}: {verify:?}");
        let finished = job.finish();
        scene.assert_same_result(&what, &finished);
        // The weights in a checkpoint are for others: a run goes on from the masters beside them.
        let begins = if name == "model.safetensors" { STEPS } else { STEPS - 2 };
        let begins = format!("going on from step {begins}");
        assert!(finished.stdout.contains(&begins), "{what}: {}{}", finished.stdout, finished.stderr);
        match name {
            "manifest.json" => assert_named(&what, &path, &finished),
            "model.safetensors" => {}
            _ => assert!(finished.stderr.contains(name), "{what}: {}{}", finished.stdout, finished.stderr),
        }
    }
}

#[test]
fn without_a_whole_checkpoint_a_flipped_bit_ends_the_job_before_it_begins() {
    let scene = Scene::new();
    for (trial, mut draw) in Trials::or_else(2).draws() {
        let (job, run) = scene.copy(trial);
        for name in run.checkpoints() {
            flip(&run.path("checkpoints").join(name).join("manifest.json"), &mut draw);
        }
        let finished = job.finish();
        assert_eq!(finished.status.code(), Some(2), "trial {trial}: {}{}", finished.stdout, finished.stderr);
        assert!(finished.stderr.contains("manifest.json: damaged: "), "trial {trial}: {}", finished.stderr);
        assert!(!finished.run.path("final").exists());
    }
}

#[test]
fn a_flipped_bit_in_whose_the_run_directory_is_is_named() {
    let scene = Scene::new();
    for (trial, mut draw) in Trials::or_else(2).draws() {
        let (job, run) = scene.copy(trial);
        let path = run.path("job.json");
        let what = format!("trial {trial}: byte {}", flip(&path, &mut draw));
        let finished = job.finish();
        scene.assert_same_result(&what, &finished);
        assert_named(&what, &path, &finished);
    }
}

#[test]
fn a_flipped_bit_in_the_plan_costs_no_more_than_a_restart() {
    let scratch = Scratch::new(64);
    let long = |name: &str| job(&scratch, &scratch.folder.path().join(name)).set("train.steps=200").nproc(2);
    let quiet = long("quiet").succeed();
    for (trial, mut draw) in long_trials().draws() {
        let mut running = long(&format!("damaged-{trial}")).start();
        running.wait_for("step 20/");
        let plan = long(&format!("damaged-{trial}")).run_dir().path("plan.json");
        let what = format!("trial {trial}: byte {}", flip(&plan, &mut draw));
        send(running.ranks()[1], Signal::SIGKILL);
        let finished = running.wait();
        assert!(finished.status.success(), "{what}: {}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.run.steps(), quiet.steps(), "{what}");
        assert!(finished.run.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
    }
}

#[test]
fn prepared_data_that_is_damaged_while_ranks_train_on_it_is_named_and_trained_on_no_further() {
    let scratch = Scratch::new(64);
    let long = |name: &str| job(&scratch, &scratch.folder.path().join(name)).set("train.steps=200").nproc(2);
    let quiet = long("quiet").succeed();
    for (trial, mut draw) in long_trials().draws() {
        let job = long(&format!("damaged-{trial}"));
        let mut running = job.start();
        running.wait_for("step 20/");
        let path = cached(&job.run_dir(), "train-");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // A token or a target: nothing else would notice. Between two steps, so that none has seen it.
        let (at, mut pair) = (16 + 8 * draw.below(64) as u64, [0; 8]);
        running.ranks().into_iter().for_each(|rank| send(rank, Signal::SIGSTOP));
        file.read_exact_at(&mut pair, at).unwrap();
        pair[4 * draw.below(2)] ^= 1;
        file.write_all_at(&pair, at).unwrap();
        running.ranks().into_iter().for_each(|rank| send(rank, Signal::SIGCONT));
        let finished = running.wait();
        assert_eq!(finished.status.code(), Some(3), "trial {trial}: {}{}", finished.stdout, finished.stderr);
        let named = format!("{}: damaged at byte 0: ", path.display());
        assert!(finished.stderr.contains(&named), "trial {trial}: {}", finished.stderr);
        let healed = job.finish();
        assert!(healed.status.success(), "trial {trial}: {}{}", healed.stdout, healed.stderr);
        assert_named("the damage", &path, &healed);
        assert_eq!(healed.run.steps(), quiet.steps(), "trial {trial}");
        assert!(healed.run.final_weights() == quiet.final_weights(), "trial {trial}: final weights differ in bits");
    }
}
