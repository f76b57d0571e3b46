//! `dslaunch completions` and `dslaunch man`: texts that follow from the declaration of the command line, which the caller has.

use clap::error::ErrorKind;
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::output::terminal::{Item, Stream, Terminal};

/// Print a script that completes dslaunch's command line in a shell
///
/// bash: `dslaunch completions bash > ~/.local/share/bash-completion/completions/dslaunch`; zsh: into `_dslaunch` in a folder of
/// $fpath; fish: into `~/.config/fish/completions/dslaunch.fish`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page of dslaunch, or of one of its commands
///
/// `dslaunch man | man -l -` shows it; `dslaunch man plan > dslaunch-plan.1` keeps that of a command.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ManArgs {
    /// A command, such as `plan`, or `checkpoint inspect`
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl CompletionsArgs {
    /// The script for `cli`.
    pub fn script(&self, mut cli: Command) -> String {
        let name = cli.get_name().to_owned();
        let mut script = vec![];
        clap_complete::generate(self.shell, &mut cli, name, &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

impl ManArgs {
    /// The page of `cli`, or of its command.
    ///
    /// # Errors
    /// There is no such command.
    pub fn page(&self, mut cli: Command) -> Result<String, clap::Error> {
        cli.build();
        let mut command = &cli;
        for name in &self.command {
            let found = command.find_subcommand(name);
            let unknown = || format!("no command {:?}", self.command.join(" "));
            command = found.ok_or_else(|| cli.clone().error(ErrorKind::InvalidSubcommand, unknown()))?;
        }
        let mut page = vec![];
        Man::new(command.clone()).render(&mut page).expect("memory takes everything");
        Ok(String::from_utf8_lossy(&page).into_owned())
    }
}

/// Prints a text. Returns the exit code.
pub fn print(text: String, terminal: &Terminal) -> u8 {
    terminal.show(Item::Text(Stream::Out, text));
    0
}

#[cfg(test)]
mod tests {
    use crate::cli::tests::parse;
    use crate::commands::Task;
    use clap::error::ErrorKind;

    #[track_caller]
    fn printed(line: &str) -> String {
        match parse(line) {
            Ok(Task::Print(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn scripts_know_the_commands_and_their_flags() {
        for shell in ["bash", "zsh", "fish"] {
            let script = printed(&format!("completions {shell}"));
            for word in ["doctor", "gpu-memory", "import"] {
                assert!(script.contains(word), "{shell}: no {word}");
            }
        }
        assert_eq!(parse("completions tcl"), Err(ErrorKind::InvalidValue));
        assert_eq!(parse("completions"), Err(ErrorKind::MissingRequiredArgument));
    }

    #[test]
    fn a_page_is_of_dslaunch_or_of_a_command() {
        let page = printed("man");
        assert!(page.starts_with(".ie") && page.contains(".TH dslaunch 1"), "{page}");
        assert!(page.contains("dslaunch\\-plan(1)") && page.contains("Exit codes"), "{page}");
        assert!(printed("man plan").contains("gpu\\-memory"));
        assert!(printed("man checkpoint inspect").contains("json"));
        assert_eq!(parse("man bogus"), Err(ErrorKind::InvalidSubcommand));
    }
}
