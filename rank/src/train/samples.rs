//! Samples: what the model writes for the plan's prompts at a validation, so that somebody can look at it.

use comm::CommError;
use proto::control::report_request::Event;
use proto::control::{Sample, Samples};
use tch::Tensor;

use super::{TrainError, Trainer};
use crate::control::Control;
use crate::device::Device;
use crate::engine::Engine;
use crate::generate::{
    Audience, LanguageModel, NewBatch, NewTokens, READ_AT_A_TIME, Sequence, Wish, WriteError, write,
};
use crate::kernels::KeyValueCache;

impl Trainer {
    /// Writes them, the most likely token each time, and reports them. Every rank calls it: their tokens are the same.
    pub(super) fn write_samples(&mut self, step: u64, control: &Control) -> Result<(), TrainError> {
        let plan = self.plan.clone();
        let Some(of_plan) = &plan.samples else { return Ok(()) };
        let mut samples = vec![];
        for prompt in &of_plan.tokens {
            control.heartbeat(step, "validate");
            let is_alone = self.ranks.groups.dp.size() == 1;
            let wish = Wish {
                prompt: prompt.clone(),
                new_tokens_max: of_plan.new_tokens_max as usize,
                // Ranks that gather weights for each other all do it equally often, whatever each of them computes.
                end_tokens: if is_alone { of_plan.end_tokens.clone() } else { vec![] },
                sampling: None,
            };
            let mut written = Written(vec![]);
            match write(&mut self.engine, &mut Sequence::default(), &wish, &mut written) {
                // Of a model that computes no numbers the loss says enough.
                Ok(_) | Err(WriteError::NotNumbers { .. }) => {}
                Err(WriteError::Comm(error)) => return Err(error.into()),
            }
            samples.push(Sample { tokens: up_to_the_end(written.0, &of_plan.end_tokens) });
        }
        if self.is_first {
            control.report(Event::Samples(Samples { step, samples }));
        }
        Ok(())
    }
}

/// The tokens up to the first that ends a text.
fn up_to_the_end(mut tokens: Vec<u32>, ends: &[u32]) -> Vec<u32> {
    if let Some(end) = tokens.iter().position(|token| ends.contains(token)) {
        tokens.truncate(end + 1);
    }
    tokens
}

/// Keeps what is written.
struct Written(Vec<u32>);

impl Audience for Written {
    fn read(&mut self, _: usize) {}

    fn token(&mut self, token: u32) {
        self.0.push(token);
    }

    fn wants_more(&mut self) -> bool {
        true
    }
}

/// The model that is trained. Every rank of the job reads the same tokens at the same time.
impl LanguageModel for Engine {
    fn caches(&self, capacity: usize) -> Vec<KeyValueCache> {
        Engine::caches(self, capacity as i64)
    }

    fn tokens_at_a_time(&self) -> usize {
        self.most_new_tokens().map_or(READ_AT_A_TIME, |most| most.min(READ_AT_A_TIME))
    }

    fn extend(&mut self, sequences: &mut [NewTokens]) -> Result<Tensor, CommError> {
        let _guard = tch::no_grad_guard();
        let batch = NewBatch::of(sequences, Device::of_thread().of_tensors());
        let mut caches: Vec<&mut [KeyValueCache]> =
            sequences.iter_mut().map(|sequence| &mut *sequence.caches).collect();
        Engine::extend(self, &batch.tokens, &batch.samples, &mut caches, |rows| batch.last_rows(rows))
    }
}
