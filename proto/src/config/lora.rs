//! `[lora]`: adapters that are trained beside a frozen model.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::choices::{AutoOr, Projection, Quantize, SavedModule};
use super::keys::Keys;
use super::read::{above, at_least};
use super::trained::Adapter;

/// The largest rank: no matrix that it is for is larger.
const RANK_MAX: u64 = 65_536;

/// `[lora]`: low-rank adapters (Hu et al., 2021).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rank of each adapter; 0: there are none, unless `from` is set. Default: 0.
    pub rank: u64,
    /// What adapters add is multiplied by alpha / rank. Default: auto, twice the rank.
    pub alpha: AutoOr<f64>,
    /// The share of an adapter's input that is left out in training, from 0 to below 1. Default: 0.0.
    pub dropout: f64,
    /// The projections that have adapters. Default: all of a block's.
    pub targets: Targets,
    /// Whether alpha is divided by the root of the rank instead (Kalajdzievski, 2023). Default: false.
    pub rslora: bool,
    /// Whether magnitudes are trained beside directions (Liu et al., 2024). Default: false.
    pub dora: bool,
    /// Parts of the model that are trained whole. Default: none.
    pub modules_to_save: Vec<SavedModule>,
    /// The folder of the PEFT adapter that training begins with. Default: none, adapters that change nothing yet.
    pub from: Option<PathBuf>,
    /// The type in which frozen weights are kept. Default: that of weights and activations.
    pub quantize: Quantize,
}

/// `lora.targets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Targets {
    /// `"all-linear"`: every projection of a block.
    AllLinear,
    /// These.
    Named(Vec<Projection>),
}

impl Targets {
    /// The projections, in the order in which a block has them.
    pub fn projections(&self) -> Vec<Projection> {
        match self {
            Self::AllLinear => Projection::all().collect(),
            Self::Named(named) => Projection::all().filter(|projection| named.contains(projection)).collect(),
        }
    }
}

impl Lora {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Lora {
            rank: keys.within("rank", 0, 0..=RANK_MAX),
            alpha: keys.within("alpha", AutoOr::Auto, above(0.0)),
            dropout: keys.within("dropout", 0.0, at_least(0.0).below(1.0)),
            targets: keys.or("targets", Targets::AllLinear),
            rslora: keys.or("rslora", false),
            dora: keys.or("dora", false),
            modules_to_save: keys.or("modules_to_save", vec![]),
            from: keys.optional("from", ()),
            quantize: keys.or("quantize", Quantize::None),
        }
    }

    /// Whether the job trains adapters.
    pub fn is_on(&self) -> bool {
        self.rank > 0 || self.from.is_some()
    }

    /// The adapters that it trains. Those of `from` are known once [`Lora::take_over`] has been called.
    pub fn adapter(&self) -> Adapter {
        Adapter {
            rank: self.rank as usize,
            alpha: match self.alpha {
                AutoOr::Auto => 2.0 * self.rank as f64,
                AutoOr::Given(alpha) => alpha,
            },
            rslora: self.rslora,
            dora: self.dora,
            targets: self.targets.projections(),
            modules_to_save: SavedModule::all().filter(|module| self.modules_to_save.contains(module)).collect(),
            quantize: self.quantize,
        }
    }

    /// Becomes what the adapter of `from` is. How frozen weights are kept is the job's to say.
    pub fn take_over(&mut self, adapter: &Adapter) {
        self.rank = adapter.rank as u64;
        self.alpha = AutoOr::Given(adapter.alpha);
        self.rslora = adapter.rslora;
        self.dora = adapter.dora;
        self.targets = Targets::Named(adapter.targets.clone());
        self.modules_to_save = adapter.modules_to_save.clone();
    }
}
