//! Writes the train.toml that says the same as the honoured keys. Pure.

use std::path::Path;

use proto::config::{Batch, Length, TrainConfig};
use serde_json::Value;

use super::remarks::Open;
use super::rules::Setting;

/// The sections that settings may be in, in train.toml's order.
const SECTIONS: [&str; 9] = ["model", "data", "train", "optimizer", "schedule", "parallel", "zero", "comm", "log"];

/// Required keys that DeepSpeed's config does not know.
const TO_BE_FILLED_IN: [(&str, &str, &str); 2] = [
    ("model", "path = \"models/deepseek-llm-7b\"", "required: a Hugging Face folder"),
    ("data", "train = [\"data/train.jsonl\"]", "required: paths or globs"),
];

/// Keys of which a job has only one.
const EXCLUSIVE: [[&str; 2]; 2] =
    [["train.epochs", "train.steps"], ["train.gradient_accumulation_steps", "train.global_batch_size"]];

/// A train.toml in the making.
#[derive(Debug, Default)]
pub(super) struct Snippet {
    /// What is set, each with the keys of DeepSpeed's that it comes from.
    settings: Vec<(Setting, String)>,
    /// What the config leaves open.
    open: Vec<Open>,
}

impl Snippet {
    /// Adds a key that comes `from` a key of DeepSpeed's. Returns why it cannot be: another one says something else, or
    /// the value is none that train.toml takes.
    pub fn add(&mut self, setting: Setting, from: &str) -> Result<(), String> {
        if let Some((same, other)) = self.settings.iter_mut().find(|(other, _)| other.key == setting.key) {
            if same.value != setting.value {
                return Err(format!("{other} says {} = {}", same.key, same.value));
            }
            *other += &format!(", {from}");
            return Ok(());
        }
        self.settings.push((setting, from.to_owned()));
        let checked = TrainConfig::parse(Path::new("train.toml"), &self.filled_in(), &[]);
        match checked.err().as_ref().and_then(|errors| errors.problems().first()) {
            None => Ok(()),
            Some(problem) => {
                self.settings.pop();
                Err(format!("{}: {}", problem.key, problem.rule))
            }
        }
    }

    /// The keys of DeepSpeed's that say what `key` is, or that it cannot be set.
    pub fn says(&self, key: &str) -> Option<&str> {
        let pair = EXCLUSIVE.iter().find(|pair| pair.contains(&key)).map_or(&[][..], |pair| &pair[..]);
        let said = self.settings.iter().find(|(setting, _)| setting.key == key || pair.contains(&setting.key));
        said.map(|(_, from)| from.as_str())
    }

    /// Leaves a key to the user, who finds its default as a comment.
    pub fn leave_open(&mut self, open: &Open) {
        self.open.push(open.clone());
    }

    /// Sections and keys, each with the key of DeepSpeed's that it comes from.
    pub fn text(&self) -> String {
        let sections = SECTIONS.into_iter().filter_map(|section| {
            let required = TO_BE_FILLED_IN.iter().filter(|(of, ..)| *of == section);
            let mut lines: Vec<_> = required.map(|(_, line, what)| (format!("# {line}"), (*what).to_owned())).collect();
            lines.extend(self.settings_of(section).map(|(key, value, from)| (format!("{key} = {value}"), from)));
            lines.extend(self.open_in(section));
            let width = lines.iter().map(|(line, _)| line.len()).max()?;
            let lines = lines.into_iter().map(|(line, from)| format!("{line:<width$}  # {from}\n"));
            Some(format!("[{section}]\n{}", lines.collect::<String>()))
        });
        sections.collect::<Vec<_>>().join("\n")
    }

    /// A comment for each key that is open, with its default, and where its value comes from.
    fn open_in(&self, section: &str) -> Vec<(String, String)> {
        let mut keys: Vec<&str> = vec![];
        let in_section = self.open.iter().map(|open| open.ours).filter(|key| key.starts_with(&format!("{section}.")));
        in_section.for_each(|key| {
            if !keys.contains(&key) {
                keys.push(key)
            }
        });
        let line = |key: &str| {
            let of_key = || self.open.iter().filter(|open| open.ours == key);
            let from = of_key().map(|open| open.key.as_str()).collect::<Vec<_>>().join(", ");
            let mut arguments: Vec<&str> = of_key().filter_map(|open| open.arguments).collect();
            arguments.dedup();
            let arguments = arguments.join(", ");
            let arguments = if arguments.is_empty() { arguments } else { format!(": {arguments}") };
            let (_, name) = key.split_once('.').expect("section.key");
            (format!("# {name} = {}", default_of(key)), format!("{from} = \"auto\"{arguments}"))
        };
        keys.into_iter().map(line).collect()
    }

    /// The same with something for the required keys.
    fn filled_in(&self) -> String {
        let required = TO_BE_FILLED_IN.map(|(section, line, _)| (section, line.to_owned()));
        let mut lines: Vec<_> = required.into();
        for section in SECTIONS {
            lines.extend(self.settings_of(section).map(|(key, value, _)| (section, format!("{key} = {value}"))));
        }
        let of = |section| lines.iter().filter(move |(of, _)| *of == section).map(|(_, line)| format!("{line}\n"));
        SECTIONS.map(|section| format!("[{section}]\n{}", of(section).collect::<String>())).concat()
    }

    fn settings_of(&self, section: &'static str) -> impl Iterator<Item = (&'static str, &str, String)> {
        self.settings.iter().filter_map(move |(setting, from)| {
            let (of, key) = setting.key.split_once('.').expect("section.key");
            (of == section).then(|| (key, setting.value.as_str(), from.clone()))
        })
    }
}

/// The value that a key of train.toml has when nobody sets it, in TOML.
fn default_of(key: &str) -> String {
    let text = Snippet::default().filled_in();
    let config = TrainConfig::parse(Path::new("train.toml"), &text, &[]).expect("the required keys are there");
    match (key, config.train.length, config.train.batch) {
        ("train.epochs", Length::Epochs(epochs), _) => return epochs.to_string(),
        ("train.gradient_accumulation_steps", _, Batch::Accumulation(steps)) => return steps.to_string(),
        _ => {}
    }
    let (section, name) = key.split_once('.').expect("section.key");
    in_toml(&serde_json::to_value(&config).expect("a config is plain data")[section][name])
}

fn in_toml(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(in_toml).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => fields.values().map(in_toml).collect(),
        Value::Number(number) if number.is_f64() => format!("{:?}", number.as_f64().unwrap_or_default()),
        _ => value.to_string(),
    }
}
