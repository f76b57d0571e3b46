//! The places of problems, and their printed form.

use super::*;

#[test]
fn three_mistakes_are_three_problems_with_places_and_suggestions() {
    let text = "[model]\npath = \"m\"\n[data]\ntrain = \"t\"\n\n[train]\nmicro_batchsize = 2\nsteps = \"100\"\n\n\
                [parallel]\npipeline_schedule = \"1fb1\" # a comment\n";
    let errors = parse(text, &[]).unwrap_err();
    let expected = "error: conf/sft.toml:7:1: train.micro_batchsize: unknown key
    7 | micro_batchsize = 2
      | ^^^^^^^^^^^^^^^ did you mean `micro_batch_size`?
error: conf/sft.toml:8:9: train.steps = \"100\": expected an integer, got a string
    8 | steps = \"100\"
      |         ^^^^^ write 100 without quotes
error: conf/sft.toml:11:21: parallel.pipeline_schedule = \"1fb1\": must be \"1f1b\", \"interleaved\" or \"zero_bubble\"
   11 | pipeline_schedule = \"1fb1\" # a comment
      |                     ^^^^^^ did you mean \"1f1b\"?";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn mistakes_in_sets_are_reported_after_the_file() {
    let sets = ["train.steps=abc", "train.step=1", "trian.steps=1.0", "steps=4", "train.steps", "data.train=[a, b]"];
    let text = with("log", "every_steps = 0");
    let found = check_all(
        &text,
        &sets,
        &[
            (6, 15, "log.every_steps", "must be at least 1"),
            (2, 7, "train.step", "unknown key"),
            (3, 1, "trian", "unknown section"),
            (3, 13, "train.steps", "expected an integer, got a float"),
            (4, 1, "steps", "expected section.key=value"),
            (5, 1, "", "expected section.key=value"),
            (6, 12, "data.train", "string values must be quoted, expected literal string"),
        ],
    );
    assert!(found[1..].iter().all(|problem| problem.file == "--set"));
    assert_eq!(found[4].suggestion.as_deref(), Some("did you mean [train] `steps`?"));
    let text = problems(REQUIRED, &["train.steps=abc", "x.é.train=1"]);
    let expected = "error: --set train.steps=abc: expected an integer, got a string
--set | train.steps=abc
      |             ^^^";
    assert_eq!(text[0].to_string(), expected);
    let step = &problems(REQUIRED, &["train.stepz=1"])[0];
    assert!(step.to_string().ends_with("      |       ^^^^^ did you mean `steps`?"), "{step}");
    check_all("", &["data.train=[a]", "model.path=m"], &[(1, 12, "data.train", found[6].rule.as_str())]);
}

#[test]
fn syntax_errors_and_duplicates_have_a_place() {
    let duplicate = check_all(&with("train", "steps = 1\nsteps = 2"), &[], &[(7, 1, "", "duplicate key")]);
    assert!(duplicate[0].to_string().starts_with("error: conf/sft.toml:7:1: duplicate key\n    7 | steps = 2\n"));
    check_all("[train]\n[log]\n[train]\n", &[], &[(3, 2, "", "duplicate key")]);
    for (text, line) in [("[train", 1), ("\nsteps =\n", 2), ("a = \"x\n", 1), ("\n\nfoo", 3), ("[x]\r\na = tru", 2)] {
        let found = problems(text, &["nonsense"]);
        assert_eq!((found.len(), found[0].line), (1, line), "{text:?}: {}", found[0]);
    }
}

/// Columns count characters: of any width in bytes, a tab being one.
#[test]
fn places_hold_in_every_kind_of_line() {
    let rule = "must be at least 1";
    let crlf = with("train", "\tsteps =\t0").replace('\n', "\r\n");
    let found = check_all(&crlf, &[], &[(6, 10, "train.steps", rule)]);
    assert!(found[0].to_string().ends_with("    6 | \tsteps =\t0\n      | \t       \t^"), "{}", found[0]);
    let inline = format!("{REQUIRED}[job]\nname = \"é日本\"\n[log]\nsinks = [\"日本\", \"jsonk\"]");
    let found = problems(&inline, &[]);
    assert_eq!((found[1].line, found[1].column, found[1].value.as_deref()), (8, 16, Some("\"jsonk\"")));
    let bom = format!("\u{feff}{}", REQUIRED.replace("path", "init"));
    assert_eq!((problems(&bom, &[])[0].line, problems(&bom, &[])[0].column), (1, 2));
    let found = check_all(&with("train", "\"é\" = 1"), &[], &[(6, 1, "train.é", "unknown key")]);
    assert!(found[0].to_string().contains("      | ^^^ "), "{}", found[0]);
    let dotted = format!("train.steps = 0\nlog = {{ every_steps = 0 }}\n{REQUIRED}");
    check_all(&dotted, &[], &[(1, 15, "train.steps", rule), (2, 23, "log.every_steps", rule)]);
    let lists = with("data", "validation = [\n  \"a\",\n  2,\n]");
    check_all(&lists, &[], &[(6, 3, "data.validation", "expected a path, got an integer")]);
}

#[test]
fn origins_point_later_checks_at_the_key() {
    let text = format!("{REQUIRED}[zero]\nstage = 3\n[parallel]\n");
    let config = parse(&text, &["comm.backend=shm"]).unwrap();
    let problem = |key| config.origins.problem(key, "does not fit").to_string();
    let expected = "error: conf/sft.toml:6:9: zero.stage = 3: does not fit\n    6 | stage = 3\n      |         ^";
    assert_eq!(problem("zero.stage"), expected);
    let expected = "error: conf/sft.toml:7:2: parallel.tensor (default): does not fit
    7 | [parallel]
      |  ^^^^^^^^";
    assert_eq!(problem("parallel.tensor"), expected);
    assert_eq!(problem("train.steps"), "error: conf/sft.toml:1:1: train.steps (default): does not fit");
    let suggested = config.origins.problem("train.steps", "does not fit").suggest("write 4").to_string();
    assert!(suggested.ends_with("\n      = write 4"), "{suggested}");
    assert!(problem("comm.backend").starts_with("error: --set comm.backend=shm: does not fit"));
    let places = ["zero.stage", "comm.backend", "log.sinks"].map(|key| config.origins.place(key));
    assert_eq!(places, ["conf/sft.toml:6", "--set comm.backend=shm", "the default"]);
    assert!(config.origins.is_set("zero.stage") && !config.origins.is_set("log.sinks"));
    let errors = ConfigErrors::from(
        ["comm.backend", "parallel.data", "zero.stage"].map(|key| config.origins.problem(key, "")).to_vec(),
    );
    let keys: Vec<_> = errors.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["zero.stage", "parallel.data", "comm.backend"]);
}

#[test]
fn control_characters_of_the_file_do_not_reach_the_terminal() {
    let set = parse(REQUIRED, &["train.steps=\u{1b}[31m\n"]).unwrap_err().to_string();
    let file = parse(&with("train", "\u{1b}[31m = 1"), &[]).unwrap_err().to_string();
    let key = parse(&with("train", "\"\\u001b\" = 1"), &[]).unwrap_err().to_string();
    for text in [set, file, key] {
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn load_names_the_file_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    let missing = TrainConfig::load(&path, &[]).unwrap_err().to_string();
    assert!(missing.starts_with(&format!("error: {}: cannot read the file: ", path.display())), "{missing}");
    std::fs::write(&path, b"[model]\n# \xc3\xa9\xff").unwrap();
    let binary = TrainConfig::load(&path, &[]).unwrap_err().to_string();
    assert_eq!(binary, format!("error: {}:2:4: byte 0xff is not UTF-8, which TOML has to be", path.display()));
    std::fs::write(&path, REQUIRED).unwrap();
    let config = TrainConfig::load(&path, &["job.seed=7".to_owned()]).unwrap();
    assert_eq!((config.job.name.as_str(), config.job.seed), ("a", 7));
}
