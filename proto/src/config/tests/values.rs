//! Wrong values: their type, range, spelling, emptiness.

use super::*;

#[test]
fn wrong_types_say_what_is_expected_and_what_came() {
    check("train", "steps = 1e3", "1e3", "expected an integer, got a float", "write 1000");
    check("train", "steps = 1.5", "1.5", "expected an integer, got a float", "");
    check("train", "epochs = true", "true", "expected an integer, got a boolean", "");
    check("zero", "stage = 2.0", "2.0", "expected an integer, got a float", "write 2");
    check("zero", "stage = \"2\"", "\"2\"", "must be 0, 1, 2, 3 or \"auto\"", "write 2 without quotes");
    check("parallel", "data = \"4\"", "\"4\"", "must be \"auto\" or an integer", "write 4 without quotes");
    check("parallel", "data = []", "[]", "expected an integer, got a list", "");
    let number = "expected a number, got a string";
    check("optimizer", "learning_rate = \"5e-5\"", "\"5e-5\"", number, "write 5e-5 without quotes");
    check("optimizer", "eps = 2020-01-01", "2020-01-01", "expected a number, got a date", "");
    check("optimizer", "betas = 0.9", "0.9", "expected a list of two numbers, got a float", "");
    check("optimizer", "betas = [0.9]", "[0.9]", "expected two numbers, got 1", "");
    check("optimizer", "betas = [0.9, \"x\"]", "\"x\"", number, "");
    check("data", "packing = \"yes\"", "\"yes\"", "expected true or false, got a string", "write true");
    check("data", "shuffle = 0", "0", "expected true or false, got an integer", "write false");
    check(
        "data",
        "validation = 1",
        "1",
        "expected a path or a list of paths, got an integer",
        "write \"1\" with quotes",
    );
    check("data", "validation = [[]]", "[]", "expected a path, got a list", "");
    check("job", "name = 7", "7", "expected a string, got an integer", "write \"7\" with quotes");
    check("job", "output_dir = true", "true", "expected a path, got a boolean", "write \"true\" with quotes");
    check("optimizer", "kind = {a = 1}", "{a = 1}", "expected \"adamw\", got a table", "");
    check(
        "checkpoint",
        "resume = 1",
        "1",
        "expected \"auto\", \"never\" or a path, got an integer",
        "write \"1\" with quotes",
    );
    check(
        "log",
        "sinks = \"console\"",
        "\"console\"",
        "expected a list of strings, got a string",
        "write [\"console\"]",
    );
}

#[test]
fn every_number_has_its_range() {
    let one = "must be at least 1";
    let zero = "must be at least 0";
    for (section, key) in [
        ("train", "epochs"),
        ("train", "steps"),
        ("checkpoint", "every_steps"),
        ("checkpoint", "keep_last"),
        ("log", "every_steps"),
    ] {
        check(section, &format!("{key} = 0"), "0", one, "");
        check(section, &format!("{key} = -3"), "-3", one, "");
    }
    for (section, key) in [
        ("job", "seed"),
        ("schedule", "warmup_steps"),
        ("zero", "prefetch_units"),
        ("restart", "max_restarts"),
        ("restart", "snapshot_every_steps"),
        ("validation", "every_steps"),
        ("validation", "early_stopping_patience"),
    ] {
        check(section, &format!("{key} = -1"), "-1", zero, "");
        check(section, &format!("{key} = 99999999999999999999"), "99999999999999999999", zero, "");
        assert!(parse(&with(section, &format!("{key} = 0")), &[]).is_ok(), "{key}");
    }
    for (section, key, max) in [
        ("train", "micro_batch_size", 1_000_000),
        ("train", "gradient_accumulation_steps", 1_000_000),
        ("train", "global_batch_size", 1_000_000),
        ("data", "seq_len", 10_000_000),
        ("parallel", "tensor", 65_536),
        ("parallel", "pipeline", 65_536),
        ("parallel", "data", 65_536),
        ("comm", "timeout_seconds", 1_000_000_000),
    ] {
        let rule = format!("must be between 1 and {max}");
        check(section, &format!("{key} = 0"), "0", &rule, "");
        check(section, &format!("{key} = {}", max + 1), &(max + 1).to_string(), &rule, "");
        assert!(parse(&with(section, &format!("{key} = {max}")), &[]).is_ok(), "{key}");
    }
    for (section, key) in [
        ("train", "max_grad_norm"),
        ("optimizer", "learning_rate"),
        ("optimizer", "weight_decay"),
        ("validation", "min_delta"),
    ] {
        for value in ["-0.1", "inf", "nan", "-1"] {
            check(section, &format!("{key} = {value}"), value, "must be at least 0 and finite", "");
        }
    }
    check("optimizer", "eps = 0", "0", "must be above 0 and finite", "");
    check("optimizer", "betas = [0.9, 1.0]", "1.0", "must be at least 0 and below 1", "");
    check("optimizer", "betas = [-0.5, 0.9]", "-0.5", "must be at least 0 and below 1", "");
    check("schedule", "min_lr_ratio = 1.5", "1.5", "must be at least 0 and at most 1", "");
    check("zero", "stage = 4", "4", "must be 0, 1, 2, 3 or \"auto\"", "");
}

#[test]
fn wrong_words_list_the_right_ones_and_the_nearest() {
    check("model", "dtype = \"fp16\"", "\"fp16\"", "must be \"auto\", \"bf16\" or \"fp32\"", "");
    check("model", "dtype = \"BF16\"", "\"BF16\"", "must be \"auto\", \"bf16\" or \"fp32\"", "did you mean \"bf16\"?");
    check(
        "comm",
        "backend = \"ncl\"",
        "\"ncl\"",
        "must be \"auto\", \"nccl\", \"shm\" or \"tcp\"",
        "did you mean \"nccl\"?",
    );
    check("optimizer", "kind = \"adam\"", "\"adam\"", "must be \"adamw\"", "did you mean \"adamw\"?");
    check("parallel", "data = \"aut\"", "\"aut\"", "must be \"auto\" or an integer", "did you mean \"auto\"?");
    let sinks = "must be \"console\", \"jsonl\", \"tensorboard\", \"wandb\" or \"prometheus\"";
    check("log", "sinks = [\"console\", \"json\"]", "\"json\"", sinks, "did you mean \"jsonl\"?");
    check("log", "sinks = [\"mlflow\"]", "\"mlflow\"", sinks, "");
    check("log", "sinks = [\"tensorbord\"]", "\"tensorbord\"", sinks, "did you mean \"tensorboard\"?");
    check("log", "sinks = [\"jsonl\", \"jsonl\"]", "\"jsonl\"", "is listed twice", "");
    let resume = "did you mean \"never\"? a folder of that name is \"./nevr\"";
    check("checkpoint", "resume = \"nevr\"", "\"nevr\"", "must be \"auto\", \"never\" or a path", resume);
    assert!(parse(&with("checkpoint", "resume = \"./nevr\""), &[]).is_ok());
}

#[test]
fn what_is_trained_is_all_or_parts_of_names() {
    let rule = "must be \"all\" or a list of parts of parameters' names";
    check("model", "trained = \"lm_head\"", "\"lm_head\"", rule, "write [\"lm_head\"]");
    check("model", "trained = []", "[]", "must name at least one part", "");
    check("model", "trained = [\"norm\", \"\"]", "\"\"", "must not be empty", "");
    let rule = "expected \"all\" or a list of parts of parameters' names, got a boolean";
    check("model", "trained = true", "true", rule, "");
    let trained = |value: &str| parse(&with("model", &format!("trained = {value}")), &[]).unwrap().model.trained;
    assert_eq!(trained("\"all\""), Trained::All);
    assert_eq!(trained("[\"norm\", \"lm_head\"]"), Trained::Containing(vec!["norm".into(), "lm_head".into()]));
}

#[test]
fn empty_strings_and_lists_are_no_answer() {
    for (section, key) in [("job", "name"), ("job", "output_dir"), ("checkpoint", "resume"), ("data", "validation")] {
        check(section, &format!("{key} = \"\""), "\"\"", "must not be empty", "");
    }
    check("job", "name = \"a/b\"", "\"a/b\"", "must be usable as a folder's name", "");
    check("job", "name = \"..\"", "\"..\"", "must be usable as a folder's name", "");
    let found = problems("[model]\npath = \"\"\n[data]\ntrain = []", &[]);
    let rules: Vec<_> = found.iter().map(|problem| (problem.line, problem.column, problem.rule.as_str())).collect();
    assert_eq!(rules, [(2, 8, "must not be empty"), (4, 9, "must name at least one file")]);
}
