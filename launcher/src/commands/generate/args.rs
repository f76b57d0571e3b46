//! The arguments of `dslaunch generate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use proto::generate::Sampling;

/// Continue texts with a model, or talk with it
///
/// Prompts come from --prompt, from a file (--prompts), or line by line from standard input where that is no terminal. What is written
/// goes to standard output as it comes, and the speed to standard error at the end. Ctrl-C ends a text, twice ends dslaunch.
/// Exit codes: 0 done; 1 the rank failed; 2 bad usage, or a folder that is no model; 3 the machine cannot do it; 130 stopped by Ctrl-C,
/// 143 by SIGTERM.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct GenerateArgs {
    /// The model: a Hugging Face folder, a checkpoint or final/ of a run, or an adapter's folder
    #[arg(value_name = "MODEL_DIR")]
    pub model: PathBuf,
    /// The model that an adapter was trained beside, if it is not where the adapter says
    #[arg(long, value_name = "MODEL_DIR")]
    pub base: Option<PathBuf>,
    /// A text to go on from; may be given several times
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts", allow_hyphen_values = true)]
    pub prompt: Vec<String>,
    /// A file with a text to go on from in each line
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Talk by the model's chat template: prompts are messages of one conversation, and each line of --prompts begins another
    #[arg(long)]
    pub chat: bool,
    /// The system message of a conversation
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// A chat template other than the model's own: a file, or the name of a built-in one
    #[arg(long, value_name = "NAME|FILE", requires = "chat", default_value = "auto")]
    pub chat_template: String,
    /// The most tokens that are written for a prompt [default: 256, and 1024 with --chat]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: Option<u32>,
    /// Draw tokens at this temperature; 0 takes the most likely one
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub temperature: f64,
    /// Draw from the fewest tokens that are this likely together
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = top_p, requires = "temperature")]
    pub top_p: f64,
    /// Draw from the K most likely tokens; 0: from all
    #[arg(long, value_name = "K", default_value_t = 0, requires = "temperature")]
    pub top_k: u32,
    /// Of the draws: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 42, requires = "temperature")]
    pub seed: u64,
    /// End where this text comes, without it; may be given several times
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub stop: Vec<String>,
    /// Print a line of JSON for each prompt: prompt, text, token_ids, finish_reason, tokens_per_second and what else is known
    #[arg(long)]
    pub json: bool,
    /// What the model computes on; auto: a GPU where there is one
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// The type of weights and activations; auto: bf16 on a GPU, fp32 on a CPU
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub dtype: DtypeArg,
}

/// No number here is NaN.
impl Eq for GenerateArgs {}

/// `--device`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// A GPU where there is one.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU.
    Cuda,
}

/// `--dtype`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// What suits the device.
    Auto,
    /// bfloat16.
    Bf16,
    /// Single precision.
    Fp32,
}

impl GenerateArgs {
    /// The most tokens that are written for a prompt.
    pub fn new_tokens_max(&self) -> usize {
        self.max_new_tokens.unwrap_or(if self.chat { 1024 } else { 256 }) as usize
    }

    /// The chat template, if one is needed.
    pub fn template(&self) -> Option<&str> {
        self.chat.then_some(self.chat_template.as_str())
    }

    /// How tokens of the prompt of number `place`, from 0, are drawn, if they are: each prompt has draws of its own.
    pub fn sampling(&self, place: u64) -> Option<Sampling> {
        let Self { temperature, top_k, top_p, seed, .. } = *self;
        let seed = seed.wrapping_add(place);
        (temperature > 0.0).then_some(Sampling { temperature, top_k: u64::from(top_k), top_p, seed })
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text).filter(|number| *number >= 0.0).ok_or_else(|| "is no number from 0 on".to_owned())
}

fn top_p(text: &str) -> Result<f64, String> {
    let is_share = |number: &f64| *number > 0.0 && *number <= 1.0;
    number(text).filter(is_share).ok_or_else(|| "is no number from above 0 to 1".to_owned())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    fn args(line: &str) -> GenerateArgs {
        match parse(&format!("generate {line}")) {
            Ok(Task::Generate(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn tokens_are_drawn_only_at_a_temperature() {
        assert_eq!(args("m --prompt x").sampling(0), None);
        let drawn = args("m --prompt x --temperature 0.7 --top-p 0.9 --top-k 40 --seed 5").sampling(2);
        assert_eq!(drawn, Some(Sampling { temperature: 0.7, top_k: 40, top_p: 0.9, seed: 7 }));
        for alone in ["--top-p 0.5", "--top-k 4", "--seed 1"] {
            let found = parse(&format!("generate m --prompt x {alone}"));
            assert_eq!(found, Err(ErrorKind::MissingRequiredArgument), "{alone}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_bad_usage() {
        let check = |line: &str, kind: ErrorKind| assert_eq!(parse(&format!("generate {line}")), Err(kind), "{line}");
        check("", ErrorKind::MissingRequiredArgument);
        check("m --prompt a --prompts f", ErrorKind::ArgumentConflict);
        check("m --system x --prompt a", ErrorKind::MissingRequiredArgument);
        check("m --max-new-tokens 0", ErrorKind::ValueValidation);
        for temperature in ["-1", "nan", "inf", "x"] {
            check(&format!("m --temperature={temperature}"), ErrorKind::ValueValidation);
        }
        for top_p in ["0", "1.01", "nan"] {
            check(&format!("m --temperature 1 --top-p={top_p}"), ErrorKind::ValueValidation);
        }
        check("m --dtype fp16", ErrorKind::InvalidValue);
        assert_eq!(
            (args("m --prompt -x --stop -y").prompt, args("m --stop -y").stop),
            (vec!["-x".to_owned()], vec!["-y".to_owned()])
        );
        assert_eq!((args("m").new_tokens_max(), args("m --chat").new_tokens_max()), (256, 1024));
        assert_eq!((args("m").template(), args("m --chat").template()), (None, Some("auto")));
    }
}
