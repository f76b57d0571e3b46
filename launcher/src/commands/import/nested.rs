//! A DeepSpeed configuration that another tool's names: only what it shards and offloads counts there, since the tool fills in
//! or overrules all else.

use super::sheet::{Sheet, Source};
use super::table::Key;
use crate::commands::deepspeed::{self, Judged};
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Setting, Verdict, no_effect, refused};

/// Sections of train.toml that a nested configuration may set.
const SECTIONS: [&str; 3] = ["zero.", "comm.", "parallel."];

pub(super) fn deepspeed(key: &Key, source: &Source, sheet: &mut Sheet) -> Verdict {
    let Some(name) = key.value.as_str() else {
        return match key.value {
            Node::Object(keys) => {
                map(key.name, key.value, keys, sheet);
                no_effect("its keys are judged each by itself")
            }
            _ => refused("must be a file's name, or its content"),
        };
    };
    let Some((path, text)) = source.find(name) else {
        let what = "there is no such file here, so what it shards is not known: `dslaunch import FILE` maps it; its [zero] belongs here";
        return refused(what);
    };
    match Node::parse(&text) {
        Ok(config @ Node::Object(_)) => {
            map(key.name, &config, config.keys(), sheet);
            no_effect(&format!("the keys of {} are judged each by itself", path.display()))
        }
        Ok(_) => refused(&format!("{} is no JSON object", path.display())),
        Err(error) => refused(&format!("{}: {error}", path.display())),
    }
}

fn map(prefix: &str, config: &Node, keys: &[(String, Node)], sheet: &mut Sheet) {
    for Judged { key, value, verdict } in deepspeed::judge(config, keys) {
        let name = format!("{prefix}.{key}");
        match verdict {
            Err(meant) => sheet.remarks.unknown(&name, meant),
            Ok(Verdict::Honoured(settings)) => {
                let (counts, other) = split(settings);
                let verdict = match (counts.is_empty(), other.is_empty()) {
                    (true, false) => no_effect("the keys around it say it"),
                    _ => Verdict::Honoured(counts),
                };
                sheet.record(&name, value, verdict);
            }
            Ok(Verdict::Noted(settings, what)) => {
                let (counts, other) = split(settings);
                let verdict = match (counts.is_empty(), other.is_empty()) {
                    (true, false) => no_effect("the keys around it say it"),
                    _ => Verdict::Noted(counts, what),
                };
                sheet.record(&name, value, verdict);
            }
            Ok(Verdict::Open(..)) => sheet.record(&name, value, no_effect("the keys around it say it")),
            Ok(verdict) => sheet.record(&name, value, verdict),
        }
    }
}

/// Those that count, and the others.
fn split(settings: Vec<Setting>) -> (Vec<Setting>, Vec<Setting>) {
    settings.into_iter().partition(|setting| SECTIONS.iter().any(|section| setting.key.starts_with(section)))
}
