//! What a job's model writes at each validation, to be looked at: the prompts' tokens for the plan, and the texts of the tokens that
//! ranks write.

use std::path::Path;

use proto::config::Validation;
use proto::control;
use proto::plan::SamplesPlan;
use tokenizers::Tokenizer;

use crate::data::{Prompter, continuation, end_tokens};
use crate::error::LaunchError;
use crate::output::metrics::SampleRow;

/// The samples of a job whose model is in `folder` and has so many tokens; `None`: its train.toml names no prompts.
pub fn planned(
    Validation { prompts, sample_tokens, .. }: &Validation,
    folder: &Path,
    vocab_size: usize,
) -> Result<Option<SamplesPlan>, LaunchError> {
    if prompts.0.is_empty() {
        return Ok(None);
    }
    let prompter = Prompter::load(folder, vocab_size, None)?;
    let tokens = prompts.0.iter().map(|prompt| prompter.text(prompt)).collect::<Result<Vec<_>, _>>()?;
    let end_tokens = end_tokens(&[folder], prompter.tokenizer())?.into_iter().collect();
    Ok(Some(SamplesPlan { prompts: prompts.0.clone(), tokens, new_tokens_max: *sample_tokens, end_tokens }))
}

/// Makes texts of what ranks write.
#[derive(Debug)]
pub struct SampleTexts {
    tokenizer: Tokenizer,
    plan: SamplesPlan,
}

impl SampleTexts {
    /// For the samples of a plan, if it has some. `folder`: the model's; `vocab_size`: its tokens.
    pub fn load(plan: Option<&SamplesPlan>, folder: &Path, vocab_size: usize) -> Result<Option<Self>, LaunchError> {
        let Some(plan) = plan else { return Ok(None) };
        let tokenizer = Prompter::load(folder, vocab_size, None)?.tokenizer().clone();
        Ok(Some(Self { tokenizer, plan: plan.clone() }))
    }

    /// The rows of a report: one for each prompt.
    pub fn rows(&self, control::Samples { step, samples }: &control::Samples) -> Vec<SampleRow> {
        let SamplesPlan { prompts, tokens, end_tokens, .. } = &self.plan;
        let row = |((sample, prompt), before): ((&control::Sample, &String), &Vec<u32>)| {
            let written: Vec<u32> = sample.tokens.iter().copied().filter(|token| !end_tokens.contains(token)).collect();
            let text = continuation(&self.tokenizer, before, &written);
            SampleRow { step: *step, prompt: prompt.clone(), text, token_ids: sample.tokens.clone() }
        };
        samples.iter().zip(prompts).zip(tokens).map(row).collect()
    }
}
