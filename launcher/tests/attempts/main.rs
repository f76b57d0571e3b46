//! The whole launcher with a stand-in for the worker: this very program, copied beside dslaunch under the worker's name.
//!
//! What is checked is what users and other programs see: exit codes, files of the run directory, the report.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]
#![allow(clippy::disallowed_methods, reason = "the test plays launcher and rank: it starts one and is the other")]

mod control;
mod fake_rank;
mod harness;
mod leaks;
mod services;

use std::fs;
use std::io::Read;

use harness::{Run, check_all, full_pipe};
use nix::sys::signal::Signal;

fn main() {
    if std::env::var_os("DSLAUNCH_PLAN").is_some() {
        return fake_rank::main();
    }
    let mut checks: Vec<(&str, fn())> = vec![
        ("a_run_without_faults_is_done", a_run_without_faults_is_done),
        (
            "a_killed_rank_is_restarted_from_the_newest_checkpoint",
            a_killed_rank_is_restarted_from_the_newest_checkpoint,
        ),
        ("a_later_launch_goes_on_and_never_begins_anew", a_later_launch_goes_on_and_never_begins_anew),
        (
            "rows_are_counted_whatever_the_number_of_ranks_was_before",
            rows_are_counted_whatever_the_number_of_ranks_was_before,
        ),
        ("a_damaged_checkpoint_is_passed_over", a_damaged_checkpoint_is_passed_over),
        ("a_checkpoint_has_to_fit_the_job", a_checkpoint_has_to_fit_the_job),
        ("a_file_where_a_folder_should_be_is_named", a_file_where_a_folder_should_be_is_named),
        (
            "leftovers_of_interrupted_saves_go_with_the_next_launch",
            leftovers_of_interrupted_saves_go_with_the_next_launch,
        ),
        ("a_reader_that_does_not_read_stops_nothing", a_reader_that_does_not_read_stops_nothing),
        ("a_slow_reader_gets_everything", a_slow_reader_gets_everything),
        ("the_restart_budget_ends", the_restart_budget_ends),
        ("the_same_failure_twice_ends_it_early", the_same_failure_twice_ends_it_early),
        ("wrong_input_is_not_restarted", wrong_input_is_not_restarted),
        ("an_environment_that_cannot_is_not_restarted", an_environment_that_cannot_is_not_restarted),
        ("a_peers_echo_is_not_the_cause", a_peers_echo_is_not_the_cause),
        ("an_exit_without_the_work_done_is_a_failure", an_exit_without_the_work_done_is_a_failure),
        ("a_rank_that_talks_nonsense_harms_nothing", a_rank_that_talks_nonsense_harms_nothing),
        ("signals_stop_everything_in_time", signals_stop_everything_in_time),
        ("a_run_directory_in_use_is_refused", a_run_directory_in_use_is_refused),
        ("mistakes_cost_nothing", mistakes_cost_nothing),
        ("the_plan_is_printed", the_plan_is_printed),
        ("checkpoints_are_looked_at", checkpoints_are_looked_at),
        ("a_deepspeed_config_becomes_a_train_toml", a_deepspeed_config_becomes_a_train_toml),
    ];
    checks.extend(control::CHECKS);
    checks.extend(services::CHECKS);
    checks.push(leaks::CHECK);
    check_all(&checks);
}

fn a_run_without_faults_is_done() {
    let run = Run::new("");
    let end = run.launch(&[]).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert_eq!(run.steps(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(
        run.events(),
        ["start", "spawned", "rendezvous", "started", "checkpoint", "checkpoint", "checkpoint", "done"]
    );
    assert!(end.stdout.contains("step 6/6  loss 0.5000"), "{end:?}");
    assert!(end.stdout.contains("done, 6 steps"), "{end:?}");
    assert!(run.path("plan.json").is_file() && run.path("logs/attempt-0/rank-1.err").is_file());
}

fn a_killed_rank_is_restarted_from_the_newest_checkpoint() {
    let run = Run::new("kill rank 1 at 5 in attempt 0");
    let end = run.launch(&[]).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert_eq!(run.steps(), [1, 2, 3, 4, 5, 6], "each step once, although some ran twice");
    let events = run.events();
    let tail = ["failure_detected", "stopped", "restarted", "resumed_step", "spawned", "rendezvous", "started"];
    let tail = [&tail[..], &["recovered", "checkpoint", "done"]].concat();
    assert_eq!(&events[events.len() - tail.len()..], tail);
    assert_eq!(run.event("resumed_step")["resumed_step"], 4);
    assert_eq!(run.event("stopped")["rank"], 1);
    let recovered = run.event("recovered");
    let part = |name: &str| recovered[name].as_f64().unwrap();
    let parts = ["detect_ms", "stop_ms", "wait_ms", "spawn_ms", "rendezvous_ms", "load_ms", "replay_ms"].map(part);
    assert!((parts.iter().sum::<f64>() - part("total_ms")).abs() < 1e-6, "{recovered}");
    let rows = run.rows();
    let at = |name: &str| rows.iter().rfind(|row| row["event"] == name).unwrap()["ms"].as_f64().unwrap();
    let on_the_clock = at("recovered") - at("failure_detected") + part("detect_ms");
    assert!((on_the_clock - part("total_ms")).abs() < on_the_clock * 0.01 + 1.0, "{on_the_clock}: {recovered}");
    assert!(end.stdout.contains("goodput") && end.stdout.contains("recovering from failures"), "{end:?}");
    assert!(end.stderr.contains("rank 1 failed at step 5 of attempt 0: killed by SIGKILL"), "{end:?}");
    assert!(end.stderr.contains("  | rank 1 begins step 5"), "the end of its log is quoted: {end:?}");
    assert!(end.stderr.starts_with("the job goes on from step 4 (restart 1 of 3)\nrank 1 failed at step 5"), "{end:?}");
    assert!(run.path("logs/attempt-1/rank-0.err").is_file());
}

fn a_later_launch_goes_on_and_never_begins_anew() {
    let run = Run::new("kill rank 0 at 5 in attempt 0");
    assert_eq!(run.launch(&["--set", "restart.max_restarts=0"]).end().code, 1);
    assert_eq!(run.launch(&["--set", "restart.max_restarts=0"]).end().code, 1, "resumes from step 4 and dies again");
    assert_eq!(run.event("resumed_step")["resumed_step"], 4);
    assert!(run.path("logs/launch/attempt-0/rank-0.err").is_file(), "logs of earlier launches are kept");
    let end = run.launch(&["--set", "checkpoint.resume=\"never\""]).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert_eq!(run.steps(), [1, 2, 3, 4, 5, 6]);
    let events = run.events();
    let last_start = events.iter().rposition(|event| event == "start").unwrap();
    assert!(events[last_start..].contains(&"restarted".to_owned()), "it dies once more, in its own attempt 0");
    assert_eq!(run.event("restarted")["resumed_step"], 4, "from its own checkpoint");
    assert!(run.path("old-checkpoints/step-00000004/manifest.json").is_file());
    let resume = format!("checkpoint.resume={:?}", run.path("checkpoints/step-00000002"));
    assert_eq!(run.launch(&["--set", &resume, "--set", "restart.max_restarts=0"]).end().code, 1);
    assert_eq!(run.event("resumed_step")["resumed_step"], 2);
}

fn rows_are_counted_whatever_the_number_of_ranks_was_before() {
    let run = Run::new("kill rank 1 at 5");
    run.edit("train.toml", "steps = 6\n", "epochs = 2\n");
    assert_eq!(run.launch(&["--set", "restart.max_restarts=0"]).end().code, 1);
    assert_eq!((run.plan().steps, run.plan().start.step), (8, 0), "16 rows, 2 a step");
    let half = ["--nproc", "1", "--set", "train.global_batch_size=4"];
    let end = run.launch(&[&["plan"], &half[..]].concat()).end();
    assert!(end.stdout.contains("steps     6, 2.00 epochs") && end.stdout.contains("goes on from step 4"), "{end:?}");
    let end = run.launch(&half).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert_eq!(
        (run.plan().steps, run.plan().start.step, run.plan().start.rows),
        (6, 4, 8),
        "8 rows are left, 4 a step"
    );
    assert_eq!(run.steps(), [1, 2, 3, 4, 5, 6]);
    let end = run.launch(&half).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert!(end.stdout.contains("already at step 6 of 6, nothing left to train"), "{end:?}");
    assert!(!end.stdout.contains("done"), "{end:?}");
    let never = ["plan", "--json", "--set", "checkpoint.resume=\"never\""];
    let plan: proto::plan::Plan = serde_json::from_str(&run.launch(&never).end().stdout).unwrap();
    assert_eq!((plan.steps, plan.start.step), (8, 0));
    assert!(run.path("checkpoints/step-00000006").is_dir(), "looking at a plan moves nothing");
}

fn a_damaged_checkpoint_is_passed_over() {
    let run = Run::new("kill rank 1 at 7");
    run.edit("train.toml", "steps = 6\n", "steps = 8\n");
    assert_eq!(run.launch(&["--set", "restart.max_restarts=0"]).end().code, 1);
    fs::write(run.path("checkpoints/step-00000006/weights"), "123").unwrap();
    fs::create_dir(run.path("checkpoints/step-00000007")).unwrap();
    let end = run.launch(&["--set", "restart.max_restarts=0"]).end();
    assert_eq!(run.event("resumed_step")["resumed_step"], 4);
    let warning = "step-00000006/weights: damaged: has 3 bytes, the manifest says 4\n";
    assert_eq!(end.stderr.matches(warning).count(), 1, "{end:?}");
    assert_eq!(end.stderr.matches("warning: ").count(), 1, "a folder without a manifest is none: {end:?}");

    let named = format!("checkpoint.resume={:?}", run.path("checkpoints/step-00000002"));
    fs::write(run.path("checkpoints/step-00000002/manifest.json"), "{").unwrap();
    let end = run.launch(&["--set", &named]).end();
    assert_eq!(end.code, 2, "{end:?}");
    assert!(end.stderr.contains("step-00000002/manifest.json: damaged"), "{end:?}");

    for step in [4, 6] {
        fs::write(run.path(&format!("checkpoints/step-{step:08}/manifest.json")), "{").unwrap();
    }
    let end = run.launch(&[]).end();
    assert_eq!(end.code, 2, "it is the user who decides to begin anew: {end:?}");
    assert!(end.stderr.contains("step-00000006/manifest.json: damaged"), "{end:?}");
}

fn a_checkpoint_has_to_fit_the_job() {
    let run = Run::new("");
    assert_eq!(run.launch(&[]).end().code, 0);
    let end = run.launch(&["--set", "train.steps=8", "--set", "job.seed=7"]).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert!(end.stderr.contains("note: job.seed = 7, but ") && end.stderr.contains("has seed 42"), "{end:?}");
    run.edit("data.jsonl", "[1, 2, 3, 4]", "[4, 3, 2, 1]");
    let end = run.launch(&["--set", "train.steps=10", "--set", "job.seed=7"]).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert!(!end.stderr.contains("job.seed") && end.stderr.contains("note: the training data is train-"), "{end:?}");
    run.edit("model/config.json", "\"intermediate_size\": 32", "\"intermediate_size\": 48");
    let named = format!("checkpoint.resume={:?}", run.path("checkpoints/step-00000008"));
    for args in [&[][..], &["plan"]] {
        let end = run.launch(args).end();
        assert_eq!(end.code, 2, "{end:?}");
        let run_dir = run.path("");
        let run_dir = run_dir.to_str().unwrap().trim_end_matches('/');
        let other = "is the run directory of another job: its intermediate_size in the model's config.json was 32, and is \
                     48 here; choose another job.output_dir, or checkpoint.resume = \"never\"";
        assert!(end.stderr.contains(&format!("{run_dir} {other}")), "{end:?}");
    }
    // As an earlier dslaunch left it: by the checkpoint alone.
    fs::remove_file(run.path("job.json")).unwrap();
    for args in [&[][..], &["plan"], &["--set", &named]] {
        let end = run.launch(args).end();
        assert_eq!(end.code, 2, "{end:?}");
        assert!(end.stderr.contains("manifest.json: its model has another intermediate_size than "), "{end:?}");
        assert!(end.stderr.contains(run.beside("model/config.json").to_str().unwrap()), "{end:?}");
    }
    assert_eq!(run.launch(&["--set", "checkpoint.resume=\"never\""]).end().code, 0);
}

fn a_file_where_a_folder_should_be_is_named() {
    for name in ["checkpoints", "logs", "data", "events.jsonl/x", "plan.json/x", "old-checkpoints"] {
        let run = Run::new("");
        fs::create_dir_all(run.path(name).parent().unwrap()).unwrap();
        fs::write(run.path(name), "").unwrap();
        fs::create_dir_all(run.path("checkpoints/step-00000002")).unwrap_or_default();
        let end = run.launch(&["--set", "checkpoint.resume=\"never\""]).end();
        assert!(end.code == 3 || end.code == 2, "{name}: {end:?}");
        let path = run.path(name.strip_suffix("/x").unwrap_or(name));
        assert!(end.stderr.contains(path.to_str().unwrap()), "{name}: {end:?}");
    }
}

fn leftovers_of_interrupted_saves_go_with_the_next_launch() {
    let run = Run::new("");
    let leftovers = ["checkpoints/.step-00000004.tmp", "checkpoints/.step-00000004.old", ".final.tmp", ".final.old"];
    leftovers.iter().for_each(|name| fs::create_dir_all(run.path(name)).unwrap());
    assert_eq!(run.launch(&[]).end().code, 0);
    leftovers.iter().for_each(|name| assert!(!run.path(name).exists(), "{name}"));
    assert!(run.path("final").is_dir(), "the model that had lost its name");
}

fn a_reader_that_does_not_read_stops_nothing() {
    let run = Run::new("hang at 3");
    let (_reader, writer) = full_pipe();
    let sinks = (writer.try_clone().unwrap().into(), Some(writer.into()));
    let launch = run.launch_into(&[], Some(sinks));
    launch.wait_for_step(2);
    let end = launch.stop(Signal::SIGINT);
    assert_eq!(end.code, 130);
    assert!(end.after_signal.as_millis() < 2000, "{:?}", end.after_signal);

    let run = Run::new("kill rank 1 at 3");
    let (mut reader, writer) = full_pipe();
    let end = run.launch_into(&["--set", "restart.max_restarts=1"], Some((writer.into(), None))).end();
    assert_eq!(end.code, 1, "failures are noticed, and ranks restarted");
    assert!(end.stderr.contains("rank 1 failed at step 3 of attempt 1"), "standard error is read: {end:?}");
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(!text.contains("step"), "nothing went out in between");
}

fn a_slow_reader_gets_everything() {
    let run = Run::new("");
    let (mut reader, writer) = full_pipe();
    let sinks = (writer.try_clone().unwrap().into(), Some(writer.into()));
    let launch = run.launch_into(&[], Some(sinks));
    launch.wait_for_step(2);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let rows: Vec<_> = text.trim_start_matches('.').lines().collect();
    assert!(rows[0].starts_with("step 1/6"), "{rows:?}");
    assert!(rows.iter().any(|row| row.contains("done, 6 steps")), "{rows:?}");
    assert_eq!(launch.end().code, 0);
}

fn the_restart_budget_ends() {
    let run = Run::new("kill rank 1 at 3");
    let end = run.launch(&["--set", "restart.max_restarts=2"]).end();
    assert_eq!(end.code, 1, "{end:?}");
    assert_eq!(run.events().iter().filter(|event| *event == "restarted").count(), 2);
    let last =
        "the job does not go on: the restart budget is used up (restart.max_restarts = 2)\nrank 1 failed at step 3";
    assert!(end.stderr.contains(last), "the verdict, then the report: {end:?}");
}

fn the_same_failure_twice_ends_it_early() {
    let run = Run::new("report internal rank 0 at 3");
    let end = run.launch(&[]).end();
    assert_eq!(end.code, 1, "{end:?}");
    assert_eq!(run.events().iter().filter(|event| *event == "restarted").count(), 1);
    assert!(end.stderr.contains("the same failure at step 3 twice in a row"), "{end:?}");
}

fn wrong_input_is_not_restarted() {
    let run = Run::new("report input rank 1 at 1");
    let end = run.launch(&[]).end();
    assert_eq!(end.code, 2, "{end:?}");
    let first = "the job does not go on: a restart cannot help against wrong input\nrank 1 failed";
    assert!(end.stderr.starts_with(first) && end.stderr.contains("  reported input"), "{end:?}");
    assert_eq!(run.event("failed")["exit_code"], 2);
}

fn an_environment_that_cannot_is_not_restarted() {
    assert_eq!(Run::new("report environment rank 1 at 1").launch(&[]).end().code, 3);
    let end = Run::new("no library").launch(&[]).end();
    assert_eq!(end.code, 3, "{end:?}");
    assert!(end.stderr.contains("libtorch_cpu.so: cannot open"), "{end:?}");
    let run = Run::new("");
    std::fs::remove_file(run.worker()).unwrap();
    let end = run.launch(&[]).end();
    assert_eq!(end.code, 3);
    assert!(end.stderr.contains("dslaunch-rank is missing"), "{end:?}");
    assert!(!run.path("").exists(), "nothing was written");
}

fn a_peers_echo_is_not_the_cause() {
    let run = Run::new("echo rank 0, then kill rank 1 at 3");
    let end = run.launch(&["--set", "restart.max_restarts=0"]).end();
    assert_eq!(end.code, 1, "{end:?}");
    assert_eq!(run.event("failure_detected")["rank"], 0);
    assert_eq!(run.event("stopped")["rank"], 1);
    assert!(end.stderr.contains("rank 0 followed at step 3: reported peer"), "{end:?}");
}

fn an_exit_without_the_work_done_is_a_failure() {
    let end = Run::new("exit 0 rank 1 at 2").launch(&["--set", "restart.max_restarts=0"]).end();
    assert_eq!(end.code, 1, "{end:?}");
    assert!(end.stderr.contains("exited with code 0 before its work was done"), "{end:?}");
}

fn a_rank_that_talks_nonsense_harms_nothing() {
    let run = Run::new("nonsense rank 0 at 3");
    let address = run.beside("notify.sock");
    // Somebody to be told of it all.
    let _manager = std::os::unix::net::UnixDatagram::bind(&address).unwrap();
    let env = [("NOTIFY_SOCKET", address.to_str().unwrap()), ("WATCHDOG_USEC", "1000")];
    let end = run.start_with(&["--nproc", "2", "train.toml"], "nonsense", &env).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert!(!end.stdout.contains('\u{1b}') && !end.stderr.contains('\u{1b}'), "no rank writes to the terminal");
    let last = run.steps().last().copied();
    assert_eq!(last, Some(6));
}

fn signals_stop_everything_in_time() {
    use Signal::{SIGHUP, SIGINT, SIGTERM};
    for (signal, fault, code) in [
        (SIGINT, "hang at 3", 130),
        (SIGTERM, "hang at 3", 143),
        (SIGHUP, "hang at 3", 143),
        (SIGINT, "deaf at 3", 130),
    ] {
        let run = Run::new(fault);
        let launch = run.launch(&[]);
        let pids = launch.wait_for_step(2);
        if signal == SIGINT {
            // The first Ctrl-C waits for a checkpoint, which does not come here.
            launch.signal(signal);
            launch.wait_for_event("stopping");
            // Two presses, not two signals of one.
            std::thread::sleep(std::time::Duration::from_millis(400));
        }
        let end = launch.stop(signal);
        assert_eq!(end.code, code, "{signal} while {fault}: {end:?}");
        assert!(end.after_signal.as_millis() < 2000, "{signal} while {fault}: {:?}", end.after_signal);
        assert!(
            pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()),
            "{fault}: ranks live on"
        );
        assert_eq!(run.events().last().unwrap(), "interrupted");
    }
}

fn a_run_directory_in_use_is_refused() {
    let run = Run::new("hang at 3");
    let launch = run.launch(&[]);
    launch.wait_for_step(2);
    for args in [vec![], vec!["plan"]] {
        let end = run.launch(&args).end();
        assert_eq!(end.code, 3, "{end:?}");
        assert!(end.stderr.contains(&format!("in use by another dslaunch, process {}", launch.pid())), "{end:?}");
    }
    assert_eq!(launch.stop(Signal::SIGTERM).code, 143);
}

fn mistakes_cost_nothing() {
    let run = Run::new("");
    for args in [vec!["--set", "train.stpes=3"], vec!["--nproc", "3"], vec!["--set", "checkpoint.resume=\"/nowhere\""]]
    {
        let end = run.launch(&args).end();
        assert_eq!(end.code, 2, "{args:?}: {end:?}");
        assert!(end.stderr.contains("error: "), "{args:?}: {end:?}");
        assert!(!run.path("").exists(), "{args:?}: nothing was written");
    }
    let end = run.launch(&["--set", "data.train=\"/nowhere.jsonl\""]).end();
    assert_eq!(end.code, 2, "{end:?}");
    assert_eq!(run.events(), ["start", "failed"]);
}

fn the_plan_is_printed() {
    let run = Run::new("");
    let end = run.launch(&["plan"]).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert!(end.stdout.contains("ranks     2 = pipeline 1 * data 2 * tensor 1"), "{end:?}");
    let end = run.launch(&["plan", "--json"]).end();
    let plan: proto::plan::Plan = serde_json::from_str(&end.stdout).unwrap();
    assert_eq!((plan.steps, plan.mesh.dp), (6, 2));
    assert!(!run.path("events.jsonl").exists() && !run.path("logs").exists());
}

fn checkpoints_are_looked_at() {
    let run = Run::new("");
    assert_eq!(run.launch(&[]).end().code, 0);
    let whole = "step-00000006: 1 file, 4 B, all as written\n".to_owned();
    assert_eq!(run.command(&["checkpoint", "verify", "run"]), (0, whole, String::new()));
    let (code, stdout, _) = run.command(&["checkpoint", "inspect", "--json", "run/checkpoints/step-00000004"]);
    let manifest: proto::manifest::Manifest = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, manifest.progress.step), (0, 4));
    let checkpoint = run.path("checkpoints/step-00000006");
    fs::write(checkpoint.join("weights"), "12x4").unwrap();
    fs::write(checkpoint.join("more"), "").unwrap();
    let problems = "run/checkpoints/step-00000006/more: the manifest does not name it\n\
                    run/checkpoints/step-00000006/weights: its content is not what the manifest's hash says\n";
    assert_eq!(run.command(&["checkpoint", "verify", "run"]), (2, String::new(), problems.to_owned()));
    fs::write(checkpoint.join("weights"), "123").unwrap();
    let (code, stdout, stderr) = run.command(&["checkpoint", "inspect", "run"]);
    assert!(code == 2 && stdout.contains("step        6\n"), "{code} {stdout}");
    assert!(
        stderr.contains("weights: damaged: has 3 bytes, the manifest says 4; `dslaunch checkpoint verify"),
        "{stderr}"
    );
    let (code, _, stderr) = run.command(&["checkpoint", "verify", "nowhere"]);
    assert!(code == 2 && stderr.starts_with("error: nowhere: there is no complete checkpoint"), "{code} {stderr}");
}

fn a_deepspeed_config_becomes_a_train_toml() {
    let run = Run::new("");
    let map = |text: &str| {
        fs::write(run.beside("ds_config.json"), text).unwrap();
        run.command(&["plan", "--deepspeed", "ds_config.json"])
    };
    let (code, stdout, stderr) = map(r#"{"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 1e9}}"#);
    assert!(code == 0 && stdout.contains("stage = 3  # zero_optimization.stage\n"), "{code} {stdout}");
    let key = "zero_optimization.stage3_max_live_parameters";
    assert_eq!(stderr, format!("ds_config.json: no effect here (--explain says why): {key}\n"));
    let (code, _, stderr) = run.command(&["plan", "--deepspeed", "ds_config.json", "--explain"]);
    let explained = format!("ds_config.json: {key}: no effect here: parameters are gathered by the unit");
    assert!(code == 0 && stderr.starts_with(&explained), "{code} {stderr}");
    let (code, stdout, stderr) = map(r#"{"fp16": {"enabled": true}, "amp": {"enabled": true}, "steps_per_print": 1}"#);
    assert!(code == 2 && stdout.contains("every_steps = 1  # steps_per_print\n"), "{code} {stdout}");
    let (first, rest) = stderr.split_once('\n').unwrap();
    assert!(first.starts_with("ds_config.json: amp.enabled = true: refused: "), "{stderr}");
    assert!(rest.starts_with("ds_config.json: fp16.enabled = true: model.dtype = \"bf16\" instead: "), "{stderr}");
    let (code, stdout, stderr) = map("{");
    assert!(code == 2 && stdout.is_empty() && stderr.starts_with("error: ds_config.json: EOF"), "{code} {stderr}");
}
