//! Which parameters are trained.

use serde::{Deserialize, Serialize};

use super::choices::{Projection, Quantize, SavedModule};

/// Which parameters are trained: `model.trained`, or what `[lora]` adds. The others are frozen: they compute and are gathered as
/// trained ones are, and have no gradients, no masters and no moments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trained {
    /// `"all"`: all of them.
    #[default]
    All,
    /// Those whose Hugging Face name contains one of these, such as `layers.7.` or `lm_head`.
    Containing(Vec<String>),
    /// Adapters, which the model has beside its own parameters then, and the modules that are saved with them.
    Adapter(Adapter),
}

/// The low-rank adapters (LoRA; Hu et al., 2021) of a job: of each target, `y += s (x A^T) B^T`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// Rows of `A`, above 0 once `from` is read.
    pub rank: usize,
    /// See [`Adapter::scale`].
    pub alpha: f64,
    /// Whether that divides by the root of the rank.
    pub rslora: bool,
    /// Whether the lengths of the rows of weight and adapter are trained beside them (DoRA; Liu et al., 2024). Earlier plans and
    /// checkpoints do not say.
    #[serde(default)]
    pub dora: bool,
    /// The projections that have adapters, in the order in which a block has them.
    pub targets: Vec<Projection>,
    /// What is trained whole beside them, in the order of [`SavedModule::all`].
    pub modules_to_save: Vec<SavedModule>,
    /// How the frozen weights of blocks are kept beside them. Earlier plans do not say.
    #[serde(default = "unquantized")]
    pub quantize: Quantize,
}

fn unquantized() -> Quantize {
    Quantize::None
}

impl Adapter {
    /// Ends the name of the magnitudes of a projection's rows, where its weight's ends in `.weight`.
    pub const MAGNITUDE: &str = ".lora_magnitude_vector";

    /// `s`: alpha / rank, or alpha / sqrt(rank) (Kalajdzievski, 2023).
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Whether the parameter of this name is one of an adapter.
    pub fn has(name: &str) -> bool {
        name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight") || name.ends_with(Self::MAGNITUDE)
    }

    /// Whether the parameter of this name is trained, and saved.
    pub fn saves(&self, name: &str) -> bool {
        let mut path = name.rsplit('.');
        let module = (path.next(), path.next()).1;
        Self::has(name) || self.modules_to_save.iter().any(|saved| module == Some(saved.as_str()))
    }
}

impl Trained {
    /// Whether the parameter of this name is trained.
    pub fn includes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Containing(parts) => parts.iter().any(|part| name.contains(part.as_str())),
            Self::Adapter(adapter) => adapter.saves(name),
        }
    }

    /// The adapters, if that is what is trained.
    pub fn adapter(&self) -> Option<&Adapter> {
        match self {
            Self::Adapter(adapter) => Some(adapter),
            Self::All | Self::Containing(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_contains_one_of_the_parts_is_trained() {
        let trained = Trained::Containing(vec!["layers.1.".into(), "lm_head".into()]);
        let is_trained = |name| (trained.includes(name), Trained::All.includes(name));
        assert_eq!(is_trained("model.layers.1.mlp.up_proj.weight"), (true, true));
        assert_eq!(is_trained("model.layers.11.mlp.up_proj.weight"), (false, true));
        assert_eq!(is_trained("lm_head.weight"), (true, true));
        assert!(!Trained::Containing(vec![]).includes("lm_head.weight"));
    }

    #[test]
    fn adapters_and_whole_modules_are_trained_together() {
        let adapter = Adapter {
            rank: 16,
            alpha: 8.0,
            rslora: false,
            dora: false,
            targets: vec![Projection::Q],
            modules_to_save: vec![SavedModule::LmHead, SavedModule::Norm],
            quantize: Quantize::None,
        };
        assert_eq!((adapter.scale(), Adapter { rslora: true, ..adapter.clone() }.scale()), (0.5, 2.0));
        let trained = Trained::Adapter(adapter);
        for name in ["model.layers.0.self_attn.q_proj.lora_A.weight", "lm_head.weight", "model.norm.weight"] {
            assert!(trained.includes(name), "{name}");
        }
        for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"] {
            assert!(!trained.includes(name), "{name}");
        }
    }
}
