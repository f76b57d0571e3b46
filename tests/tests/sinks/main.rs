//! All sinks of a job have the same numbers, as TensorBoard's and wandb's own readers find them, whatever failures and launches
//! there were on the way. TB-2, WB-2, SNK-2, CAT-1.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Finished, Job, Running, send};
use tests::python;
use tests::run::RunDir;

/// Long enough that a signal sent on seeing a step arrives in mid-run.
const STEPS: u64 = 60;

fn job(folder: &Path, name: &str) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    let toml = format!(
        "[job]\nname = \"tiny\"\n[model]\npath = {model:?}\ninit = \"random\"\n\
         [data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 40\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\n\
         [optimizer]\nlearning_rate = 1e-3\n[checkpoint]\nevery_steps = 25\n[restart]\nsnapshot_every_steps = 0\n\
         [validation]\nevery_steps = 20\nkeep_best = 0\n\
         [log]\nevery_steps = 1\nsinks = [\"console\", \"jsonl\", \"tensorboard\", \"wandb\", \"prometheus\"]\n"
    );
    // No key: nothing is sent, whoever runs this test.
    Job::new(&folder.join(name), &toml).env("WANDB_API_KEY", "").env("WANDB_PROJECT", "llama").env("WANDB_TAGS", "a,b")
}

/// The numbers of metrics.jsonl: by name, (step, text) pairs.
fn expected(run: &RunDir) -> BTreeMap<String, Vec<(u64, String)>> {
    let names = [
        ("loss", "train/loss"),
        ("grad_norm", "train/grad_norm"),
        ("learning_rate", "train/learning_rate"),
        ("tokens", "train/tokens"),
        ("tokens_per_second", "train/tokens_per_second"),
        ("step_seconds", "train/step_seconds"),
        ("exchange_share", "train/exchange_share"),
        ("pipeline_bubble", "train/pipeline_bubble"),
        ("eval_loss", "validation/loss"),
        ("label_tokens", "validation/label_tokens"),
    ];
    let mut all: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for line in fs::read_to_string(run.path("metrics.jsonl")).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        for (key, value) in row.as_object().unwrap().iter().filter(|(key, _)| *key != "step") {
            let (_, name) = names.iter().find(|(known, _)| known == key).unwrap_or_else(|| panic!("{key} has no name"));
            all.entry((*name).to_owned()).or_default().push((row["step"].as_u64().unwrap(), value.to_string()));
        }
    }
    all
}

fn read_back(run: &RunDir) -> Value {
    serde_json::from_str(&python("sinks/read_back.py", &[run.path("").to_str().unwrap()])).unwrap()
}

/// The numbers of the offline runs, one after the other: by name, (step, text) pairs.
fn of_wandb(read: &Value) -> BTreeMap<String, Vec<(u64, String)>> {
    let mut all: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for (number, row) in
        read["wandb"].as_array().unwrap().iter().flat_map(|run| run["history"].as_array().unwrap().iter().enumerate())
    {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        assert_eq!(text("_step"), number.to_string());
        assert!(text("_timestamp").parse::<f64>().unwrap() > 1e9 && text("_runtime").parse::<f64>().unwrap() >= 0.0);
        let step = text("train/step").parse().unwrap();
        let own = ["train/step", "_step", "_timestamp", "_runtime"];
        for (name, value) in row.as_object().unwrap().iter().filter(|(name, _)| !own.contains(&name.as_str())) {
            all.entry(name.clone()).or_default().push((step, value.as_str().unwrap().to_owned()));
        }
    }
    all
}

fn assert_tensorboard_is(read: &Value, expected: &BTreeMap<String, Vec<(u64, String)>>) {
    let tags = read["tensorboard"].as_object().unwrap();
    assert_eq!(tags.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (tag, pairs) in expected {
        // The format has single precision.
        let single = |(step, text): &(u64, String)| (*step, text.parse::<f64>().unwrap() as f32);
        let found = tags[tag].as_array().unwrap().iter();
        let found: Vec<_> = found.map(|pair| (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap() as f32)).collect();
        assert_eq!(found, pairs.iter().map(single).collect::<Vec<_>>(), "{tag}");
    }
}

/// What Prometheus is told, where the console says.
fn scraped(running: &mut Running) -> String {
    let address = running.wait_for("prometheus: http://");
    let address = address.trim().trim_start_matches("prometheus: http://").trim_end_matches("/metrics").to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn all_sinks_have_the_same_numbers_after_failures_and_in_a_later_launch() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "job");
    let mut running = job.start();
    let page = scraped(&mut running);
    assert!(page.contains("dslaunch_run_info{name=\"tiny\"") && page.contains("dslaunch_planned_steps 60"), "{page}");
    running.wait_for("step 40/");
    send(running.ranks()[0], Signal::SIGKILL);
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("the run is on this disk only; to send it: wandb sync "), "{}", finished.stderr);
    let run = finished.run;
    let restarted = run.events().into_iter().find(|event| event["event"] == "restarted").unwrap();
    assert_eq!(restarted["resumed_step"], 25);
    let (rows, read) = (expected(&run), read_back(&run));
    assert_eq!(rows["train/loss"].len() as u64, STEPS);
    assert_eq!(of_wandb(&read), rows);
    assert_tensorboard_is(&read, &rows);
    let first = &read["wandb"][0];
    assert_eq!(first["run"]["project"], "llama");
    assert_eq!((first["run"]["group"].as_str(), first["run"]["tags"][1].as_str()), (Some("tiny"), Some("b")));
    assert_eq!((&first["exit"], &first["summary"]["train/step"]), (&0.into(), &"60".into()));
    let config: Value = serde_json::from_str(first["config"]["train"].as_str().unwrap()).unwrap();
    assert_eq!(config["micro_batch_size"], 2);
    let state: Value = serde_json::from_slice(&fs::read(run.path("final/trainer_state.json")).unwrap()).unwrap();
    assert_eq!((state["global_step"].as_u64(), state["log_history"].as_array().unwrap().len()), (Some(60), 63));

    let run = job.clone().set("train.steps=70").succeed();
    let (rows, read) = (expected(&run), read_back(&run));
    assert_eq!(rows["train/loss"].len(), 70);
    assert_eq!(of_wandb(&read), rows);
    assert_tensorboard_is(&read, &rows);
    assert_eq!(read["wandb"][1]["run"]["group"], "tiny");

    // The report of both launches, and of a run and itself.
    let root = run.path("");
    let (root, both) = (root.to_str().unwrap(), folder.path().join("both.html"));
    let report = job.dslaunch(&["report", root]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let page = fs::read_to_string(run.path("report.html")).unwrap();
    for part in ["<svg", "restart 1 from step 25", "done after step 70", "step-00000070", "validation.every_steps"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<script") && !page.contains("https://"), "it needs nothing from anywhere");
    assert!(job.dslaunch(&["report", root, root, "-o", both.to_str().unwrap()]).status.success());
    assert!(fs::read_to_string(both).unwrap().contains("None that can change a result."));
    assert_eq!(job.dslaunch(&["report", folder.path().to_str().unwrap()]).status.code(), Some(2));
}

#[test]
fn a_launcher_that_is_killed_leaves_whole_rows_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "job");
    let mut running = job.start();
    running.wait_for("step 35/");
    running.signal(Signal::SIGKILL);
    running.wait();
    let (rows, read) = (expected(&job.run_dir()), read_back(&job.run_dir()));
    let count = |all: &BTreeMap<String, Vec<(u64, String)>>| all["train/loss"].len();
    let (told, kept) = (count(&rows), count(&of_wandb(&read)));
    assert!(told >= 35 && kept + 1 >= told && kept <= told + 1, "{kept} of {told} rows");
    assert_eq!(read["wandb"][0]["exit"], Value::Null);
    let run = job.succeed();
    let (rows, read) = (expected(&run), read_back(&run));
    assert_tensorboard_is(&read, &rows);
}

/// A program of that name stands for wandb's own: what it is asked, and what becomes of its answer.
#[test]
fn a_run_is_sent_when_wandb_is_there_and_has_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    let [asked, wandb] = [folder.path().join("asked"), programs.join("wandb")];
    let path = format!("{}:{}", programs.display(), proto::env::variable("PATH").unwrap().display());
    let job = |name: &str| job(folder.path(), name).set("train.steps=3").env("PATH", &path).env("WANDB_API_KEY", "key");
    let put = |script: &str| {
        fs::create_dir_all(&programs).unwrap();
        fs::write(&wandb, format!("#!/bin/sh\necho \"$@\" >> {}\n{script}\n", asked.display())).unwrap();
        fs::set_permissions(&wandb, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let told = |finished: &Finished| {
        assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
        let said = format!("{}{}", finished.stdout, finished.stderr);
        let line = said.lines().find(|line| line.contains("wandb: ")).unwrap_or_else(|| panic!("{said}"));
        line.to_owned()
    };
    let offline_run = |job: &Job| {
        let runs = fs::read_dir(job.run_dir().path("wandb")).unwrap().map(|entry| entry.unwrap().path());
        runs.filter(|path| path.is_dir()).find(|path| path.to_str().unwrap().contains("offline-run")).unwrap()
    };

    put("echo \"wandb: Syncing: https://wandb.ai/me/llama/runs/abc ... done\"");
    let sent = job("sent");
    assert!(told(&sent.finish()).ends_with("wandb: the run is sent: https://wandb.ai/me/llama/runs/abc"));
    let run = offline_run(&sent);
    assert_eq!(fs::read_to_string(&asked).unwrap(), format!("sync {}\n", run.display()));

    put("echo \"no network\" >&2; exit 1");
    let failed = job("failed");
    let line = told(&failed.finish());
    let run = offline_run(&failed);
    assert!(line.contains("the run is not sent, wandb exited with code 1"), "{line}");
    assert!(line.ends_with(&format!("to try again: wandb sync {}", run.display())), "{line}");
    assert_eq!(fs::read_to_string(run.join("sync.log")).unwrap(), "no network\n");

    // Without a key nobody is asked.
    let asked_before = fs::read_to_string(&asked).unwrap();
    let kept = job("kept").env("WANDB_API_KEY", "");
    let line = told(&kept.finish());
    assert!(line.ends_with(&format!("to send it: wandb sync {}", offline_run(&kept).display())), "{line}");
    assert_eq!(fs::read_to_string(&asked).unwrap(), asked_before);
}

#[test]
fn sinks_that_cannot_write_are_named_and_cost_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "job").set("train.steps=5");
    fs::create_dir_all(job.run_dir().path("")).unwrap();
    for name in ["tensorboard", "wandb"] {
        fs::write(job.run_dir().path(name), "in the way").unwrap();
    }
    let finished = job.finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    for name in ["tensorboard", "wandb"] {
        let warning = format!("warning: {name}: cannot write {}", job.run_dir().path(name).display());
        assert_eq!(finished.stderr.matches(&warning).count(), 1, "{}", finished.stderr);
    }
    assert_eq!(finished.run.steps().len(), 5);
}
