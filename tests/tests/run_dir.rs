//! A run directory knows whose it is: another job is refused, another setting named, a finished job left alone. RUN-1.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tests::fixtures::{Scratch, write_model};
use tests::job::{Finished, Job};
use tests::run::RunDir;

const SETTINGS: &str = "[train]\nsteps = 4\ngradient_accumulation_steps = 1\n[optimizer]\nlearning_rate = 1e-3\n\
                        [checkpoint]\nevery_steps = 3\n[log]\nevery_steps = 1\n";

fn job_on(scratch: &Scratch, name: &str, model: &Path, init: &str) -> Job {
    let data = &scratch.data;
    let toml =
        format!("[model]\npath = {model:?}\ninit = {init:?}\n[data]\ntrain = {data:?}\nseq_len = 32\n{SETTINGS}");
    Job::new(&scratch.folder.path().join(name), &toml)
}

/// In the run directory that all jobs of a test share.
fn job(scratch: &Scratch) -> Job {
    job_on(scratch, "shared", &scratch.model, "random")
}

/// A model with weights.
fn pretrained(scratch: &Scratch, name: &str, seed: u64) -> PathBuf {
    let run = job_on(scratch, name, &scratch.model, "random").set(&format!("job.seed={seed}")).succeed();
    let model = scratch.folder.path().join(format!("model-{name}"));
    fs::rename(run.path("final"), &model).unwrap();
    model
}

/// Refused with exit code 2, by name: the run directory, `difference`, and what to do.
fn check_refused(finished: &Finished, difference: &str) {
    assert_eq!(finished.status.code(), Some(2), "{}{}", finished.stdout, finished.stderr);
    let run_dir = finished.run.path("").display().to_string();
    let run_dir = format!("{} is the run directory of another job: ", run_dir.trim_end_matches('/'));
    for text in [&run_dir, difference, "another job.output_dir", "checkpoint.resume = \"never\""] {
        assert!(finished.stderr.contains(text), "expected {text:?} in:\n{}", finished.stderr);
    }
    assert!(!finished.stdout.contains("step "), "nothing is trained: {}", finished.stdout);
}

/// When a file was last written, and its bytes.
type Content = (SystemTime, Vec<u8>);

fn content(path: &Path) -> Content {
    (fs::metadata(path).unwrap().modified().unwrap(), fs::read(path).unwrap())
}

/// The files of the checkpoints and of the final model.
fn results(run: &RunDir) -> BTreeMap<PathBuf, Content> {
    let checkpoints = run.checkpoints().into_iter().map(|name| run.path("checkpoints").join(name));
    let folders = checkpoints.chain([run.path("final")]);
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    files.map(|path| (path.clone(), content(&path))).collect()
}

#[test]
fn two_jobs_do_not_share_a_run_directory() {
    let scratch = Scratch::new(32);
    let run = job(&scratch).succeed();
    let before = results(&run);
    let wider = write_model(&scratch.folder.path().join("wider"), &[32, 96, 2, 4, 2, 97]);
    let other = job_on(&scratch, "shared", &wider, "random");
    check_refused(&other.finish(), "intermediate_size in the model's config.json was 88, and is 96 here");
    let weights = pretrained(&scratch, "weights", 1);
    let other = job_on(&scratch, "shared", &weights, "pretrained");
    check_refused(&other.finish(), "model.init was \"random\", and is \"pretrained\" here");
    assert!(results(&run) == before, "nothing of the first job is touched");
    // That is for the user to decide.
    let anew = other.clone().set("checkpoint.resume=\"never\"").succeed();
    assert!(anew.path("old-checkpoints/step-00000003").is_dir());
    check_refused(&job(&scratch).finish(), "model.init was \"pretrained\", and is \"random\" here");
    assert_eq!(other.finish().status.code(), Some(0), "from now on it is the other's");
}

#[test]
fn other_weights_are_another_job() {
    let scratch = Scratch::new(32);
    let (first, second) = (pretrained(&scratch, "first", 1), pretrained(&scratch, "second", 2));
    let on = |model: &Path| job_on(&scratch, "shared", model, "pretrained");
    on(&first).set("train.steps=3").succeed();
    let was = |path: &Path| format!("model.path was \"{}\" (model.safetensors: ", path.display());
    let finished = on(&second).finish();
    check_refused(&finished, &format!("{}weights with hash ", was(&first)));
    assert!(finished.stderr.contains(&format!("and is \"{}\" (", second.display())), "{}", finished.stderr);
    // One byte of the weights, the last, and one of the header: a space that means nothing.
    let file = first.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&file, &changed).unwrap();
    check_refused(&on(&first).finish(), &format!("{}weights with hash ", was(&first)));
    let header_bytes = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    changed.clone_from(&whole);
    let name = changed[8..8 + header_bytes].windows(2).position(|pair| pair == b"pt").expect("the format's name");
    changed[8 + name] = b'q';
    fs::write(&file, &changed).unwrap();
    check_refused(&on(&first).finish(), &format!("{}header with hash ", was(&first)));
    // The same model somewhere else is the same job.
    fs::write(&file, &whole).unwrap();
    let moved = scratch.folder.path().join("moved");
    fs::rename(&first, &moved).unwrap();
    let finished = on(&moved).finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains("going on from step 3"), "{}", finished.stdout);
    assert!(finished.stderr.contains("note: since step 3: model.path "), "{}", finished.stderr);
}

#[test]
fn a_checkpoint_that_is_named_may_be_of_another_run() {
    let scratch = Scratch::new(32);
    let run = job(&scratch).succeed();
    let resume = format!("checkpoint.resume={:?}", run.path("checkpoints/step-00000003"));
    let weights = pretrained(&scratch, "weights", 1);
    let tuned = job_on(&scratch, "tuned", &weights, "pretrained").set(&resume).succeed();
    assert_eq!(tuned.steps().iter().map(|step| step.step).collect::<Vec<_>>(), [4]);
    let wider = write_model(&scratch.folder.path().join("wider"), &[32, 96, 2, 4, 2, 97]);
    let finished = job_on(&scratch, "wider", &wider, "random").set(&resume).finish();
    assert_eq!(finished.status.code(), Some(2), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("its model has another intermediate_size"), "{}", finished.stderr);
}

#[test]
fn changed_settings_are_named_in_one_line() {
    let scratch = Scratch::new(32);
    job(&scratch).succeed();
    let changed = job(&scratch).set("train.steps=6").set("optimizer.learning_rate=1e-4").set("data.packing=false");
    let finished = changed.finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    let line = "note: since step 4: data.packing true -> false, optimizer.learning_rate 0.001 -> 0.0001, \
                train.steps 4 -> 6\n";
    assert!(finished.stderr.contains(line), "{}", finished.stderr);
    let again = changed.set("train.steps=7").finish();
    assert!(again.stderr.contains("note: since step 6: train.steps 6 -> 7\n"), "{}", again.stderr);
}

#[test]
fn a_finished_job_is_left_alone_until_it_is_made_longer() {
    let scratch = Scratch::new(32);
    let run = job(&scratch).succeed();
    let (before, files) = (results(&run), ["plan.json", "job.json", "metrics.jsonl"].map(|name| run.path(name)));
    let others = files.each_ref().map(|path| content(path));
    for (job, not_applied) in [
        (job(&scratch), None),
        (job(&scratch).set("optimizer.learning_rate=0.5"), Some("optimizer.learning_rate 0.001 -> 0.5")),
        (job(&scratch).set("train.steps=2"), Some("train.steps 4 -> 2")),
    ] {
        let finished = job.finish();
        assert_eq!(finished.status.code(), Some(0), "{}{}", finished.stdout, finished.stderr);
        for text in
            ["this job is finished: 4 steps are done", "above ", "step-00000004", "checkpoint.resume = \"never\""]
        {
            assert!(finished.stdout.contains(text), "expected {text:?} in:\n{}", finished.stdout);
        }
        assert!(not_applied.is_none_or(|text| finished.stdout.contains(text)), "{}", finished.stdout);
        assert!(results(&run) == before, "nothing is written again");
        assert!(files.each_ref().map(|path| content(path)) == others);
        assert_eq!(run.events().last().unwrap()["event"], "done");
    }
    let longer = job(&scratch).set("train.steps=5").finish();
    assert!(longer.status.success(), "{}{}", longer.stdout, longer.stderr);
    assert!(longer.stdout.contains("going on from step 4"), "{}", longer.stdout);
    assert_eq!(run.steps().len(), 5);
    assert!(results(&run) != before);
    let finished = job(&scratch).set("train.steps=5").finish();
    assert!(finished.stdout.contains("this job is finished: 5 steps are done"), "{}", finished.stdout);
}

#[test]
fn a_job_that_came_to_nothing_keeps_nobody_out() {
    let scratch = Scratch::new(32);
    let mut running = job(&scratch).set("train.steps=100000").set("checkpoint.every_steps=1000000").start();
    running.wait_for("step 2/");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.wait();
    let wider = write_model(&scratch.folder.path().join("wider"), &[32, 96, 2, 4, 2, 97]);
    let run = job_on(&scratch, "shared", &wider, "random").succeed();
    assert_eq!(run.steps().len(), 4);
}
