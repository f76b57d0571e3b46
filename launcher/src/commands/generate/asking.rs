//! Where prompts come from: the command line, a file, or standard input.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::thread;

use tokio::sync::mpsc;

use super::args::GenerateArgs;
use super::error::GenerateError;
use crate::data::{Message, PromptError, Prompter, Speaker};
use crate::error::LaunchError;
use crate::output::terminal::{Item, Terminal};
use crate::process::signals::{Interrupt, Signals};

/// Shown where the user is to write.
const ASK: &str = "> ";

/// Prompts, one after the other.
pub struct Asking {
    source: Prompts,
    /// Whether each prompt begins a conversation.
    of_one_message: bool,
    /// What a conversation begins with.
    system: Option<String>,
    is_chat: bool,
}

enum Prompts {
    Given(VecDeque<String>),
    /// The lines of standard input, as they come.
    Input {
        lines: mpsc::UnboundedReceiver<io::Result<String>>,
        /// Whether a user types them.
        is_terminal: bool,
    },
}

/// The next prompt, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Its text.
    Prompt(String),
    /// There are no more.
    End,
    /// The user wants to stop.
    Interrupt(Interrupt),
}

impl Asking {
    /// As the arguments say. Reads a file of prompts; standard input is read as it comes.
    pub fn new(args: &GenerateArgs) -> Result<Self, LaunchError> {
        let is_terminal = io::stdin().is_terminal();
        let source = match &args.prompts {
            Some(path) => {
                let source = |source| GenerateError::PromptsUnreadable { path: path.clone(), source };
                let prompts = lines(&fs::read_to_string(path).map_err(source)?);
                if prompts.is_empty() {
                    return Err(GenerateError::NoPrompts { path: path.clone() }.into());
                }
                Prompts::Given(prompts)
            }
            None if !args.prompt.is_empty() => Prompts::Given(args.prompt.iter().cloned().collect()),
            None if is_terminal && !args.chat => return Err(GenerateError::NothingAsked.into()),
            None => {
                let lines = input().map_err(LaunchError::io("start a thread that reads standard input"))?;
                Prompts::Input { lines, is_terminal }
            }
        };
        Ok(Self { source, of_one_message: args.prompts.is_some(), system: args.system.clone(), is_chat: args.chat })
    }

    /// Whether a user types prompts and reads answers.
    pub fn is_interactive(&self) -> bool {
        matches!(self.source, Prompts::Input { is_terminal: true, .. })
    }

    /// Whether each prompt begins a conversation.
    pub fn has_conversations_of_one_message(&self) -> bool {
        self.of_one_message
    }

    /// The tokens of the longest prompt, as far as prompts are known.
    pub fn longest(&self, prompter: &Prompter) -> Result<usize, PromptError> {
        let Prompts::Given(prompts) = &self.source else { return Ok(0) };
        let mut longest = 0;
        for words in prompts {
            let user = Message { speaker: Speaker::User, words: words.clone() };
            let system = self.system.iter().map(|words| Message { speaker: Speaker::System, words: words.clone() });
            let tokens = match self.is_chat {
                true => prompter.conversation(&system.chain([user]).collect::<Vec<_>>())?,
                false => prompter.text(words)?,
            };
            longest = longest.max(tokens.len());
        }
        Ok(longest)
    }

    /// The next prompt. Waits for the user, if one types.
    pub async fn next(&mut self, terminal: &Terminal, signals: &mut Signals) -> Result<Next, LaunchError> {
        let (lines, is_terminal) = match &mut self.source {
            Prompts::Given(prompts) => return Ok(prompts.pop_front().map_or(Next::End, Next::Prompt)),
            Prompts::Input { lines, is_terminal } => (lines, *is_terminal),
        };
        loop {
            if is_terminal {
                terminal.show(Item::Piece(ASK.into()));
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                interrupt = signals.next() => {
                    if is_terminal {
                        terminal.show(Item::Piece("\n".into()));
                    }
                    return Ok(Next::Interrupt(interrupt));
                }
            };
            match line {
                Some(Ok(line)) if line.trim().is_empty() => {}
                Some(Ok(line)) => return Ok(Next::Prompt(line)),
                Some(Err(source)) => return Err(GenerateError::InputUnreadable { source }.into()),
                None => {
                    if is_terminal {
                        // The user has ended the input where the next prompt would stand.
                        terminal.show(Item::Piece("\n".into()));
                    }
                    return Ok(Next::End);
                }
            }
        }
    }
}

/// The prompts in a file: its lines, but for empty ones.
fn lines(text: &str) -> VecDeque<String> {
    text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// Reads standard input on a thread of its own, which ends with it, or with dslaunch.
fn input() -> io::Result<mpsc::UnboundedReceiver<io::Result<String>>> {
    let (sender, lines) = mpsc::unbounded_channel();
    thread::Builder::new().name("input".into()).spawn(move || {
        for line in io::stdin().lock().lines() {
            let is_last = line.is_err();
            if sender.send(line).is_err() || is_last {
                break;
            }
        }
    })?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_file_is_a_prompt() {
        assert_eq!(lines("one\r\n\n  two \n \nthree"), ["one", "  two ", "three"]);
        assert!(lines("\n \n").is_empty());
    }
}
