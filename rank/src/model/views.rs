//! Views a unit's flat buffer as the weights that the model's code takes. Adjacent parameters that the model uses as
//! one matrix (q, k and v; gate and up) are one view.
//!
//! Whoever has the memory gives views of it. Gradients are viewed alike; that of a frozen parameter, which has none, is an
//! undefined tensor, as in autograd.

use proto::layout::{ParamLayout, UnitKind, UnitLayout};
use proto::plan::{Matmul, ModelPlan};
use tch::Tensor;

use super::adapter::{AdapterPart, AdapterWeights};
use super::attention::AttentionWeights;
use super::block::BlockWeights;
use super::embedding::EmbeddingWeights;
use super::feed_forward::{DenseWeights, FeedForwardWeights, MixingWeights};
use super::head::HeadWeights;
use super::linear::LinearWeights;
use super::quantized::QuantizedWeight;
use crate::kernels::QuantizedMatrix;

/// The weights (or gradients) of one unit.
#[derive(Debug)]
pub enum UnitViews {
    /// Of the embedding.
    Embedding(EmbeddingWeights),
    /// Of a block.
    Block(Box<BlockWeights>),
    /// Of the head.
    Head {
        /// `[D]`
        norm: Tensor,
        /// `[V/tp, D]`; `None` when it is the embedding's matrix.
        lm_head: Option<Tensor>,
    },
}

/// What the projections of all blocks have in common.
#[derive(Debug, Clone, Copy)]
pub struct Projections {
    /// How activations are multiplied by their weights.
    pub matmul: Matmul,
    /// What their adapters' output is multiplied by.
    pub adapter_scale: f64,
}

impl Projections {
    /// Without adapters, in the type of activations.
    pub const PLAIN: Self = Self { matmul: Matmul::Bf16, adapter_scale: 1.0 };

    /// As a plan says.
    pub fn of(model: &ModelPlan) -> Self {
        Self { matmul: model.matmul, adapter_scale: model.trained.adapter().map_or(1.0, |adapter| adapter.scale()) }
    }
}

impl UnitViews {
    /// The weights of the unit that `layout` describes. `projections`: of a block.
    ///
    /// `view`: gives the tensor of a shape over the elements of the flat buffer from an offset on, dense and not copied.
    pub fn weights(layout: &UnitLayout, projections: Projections, view: impl Fn(usize, &[usize]) -> Tensor) -> Self {
        Self::packed(layout, projections, None, view)
    }

    /// As [`UnitViews::weights`]. `packed`: the bytes of what is kept in few bits, `[bytes]` uint8, if anything is.
    pub fn packed(
        layout: &UnitLayout,
        projections: Projections,
        packed: Option<&Tensor>,
        view: impl Fn(usize, &[usize]) -> Tensor,
    ) -> Self {
        Self::new(layout, projections, packed, |param, shape| {
            assert!(param.packed.is_none(), "{} lies in no flat buffer", param.name);
            view(param.offset, shape)
        })
    }

    /// The gradients of the unit that `layout` describes. `view`: as for weights, over the buffer of gradients.
    pub fn gradients(layout: &UnitLayout, view: impl Fn(usize, &[usize]) -> Tensor) -> Self {
        let view = |param: &ParamLayout, shape: &[usize]| match param.is_trained {
            true => view(param.offset, shape),
            false => Tensor::new(),
        };
        Self::new(layout, Projections::PLAIN, None, view)
    }

    /// `view`: gives the tensor of a shape that begins where the parameter does.
    fn new(
        layout: &UnitLayout,
        projections: Projections,
        packed: Option<&Tensor>,
        view: impl Fn(&ParamLayout, &[usize]) -> Tensor,
    ) -> Self {
        let unit = UnitView { layout, projections, packed, view };
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
    /// The embedding's weights.
    pub fn embedding(&self) -> &EmbeddingWeights {
        match self {
            Self::Embedding(weights) => weights,
            _ => panic!("not the embedding"),
        }
    }

    /// A block's weights.
    pub fn block(&self) -> &BlockWeights {
        match self {
            Self::Block(weights) => weights,
            _ => panic!("not a block"),
        }
    }

    /// The head's weights. `tied`: the embedding, which has the matrix if the head has none.
    pub fn head(&self, tied: &Self) -> HeadWeights {
        match self {
            Self::Head { norm, lm_head } => {
                let lm_head = lm_head.as_ref().unwrap_or_else(|| &tied.embedding().weight);
                HeadWeights { norm: norm.shallow_clone(), lm_head: lm_head.shallow_clone() }
            }
            _ => panic!("not the head"),
        }
    }
}

struct UnitView<'a, V> {
    layout: &'a UnitLayout,
    projections: Projections,
    packed: Option<&'a Tensor>,
    view: V,
}

impl<V: Fn(&ParamLayout, &[usize]) -> Tensor> UnitView<'_, V> {
    fn block(&self) -> BlockWeights {
        BlockWeights {
            attention: AttentionWeights {
                norm: self.param("input_layernorm.weight"),
                qkv: self.linear(&["q_proj", "k_proj", "v_proj"]),
                output: self.linear(&["o_proj"]),
            },
            feed_forward: FeedForwardWeights {
                norm: self.param("post_attention_layernorm.weight"),
                mixing: MixingWeights::Dense(DenseWeights {
                    gate_up: self.linear(&["gate_proj", "up_proj"]),
                    down: self.linear(&["down_proj"]),
                }),
            },
        }
    }

    /// Projections that are adjacent in the buffer, as one.
    fn linear(&self, names: &[&str]) -> LinearWeights {
        let params = |what: &str| -> Vec<&ParamLayout> {
            names.iter().filter_map(|name| self.find(&format!("{name}.{what}"))).collect()
        };
        let biases = params("bias");
        let weights = params("weight");
        let quantized = self.quantized(&weights);
        LinearWeights {
            weight: if quantized.is_some() { Tensor::new() } else { self.joined(&weights) },
            quantized,
            bias: (!biases.is_empty()).then(|| self.joined(&biases)),
            matmul: self.projections.matmul,
            adapter: self.adapter(names, &params("lora_A.weight")),
        }
    }

    /// The adapters of projections that are one matrix, if any of them has one. `a`: their first matrices.
    fn adapter(&self, names: &[&str], a: &[&ParamLayout]) -> Option<AdapterWeights> {
        let (mut parts, mut start) = (Vec::new(), 0);
        for name in names {
            let rows = self.layout.param(&format!("{name}.weight"));
            let rows = if rows.is_transposed { rows.shape[1] } else { rows.shape[0] };
            let rows = start..start + rows as i64;
            start = rows.end;
            if let Some(b) = self.find(&format!("{name}.lora_B.weight")) {
                let magnitude = self.optional(&format!("{name}.lora_magnitude_vector"));
                parts.push(AdapterPart { rows, b: self.joined(&[b]), magnitude });
            }
        }
        (!parts.is_empty()).then(|| AdapterWeights { a: self.joined(a), parts, scale: self.projections.adapter_scale })
    }

    /// Weights in few bits, if these are.
    fn quantized(&self, params: &[&ParamLayout]) -> Option<QuantizedWeight> {
        let part = |param: &&ParamLayout| {
            let (matrix, bytes) = (param.packed.clone()?, self.packed?);
            let bytes = bytes.narrow(0, matrix.start as i64, matrix.bytes() as i64);
            Some(QuantizedMatrix { matrix, bytes })
        };
        let parts = params.iter().map(part).collect::<Option<Vec<_>>>()?;
        Some(QuantizedWeight { parts })
    }

    fn find(&self, suffix: &str) -> Option<&ParamLayout> {
        self.layout.params.iter().find(|param| param.name.ends_with(suffix))
    }

    /// One view of several parameters, stacked along their first dim, as `[out, in]`. They lie side by side (`LAY-1`), and
    /// are trained or frozen together.
    fn joined(&self, params: &[&ParamLayout]) -> Tensor {
        for pair in params.windows(2).filter(|pair| pair[0].packed.is_none()) {
            assert_eq!(pair[0].offset + pair[0].numel(), pair[1].offset, "{} and {}", pair[0].name, pair[1].name);
        }
        let mut shape = params[0].shape.clone();
        shape[0] = params.iter().map(|param| param.shape[0]).sum();
        let stored = (self.view)(params[0], &shape);
        if params[0].is_transposed && stored.defined() { stored.tr() } else { stored }
    }

    fn param(&self, suffix: &str) -> Tensor {
        self.joined(&[self.layout.param(suffix)])
    }

    fn optional(&self, suffix: &str) -> Option<Tensor> {
        self.find(suffix).map(|param| self.joined(&[param]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::layout::{TensorSplit, model_layout};
    use proto::model_config::ModelConfig;
    use tch::Kind;

    fn units(extra: &str) -> Vec<UnitLayout> {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
                "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10 {extra}}}"#
        );
        model_layout(&ModelConfig::parse("config.json".as_ref(), &text).unwrap(), TensorSplit::WHOLE)
    }

    /// Views of a buffer that holds its own offsets, in fp64: no number is rounded.
    fn views(layout: &UnitLayout) -> UnitViews {
        let flat = Tensor::arange(layout.numel() as i64, (Kind::Double, tch::Device::Cpu));
        UnitViews::weights(layout, Projections::PLAIN, |offset, shape| {
            let numel = shape.iter().product::<usize>() as i64;
            let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
            flat.narrow(0, offset as i64, numel).view(shape.as_slice())
        })
    }

    /// The parameter as it is on disk, taken from the offsets.
    fn expected(layout: &UnitLayout, suffix: &str) -> Tensor {
        let param = layout.param(suffix);
        let stored = Tensor::arange(param.numel() as i64, (Kind::Double, tch::Device::Cpu)) + param.offset as f64;
        let shape: Vec<i64> = param.shape.iter().map(|&size| size as i64).collect();
        let stored = stored.view(shape.as_slice());
        if param.is_transposed { stored.tr() } else { stored }
    }

    fn check(layout: &UnitLayout, got: &Tensor, suffixes: &[&str]) {
        let parts: Vec<Tensor> = suffixes.iter().map(|suffix| expected(layout, suffix)).collect();
        let expected = Tensor::cat(&parts, 0);
        assert!(got.size() == expected.size() && got.equal(&expected), "{suffixes:?}");
    }

    #[test]
    fn each_parameter_is_a_view_of_its_own_range() {
        let units = units(r#", "attention_bias": true, "mlp_bias": true"#);
        check(&units[0], &views(&units[0]).embedding().weight, &["embed_tokens.weight"]);
        let block = &units[1];
        let views_of_block = views(block);
        let BlockWeights { attention, feed_forward } = views_of_block.block();
        check(block, &attention.norm, &["input_layernorm.weight"]);
        check(block, &attention.qkv.weight, &["q_proj.weight", "k_proj.weight", "v_proj.weight"]);
        check(block, attention.qkv.bias.as_ref().unwrap(), &["q_proj.bias", "k_proj.bias", "v_proj.bias"]);
        check(block, &attention.output.weight, &["o_proj.weight"]);
        check(block, attention.output.bias.as_ref().unwrap(), &["o_proj.bias"]);
        check(block, &feed_forward.norm, &["post_attention_layernorm.weight"]);
        let MixingWeights::Dense(dense) = &feed_forward.mixing;
        check(block, &dense.gate_up.weight, &["gate_proj.weight", "up_proj.weight"]);
        check(block, dense.gate_up.bias.as_ref().unwrap(), &["gate_proj.bias", "up_proj.bias"]);
        check(block, &dense.down.weight, &["down_proj.weight"]);
        check(block, dense.down.bias.as_ref().unwrap(), &["down_proj.bias"]);
        let head = views(&units[2]).head(&views(&units[0]));
        check(&units[2], &head.norm, &["model.norm.weight"]);
        check(&units[2], &head.lm_head, &["lm_head.weight"]);
    }

    #[test]
    fn a_tied_head_takes_the_embeddings_matrix() {
        let units = units(r#", "tie_word_embeddings": true"#);
        let (embedding, head) = (views(&units[0]), views(&units[2]));
        let lm_head = head.head(&embedding).lm_head;
        assert_eq!(lm_head.data_ptr(), embedding.embedding().weight.data_ptr());
    }
}
