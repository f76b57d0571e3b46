//! `dslaunch schema`: prints the JSON schema of train.toml, for editors.

use clap::Args;

use crate::output::terminal::{Item, Stream, Terminal};

/// Print the JSON schema of train.toml, with which editors complete and check it
///
/// `dslaunch schema > train.schema.json`, and `#:schema ./train.schema.json` as the first line of train.toml.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SchemaArgs {}

/// Prints it. Returns the exit code.
pub fn run(terminal: &Terminal) -> u8 {
    let schema = serde_json::to_string_pretty(&proto::config::schema()).expect("a schema is plain data");
    terminal.show(Item::Text(Stream::Out, schema));
    0
}

#[cfg(test)]
mod tests {
    use crate::cli::tests::parse;
    use crate::commands::Task;

    #[test]
    fn schema_is_a_command() {
        assert_eq!(parse("schema"), Ok(Task::Schema));
        assert!(parse("schema x").is_err());
    }
}
