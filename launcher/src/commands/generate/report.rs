//! What is told of texts that were written: the line of JSON of one, and how fast they came. Pure.

use serde_json::json;

use super::answer::{Answer, Finish};
use crate::output::units;

impl Answer {
    /// Tokens in a second, without the first, which comes with the prompt; if there is no other, with it.
    fn tokens_per_second(&self) -> f64 {
        Totals::of(self).tokens_per_second()
    }
}

/// The line of an answer.
pub fn json(prompt: &str, answer: &Answer) -> String {
    let finish_reason = match answer.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Interrupted => "interrupted",
    };
    json!({
        "prompt": prompt,
        "text": answer.text,
        "token_ids": answer.tokens,
        "finish_reason": finish_reason,
        "tokens_per_second": answer.tokens_per_second(),
        "prompt_tokens": answer.prompt_tokens,
        "prompt_seconds": answer.prompt_seconds,
    })
    .to_string()
}

/// Sums over answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    tokens: u64,
    /// Of these, all but the first of each answer.
    later_tokens: u64,
    later_seconds: f64,
    prompt_read: u64,
    prompt_seconds: f64,
}

impl Totals {
    /// Of one answer.
    pub fn of(answer: &Answer) -> Self {
        let mut totals = Self::default();
        totals.add(answer);
        totals
    }

    /// Adds one.
    pub fn add(&mut self, answer: &Answer) {
        let tokens = answer.tokens.len() as u64;
        self.tokens += tokens;
        self.later_tokens += tokens.saturating_sub(1);
        self.later_seconds += answer.token_seconds;
        self.prompt_read += answer.prompt_read;
        self.prompt_seconds += answer.prompt_seconds;
    }

    fn tokens_per_second(&self) -> f64 {
        match self {
            Self { later_tokens: 1.., later_seconds, .. } => rate(self.later_tokens, *later_seconds),
            _ => rate(self.tokens, self.prompt_seconds),
        }
    }

    /// `128 tokens, 41.2 tokens/s; prompt of 20 tokens in 0.12 s`.
    pub fn text(&self) -> String {
        let (tokens, read) = (units::plural(self.tokens, "token"), units::plural(self.prompt_read, "token"));
        let speed = self.tokens_per_second();
        format!("{tokens}, {speed:.1} tokens/s; prompt of {read} in {:.2} s", self.prompt_seconds)
    }
}

fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tokens: usize, token_seconds: f64) -> Answer {
        Answer {
            text: "a \"b\"\n".into(),
            tokens: (0..tokens as u32).collect(),
            finish: Finish::Stop,
            prompt_tokens: 20,
            prompt_read: 18,
            prompt_seconds: 0.5,
            token_seconds,
        }
    }

    #[test]
    fn the_first_token_belongs_to_the_prompt() {
        let mut totals = Totals::of(&answer(11, 2.0));
        assert_eq!(totals.text(), "11 tokens, 5.0 tokens/s; prompt of 18 tokens in 0.50 s");
        totals.add(&answer(21, 1.0));
        assert_eq!(totals.text(), "32 tokens, 10.0 tokens/s; prompt of 36 tokens in 1.00 s");
        assert_eq!(Totals::of(&answer(1, 0.0)).tokens_per_second(), 2.0);
        assert_eq!(Totals::of(&answer(0, 0.0)).tokens_per_second(), 0.0);
    }

    #[test]
    fn a_line_of_json_is_one_line() {
        let line = json("p\n", &answer(3, 1.0));
        assert_eq!(line.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["text"], "a \"b\"\n");
        assert_eq!(value["token_ids"], json!([0, 1, 2]));
        assert_eq!((&value["finish_reason"], &value["tokens_per_second"]), (&json!("stop"), &json!(2.0)));
    }
}
