//! Reads a prompt and writes on: the one loop in which tokens are chosen.

use std::time::Instant;

use comm::CommError;
use proto::generate as wire;
use tch::{Kind, Tensor};

use super::sampling::Sampling;
use super::sequence::{LanguageModel, Sequence};
use crate::device::{Readback, host};

/// What is to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wish {
    /// What it begins with: at least one token.
    pub prompt: Vec<u32>,
    /// The most tokens that are written.
    pub new_tokens_max: usize,
    /// Any of these is the last token.
    pub end_tokens: Vec<u32>,
    /// How tokens are drawn; `None`: the most likely one is taken.
    pub sampling: Option<Sampling>,
}

impl From<wire::Request> for Wish {
    fn from(request: wire::Request) -> Self {
        Self {
            prompt: request.prompt,
            new_tokens_max: usize::try_from(request.new_tokens_max).unwrap_or(usize::MAX),
            end_tokens: request.end_tokens,
            sampling: request.sampling.map(Sampling::from),
        }
    }
}

/// Whoever hears what is written.
pub trait Audience {
    /// So many tokens of the prompt are read.
    fn read(&mut self, tokens: usize);

    /// The next token.
    fn token(&mut self, token: u32);

    /// Whether more is wanted.
    fn wants_more(&mut self) -> bool;
}

/// Why nothing more is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The last token is one that ends a text.
    EndToken,
    /// There are as many as were asked for.
    Length,
    /// Nobody wants more.
    Stopped,
}

/// What was written, apart from the tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    /// Why it ends.
    pub reason: Reason,
    /// How long it took to read the prompt, as far as it was not kept.
    pub prompt_seconds: f64,
    /// How long all tokens but the first took.
    pub token_seconds: f64,
    /// Tokens of the prompt that were read.
    pub prompt_read: usize,
}

/// Nothing can be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Another rank is gone.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The model computes no numbers.
    #[error(
        "after {tokens} tokens the model's logits are not numbers (NaN): its weights are damaged, or too large for the type that it is \
         computed in"
    )]
    NotNumbers {
        /// Tokens that were read.
        tokens: usize,
    },
}

/// Writes. `sequence`: what `model` has read before, of which the beginning of the prompt is not read again.
pub fn write<M: LanguageModel>(
    model: &mut M,
    sequence: &mut Sequence,
    wish: &Wish,
    audience: &mut impl Audience,
) -> Result<Written, WriteError> {
    let start = Instant::now();
    let kept = sequence.keep_beginning_of(&wish.prompt);
    let most = wish.prompt.len().saturating_add(wish.new_tokens_max);
    let mut written = Written {
        reason: Reason::Stopped,
        prompt_seconds: 0.0,
        token_seconds: 0.0,
        prompt_read: wish.prompt.len() - kept,
    };
    let mut logits = None;
    for tokens in wish.prompt[kept..].chunks(model.tokens_at_a_time()) {
        if !audience.wants_more() {
            written.prompt_read = sequence.len() - kept;
            return Ok(written);
        }
        logits = Some(sequence.read(model, tokens, most)?);
        audience.read(sequence.len());
    }
    let mut logits = logits.expect("a prompt has a token that was not read");
    let mut begin = start;
    for place in 0..wish.new_tokens_max {
        let token = choose(&logits, wish.sampling, place).ok_or(WriteError::NotNumbers { tokens: sequence.len() })?;
        if place == 0 {
            begin = Instant::now();
            written.prompt_seconds = (begin - start).as_secs_f64();
        }
        written.token_seconds = begin.elapsed().as_secs_f64();
        audience.token(token);
        if wish.end_tokens.contains(&token) {
            written.reason = Reason::EndToken;
            return Ok(written);
        }
        if !audience.wants_more() {
            return Ok(written);
        }
        if place + 1 < wish.new_tokens_max {
            logits = sequence.read(model, &[token], most)?;
        }
    }
    written.reason = Reason::Length;
    Ok(written)
}

/// The next token; `None` where a logit that counts is not a number. Waits for the device.
fn choose(logits: &Tensor, sampling: Option<Sampling>, place: usize) -> Option<u32> {
    let Some(sampling) = sampling else {
        let token = logits.argmax(-1, false).int64_value(&[0]); // host sync: reads the token
        let is_number = !logits.double_value(&[0, token]).is_nan(); // NaN counts as the largest
        return is_number.then_some(token as u32);
    };
    let logits = Readback::start(&logits.to_kind(Kind::Float).contiguous()).wait();
    let logits = host::slice::<f32>(&logits);
    (!logits.iter().any(|logit| logit.is_nan())).then(|| sampling.draw(logits, place))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::sequence::NewTokens;
    use super::*;
    use crate::kernels::KeyValueCache;

    /// After token n comes n + 1, of 10; after 9 there are no numbers.
    struct Counter;

    impl LanguageModel for Counter {
        fn caches(&self, _: usize) -> Vec<KeyValueCache> {
            vec![]
        }

        fn extend(&mut self, sequences: &mut [NewTokens]) -> Result<Tensor, CommError> {
            let last = *sequences[0].tokens.last().unwrap() as usize;
            let logits: Vec<f32> =
                (0..10).map(|token| if token == last + 1 { 5.0 } else { token as f32 / 10.0 }).collect();
            let logits = if last == 9 { vec![f32::NAN; 10] } else { logits };
            Ok(Tensor::from_slice(&logits).view([1, 10]).to_device(Device::Cpu))
        }
    }

    struct Heard {
        tokens: Vec<u32>,
        wants: usize,
    }

    impl Audience for Heard {
        fn read(&mut self, _: usize) {}

        fn token(&mut self, token: u32) {
            self.tokens.push(token);
        }

        fn wants_more(&mut self) -> bool {
            self.tokens.len() < self.wants
        }
    }

    fn written(wish: Wish, wants: usize) -> (Vec<u32>, Result<Reason, WriteError>) {
        let mut heard = Heard { tokens: vec![], wants };
        let written = write(&mut Counter, &mut Sequence::default(), &wish, &mut heard);
        (heard.tokens, written.map(|written| written.reason))
    }

    fn wish(prompt: &[u32], new_tokens_max: usize) -> Wish {
        Wish { prompt: prompt.to_vec(), new_tokens_max, ..Wish::default() }
    }

    #[test]
    fn it_ends_with_an_end_token_the_last_that_is_wanted_or_when_nobody_listens() {
        let check = |wish: Wish, wants: usize, tokens: &[u32], reason: Reason| {
            let (found, why) = written(wish, wants);
            assert_eq!((found.as_slice(), why.unwrap()), (tokens, reason));
        };
        check(wish(&[1, 3], 3), 99, &[4, 5, 6], Reason::Length);
        check(Wish { end_tokens: vec![6, 5], ..wish(&[3], 9) }, 99, &[4, 5], Reason::EndToken);
        check(Wish { end_tokens: vec![4], ..wish(&[3], 1) }, 99, &[4], Reason::EndToken);
        check(wish(&[3], 0), 99, &[], Reason::Length);
        check(wish(&[3], 9), 2, &[4, 5], Reason::Stopped);
        check(wish(&[3], 9), 0, &[], Reason::Stopped);
    }

    #[test]
    fn a_model_that_computes_no_numbers_is_an_error_and_no_token() {
        let sampling = Some(Sampling { temperature: 0.01, top_k: 0, top_p: 1.0, seed: 0 });
        for sampling in [None, sampling] {
            let (tokens, why) = written(Wish { sampling, ..wish(&[7], 9) }, 99);
            assert_eq!(tokens, [8, 9]);
            assert!(why.unwrap_err().to_string().starts_with("after 3 tokens the model's logits are not numbers"));
        }
    }
}
