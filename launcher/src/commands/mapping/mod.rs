//! What mappers of other tools' configurations share: the document that they read, the rules that a key can have, the
//! train.toml in the making, and what is said of keys. Pure; it knows no key of anybody's.

pub(in crate::commands) mod document;
pub(in crate::commands) mod lines;
pub(in crate::commands) mod remarks;
pub(in crate::commands) mod rule;
pub(in crate::commands) mod snippet;
pub(in crate::commands) mod toml_text;
pub(in crate::commands) mod yaml;
