//! The train.toml that is written: what a user will want to change, and what differs from the defaults. Pure.

use proto::config::DataFormat;

use super::Layout;
use crate::commands::mapping::toml_text::{quoted, quoted_list};

/// Tokens of a row, where the model has as many positions.
const SEQ_LEN: u64 = 4096;
/// Rows of a step, where ranks divide them.
const ROWS_PER_STEP: u64 = 32;
/// Long lines do not move the comments of the others.
const LONGEST_ALIGNED: usize = 48;

/// What is known of the job.
#[derive(Debug, Clone, Default)]
pub(super) struct Job {
    pub model: String,
    pub train: Vec<String>,
    pub validation: Vec<String>,
    /// The format of each file; none before they are looked at.
    pub formats: Vec<DataFormat>,
    /// Whether the model has a chat template.
    pub has_template: bool,
    /// 0: not known yet.
    pub most_positions: u64,
    /// 0: not known yet.
    pub world_size: u64,
    pub layout: Layout,
}

/// A line, its section, and what is said of it.
type Line = (&'static str, String, String);

impl Job {
    /// Tokens of the longest row.
    pub fn seq_len(&self) -> u64 {
        let most = if self.most_positions == 0 { SEQ_LEN } else { self.most_positions.min(SEQ_LEN) };
        self.layout.seq_len.unwrap_or(most)
    }

    /// The whole file.
    pub fn text(&self) -> String {
        let lines = self.lines();
        let mut sections: Vec<&str> = vec![];
        for (section, ..) in &lines {
            if !sections.contains(section) {
                sections.push(section);
            }
        }
        let texts = sections.into_iter().map(|section| {
            let of_section: Vec<&Line> = lines.iter().filter(|(of, ..)| *of == section).collect();
            let lengths = of_section.iter().map(|(_, line, _)| line.len()).filter(|length| *length <= LONGEST_ALIGNED);
            let width = lengths.max().unwrap_or_default();
            let lines = of_section.iter().map(|(_, line, what)| format!("{line:<width$}  # {what}\n"));
            format!("\n[{section}]\n{}", lines.collect::<String>())
        });
        let head = "# dslaunch plan train.toml shows what this comes to. All other keys have defaults: see docs/train-toml.md.\n";
        format!("{head}{}", texts.collect::<String>())
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines =
            vec![("model", format!("path = {}", quoted(&self.model)), "the model that is trained".to_owned())];
        let of_layout = |of: &'static str| {
            let settings = self.layout.settings.iter().filter(move |(section, ..)| *section == of);
            settings.map(|(section, key, value, what)| (*section, format!("{key} = {value}"), (*what).to_owned()))
        };
        lines.extend(of_layout("model").collect::<Vec<_>>());
        lines.push(("data", format!("train = {}", quoted_list(&self.train)), "files or globs".to_owned()));
        if !self.validation.is_empty() {
            let what = "scored at the end of each epoch: validation.every_steps";
            lines.push(("data", format!("validation = {}", quoted_list(&self.validation)), what.to_owned()));
        }
        lines.extend(self.format());
        lines.extend(self.template());
        let seq_len = self.seq_len();
        let what = match self.layout.seq_len {
            Some(_) => "tokens of the longest row: longer ones do not fit into memory",
            None if seq_len < SEQ_LEN => "tokens of the longest row: as many as the model has positions",
            None => "tokens of the longest row",
        };
        lines.push(("data", format!("seq_len = {seq_len}"), what.to_owned()));
        lines.push(("train", "epochs = 1".to_owned(), "passes over the data; or steps = N".to_owned()));
        lines.push(("train", "micro_batch_size = 1".to_owned(), "rows of a forward pass of one rank".to_owned()));
        let ranks = self.world_size.max(1);
        let accumulation = (ROWS_PER_STEP / ranks).max(1);
        let what =
            format!("times {ranks} rank{}: {} rows a step", if ranks == 1 { "" } else { "s" }, accumulation * ranks);
        lines.push(("train", format!("gradient_accumulation_steps = {accumulation}"), what));
        let what = "the peak; larger models need smaller ones";
        lines.push(("optimizer", "learning_rate = 2e-5".to_owned(), what.to_owned()));
        for section in ["optimizer", "zero", "restart"] {
            lines.extend(of_layout(section));
        }
        lines
    }

    fn format(&self) -> Option<Line> {
        let first = self.formats.first()?;
        let is_one = self.formats.iter().all(|format| format == first);
        is_one.then(|| ("data", format!("format = \"{first}\""), "told from the first sample of each file".to_owned()))
    }

    /// A template for conversations, where the model has none.
    fn template(&self) -> Option<Line> {
        let is_conversation =
            |format: &DataFormat| matches!(format, DataFormat::Alpaca | DataFormat::Sharegpt | DataFormat::Messages);
        let is_wanted = !self.has_template && self.formats.iter().any(is_conversation);
        let is_alpaca = self.formats.iter().all(|format| *format == DataFormat::Alpaca);
        let name = if is_alpaca { "alpaca" } else { "deepseek" };
        let what = "the model's files have none; docs/train-toml.md lists the others";
        is_wanted.then(|| ("data", format!("chat_template = \"{name}\""), what.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proto::config::{AutoOr, Batch, TrainConfig};

    use super::*;

    fn job() -> Job {
        Job {
            model: "models/a \"b\"".into(),
            train: vec!["d.jsonl".into()],
            formats: vec![DataFormat::Alpaca],
            most_positions: 2048,
            world_size: 4,
            ..Job::default()
        }
    }

    fn parsed(job: &Job) -> TrainConfig {
        let text = job.text();
        TrainConfig::parse(Path::new("train.toml"), &text, &[]).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    #[test]
    fn the_file_says_what_is_known() {
        let config = parsed(&job());
        assert_eq!(config.model.path, Path::new("models/a \"b\""));
        assert_eq!((config.data.seq_len, config.data.format), (2048, AutoOr::Given(DataFormat::Alpaca)));
        assert_eq!((config.data.chat_template.as_str(), config.train.batch), ("alpaca", Batch::Accumulation(8)));
        let told = Job { has_template: true, formats: vec![DataFormat::Messages, DataFormat::Text], ..job() };
        let config = parsed(&told);
        assert_eq!((config.data.chat_template.as_str(), config.data.format), ("auto", AutoOr::Auto));
        assert_eq!(parsed(&Job { formats: vec![DataFormat::Messages], ..job() }).data.chat_template, "deepseek");
        assert_eq!(parsed(&Job { formats: vec![DataFormat::Text], ..job() }).data.chat_template, "auto");
    }

    #[test]
    fn every_layout_is_one_that_the_reader_takes() {
        for (on_gpus, world_size) in [(true, 1), (true, 8), (false, 1), (false, 2)] {
            let job = Job { world_size, ..job() };
            for layout in super::super::layouts::in_order(on_gpus, &job) {
                let with = Job { layout: layout.clone(), ..job.clone() };
                let text = with.text();
                for (_, key, value, _) in &layout.settings {
                    assert!(text.contains(&format!("{key} = {value}")), "{text}");
                }
                assert_eq!(parsed(&with).data.seq_len, layout.seq_len.unwrap_or(2048));
            }
        }
    }
}
