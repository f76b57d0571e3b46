//! axolotl's lists of data sets, and the template that their conversations are written with. Pure, but for what lies beside the
//! configuration.

use super::datasets::{Dataset, Part, files_of, in_place, refuse, write_down};
use super::sheet::{Sheet, Source};
use super::table::Key;
use super::templates;
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Setting, Verdict, no_effect, plain, refused};

/// A list of data sets, which it returns. Each of its keys is judged here.
pub(super) fn datasets(key: &str, part: Part, source: &Source, sheet: &mut Sheet) -> Vec<Dataset> {
    let Some(value) = source.get(key) else { return vec![] };
    let list = match value {
        Node::List(list) => list.as_slice(),
        // `pretraining_dataset` may be one data set, or its name.
        one => std::slice::from_ref(one),
    };
    let mut datasets = vec![];
    for (idx, item) in list.iter().enumerate() {
        let at = if value.as_list().is_some() { format!("{key}[{idx}]") } else { key.to_owned() };
        datasets.extend(dataset(&at, item, key == "pretraining_dataset", source, sheet));
    }
    if let Err(why) = write_down(&datasets, part, key, sheet) {
        sheet.remarks.refused(key, value, &why);
    }
    datasets
}

fn dataset(at: &str, item: &Node, is_text: bool, source: &Source, sheet: &mut Sheet) -> Option<Dataset> {
    let path = if is_text { item.as_str() } else { None };
    let Some(path) = path.or_else(|| item.get("path").and_then(Node::as_str)) else {
        refuse(at, item, "must be an object with a path", sheet);
        return None;
    };
    let path_key = format!("{at}.path");
    let named: Vec<String> = match item.get("data_files").filter(|files| !files.is_empty()) {
        Some(Node::List(list)) => list.iter().filter_map(Node::as_str).map(str::to_owned).collect(),
        Some(one) => one.as_str().map(str::to_owned).into_iter().collect(),
        None => vec![],
    };
    let files = match named.is_empty() {
        true => files_of(path, &path_key, source, sheet),
        false => named.iter().flat_map(|name| files_of(name, &path_key, source, sheet)).collect(),
    };
    in_place(&path_key, &format!("data.train or data.validation has {}", files.join(", ")), sheet);
    let mut format = is_text.then_some("text");
    let messages = item.get("field_messages").and_then(Node::as_str);
    for (name, value) in item.keys() {
        let name_at = format!("{at}.{name}");
        let is = |expected: &str| plain(value) == expected;
        match name.as_str() {
            "path" => {}
            _ if value.is_empty() => sheet.remarks.without_effect(&name_at, "nothing is set by it"),
            "data_files" => in_place(&name_at, "its files are listed", sheet),
            "type" => format = data_format(&name_at, value, messages, sheet).or(format),
            "ds_type" if ["json", "parquet", "csv", "arrow"].iter().any(|kind| is(kind)) => {
                sheet.remarks.without_effect(&name_at, "files tell what they are");
            }
            "ds_type" => refuse(&name_at, value, "data is JSON, CSV, Parquet or Arrow: convert the files", sheet),
            "split" if is("train") => sheet.remarks.without_effect(&name_at, "all rows of the files are taken"),
            "split" => refuse(&name_at, value, "all rows of the files are taken: name those of this split only", sheet),
            "name" | "shards" | "shards_idx" | "revision" => {
                refuse(&name_at, value, "all rows of the files are taken: name only those that are meant", sheet);
            }
            "field" | "text_column" if is("text") => {
                sheet.remarks.without_effect(&name_at, "the key of a text is \"text\"")
            }
            "field" | "text_column" => {
                let why = format!(
                    "make it a [[data.source]] with columns = {{ text = {:?} }}, in place of data.train",
                    value.as_str().unwrap_or_default()
                );
                refuse(&name_at, value, &why, sheet)
            }
            "field_messages" if ["messages", "conversations"].contains(&plain(value).as_str()) => {
                in_place(&name_at, "data.format says it", sheet);
            }
            "message_property_mappings" | "message_field_role" | "message_field_content" | "roles" => {
                let words = ["role", "content", "from", "value", "user", "human", "assistant", "gpt", "system", "tool"];
                match all_known(value, &words) {
                    true => in_place(&name_at, "data.format says it", sheet),
                    false => refuse(
                        &name_at,
                        value,
                        "keys of rows are data.format's, or those that the columns of a [[data.source]] name; those of turns and roles are \
                         data.format's: rename them in the data",
                        sheet,
                    ),
                }
            }
            "roles_to_train" if all_known(value, &["assistant", "gpt"]) => {
                sheet.remarks.without_effect(&name_at, "the assistant's turns are trained");
            }
            "train_on_eos" | "train_on_eot" => {
                let why = "the end of a turn that is trained is always learnt";
                match is("turn") || is("true") {
                    true => sheet.remarks.without_effect(&name_at, why),
                    false => sheet.record(&name_at, value, Verdict::Noted(vec![], why.to_owned())),
                }
            }
            "chat_template" => {
                let verdict = chat_template(&Key { name: &name_at, value }, source, sheet);
                sheet.record(&name_at, value, verdict);
            }
            "trust_remote_code" => sheet.remarks.without_effect(&name_at, "no code of a data set runs"),
            _ => refuse(&name_at, value, "keys of a data set are its path, files and type", sheet),
        }
    }
    Some(Dataset { files, format })
}

/// Whether all words in `value` are among these.
fn all_known(value: &Node, words: &[&str]) -> bool {
    match value {
        Node::Object(keys) => {
            keys.iter().all(|(name, value)| words.contains(&name.as_str()) && all_known(value, words))
        }
        Node::List(list) => list.iter().all(|value| all_known(value, words)),
        Node::Leaf(_) => words.contains(&plain(value).as_str()),
    }
}

/// A data set's type, as a name of `data.format`.
fn data_format(key: &str, value: &Node, messages: Option<&str>, sheet: &mut Sheet) -> Option<&'static str> {
    let Some(name) = value.as_str() else {
        refuse(key, value, "rows of one's own shape are not read: make prompt_completion or messages of them", sheet);
        return None;
    };
    let format = match name {
        "alpaca" => {
            // axolotl writes such rows with alpaca's own words, whatever the model's template is.
            if sheet.snippet.says("data.chat_template").is_none() {
                let added = sheet.snippet.add(Setting::new("data.chat_template", "\"alpaca\""), key);
                added.expect("it is a name, and nothing says another");
            }
            Some("alpaca")
        }
        "chat_template" | "chat_template.default" | "sharegpt" => match (name, messages) {
            ("sharegpt", _) | (_, Some("conversations")) => Some("sharegpt"),
            (_, None | Some("messages")) => Some("messages"),
            _ => None,
        },
        "completion" | "pretrain" => Some("text"),
        _ => None,
    };
    match format {
        Some("alpaca") => {
            let what = "data.format = \"alpaca\"; in rows with an input it follows the instruction, as in LLaMA-Factory: axolotl writes \
                        another opening sentence there, and ### Input: before it";
            sheet.remarks.noted(key, value, what);
        }
        Some(format) => in_place(key, &format!("data.format = \"{format}\""), sheet),
        None => {
            refuse(key, value, "types are alpaca, chat_template and completion: make messages of other rows", sheet)
        }
    }
    format
}

/// A template's name.
pub(super) fn chat_template(key: &Key, _: &Source, sheet: &mut Sheet) -> Verdict {
    match plain(key.value).as_str() {
        "tokenizer_default" => no_effect("data.chat_template is the model's own by default"),
        "jinja" => no_effect("chat_template_jinja is the template"),
        name => {
            let name = name.strip_prefix("tokenizer_default_fallback_").unwrap_or(name);
            let has_alpaca = sheet.snippet.value("data.chat_template") == Some("\"alpaca\"") && name != "alpaca";
            match has_alpaca {
                true => {
                    refused("rows of type alpaca are written with the template \"alpaca\", and there is one for all")
                }
                false => templates::verdict(name),
            }
        }
    }
}
