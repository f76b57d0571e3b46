//! One prompt's text, from the request to its end: shows it as it comes.

use std::io::{self, IsTerminal};

use proto::generate::{Ended, Reason, Request, from_rank};
use tokenizers::Tokenizer;

use super::error::GenerateError;
use super::stops::{Released, Stops};
use super::text::TextStream;
use super::worker::{Worker, out_of_turn};
use crate::error::LaunchError;
use crate::output::terminal::{Item, Terminal};
use crate::process::signals::{Interrupt, Signals};

/// What was written for a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text, without the text that ended it.
    pub text: String,
    /// All tokens, with the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ends.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were read, not kept from before.
    pub prompt_read: u64,
    /// How long that took.
    pub prompt_seconds: f64,
    /// How long all tokens but the first took.
    pub token_seconds: f64,
}

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model, or one of the user's texts, has ended it.
    Stop,
    /// It is as long as it may be.
    Length,
    /// The user has.
    Interrupted,
}

/// Writes one answer.
pub struct Writer<'a> {
    text: TextStream<'a>,
    stops: Stops,
    /// Where it is shown as it comes, if it is.
    terminal: Option<&'a Terminal>,
    /// Whether a terminal shows it, which must not take it for commands.
    is_terminal: bool,
    answer: Answer,
    /// Nothing more is wanted: why.
    over: Option<Finish>,
}

impl<'a> Writer<'a> {
    /// For this request, which one of `stops` ends.
    pub fn new(
        tokenizer: &'a Tokenizer,
        request: &Request,
        stops: &[String],
        terminal: Option<&'a Terminal>,
    ) -> Result<Self, GenerateError> {
        let text = TextStream::after(&request.prompt, tokenizer);
        let answer = Answer {
            text: String::new(),
            tokens: vec![],
            finish: Finish::Length,
            prompt_tokens: request.prompt.len(),
            prompt_read: 0,
            prompt_seconds: 0.0,
            token_seconds: 0.0,
        };
        Ok(Self {
            text: text.map_err(|error| GenerateError::Text(error.to_string()))?,
            stops: Stops::new(stops),
            terminal,
            is_terminal: io::stdout().is_terminal(),
            answer,
            over: None,
        })
    }

    /// Has it written. The first Ctrl-C ends the text, the second is an error.
    pub async fn write(
        mut self,
        worker: &mut Worker,
        request: Request,
        signals: &mut Signals,
    ) -> Result<Answer, LaunchError> {
        let (id, ends) = (request.id, request.end_tokens.clone());
        worker.ask(request)?;
        loop {
            let said = tokio::select! {
                said = worker.next() => said?,
                interrupt = signals.next() => {
                    if interrupt != Interrupt::Interrupt || self.over == Some(Finish::Interrupted) {
                        return Err(LaunchError::Interrupted(interrupt));
                    }
                    self.end(worker, id, Finish::Interrupted)?;
                    continue;
                }
            };
            match said {
                from_rank::What::PromptRead(_) => {}
                // Some come before the rank hears that no more are wanted.
                from_rank::What::Token(_) if self.over.is_some() => {}
                from_rank::What::Token(token) => {
                    self.answer.tokens.push(token.token);
                    if !ends.contains(&token.token) && self.take(token.token)? {
                        self.end(worker, id, Finish::Stop)?;
                    }
                    if self.terminal.is_some_and(|terminal| terminal.lost() > 0) {
                        // Nobody reads it.
                        self.end(worker, id, Finish::Interrupted)?;
                    }
                }
                from_rank::What::Ended(ended) => return Ok(self.finish(&ended)?),
                other => return Err(out_of_turn(&other).into()),
            }
        }
    }

    /// Nothing more is wanted.
    fn end(&mut self, worker: &mut Worker, id: u64, why: Finish) -> Result<(), GenerateError> {
        if self.over.is_none() {
            worker.stop(id)?;
        }
        self.over = Some(why);
        Ok(())
    }

    /// Shows what a token adds. Returns whether the text ends with it.
    fn take(&mut self, token: u32) -> Result<bool, GenerateError> {
        let piece = self.text.push(token).map_err(|error| GenerateError::Text(error.to_string()))?;
        let Released { text, is_end } = self.stops.push(&piece);
        self.show(&text);
        Ok(is_end)
    }

    fn show(&mut self, text: &str) {
        self.answer.text.push_str(text);
        if let Some(terminal) = self.terminal.filter(|_| !text.is_empty()) {
            terminal.show(Item::Piece(if self.is_terminal { harmless(text) } else { text.to_owned() }));
        }
    }

    fn finish(mut self, ended: &Ended) -> Result<Answer, GenerateError> {
        if self.over != Some(Finish::Stop) {
            let Self { text, stops, .. } = &mut self;
            let rest = text.rest().map_err(|error| GenerateError::Text(error.to_string()))?;
            let Released { text, is_end } = stops.push(&rest);
            let held = if is_end { String::new() } else { std::mem::take(stops).finish() };
            self.show(&(text + &held));
        }
        let Self { answer, over, .. } = self;
        let finish = over.unwrap_or(match ended.reason() {
            Reason::EndToken => Finish::Stop,
            Reason::Length => Finish::Length,
            Reason::Stopped | Reason::Unspecified => Finish::Interrupted,
        });
        let Ended { prompt_seconds, token_seconds, prompt_read, .. } = *ended;
        Ok(Answer { finish, prompt_seconds, token_seconds, prompt_read, ..answer })
    }
}

/// A text that a terminal shows and does not obey.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !"\n\t".contains(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_does_not_obey_a_text() {
        assert_eq!(harmless("a\n\tb\x1b[31m\r\u{9b}é"), "a\n\tb\u{fffd}[31m\u{fffd}\u{fffd}é");
    }
}
