//! Which parameters a unit owns, by their Hugging Face names, and where each lies in the unit's flat buffer. Pure.
//!
//! - `LAY-1` parameters lie without gaps in the order listed, so that q, k and v (and gate and up) form one matrix and
//!   one matrix product each.

use crate::model_config::ModelConfig;

/// What a unit computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitKind {
    /// Token embedding.
    Embedding,
    /// One transformer block.
    Block,
    /// Final norm, lm_head and loss.
    Head,
}

/// The parameters of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitLayout {
    /// Name in checkpoints: `embed_tokens`, `layers.7`, `head`.
    pub name: String,
    /// What it computes.
    pub kind: UnitKind,
    /// In the order of the flat buffer.
    pub params: Vec<ParamLayout>,
}

/// One parameter in a unit's flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamLayout {
    /// Hugging Face name, as in safetensors files.
    pub name: String,
    /// Shape on disk.
    pub shape: Vec<usize>,
    /// Index of its first element in the flat buffer.
    pub offset: usize,
}

impl ParamLayout {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Weight decay is for matrices: not for norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

impl UnitLayout {
    /// Number of elements of all parameters.
    pub fn numel(&self) -> usize {
        self.params.last().map_or(0, |param| param.offset + param.numel())
    }

    /// The parameter whose name ends in `suffix`. Panics if there is none: the unit's own code asks.
    pub fn param(&self, suffix: &str) -> &ParamLayout {
        let found = self.params.iter().find(|param| param.name.ends_with(suffix));
        found.unwrap_or_else(|| panic!("unit {} has no parameter {suffix}", self.name))
    }
}

/// All units of a model: embedding, blocks, head. A tied lm_head belongs to the embedding alone.
pub fn model_layout(config: &ModelConfig) -> Vec<UnitLayout> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let mut units = vec![unit(
        "embed_tokens".into(),
        UnitKind::Embedding,
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden])],
    )];
    for layer in 0..config.num_hidden_layers {
        units.push(unit(format!("layers.{layer}"), UnitKind::Block, block_params(config, layer)));
    }
    let mut head = vec![("model.norm.weight".into(), vec![hidden])];
    if !config.tie_word_embeddings {
        head.push(("lm_head.weight".into(), vec![vocab, hidden]));
    }
    units.push(unit("head".into(), UnitKind::Head, head));
    units
}

fn block_params(config: &ModelConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (query, key_value) = (config.query_size(), config.key_value_size());
    let mut params = vec![];
    let mut add = |suffix: &str, shape: &[usize]| params.push((format!("model.layers.{layer}.{suffix}"), shape.into()));
    add("input_layernorm.weight", &[hidden]);
    add("self_attn.q_proj.weight", &[query, hidden]);
    add("self_attn.k_proj.weight", &[key_value, hidden]);
    add("self_attn.v_proj.weight", &[key_value, hidden]);
    if config.attention_bias {
        add("self_attn.q_proj.bias", &[query]);
        add("self_attn.k_proj.bias", &[key_value]);
        add("self_attn.v_proj.bias", &[key_value]);
    }
    add("self_attn.o_proj.weight", &[hidden, query]);
    if config.attention_bias {
        add("self_attn.o_proj.bias", &[hidden]);
    }
    add("post_attention_layernorm.weight", &[hidden]);
    add("mlp.gate_proj.weight", &[ffn, hidden]);
    add("mlp.up_proj.weight", &[ffn, hidden]);
    if config.mlp_bias {
        add("mlp.gate_proj.bias", &[ffn]);
        add("mlp.up_proj.bias", &[ffn]);
    }
    add("mlp.down_proj.weight", &[hidden, ffn]);
    if config.mlp_bias {
        add("mlp.down_proj.bias", &[hidden]);
    }
    params
}

fn unit(name: String, kind: UnitKind, params: Vec<(String, Vec<usize>)>) -> UnitLayout {
    let mut offset = 0;
    let params = params
        .into_iter()
        .map(|(name, shape)| {
            let param = ParamLayout { name, shape, offset };
            offset += param.numel();
            param
        })
        .collect();
    UnitLayout { name, kind, params }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> ModelConfig {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
                "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400 {extra}}}"#
        );
        ModelConfig::parse("config.json".as_ref(), &text).unwrap()
    }

    fn numel(config: &ModelConfig) -> usize {
        model_layout(config).iter().map(UnitLayout::numel).sum()
    }

    #[test]
    fn deepseek_has_its_published_parameter_count() {
        assert_eq!(numel(&config("")), 6_910_365_696);
    }

    #[test]
    fn a_tied_head_owns_only_its_norm() {
        let units = model_layout(&config(r#", "tie_word_embeddings": true"#));
        assert_eq!(units.last().unwrap().params.len(), 1);
    }

    #[test]
    fn parameters_lie_without_gaps() {
        // LAY-1
        let config = config(r#", "attention_bias": true, "mlp_bias": true, "num_key_value_heads": 4"#);
        for unit in model_layout(&config) {
            let mut end = 0;
            for param in &unit.params {
                assert_eq!(param.offset, end, "{}", param.name);
                end += param.numel();
            }
            assert_eq!(end, unit.numel());
        }
        assert_eq!(model_layout(&config)[1].params.len(), 2 + 7 + 7);
    }
}
