//! `dslaunch generate`: what it writes is what transformers' generate() writes, and what becomes of it when something is not as it
//! should be.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::job::{Job, send, wait_until_gone};
use tests::process::family;
use tests::pty::OnTerminal;
use tests::{program, python, repository};

/// The models, and what transformers makes of prompts: made once.
struct Reference {
    folder: TempDir,
    /// By folder of a model.
    cases: BTreeMap<String, Vec<Value>>,
}

impl Reference {
    fn get() -> &'static Self {
        static REFERENCE: OnceLock<Reference> = OnceLock::new();
        REFERENCE.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a scratch folder");
            let built_in = repository().join("launcher/src/data/chat/builtin");
            python("generate/reference.py", &[&text(&built_in), &text(folder.path())]);
            let lines = fs::read_to_string(folder.path().join("cases.jsonl")).unwrap();
            let mut cases: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for line in lines.lines() {
                let case: Value = serde_json::from_str(line).unwrap();
                cases.entry(case["folder"].as_str().unwrap().to_owned()).or_default().push(case);
            }
            Self { folder, cases }
        })
    }

    fn model(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// `dslaunch generate` on a CPU, whose answers are lines of JSON unless `arguments` says otherwise.
#[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
fn generate(model: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("dslaunch"));
    command.arg("generate").arg(model).args(["--device", "cpu"]).args(arguments).stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("dslaunch starts")
}

/// The lines of JSON of a command that succeeds.
fn answers(command: &mut Command) -> Vec<Value> {
    let output = output(command);
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}{stderr}", output.status);
    assert!(stderr.contains("tokens/s"), "{stderr}");
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The answers are those of transformers.
fn check(what: &str, found: &[Value], expected: &[Value]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        for key in ["prompt_tokens", "token_ids", "text"] {
            assert_eq!(found[key], expected[key], "{what}: {key} of {}", expected["prompt"]);
        }
        let finish = if found["token_ids"].as_array().unwrap().len() == 40 { "length" } else { "stop" };
        assert_eq!(found["finish_reason"], finish, "{what}");
        assert!(found["tokens_per_second"].as_f64().unwrap() > 0.0, "{what}");
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let reference = Reference::get();
    let mut ended = 0;
    for (name, cases) in &reference.cases {
        let chat = name.starts_with("chat-");
        let mut command = generate(&reference.model(name), &["--json", "--max-new-tokens", "40"]);
        for case in cases {
            command.arg("--prompt").arg(case[if chat { "message" } else { "prompt" }].as_str().unwrap());
        }
        if chat {
            command.arg("--chat");
            if let Some(system) = cases[0]["system"].as_str() {
                command.arg("--system").arg(system);
            }
        }
        check(name, &answers(&mut command), cases);
        ended += cases.iter().filter(|case| case["token_ids"].as_array().unwrap().len() < 40).count();
    }
    assert!(reference.cases.len() >= 9 && ended >= 2, "{ended} of them end before their length");
}

#[test]
fn the_kernels_of_gpus_write_the_same() {
    let reference = Reference::get();
    for name in ["biased", "adapter"] {
        let (folder, cases) = (tempfile::tempdir().unwrap(), &reference.cases[name]);
        let job = Job::new(folder.path(), "").on_gpus(&json!([{}]));
        let model = text(&reference.model(name));
        let mut command = job.command_of(&["generate", &model, "--json", "--dtype", "fp32", "--max-new-tokens", "40"]);
        for case in cases {
            command.arg("--prompt").arg(case["prompt"].as_str().unwrap());
        }
        check(name, &answers(command.stdin(Stdio::null())), cases);
    }
    let folder = tempfile::tempdir().unwrap();
    let small = Job::new(folder.path(), "").on_gpus(&json!([{"memory": 1 << 30, "memory_free": 1 << 20}]));
    let refused = small.dslaunch(&["generate", &text(&reference.model("gqa")), "--prompt", "x"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{told}");
    assert!(told.contains("the GPU has 1.0 MiB left"), "{told}");
}

#[test]
fn prompts_come_from_files_and_standard_input_and_texts_end_where_they_are_told_to() {
    let reference = Reference::get();
    let (model, cases) = (reference.model("mha"), &reference.cases["mha"]);
    let (folder, prompts) = (tempfile::tempdir().unwrap(), &cases[..3]);
    let lines: String = prompts.iter().map(|case| format!("{}\n\n", case["prompt"].as_str().unwrap())).collect();
    let file = folder.path().join("prompts.txt");
    fs::write(&file, &lines).unwrap();
    let json = ["--json", "--max-new-tokens", "40"];
    check("a file", &answers(generate(&model, &json).arg("--prompts").arg(&file)), prompts);
    let mut piped =
        generate(&model, &json).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let piped = piped.wait_with_output().unwrap();
    let found: Vec<Value> =
        String::from_utf8(piped.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    check("standard input", &found, prompts);
    // As text: in pieces, and nothing else on standard output.
    let whole = cases[0]["text"].as_str().unwrap();
    let prompt = cases[0]["prompt"].as_str().unwrap();
    let plain = output(&mut generate(&model, &["--max-new-tokens", "40", "--prompt", prompt]));
    assert_eq!(String::from_utf8(plain.stdout).unwrap(), format!("{whole}\n"));
    // The text ends before a stop that comes in the middle of it.
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(3).collect();
    let cut = &whole[..whole.find(&middle).unwrap()];
    let stopped = answers(generate(&model, &json).args(["--prompt", prompt, "--stop", "never", "--stop", &middle]));
    assert_eq!((stopped[0]["text"].as_str(), &stopped[0]["finish_reason"]), (Some(cut), &json!("stop")));
}

#[test]
fn drawn_texts_are_those_of_their_seed() {
    let model = Reference::get().model("gqa");
    let drawn = |more: &[&str]| {
        let arguments = ["--json", "--max-new-tokens", "30", "--prompt", "x", "--prompt", "x"];
        let answers = answers(generate(&model, &arguments).args(more));
        answers.iter().map(|answer| answer["token_ids"].clone()).collect::<Vec<_>>()
    };
    let greedy = drawn(&[]);
    assert_eq!(greedy[0], greedy[1]);
    let one = drawn(&["--temperature", "1.5", "--seed", "1"]);
    assert_eq!(one, drawn(&["--temperature", "1.5", "--seed", "1"]));
    assert!(one[0] != one[1] && one[0] != greedy[0], "each prompt has draws of its own");
    assert_ne!(one, drawn(&["--temperature", "1.5", "--seed", "7"]));
    assert_eq!(drawn(&["--temperature", "1.5", "--top-k", "1"]), greedy);
    assert_eq!(drawn(&["--temperature", "1.5", "--top-p", "0.000001"]), greedy);
}

#[test]
fn what_is_not_there_or_no_model_is_named() {
    let reference = Reference::get();
    let check = |model: &Path, more: &[&str], code: i32, expected: &str| {
        let output = output(generate(model, &["--prompt", "x"]).args(more));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(expected), "{expected}\n{told}");
    };
    check("no/such".as_ref(), &[], 2, "`hf download no/such");
    check(&reference.model("gqa"), &["--chat"], 2, "has no chat template");
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let copy = |name: &str| {
        fs::copy(reference.model("gqa").join(name), model.join(name)).unwrap();
    };
    copy("config.json");
    check(&model, &[], 2, "neither model*.safetensors nor");
    copy("model.safetensors");
    check(&model, &[], 2, "tokenizer.json is not there");
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    fs::write(model.join("config.json"), config.replace("\"llama\"", "\"mamba\"")).unwrap();
    check(&model, &[], 2, "mamba");
    fs::write(model.join("config.json"), config).unwrap();
    copy("tokenizer.json");
    fs::OpenOptions::new().write(true).open(model.join("model.safetensors")).unwrap().set_len(1000).unwrap();
    check(&model, &[], 2, "model.safetensors");
}

#[test]
fn on_a_terminal_it_talks_until_the_user_ends_it() {
    let reference = Reference::get();
    let cases = &reference.cases["chat-llama3"];
    let mut command = generate(&reference.model("chat-llama3"), &["--chat", "--max-new-tokens", "40"]);
    command.arg("--system").arg(cases[0]["system"].as_str().unwrap());
    let mut terminal = OnTerminal::start(command, 400);
    let mut seen = terminal.wait_until(0, |shown| shown.lines.iter().any(|line| line.ends_with("> ")));
    for case in cases {
        terminal.type_in(&format!("{}\n", case["message"].as_str().unwrap()));
        // What a terminal would obey is shown as something else.
        let harmless = |c: char| if c.is_control() && !"\n\t".contains(c) { '\u{fffd}' } else { c };
        let text: String = case["text"].as_str().unwrap().chars().map(harmless).collect();
        let last = text.lines().last().unwrap_or_default().to_owned();
        seen = terminal.wait_until(seen, |shown| {
            let has = |words: &str| shown.lines.iter().any(|line| line.contains(words));
            has(&last) && has(" tokens/s") && shown.lines.iter().any(|line| line.ends_with("> "))
        });
    }
    terminal.type_in("\u{4}");
    let (status, shown) = terminal.end();
    assert!(status.success(), "{shown:?}");
}

#[test]
fn samples_of_a_validation_are_what_the_checkpoint_writes() {
    let reference = Reference::get();
    let (folder, model) = (tempfile::tempdir().unwrap(), reference.model("ends"));
    let rows: String = (0..24).map(|row| format!("{}\n", json!({"text": format!("One, two {row}, Grüße")}))).collect();
    let data = folder.path().join("rows.jsonl");
    fs::write(&data, rows).unwrap();
    let prompts = ["The capital of France is", "Größe 🙂"];
    let toml = format!(
        "[model]\npath = {model:?}\n[data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 64\n[train]\nsteps = 4\n\
         micro_batch_size = 1\nglobal_batch_size = 4\n[optimizer]\nlearning_rate = 1e-3\n\
         [validation]\nevery_steps = 2\nprompts = {prompts:?}\nsample_tokens = 12\n"
    );
    let mut of_layouts = vec![];
    let layouts = [
        ("one", 1, ""),
        ("zero 3", 2, "zero.stage=3"),
        ("tensor 2", 2, "parallel.tensor=2"),
        ("pipeline 2", 2, "parallel.pipeline=2 parallel.pipeline_schedule=interleaved"),
        ("a stage for each unit", 4, "parallel.pipeline=4"),
        ("both, data 2", 8, "parallel.tensor=2 parallel.pipeline=2 zero.stage=1"),
    ];
    for (name, nproc, sets) in layouts {
        let job = Job::new(&folder.path().join(name), &toml).nproc(nproc);
        let run = sets.split_whitespace().fold(job, Job::set).succeed();
        let samples = fs::read_to_string(run.path("samples.jsonl")).unwrap();
        let samples: Vec<Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<u64> = samples.iter().map(|sample| sample["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [2, 2, 4, 4], "{name}");
        for checkpoint in ["final", "checkpoints/step-00000004"] {
            let mut command = generate(&run.path(checkpoint), &["--json", "--max-new-tokens", "12"]);
            for prompt in prompts {
                command.arg("--prompt").arg(prompt);
            }
            for (answer, sample) in answers(&mut command).iter().zip(&samples[2..]) {
                for key in ["prompt", "token_ids", "text"] {
                    assert_eq!(answer[key], sample[key], "{name}: {key} of {checkpoint}");
                }
            }
        }
        let page = folder.path().join(format!("{name}.html"));
        let report = generate_report(&run.path("."), &page);
        assert!(report.contains("samples of the latest validation") && report.contains(prompts[1]), "{name}");
        of_layouts.push(samples);
    }
    for samples in &of_layouts {
        assert_eq!(samples[0]["prompt"], of_layouts[0][0]["prompt"]);
    }
}

/// The page of a run.
#[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
fn generate_report(run: &Path, page: &Path) -> String {
    let made = output(Command::new(program("dslaunch")).arg("report").arg(run).arg("-o").arg(page));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read_to_string(page).unwrap()
}

/// The processes that a dslaunch has started.
fn children(pid: u32) -> Vec<u32> {
    family(pid).into_iter().skip(1).collect()
}

/// A generation that goes on for long, once it has begun to write.
fn running(folder: &Path) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let mut command = generate(folder, &["--max-new-tokens", "1000000", "--prompt", "x"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("dslaunch starts");
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.fill_buf().unwrap();
    (child, stdout)
}

#[test]
fn ctrl_c_ends_a_text_and_nothing_is_left_behind() {
    let model = Reference::get().model("mha");
    let (mut child, mut stdout) = running(&model);
    let ranks = children(child.id());
    assert_eq!(ranks.len(), 1, "{ranks:?}");
    send(child.id(), Signal::SIGINT);
    let (mut written, mut told) = (vec![], String::new());
    stdout.read_to_end(&mut written).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{told}");
    assert!(written.ends_with(b"\n") && told.contains("tokens/s"), "{told}");
    wait_until_gone(&ranks, Duration::from_secs(10));
    // The rank dies with dslaunch, and dslaunch says how the rank has died.
    let (mut child, _stdout) = running(&model);
    let ranks = children(child.id());
    send(child.id(), Signal::SIGKILL);
    child.wait().unwrap();
    wait_until_gone(&ranks, Duration::from_secs(10));
    let (mut child, mut stdout) = running(&model);
    send(children(child.id())[0], Signal::SIGKILL);
    stdout.read_to_end(&mut written).unwrap();
    told.clear();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{told}");
    assert!(told.contains("dslaunch-rank) has ended while it wrote: killed by SIGKILL"), "{told}");
}
