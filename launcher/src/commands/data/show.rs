//! `dslaunch data show`: samples as the model will see them.

use std::fmt::Write;
use std::io::{self, IsTerminal};

use clap::Args;
use proto::env::variable;

use crate::data::{Part, ShownSample, Split};
use crate::error::LaunchError;
use crate::job::args::JobArgs;
use crate::job::note;
use crate::job::setup::Setup;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use crate::process::signals::Signals;
use crate::run_dir::lock::RunLock;
use crate::runtime::on_runtime;

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ShowArgs {
    /// How many samples, from the first one on
    #[arg(short = 'n', long = "samples", value_name = "N", default_value_t = 3)]
    count: usize,
    /// Of the validation data (of each set), not of the training data
    #[arg(long)]
    validation: bool,
    /// Show token ids, too
    #[arg(long)]
    ids: bool,
    #[command(flatten)]
    job: JobArgs,
}

/// `dslaunch data show`. Returns the exit code.
pub fn run(args: &ShowArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let setup = Setup::load_for_data(&args.job)?;
    let splits = if args.validation { setup.validation_splits() } else { vec![Split::Train] };
    on_runtime(async {
        let mut signals = Signals::listen().map_err(LaunchError::io("listen for signals"))?;
        let mut console = Console::new(terminal.clone(), true);
        note(&setup.notes, &mut console);
        let _lock = RunLock::acquire(setup.run_dir().root())?;
        let is_colourful = io::stdout().is_terminal() && variable("NO_COLOR").is_none_or(|value| value.is_empty());
        for split in &splits {
            for sample in &setup.samples(split, args.count, &mut signals, &mut console).await? {
                console.say(&shown(sample, is_colourful, args.ids));
            }
        }
        if splits.is_empty() {
            console.warn("there is no validation data (data.validation)");
        }
        Ok(0)
    })
}

/// Some lines on a sample.
fn shown(sample: &ShownSample, is_colourful: bool, has_ids: bool) -> String {
    let ShownSample { place, num_tokens, num_trained, parts } = sample;
    let mut text = format!("{place}: {num_tokens} tokens, {num_trained} of them trained\n");
    let marks = if is_colourful { ["\x1b[32m", "\x1b[0m"] } else { ["[[", "]]"] };
    for Part { is_trained, text: words, .. } in parts {
        // What a row holds must not reach the terminal as a command.
        let words = words.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}");
        let [before, behind] = if *is_trained { marks } else { [""; 2] };
        let _ = write!(text, "{before}{words}{behind}");
    }
    if has_ids {
        let ids: Vec<_> = parts.iter().flat_map(|part| &part.ids).map(i32::to_string).collect();
        let _ = write!(text, "\nids: {}", ids.join(" "));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;
    use crate::commands::data::DataTask;

    #[test]
    fn data_show_is_a_command() {
        let args =
            |count, validation, ids, job| Ok(Task::Data(DataTask::Show(ShowArgs { count, validation, ids, job })));
        assert_eq!(parse("data show train.toml"), args(3, false, false, JobArgs::example(None, &[])));
        let job = JobArgs::example(None, &["data.packing=false"]);
        assert_eq!(
            parse("data show -n 7 --validation --ids --set data.packing=false train.toml"),
            args(7, true, true, job)
        );
    }

    #[test]
    fn what_is_trained_is_marked_and_nothing_reaches_the_terminal_as_a_command() {
        let part = |is_trained, text: &str, ids: &[i32]| Part { is_trained, text: text.into(), ids: ids.into() };
        let sample = ShownSample {
            place: "a.jsonl:3".into(),
            num_tokens: 3,
            num_trained: 1,
            parts: vec![part(false, "User: \x1b[2Jhi\n", &[1, 2]), part(true, "Hello", &[3])],
        };
        let head = "a.jsonl:3: 3 tokens, 1 of them trained\n";
        assert_eq!(shown(&sample, false, true), format!("{head}User: \u{fffd}[2Jhi\n[[Hello]]\nids: 1 2 3\n"));
        assert_eq!(shown(&sample, true, false), format!("{head}User: \u{fffd}[2Jhi\n\x1b[32mHello\x1b[0m\n"));
    }
}
