//! The model's path: a folder, or a name on the Hub, where it is to be fetched from. Also LoRA.

use std::path::Path;

use super::sheet::{Sheet, Source};
use super::table::{Judge, Key};
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Rule, Setting, Type, Verdict, no_effect, refused};
use crate::commands::mapping::toml_text::{quoted, quoted_list};
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

/// The key that keeps frozen weights in few bits.
const QUANTIZE: &str = "lora.quantize";

/// The rule on the kind of four bits, in whatever tool.
pub(super) const FOUR_BITS: Rule<Judge> = Rule::Only(&["nf4"], "4 bits are those of nf4");

/// The rule on scales that have few bits themselves.
pub(super) const DOUBLE: Rule<Judge> = Rule::Only(&["true"], "scales of nf4 are in 8 bits themselves");

/// LoRA, by the keys of `[lora]`.
#[derive(Debug, Default)]
pub(super) struct Lora {
    /// Keys of `[lora]` with their values in TOML, and the key that each comes from.
    lines: Vec<(&'static str, String, String)>,
}

impl Lora {
    pub fn set(&mut self, key: &'static str, value: impl ToString, from: &str) {
        self.lines.push((key, value.to_string(), from.to_owned()));
    }

    /// Writes the section, and says of each of its keys what became of it. `switch` is the key that asks for an adapter, if
    /// one does.
    pub fn write(self, switch: Option<&str>, source: &Source, sheet: &mut Sheet) {
        for (key, literal, from) in self.lines {
            let value = source.get(&from).cloned();
            match (switch, value) {
                (None, Some(value)) if key == QUANTIZE => {
                    sheet.remarks.refused(
                        &from,
                        &value,
                        "what is in few bits is frozen: an adapter is to be trained beside it",
                    );
                }
                (None, Some(_)) => sheet.remarks.without_effect(&from, "no adapter is asked for"),
                (None, None) => {}
                (Some(_), None) => sheet.imply(key, &literal, &from),
                (Some(_), Some(value)) => {
                    sheet.record(&from, &value, Verdict::Honoured(vec![Setting { key, value: literal }]));
                }
            }
        }
        if let Some(switch) = switch {
            sheet.remarks.mapped(switch, "[lora]".to_owned());
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

/// Frozen weights in few bits. `of_switch`: how many a switch asks for; otherwise the key says it.
pub(super) fn lora_bits(key: &str, of_switch: Option<u64>, source: &Source, lora: &mut Lora, sheet: &mut Sheet) {
    let Some(value) = source.get(key).filter(|value| !value.is_empty()) else { return };
    let bits = match of_switch {
        Some(bits) => value.as_flag().map(|is_on| if is_on { bits } else { 0 }),
        None => value.as_count(),
    };
    match bits {
        Some(0) => sheet.record(key, value, no_effect("it is off")),
        Some(4) => lora.set(QUANTIZE, "\"nf4\"", key),
        Some(8) => lora.set(QUANTIZE, "\"int8\"", key),
        _ if of_switch.is_some() => sheet.remarks.refused(key, value, "must be true or false"),
        _ => sheet.remarks.refused(key, value, "there are 4 and 8 bits"),
    }
}
