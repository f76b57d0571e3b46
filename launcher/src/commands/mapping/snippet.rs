//! Writes the train.toml that says the same as the honoured keys of another tool's configuration. Pure.

use std::path::Path;

use proto::config::{Batch, Length, TrainConfig};
use serde_json::Value;

use super::remarks::Open;
use super::rule::Setting;
use crate::output::units::printable;

/// The sections that settings may be in, in train.toml's order.
const SECTIONS: [&str; 14] = [
    "job",
    "model",
    "lora",
    "data",
    "train",
    "optimizer",
    "schedule",
    "parallel",
    "zero",
    "comm",
    "checkpoint",
    "restart",
    "validation",
    "log",
];

/// Required keys, which the configuration may not know.
const TO_BE_FILLED_IN: [(&str, &str, &str); 2] = [
    ("model", "path = \"models/deepseek-llm-7b\"", "required: a Hugging Face folder"),
    ("data", "train = [\"data/train.jsonl\"]", "required: paths or globs"),
];

/// Lines that are longer do not move the comments of the others.
const LONGEST_ALIGNED: usize = 60;

/// Keys of which a job has only one.
const EXCLUSIVE: [[&str; 2]; 2] =
    [["train.epochs", "train.steps"], ["train.gradient_accumulation_steps", "train.global_batch_size"]];

/// A train.toml in the making.
#[derive(Debug, Default)]
pub(in crate::commands) struct Snippet {
    /// What is set, each with the keys that it comes from.
    settings: Vec<(Setting, String)>,
    /// What the config leaves open.
    open: Vec<Open>,
    /// Lines of a section, or of one that is not read yet, that are comments: each with what is said of it.
    comments: Vec<(&'static str, String, String)>,
}

impl Snippet {
    /// Adds a key that comes `from` a key of another tool's. Returns why it cannot be: another one says something else, or
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

    /// The other tool's keys that say what `key` is, or that it cannot be set.
    pub fn says(&self, key: &str) -> Option<&str> {
        let pair = EXCLUSIVE.iter().find(|pair| pair.contains(&key)).map_or(&[][..], |pair| &pair[..]);
        let said = self.settings.iter().find(|(setting, _)| setting.key == key || pair.contains(&setting.key));
        said.map(|(_, from)| from.as_str())
    }

    /// The value that a key is set to.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(setting, _)| setting.key == key).map(|(setting, _)| setting.value.as_str())
    }

    /// Whether train.toml takes this, beside what is set so far.
    pub fn takes(&self, setting: &Setting) -> bool {
        let mut settings = self.settings.clone();
        settings.retain(|(other, _)| other.key != setting.key);
        settings.push((setting.clone(), String::new()));
        let tried = Snippet { settings, ..Snippet::default() };
        TrainConfig::parse(Path::new("train.toml"), &tried.filled_in(), &[]).is_ok()
    }

    /// Adds a line that is a comment in `section`, and `what` is said of it.
    pub fn comment(&mut self, section: &'static str, line: impl Into<String>, what: impl Into<String>) {
        self.comments.push((section, line.into(), what.into()));
    }

    /// The sections that are comments only: this version does not read them.
    fn unread(&self) -> String {
        let mut sections: Vec<&str> = vec![];
        for (section, ..) in &self.comments {
            if !SECTIONS.contains(section) && !sections.contains(section) {
                sections.push(section);
            }
        }
        let text = sections.into_iter().map(|section| {
            let lines = aligned(self.comments_in(section).collect());
            format!("\n# [{section}]: this version of dslaunch does not read it\n{lines}")
        });
        text.collect()
    }

    fn comments_in(&self, section: &str) -> impl Iterator<Item = (String, String)> {
        let of_section = self.comments.iter().filter(move |(of, ..)| *of == section);
        of_section.map(|(_, line, what)| (format!("# {line}"), what.clone()))
    }

    /// Leaves a key to the user, who finds its default as a comment.
    pub fn leave_open(&mut self, open: &Open) {
        self.open.push(open.clone());
    }

    /// Sections and keys, each with the key that it comes from.
    pub fn text(&self) -> String {
        let sections = SECTIONS.into_iter().filter_map(|section| {
            let required = self.to_be_filled_in().filter(|(of, ..)| *of == section);
            let mut lines: Vec<_> = required.map(|(_, line, what)| (format!("# {line}"), what.to_owned())).collect();
            lines.extend(self.settings_of(section).map(|(key, value, from)| (format!("{key} = {value}"), from)));
            lines.extend(self.open_in(section));
            lines.extend(self.comments_in(section));
            (!lines.is_empty()).then(|| format!("[{section}]\n{}", aligned(lines)))
        });
        sections.collect::<Vec<_>>().join("\n") + &self.unread()
    }

    /// Required keys that nothing has set yet.
    pub fn missing(&self) -> Vec<String> {
        let line = |(section, line, _): (&str, &str, &str)| {
            format!("{section}.{}", line.split(' ').next().unwrap_or_default())
        };
        self.to_be_filled_in().map(line).collect()
    }

    fn to_be_filled_in(&self) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        let is_set = |section: &str, line: &str| {
            let mut keys = self.settings.iter().filter_map(|(setting, _)| setting.key.split_once('.'));
            keys.any(|(of, key)| of == section && line.split(' ').next() == Some(key))
        };
        TO_BE_FILLED_IN.into_iter().filter(move |(section, line, _)| !is_set(section, line))
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
        let required = self.to_be_filled_in().map(|(section, line, _)| (section, line.to_owned()));
        let mut lines: Vec<_> = required.collect();
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

/// Lines with what is said of each behind it, in one column unless a line is long.
fn aligned(lines: Vec<(String, String)>) -> String {
    let lengths = lines.iter().map(|(line, _)| line.chars().count());
    let width = lengths.filter(|length| *length <= LONGEST_ALIGNED).max().unwrap_or_default();
    // What another tool's file says may not end a comment.
    let lines = lines.into_iter().map(|(line, what)| match what.as_str() {
        "" => format!("{}\n", printable(&line)),
        _ => format!("{:<width$}  # {}\n", printable(&line), printable(&what)),
    });
    lines.collect()
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
