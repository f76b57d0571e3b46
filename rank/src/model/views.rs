//! A unit's flat buffer as the weights that the model's code takes. Adjacent parameters that the model uses as one
//! matrix (q, k and v; gate and up) are one view.

use proto::layout::{ParamLayout, UnitKind, UnitLayout};
use tch::Tensor;

use crate::flat::FlatBuffer;
use crate::model::{AttentionWeights, BlockWeights, EmbeddingWeights, FeedForwardWeights, LinearWeights};

/// The weights (or gradients) of one unit.
pub(super) enum UnitViews {
    Embedding(EmbeddingWeights),
    Block(Box<BlockWeights>),
    /// `lm_head` is `None` when it is the embedding's matrix.
    Head {
        norm: Tensor,
        lm_head: Option<Tensor>,
    },
}

impl UnitViews {
    pub fn new(layout: &UnitLayout, flat: &FlatBuffer) -> Self {
        let unit = UnitView { layout, flat };
        match layout.kind {
            UnitKind::Embedding => Self::Embedding(EmbeddingWeights { weight: unit.param("weight") }),
            UnitKind::Block => Self::Block(Box::new(unit.block())),
            UnitKind::Head => {
                Self::Head { norm: unit.param("model.norm.weight"), lm_head: unit.optional("lm_head.weight") }
            }
        }
    }
}

/// Each unit's code asks for its own kind; another one is a bug.
impl UnitViews {
    pub fn embedding(&self) -> &EmbeddingWeights {
        match self {
            Self::Embedding(weights) => weights,
            _ => panic!("not the embedding"),
        }
    }

    pub fn block(&self) -> &BlockWeights {
        match self {
            Self::Block(weights) => weights,
            _ => panic!("not a block"),
        }
    }

    /// Norm and lm_head; the latter is `None` when it is the embedding's matrix.
    pub fn head(&self) -> (&Tensor, Option<&Tensor>) {
        match self {
            Self::Head { norm, lm_head } => (norm, lm_head.as_ref()),
            _ => panic!("not the head"),
        }
    }
}

struct UnitView<'a> {
    layout: &'a UnitLayout,
    flat: &'a FlatBuffer,
}

impl UnitView<'_> {
    fn block(&self) -> BlockWeights {
        BlockWeights {
            attention: AttentionWeights {
                norm: self.param("input_layernorm.weight"),
                qkv: self.linear(&["q_proj", "k_proj", "v_proj"]),
                output: self.linear(&["o_proj"]),
            },
            feed_forward: FeedForwardWeights {
                norm: self.param("post_attention_layernorm.weight"),
                gate_up: self.linear(&["gate_proj", "up_proj"]),
                down: self.linear(&["down_proj"]),
            },
        }
    }

    /// Projections that are adjacent in the buffer, as one.
    fn linear(&self, names: &[&str]) -> LinearWeights {
        let params = |what: &str| -> Vec<&ParamLayout> {
            let suffixes = names.iter().map(|name| format!("{name}.{what}"));
            suffixes.filter_map(|suffix| self.layout.params.iter().find(|p| p.name.ends_with(&suffix))).collect()
        };
        let biases = params("bias");
        LinearWeights {
            weight: self.joined(&params("weight")),
            bias: (!biases.is_empty()).then(|| self.joined(&biases)),
        }
    }

    /// One view of several parameters, stacked along their first dim, as `[out, in]`. They lie side by side (`LAY-1`).
    fn joined(&self, params: &[&ParamLayout]) -> Tensor {
        for pair in params.windows(2) {
            assert_eq!(pair[0].offset + pair[0].numel(), pair[1].offset, "{} and {}", pair[0].name, pair[1].name);
        }
        let mut shape = params[0].shape.clone();
        shape[0] = params.iter().map(|param| param.shape[0]).sum();
        let stored = self.flat.view(params[0].offset, &shape);
        if params[0].is_transposed { stored.tr() } else { stored }
    }

    fn param(&self, suffix: &str) -> Tensor {
        self.joined(&[self.layout.param(suffix)])
    }

    fn optional(&self, suffix: &str) -> Option<Tensor> {
        self.layout.params.iter().find(|param| param.name.ends_with(suffix)).map(|param| self.joined(&[param]))
    }
}
