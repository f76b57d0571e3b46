//! Writes the train.toml that says the same as the honoured keys. Pure.

use std::path::Path;

use proto::config::TrainConfig;

use super::rules::Setting;

/// The sections that settings may be in, in train.toml's order.
const SECTIONS: [&str; 9] = ["model", "data", "train", "optimizer", "schedule", "parallel", "zero", "comm", "log"];

/// Required keys that DeepSpeed's config does not know.
const TO_BE_FILLED_IN: [(&str, &str, &str); 2] = [
    ("model", "path = \"models/deepseek-llm-7b\"", "required: a Hugging Face folder"),
    ("data", "train = [\"data/train.jsonl\"]", "required: paths or globs"),
];

/// A train.toml in the making.
#[derive(Debug, Default)]
pub(super) struct Snippet {
    settings: Vec<(Setting, String)>,
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

    /// Sections and keys, each with the key of DeepSpeed's that it comes from.
    pub fn text(&self) -> String {
        let sections = SECTIONS.into_iter().filter_map(|section| {
            let required = TO_BE_FILLED_IN.iter().filter(|(of, ..)| *of == section);
            let mut lines: Vec<_> = required.map(|(_, line, what)| (format!("# {line}"), (*what).to_owned())).collect();
            lines.extend(self.settings_of(section).map(|(key, value, from)| (format!("{key} = {value}"), from)));
            let width = lines.iter().map(|(line, _)| line.len()).max()?;
            let lines = lines.into_iter().map(|(line, from)| format!("{line:<width$}  # {from}\n"));
            Some(format!("[{section}]\n{}", lines.collect::<String>()))
        });
        sections.collect::<Vec<_>>().join("\n")
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
