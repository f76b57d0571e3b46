//! The model's path: a folder, or a name on the Hub, where it is to be fetched from. Also LoRA, which needs a section of
//! train.toml that this version may not read.

use std::path::Path;

use super::sheet::{Sheet, Source, quoted, quoted_list};
use super::table::Key;
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Setting, Type, Verdict, flag, no_effect, refused};
use crate::job::model_folder::is_hub_id;

/// The folder in which fetched models lie.
const MODELS: &str = "models";

pub(super) fn path(key: &Key, source: &Source, sheet: &mut Sheet) -> Verdict {
    let Some(name) = key.value.as_str() else { return refused("must be a path or a name on the Hub") };
    let setting = |path: &str| vec![Setting::new("model.path", quoted(path))];
    if !is_hub_id(name) || source.disk.is_folder(Path::new(name)) {
        return Verdict::Honoured(setting(name));
    }
    let folder = format!("{MODELS}/{}", name.rsplit('/').next().unwrap_or(name));
    let fetch = format!("hf download {name} --local-dir {folder}");
    sheet.snippet.comment("model", &fetch, "fetches the model: nothing is downloaded by dslaunch");
    Verdict::Noted(setting(&folder), format!("model.path = {folder:?}, once it is fetched: {fetch}"))
}

/// LoRA, by the keys of `[lora]`.
#[derive(Debug, Default)]
pub(super) struct Lora {
    /// Keys of `[lora]` with their values in TOML, and the key that each comes from.
    lines: Vec<(&'static str, String, String)>,
}

/// Whether train.toml has a section `[lora]`.
const IS_READ: bool = false;

const NOT_READ: &str = "this version of dslaunch reads no [lora]: its lines are comments, and all parameters would be trained (with a \
                        learning rate that is for an adapter); model.trained freezes parts";

impl Lora {
    pub fn set(&mut self, key: &'static str, value: impl ToString, from: &str) {
        self.lines.push((key, value.to_string(), from.to_owned()));
    }

    /// Writes the section, and says of each of its keys what became of it. `switch` is the key that asks for an adapter, if
    /// one does.
    pub fn write(self, switch: Option<&str>, source: &Source, sheet: &mut Sheet) {
        let value = |key: &str| source.get(key).cloned().unwrap_or(Node::Leaf(serde_json::Value::Null));
        for (key, literal, from) in self.lines {
            let is_key = source.get(&from).is_some();
            match switch {
                None if is_key => sheet.remarks.without_effect(&from, "no adapter is asked for"),
                None => {}
                Some(_) if IS_READ => {
                    sheet.record(&from, &value(&from), Verdict::Honoured(vec![Setting { key, value: literal }]));
                }
                Some(_) => {
                    let name = key.strip_prefix("lora.").unwrap_or(key);
                    sheet.snippet.comment("lora", format!("{name} = {literal}"), &from);
                    if is_key {
                        sheet.remarks.mapped(&from, format!("{key} = {literal}, as a comment"));
                    }
                }
            }
        }
        match switch {
            Some(switch) if IS_READ => sheet.remarks.mapped(switch, "[lora]".to_owned()),
            Some(switch) => sheet.remarks.refused(switch, &value(switch), NOT_READ),
            None => {}
        }
    }
}

/// Takes a number of the configuration over, if it is there.
pub(super) fn lora_number(
    key: &str,
    ours: &'static str,
    of: Type,
    source: &Source,
    lora: &mut Lora,
    sheet: &mut Sheet,
) {
    let Some(value) = source.get(key) else { return };
    match of.literal(value) {
        Ok(value) => lora.set(ours, value, key),
        Err(expected) => sheet.remarks.refused(key, value, expected),
    }
}

/// The modules that have adapters: a list of names, several in a string, or all that are linear.
pub(super) fn lora_targets(key: &str, source: &Source, lora: &mut Lora) {
    let Some(value) = source.get(key) else { return };
    let names: Vec<String> = match value {
        Node::List(list) => list.iter().filter_map(Node::as_str).map(str::to_owned).collect(),
        value => value.as_str().unwrap_or_default().split(',').map(|name| name.trim().to_owned()).collect(),
    };
    let is_all = ["all", "all-linear"].iter().any(|all| names.iter().any(|name| name == all));
    lora.set("lora.targets", if is_all { "\"all-linear\"".to_owned() } else { quoted_list(&names) }, key);
}

/// A switch of LoRA's.
pub(super) fn lora_switch(key: &str, ours: &'static str, source: &Source, lora: &mut Lora, sheet: &mut Sheet) {
    let Some(value) = source.get(key) else { return };
    match value.as_flag() {
        Some(on) => lora.set(ours, on, key),
        None => sheet.remarks.refused(key, value, "must be true or false"),
    }
}

/// Weights in 8 or 4 bits.
pub(super) fn in_few_bits(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    const WHY: &str = "weights are bf16 or fp32: leave it out; `dslaunch plan` says whether the model fits, and zero.stage, \
                       zero.offload_optimizer and optimizer.state make it smaller";
    match key.value.as_count() {
        Some(0) => no_effect("it is off"),
        Some(_) => refused(WHY),
        None => flag(key.value, |on| if on { refused(WHY) } else { no_effect("it is off") }),
    }
}
