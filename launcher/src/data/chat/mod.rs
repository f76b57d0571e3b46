//! Conversations: rows of turns become one text, as a chat template says, of which some turns are trained.
//!
//! ```text
//! alpaca, sharegpt, messages --conversation--> turns --template--> text --turns--> the parts that are trained
//! ```
//!
//! `source` finds the template: the model's own, a built-in one (`builtin`) or a file. `template` renders it to the byte as
//! transformers does, for which `python` supplies what templates take from Python.

mod builtin;
mod conversation;
mod python;
mod source;
mod template;
#[cfg(test)]
mod tests;
mod turns;

pub use builtin::names;
pub use conversation::{ConversationFormat, keys, read};
pub use source::{FoundTemplate, TemplateSource, find};
pub use template::ChatTemplate;
pub use turns::{Text, asking, text};
