//! Names of chat templates in other tools, as `data.chat_template`.

use crate::commands::mapping::rule::{Setting, Verdict, honoured, no_effect, refused};
use crate::commands::mapping::toml_text::quoted;

/// Names that are the same here.
const SAME: [&str; 5] = ["alpaca", "chatml", "llama3", "vicuna", "zephyr"];

/// Names of families, of which ours is a member: the words of other members differ.
const CLOSE: [(&str, &str); 14] = [
    ("llama2", "llama2"),
    ("llama-2", "llama2"),
    ("llama-3", "llama3"),
    ("mistral", "mistral"),
    ("mistral_v1", "mistral"),
    ("mistral_v2v3", "mistral"),
    ("deepseek", "deepseek"),
    ("deepseek_v2", "deepseek"),
    ("qwen", "qwen"),
    ("qwen_25", "qwen"),
    ("qwen2", "qwen"),
    ("qwen3", "qwen"),
    ("qwen3_nothink", "qwen"),
    ("stanford_alpaca", "alpaca"),
];

/// What becomes of a template's name.
pub(super) fn verdict(name: &str) -> Verdict {
    let ours = |name: &str| Setting::new("data.chat_template", quoted(name));
    if SAME.contains(&name) {
        return honoured("data.chat_template", quoted(name));
    }
    match CLOSE.iter().find(|(theirs, _)| *theirs == name) {
        Some((_, close)) => {
            let said = format!(
                "data.chat_template = {close:?}, of the same family; \"auto\" is the model's own: compare with `dslaunch data show`"
            );
            Verdict::Noted(vec![ours(close)], said)
        }
        None if name == "default" => no_effect("data.chat_template is the model's own by default"),
        None => refused(
            "there is no template of this name: the model's own is taken (\"auto\"), or name one of dslaunch's, or a file",
        ),
    }
}
