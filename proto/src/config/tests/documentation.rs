//! `docs/train-toml.md` and the schema say the same: the sections and keys in their order, and the defaults. The job in the README
//! says of each value whether it is the default.

use super::super::sections::SECTIONS;
use super::super::table::{INNER, header};
use super::*;

const PAGE: &str = include_str!("../../../../docs/train-toml.md");
const README: &str = include_str!("../../../../README.md");

/// Defaults that are told in words, with what they come to for the file of these tests, `conf/sft.toml`.
const IN_WORDS: [(&str, &str); 2] = [("the stem of the file's name", "\"sft\""), ("`runs/<name>`", "\"runs/sft\"")];

/// One row of the page's tables of keys.
#[derive(Debug, Clone, Copy)]
struct Row<'p> {
    section: &'p str,
    key: &'p str,
    /// The cell as it is written: a value in backticks, or words.
    default: &'p str,
}

/// Every row of a table of keys, in the page's order. Rows of other tables have fewer cells.
fn rows(page: &str) -> Vec<Row<'_>> {
    let mut section = "";
    let mut rows = vec![];
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")) {
            let name = heading.strip_prefix("`[").and_then(|rest| rest.split_once("]`")).map_or("", |(name, _)| name);
            section = name.trim_matches(['[', ']']);
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", name, _, default, _, ""] = cells[..]
            && let Some(key) = code(name)
        {
            rows.push(Row { section, key, default });
        }
    }
    rows
}

/// The text between backticks, if the whole cell is one.
fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

/// Every key as the schema asks for it, `section.key`: the lists that hopeless keys get as their suggestions.
fn schema_keys() -> Vec<String> {
    let within = |section| INNER.iter().filter(move |inner| inner.section == section).map(|inner| inner.name);
    let tables = SECTIONS.into_iter().flat_map(|section| std::iter::once(section).chain(within(section)));
    let keys = tables.map(|table| {
        let header = header(table);
        let text = match table {
            "data.source" => format!("[model]\npath = \"m\"\n{header}\npath = \"p\"\nzzzzzzzzzzzz = 1\n"),
            _ if header.starts_with("[[") => {
                format!("{REQUIRED}{header}\nname = \"n\"\npath = \"p\"\nzzzzzzzzzzzz = 1\n")
            }
            _ => with(table, "zzzzzzzzzzzz = 1"),
        };
        let problems = problems(&text, &[]);
        let suggestion = problems[0].suggestion.as_deref().unwrap();
        let keys = suggestion.strip_prefix(&format!("keys of {header} are ")).unwrap();
        keys.split(", ").map(|key| format!("{table}.{key}")).collect::<Vec<_>>()
    });
    keys.collect::<Vec<_>>().concat()
}

/// Every field of a config, `section.key`, with its default: what the code makes of the required keys alone.
fn fields() -> Vec<(String, serde_json::Value)> {
    let config = values(REQUIRED, &[]);
    let sections = config.as_object().unwrap().iter();
    let fields = sections.flat_map(|(section, fields)| {
        let fields = fields.as_object().unwrap().iter();
        fields.flat_map(move |(key, value)| {
            let name = format!("{section}.{key}");
            match value.as_object().filter(|_| INNER.iter().any(|inner| inner.name == name)) {
                Some(table) => table.iter().map(|(key, value)| (format!("{name}.{key}"), value.clone())).collect(),
                None => vec![(name, value.clone())],
            }
        })
    });
    fields.collect()
}

/// Lists what `page` says that the code does not, and what the code has that it does not say.
fn faults(page: &str) -> Vec<String> {
    let rows = rows(page);
    let (schema, written) = (schema_keys(), rows.iter().map(|row| format!("{}.{}", row.section, row.key)));
    let written: Vec<String> = written.collect();
    let missing = schema.iter().filter(|key| !written.contains(key)).map(|key| format!("{key} has no row"));
    let unknown = written.iter().filter(|key| !schema.contains(key)).map(|key| format!("{key} is no key"));
    let mut faults: Vec<String> = missing.chain(unknown).collect();
    if faults.is_empty() && written != schema {
        faults.push(format!("the order of the keys is {}", schema.join(", ")));
    }
    faults.extend(rows.iter().filter(|row| schema.contains(&format!("{}.{}", row.section, row.key))).filter_map(fault));
    faults
}

/// What is wrong with the default in `row`, if anything is.
fn fault(row: &Row) -> Option<String> {
    let Row { section, key, default } = *row;
    let name = format!("{section}.{key}");
    let differs = |why: String| Some(format!("{name}: the default is not {default}: {why}"));
    let required = problems("", &[]);
    let is_required = required.iter().any(|problem| problem.key == name && problem.rule == "is required");
    let field = fields().into_iter().find(|(field, _)| *field == name).map(|(_, value)| value);
    match default {
        "required" if is_required => None,
        // Of tables of which there is none.
        "required"
            if ["data.source.path", "validation.source.name", "validation.source.path"].contains(&name.as_str()) =>
        {
            None
        }
        "not set" | "`data.format`" | "`{}`" if section == "data.source" || section == "validation.source" => None,
        "not set" if field == Some(serde_json::Value::Null) => None,
        _ if is_required => differs("it is required".to_owned()),
        "not set" if field == Some(serde_json::Value::Null) => None,
        // The other key of the two that exclude each other has the default, and the config one field for both.
        "not set" if field.is_none() && values(REQUIRED, &[&format!("{name}=1")]) != values(REQUIRED, &[]) => None,
        _ => {
            let in_words = IN_WORDS.iter().find(|(words, _)| *words == default).map(|(_, value)| *value);
            let Some(value) = in_words.or_else(|| code(default)) else {
                return differs("words that no test understands".to_owned());
            };
            let sets = [format!("{name}={value}")];
            let is_default = parse(REQUIRED, &[&sets[0]])
                .is_ok_and(|config| serde_json::to_value(config).unwrap() == values(REQUIRED, &[]));
            let true_one = || field.map_or("no other value has the same effect".to_owned(), |field| format!("{field}"));
            if is_default { None } else { differs(true_one()) }
        }
    }
}

#[test]
fn the_page_has_every_key_with_its_default_and_no_other() {
    assert_eq!(faults(PAGE), Vec::<String>::new());
}

/// The config that the code makes has one field for each key, but for those of which a job has only one of two.
#[test]
fn every_field_of_a_config_is_a_key_on_the_page() {
    let rows = rows(PAGE);
    let has_row = |name: &String| rows.iter().any(|row| format!("{}.{}", row.section, row.key) == *name);
    let without: Vec<String> = fields().into_iter().map(|(name, _)| name).filter(|name| !has_row(name)).collect();
    assert_eq!(without, ["data.source", "train.batch", "train.length", "validation.source"]);
}

#[test]
fn a_page_that_is_wrong_is_found_out() {
    #[track_caller]
    fn check(row: &str, instead: &str, expected: &[&str]) {
        let (start, _) = PAGE.match_indices(row).next().unwrap_or_else(|| panic!("no {row}"));
        let end = start + PAGE[start..].find('\n').unwrap() + 1;
        let page = format!("{}{instead}{}", &PAGE[..start], &PAGE[end..]);
        assert_eq!(faults(&page), expected, "{instead}");
    }
    check("| `max_bad_steps` ", "", &["train.max_bad_steps has no row"]);
    check("| `seed` ", "| `sead` | integer | `42` | . |\n", &["job.seed has no row", "job.sead is no key"]);
    let row = |key: &str, default: &str| format!("| `{key}` | . | {default} | . |\n");
    let is_not = |key: &str, default: &str, why: &str| format!("{key}: the default is not {default}: {why}");
    check("| `seed` ", &row("seed", "`43`"), &[&is_not("job.seed", "`43`", "42")]);
    check("| `seed` ", &row("seed", "not set"), &[&is_not("job.seed", "not set", "words that no test understands")]);
    check("| `dtype` ", &row("dtype", "`\"bf16\"`"), &[&is_not("model.dtype", "`\"bf16\"`", "\"auto\"")]);
    check(
        "| `dtype` ",
        &row("dtype", "required"),
        &[&is_not("model.dtype", "required", "words that no test understands")],
    );
    check("| `path` ", &row("path", "`\"m\"`"), &[&is_not("model.path", "`\"m\"`", "it is required")]);
    let steps = is_not("train.steps", "`100`", "no other value has the same effect");
    check("| `steps` ", &row("steps", "`100`"), &[&steps]);
    let max = is_not("train.max_bad_steps", "`0`", "3");
    check("| `max_bad_steps` ", &row("max_bad_steps", "`0`"), &[&max]);
}

/// Each key of `EXAMPLE` is tried in other tests, so it has them all.
#[test]
fn the_example_of_these_tests_has_every_key() {
    let keys: Vec<String> = example_keys().iter().map(|(section, key, _)| format!("{section}.{key}")).collect();
    // And those that are not set.
    let is_alternative = |key: &String| {
        let alternatives = ["train.steps", "train.global_batch_size", "lora.from", "data.sampler.class_key"];
        alternatives.contains(&key.as_str()) || key.starts_with("data.source.") || key.starts_with("validation.source.")
    };
    let expected: Vec<String> = schema_keys().into_iter().filter(|key| !is_alternative(key)).collect();
    assert_eq!(keys, expected);
}

/// A reader takes what stands in a first example for the defaults.
#[test]
fn the_job_in_the_readme_says_of_each_value_whether_it_is_the_default() {
    let (_, job) = README.split_once("## A job\n\n```toml\n").unwrap();
    let (job, _) = job.split_once("```").unwrap();
    let rows = rows(PAGE);
    let (mut section, mut num_keys) = ("", 0);
    for line in job.lines().filter(|line| !line.is_empty()) {
        let Some((key, rest)) = line.split_once(" = ") else {
            section = line.trim_matches(['[', ']']);
            continue;
        };
        let (value, comment) = rest.split_once('#').unwrap_or_else(|| panic!("{line}: no comment"));
        let row = rows.iter().find(|row| (row.section, row.key) == (section, key)).unwrap();
        let default = code(row.default).unwrap_or(row.default);
        let says = match default {
            "required" | "not set" => default.to_owned(),
            _ if default == value.trim() => "the default".to_owned(),
            _ => format!("default {default}"),
        };
        assert!(comment.contains(&says), "{line}: does not say {says:?}");
        num_keys += 1;
    }
    assert!(num_keys > 5, "{num_keys} keys");
}
