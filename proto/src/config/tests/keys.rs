//! Wrong sections and keys: unknown, missing, excluded, out of place.

use std::time::{Duration, Instant};

use super::super::sections::SECTIONS;
use super::*;

/// Every way to leave out one letter, to double one, and to swap two.
fn one_edit(name: &str) -> Vec<String> {
    let letters: Vec<char> = name.chars().collect();
    let mut typos = vec![name.to_uppercase(), name.replace('_', "-")];
    for idx in 0..letters.len() {
        let edit = |change: &dyn Fn(&mut Vec<char>)| {
            let mut typo = letters.clone();
            change(&mut typo);
            typo.into_iter().collect::<String>()
        };
        typos.push(edit(&|typo| typo.truncate(idx)) + &letters[idx + 1..].iter().collect::<String>());
        typos.push(edit(&|typo| typo.insert(idx, letters[idx])));
        if idx > 0 {
            typos.push(edit(&|typo| typo.swap(idx - 1, idx)));
        }
    }
    typos.retain(|typo| typo != name);
    typos
}

#[test]
fn every_typo_of_one_edit_is_understood() {
    let mut count = 0;
    for (section, key, _) in example_keys() {
        for typo in one_edit(key) {
            let problems = problems(&with(section, &format!("{typo} = 1")), &[]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            let suggestion = problems[0].suggestion.as_deref().unwrap();
            assert!(suggestion.starts_with(&format!("did you mean `{key}`")), "[{section}] {typo}: {suggestion}");
            count += 1;
        }
    }
    for section in SECTIONS.into_iter().filter(|section| !["model", "data"].contains(section)) {
        for typo in one_edit(section).into_iter().filter(|typo| !typo.contains('-')) {
            let problems = problems(&with(&typo, ""), &[]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(
                problems[0].suggestion.as_deref(),
                Some(format!("did you mean [{section}]?").as_str()),
                "{typo}"
            );
            count += 1;
        }
    }
    assert!(count > 1000, "only {count} typos");
}

#[test]
fn keys_that_belong_elsewhere_and_other_trainers_names_are_understood() {
    let cases = [
        ("train", "learning_rate", "did you mean [optimizer] `learning_rate`?"),
        ("train", "learning_rat", "did you mean [optimizer] `learning_rate`?"),
        ("train", "keep_last", "did you mean [checkpoint] `keep_last`?"),
        (
            "restart",
            "every_steps",
            "did you mean `snapshot_every_steps` or [checkpoint] or [validation] or [log] `every_steps`?",
        ),
        ("optimizer", "lr", "did you mean `learning_rate`?"),
        ("train", "lr", "did you mean [optimizer] `learning_rate`?"),
        ("train", "batch_size", "did you mean `micro_batch_size`?"),
        ("train", "max_steps", "did you mean `steps`?"),
        ("train", "num_epochs", "did you mean `epochs`?"),
        ("log", "colour", "keys of [log] are every_steps, sinks, prometheus_port"),
    ];
    for (section, key, suggestion) in cases {
        let problems = problems(&with(section, &format!("{key} = 1")), &[]);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].rule, "unknown key");
        assert_eq!(problems[0].suggestion.as_deref(), Some(suggestion), "[{section}] {key}");
    }
}

#[test]
fn missing_keys_point_at_the_section_or_the_start() {
    let required = "is required";
    check_all("", &[], &[(1, 1, "model.path", required), (1, 1, "data.train", required)]);
    check_all("# no more\n", &[], &[(1, 1, "model.path", required), (1, 1, "data.train", required)]);
    let found = check_all(
        "\n[model]\ninit = \"random\"\n  [data]\n",
        &[],
        &[(2, 2, "model.path", required), (4, 4, "data.train", required)],
    );
    assert_eq!(found[0].suggestion.as_deref(), Some("write `path = \"models/deepseek-llm-7b\"` in [model]"));
    let text = check_all("[data]\ntrain = \"t\"", &[], &[(1, 1, "model.path", required)])[0].to_string();
    let expected = "error: conf/sft.toml:1:1: model.path: is required
      = write `path = \"models/deepseek-llm-7b\"` in [model]";
    assert_eq!(text, expected);
}

#[test]
fn misspelling_a_required_key_or_its_section_is_one_problem() {
    check_all("[model]\npth = \"m\"\n[data]\ntrain = \"t\"", &[], &[(2, 1, "model.pth", "unknown key")]);
    check_all("[modle]\npath = \"m\"\n[data]\ntrain = \"t\"", &[], &[(1, 2, "modle", "unknown section")]);
    let both = "[modle]\npath = 1\n[data]\ntrain = \"t\"";
    check_all(
        both,
        &[],
        &[(1, 2, "modle", "unknown section"), (2, 8, "model.path", "expected a path, got an integer")],
    );
    let second = format!("{REQUIRED}[modle]\npath = 1");
    check_all(&second, &[], &[(5, 2, "modle", "unknown section")]);
}

#[test]
fn keys_without_a_section_and_sections_without_keys_are_problems() {
    let text = format!("seed = 1\ncolour = 2\nlog = 3\n{REQUIRED}[wandb]\nproject = 1\n[train.steps]\n");
    let found = check_all(
        &text,
        &[],
        &[
            (1, 1, "seed", "is outside of any section"),
            (2, 1, "colour", "is outside of any section"),
            (3, 7, "log", "expected a section, got a value"),
            (8, 2, "wandb", "unknown section"),
            (10, 1, "train.steps", "expected an integer, got a table"),
        ],
    );
    assert_eq!(found[0].suggestion.as_deref(), Some("did you mean [job] `seed`?"));
    assert_eq!(found[2].suggestion.as_deref(), Some("write `[log]` and its keys below"));
    assert!(found[3].suggestion.as_deref().unwrap().starts_with("sections are job, model, lora, data"));
}

#[test]
fn keys_that_exclude_each_other_name_both_lines() {
    let text = with("train", "steps = 5\nepochs = 1\ngradient_accumulation_steps = 2\nglobal_batch_size = 8");
    let epochs = "give only one of steps (conf/sft.toml:6) and epochs (conf/sft.toml:7)";
    let batch =
        "give only one of gradient_accumulation_steps (conf/sft.toml:8) and global_batch_size (conf/sft.toml:9)";
    check_all(&text, &[], &[(7, 10, "train.epochs", epochs), (9, 21, "train.global_batch_size", batch)]);
    let sets = ["train.epochs=1", "train.steps=2"];
    let rule = "give only one of epochs (--set train.epochs=1) and steps (--set train.steps=2)";
    check_all(REQUIRED, &sets, &[(2, 13, "train.steps", rule)]);
}

#[test]
fn bad_files_are_reported_at_once() {
    let keys = example_keys().into_iter().enumerate();
    let typos: String = keys.map(|(idx, (_, key, _))| format!("{key}{idx} = 1\n")).collect();
    let sections: String = SECTIONS.iter().map(|section| format!("[{section}]\nz{section} = 1\n")).collect();
    let long = format!("[train]\n{} = 1\nsteps = \"{}\"\n", "k".repeat(100_000), "v".repeat(100_000));
    for text in [with("train", &typos), sections, long] {
        // The fastest of a few: other tests share the processor.
        let seconds = (0..8).map(|_| {
            let start = Instant::now();
            assert!(problems(&text, &[]).len() < 100);
            start.elapsed()
        });
        let fastest = seconds.min().unwrap();
        assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    }
}
