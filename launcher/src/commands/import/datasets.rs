//! Data sets as train.toml names them: files, with one format for all, or each with what its first row tells.

use std::path::Path;

use super::sheet::{Sheet, Source};
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Setting, Verdict};
use crate::commands::mapping::toml_text::{quoted, quoted_list};
use crate::job::model_folder::is_hub_id;

/// The folder in which fetched data lies.
const DATA: &str = "data";

/// Files of one format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dataset {
    /// Paths and globs.
    pub files: Vec<String>,
    /// A name of `data.format`.
    pub format: Option<&'static str>,
}

/// What the data is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Train,
    Validation,
}

impl Part {
    fn key(self) -> &'static str {
        match self {
            Self::Train => "data.train",
            Self::Validation => "data.validation",
        }
    }
}

/// Writes data sets down, which the key `from` lists: as one list of files.
pub(super) fn write_down(datasets: &[Dataset], part: Part, from: &str, sheet: &mut Sheet) -> Result<(), String> {
    if datasets.is_empty() {
        return Ok(());
    }
    let files: Vec<&String> = datasets.iter().flat_map(|dataset| &dataset.files).collect();
    sheet.snippet.add(Setting::new(part.key(), quoted_list(&files)), from)?;
    let first = datasets[0].format;
    match first.filter(|_| datasets.iter().all(|dataset| dataset.format == first)) {
        Some(format) if part == Part::Train => sheet.snippet.add(Setting::new("data.format", quoted(format)), from),
        Some(_) => Ok(()),
        None => {
            // "auto" tells each file's format from its first sample.
            let formats =
                datasets.iter().map(|dataset| dataset.format.unwrap_or("auto")).collect::<Vec<_>>().join(", ");
            sheet.snippet.comment(
                "data",
                "format = \"auto\"",
                format!("{from}: {formats}; told from each file's first sample"),
            );
            Ok(())
        }
    }
}

/// The files of a data set that is named by `name`: a file or folder that is there, or a data set on the Hub, which is to be
/// fetched. Says how.
pub(super) fn files_of(name: &str, key: &str, source: &Source, sheet: &mut Sheet) -> Vec<String> {
    let is_file = |name: &str| {
        let endings = [".json", ".jsonl", ".gz", ".zst", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".feather"];
        endings.iter().any(|ending| name.ends_with(ending)) || name.starts_with(['/', '.'])
    };
    if source.disk.is_folder(Path::new(name)) {
        return vec![format!("{}/*.json*", name.trim_end_matches('/'))];
    }
    if is_file(name) || !is_hub_id(name) {
        return vec![name.to_owned()];
    }
    let folder = format!("{DATA}/{}", name.rsplit('/').next().unwrap_or(name));
    let fetch = format!("hf download --repo-type dataset {name} --local-dir {folder}");
    let what = "fetches the data; where it is no JSON, name its *.parquet, *.csv or *.arrow instead";
    sheet.snippet.comment("data", &fetch, what);
    let value = Node::Leaf(name.into());
    sheet.remarks.noted(key, &value, &format!("\"{folder}/**/*.json*\", once it is fetched: {fetch}; {what}"));
    vec![format!("{folder}/**/*.json*")]
}

/// Notes that a key of a data set is honoured by its place in the list.
pub(super) fn in_place(key: &str, what: &str, sheet: &mut Sheet) {
    sheet.remarks.mapped(key, what.to_owned());
}

/// Refuses a key of a data set.
pub(super) fn refuse(key: &str, value: &Node, why: &str, sheet: &mut Sheet) {
    sheet.record(key, value, Verdict::Refused(why.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(formats: &[Option<&'static str>]) -> String {
        let names = ["a.jsonl", "b.jsonl"].iter().zip(formats);
        let datasets: Vec<_> =
            names.map(|(name, &format)| Dataset { files: vec![(*name).to_owned()], format }).collect();
        let mut sheet = Sheet::default();
        write_down(&datasets, Part::Train, "datasets", &mut sheet).unwrap();
        sheet.snippet.text()
    }

    #[test]
    fn one_format_is_written_and_several_are_left_to_the_files() {
        let text = written(&[Some("alpaca"), Some("alpaca")]);
        assert!(text.contains("train = [\"a.jsonl\", \"b.jsonl\"]"), "{text}");
        assert!(text.contains("format = \"alpaca\""), "{text}");
        let text = written(&[Some("alpaca"), Some("text")]);
        assert!(text.contains("# format = \"auto\"") && text.contains("datasets: alpaca, text"), "{text}");
    }
}
