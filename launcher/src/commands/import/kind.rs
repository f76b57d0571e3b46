//! Tells whose configuration a file is, by keys that only one tool has. Pure.

use std::fmt;

use clap::ValueEnum;

use crate::commands::mapping::document::Node;

/// The tool that a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// axolotl's YAML
    Axolotl,
    /// LLaMA-Factory's YAML
    #[value(name = "llamafactory")]
    LlamaFactory,
    /// transformers' TrainingArguments or TRL's SFTConfig, as JSON
    Hf,
    /// DeepSpeed's JSON
    Deepspeed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Axolotl => "axolotl",
            Self::LlamaFactory => "LLaMA-Factory",
            Self::Hf => "transformers",
            Self::Deepspeed => "DeepSpeed",
        })
    }
}

/// Keys that only one tool has.
const MARKS: [(Kind, &[&str]); 4] = [
    (
        Kind::Axolotl,
        &[
            "base_model",
            "sequence_len",
            "datasets",
            "num_epochs",
            "micro_batch_size",
            "sample_packing",
            "val_set_size",
            "pretraining_dataset",
            "lora_target_linear",
        ],
    ),
    (
        Kind::LlamaFactory,
        &[
            "stage",
            "finetuning_type",
            "cutoff_len",
            "template",
            "dataset",
            "dataset_dir",
            "lora_rank",
            "val_size",
            "export_dir",
            "infer_backend",
        ],
    ),
    (
        Kind::Hf,
        &[
            "num_train_epochs",
            "per_device_train_batch_size",
            "lr_scheduler_type",
            "optim",
            "adam_beta1",
            "output_dir",
            "max_seq_length",
            "assistant_only_loss",
            "max_length",
        ],
    ),
    (
        Kind::Deepspeed,
        &[
            "zero_optimization",
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "zero_allow_untested_optimizer",
            "gradient_clipping",
            "wall_clock_breakdown",
            "steps_per_print",
        ],
    ),
];

/// Keys of LLaMA-Factory's newer configurations, of which nothing else is known here.
const NEWER: [&str; 3] = ["model_class", "train_dataset", "dist_config"];

/// Whose it is, or why that is not clear.
pub(super) fn tell(config: &Node) -> Result<Kind, String> {
    let has = |key: &&&str| config.keys().iter().any(|(name, _)| name == **key);
    let found: Vec<(Kind, Vec<&str>)> = MARKS
        .iter()
        .map(|(kind, marks)| (*kind, marks.iter().filter(has).copied().collect::<Vec<_>>()))
        .filter(|(_, marks)| !marks.is_empty())
        .collect();
    let says = |kinds: &[(Kind, Vec<&str>)]| {
        let each = kinds.iter().map(|(kind, marks)| {
            format!("{} {} {kind}'s", marks.join(", "), if marks.len() == 1 { "is" } else { "are" })
        });
        each.collect::<Vec<_>>().join("; ")
    };
    // LLaMA-Factory has all of transformers' keys, and axolotl some.
    let own: Vec<_> = found.iter().filter(|(kind, _)| *kind != Kind::Hf).cloned().collect();
    match (&own[..], &found[..]) {
        _ if NEWER.iter().any(|key| has(&key)) && !["base_model", "model_name_or_path"].iter().any(|key| has(&key)) => {
            let keys = NEWER.join(", ");
            Err(format!("it looks like a configuration of LLaMA-Factory's newer trainer ({keys}), which is not known"))
        }
        ([(kind, _)], _) | ([], [(kind, _)]) => Ok(*kind),
        ([], _) => Err("it has no key by which a tool is known: say whose it is by --from".to_owned()),
        (several, _) => Err(format!("it is not clear whose it is ({}): say it by --from", says(several))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_known_by_its_own_keys() {
        let check = |text: &str, expected: Result<Kind, &str>| {
            let told = tell(&Node::parse(text.as_bytes()).unwrap());
            match expected {
                Ok(kind) => assert_eq!(told, Ok(kind), "{text}"),
                Err(part) => assert!(told.as_ref().is_err_and(|why| why.contains(part)), "{text}: {told:?}"),
            }
        };
        check(r#"{"base_model": "x", "output_dir": "y", "deepspeed": "z"}"#, Ok(Kind::Axolotl));
        check(r#"{"model_name_or_path": "x", "stage": "sft", "num_train_epochs": 3}"#, Ok(Kind::LlamaFactory));
        check(r#"{"num_train_epochs": 3, "fp16": true}"#, Ok(Kind::Hf));
        check(r#"{"zero_optimization": {"stage": 2}}"#, Ok(Kind::Deepspeed));
        check(r#"{"a": 1}"#, Err("no key by which"));
        check(r#"{"base_model": "x", "cutoff_len": 3}"#, Err("base_model is axolotl's; cutoff_len is LLaMA-Factory's"));
        check(r#"{"model": "x", "model_class": "llm", "train_dataset": "y"}"#, Err("newer trainer"));
    }
}
