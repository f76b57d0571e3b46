//! The parameters of each unit of a LLaMA-architecture model, and how tensor parallelism cuts them (Shoeybi et al., 2019;
//! Korthikanti et al., 2022): q, k, v, gate and up by output, o and down by input, embedding and lm_head by token.

use super::{ParamLayout, TensorSplit, UnitKind, UnitLayout};
use crate::config::Projection;
use crate::manifest::UnitRanges;
use crate::model_config::ModelConfig;
use crate::plan::{Adapter, Trained};
use crate::quantized::{Format, PackedMatrix};

/// Name of the embedding, which is also the head's matrix where the two are tied.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// All units of a model as one tensor-parallel rank holds them, with all parameters trained: embedding, blocks, head. A
/// tied lm_head belongs to the embedding alone. Where a parameter lies in a rank's flat buffer depends on what is trained:
/// for that, see [`model_layout_with`], or [`super::rank_layout`] and [`super::tensor_layout`] for a plan's.
pub fn model_layout(config: &ModelConfig, split: TensorSplit) -> Vec<UnitLayout> {
    model_layout_with(config, split, &Trained::All)
}

/// As [`model_layout`], with only some parameters trained, and with adapters where those are trained: they come after what a block
/// has without them. Panics where a matrix that is used as one is trained in part
/// ([`partly_trained`]).
pub fn model_layout_with(config: &ModelConfig, split: TensorSplit, trained: &Trained) -> Vec<UnitLayout> {
    let adapter = trained.adapter();
    let blocks = (0..config.num_hidden_layers).map(|layer| block(config, split, layer, adapter));
    let units = std::iter::once(embedding(config, split)).chain(blocks).chain([head(config, split)]);
    units.map(|unit| unit.place(trained)).collect()
}

/// The ranges of each whole unit that are frozen, by the unit's name; units that have none are left out. A checkpoint holds
/// no state of them.
pub fn frozen_ranges(config: &ModelConfig, trained: &Trained) -> UnitRanges {
    let units = model_layout_with(config, TensorSplit::WHOLE, trained).into_iter();
    let ranges = units.map(|unit| (unit.frozen_in_whole(), unit.name));
    ranges.filter(|(ranges, _)| !ranges.is_empty()).map(|(ranges, name)| (name, ranges)).collect()
}

/// The parameters whose names end alike are used as one matrix and lie side by side (`LAY-1`).
const FUSED: [&[&str]; 4] = [
    &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
    &["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    &["mlp.gate_proj.bias", "mlp.up_proj.bias"],
];

/// Names of parameters that are used as one matrix and of which only some would be trained: `None` where there are none.
/// Such a matrix is trained whole or not at all.
pub fn partly_trained(config: &ModelConfig, trained: &Trained) -> Option<Vec<String>> {
    (0..config.num_hidden_layers)
        .find_map(|layer| torn(&block(config, TensorSplit::WHOLE, layer, None).params, trained))
}

fn torn(params: &[ParamLayout], trained: &Trained) -> Option<Vec<String>> {
    FUSED.iter().find_map(|fused| {
        let is_one = |param: &&ParamLayout| fused.iter().any(|name| param.name.ends_with(name));
        let names: Vec<String> = params.iter().filter(is_one).map(|param| param.name.clone()).collect();
        let num_trained = names.iter().filter(|name| trained.includes(name)).count();
        (num_trained > 0 && num_trained < names.len()).then_some(names)
    })
}

/// The name of a matrix that is to be kept in few bits and that `size` tensor-parallel ranks would cut through a block, or into
/// parts of which one is padded: `None` where there is none.
pub fn torn_block(config: &ModelConfig, size: usize, trained: &Trained) -> Option<String> {
    let parts = (0..size).map(|rank| TensorSplit { size, rank, sequence: false });
    let units = parts.map(|split| block(config, split, 0, trained.adapter()));
    let is_torn = |param: &ParamLayout| {
        let is_padded = param.shape[0] != param.rows.len();
        param.packed.as_ref().is_some_and(|packed| is_padded || !packed.is_cut_between_blocks())
    };
    units.into_iter().find_map(|unit| unit.params.into_iter().find(is_torn)).map(|param| param.name)
}

fn embedding(config: &ModelConfig, split: TensorSplit) -> UnitLayout {
    let mut unit = Builder::new(split, String::new());
    unit.add(EMBEDDING, &[config.vocab_size, config.hidden_size], Cut::Rows);
    unit.finish("embed_tokens".into(), UnitKind::Embedding)
}

fn head(config: &ModelConfig, split: TensorSplit) -> UnitLayout {
    let mut unit = Builder::new(split, String::new());
    unit.add("model.norm.weight", &[config.hidden_size], Cut::Nowhere);
    if !config.tie_word_embeddings {
        unit.add("lm_head.weight", &[config.vocab_size, config.hidden_size], Cut::Rows);
    }
    unit.finish("head".into(), UnitKind::Head)
}

fn block(config: &ModelConfig, split: TensorSplit, layer: usize, adapter: Option<&Adapter>) -> UnitLayout {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (query, key_value) = (config.query_size(), config.key_value_size());
    let heads = Cut::Heads { replicas: split.key_value_replicas(config.num_key_value_heads) };
    let mut unit = Builder::new(split, format!("model.layers.{layer}."));
    unit.add("input_layernorm.weight", &[hidden], Cut::Nowhere);
    unit.add("self_attn.q_proj.weight", &[query, hidden], Cut::Rows);
    unit.add("self_attn.k_proj.weight", &[key_value, hidden], heads);
    unit.add("self_attn.v_proj.weight", &[key_value, hidden], heads);
    if config.attention_bias {
        unit.add("self_attn.q_proj.bias", &[query], Cut::Rows);
        unit.add("self_attn.k_proj.bias", &[key_value], heads);
        unit.add("self_attn.v_proj.bias", &[key_value], heads);
    }
    unit.add("self_attn.o_proj.weight", &[hidden, query], Cut::Columns);
    if config.attention_bias {
        unit.add("self_attn.o_proj.bias", &[hidden], Cut::Nowhere);
    }
    unit.add("post_attention_layernorm.weight", &[hidden], Cut::Nowhere);
    unit.add("mlp.gate_proj.weight", &[ffn, hidden], Cut::Rows);
    unit.add("mlp.up_proj.weight", &[ffn, hidden], Cut::Rows);
    if config.mlp_bias {
        unit.add("mlp.gate_proj.bias", &[ffn], Cut::Rows);
        unit.add("mlp.up_proj.bias", &[ffn], Cut::Rows);
    }
    unit.add("mlp.down_proj.weight", &[hidden, ffn], Cut::Columns);
    if config.mlp_bias {
        unit.add("mlp.down_proj.bias", &[hidden], Cut::Nowhere);
    }
    if let Some(adapter) = adapter {
        let projections = adapted(config, heads);
        if let Some(format) = Format::of(adapter.quantize) {
            unit.pack(format, &projections);
        }
        unit.add_adapters(adapter, &projections);
    }
    unit.finish(format!("layers.{layer}"), UnitKind::Block)
}

/// A projection as an adapter sees it.
struct Adapted {
    projection: Projection,
    name: &'static str,
    /// `[out, in]`, as in files.
    shape: [usize; 2],
    cut: Cut,
}

/// The projections of a block; those that are computed as one matrix are together. `heads`: how k and v are cut.
fn adapted(config: &ModelConfig, heads: Cut) -> [Vec<Adapted>; 4] {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (query, key_value) = (config.query_size(), config.key_value_size());
    let of = |projection, name, shape, cut| Adapted { projection, name, shape, cut };
    [
        vec![
            of(Projection::Q, "self_attn.q_proj", [query, hidden], Cut::Rows),
            of(Projection::K, "self_attn.k_proj", [key_value, hidden], heads),
            of(Projection::V, "self_attn.v_proj", [key_value, hidden], heads),
        ],
        vec![of(Projection::O, "self_attn.o_proj", [hidden, query], Cut::Columns)],
        vec![
            of(Projection::Gate, "mlp.gate_proj", [ffn, hidden], Cut::Rows),
            of(Projection::Up, "mlp.up_proj", [ffn, hidden], Cut::Rows),
        ],
        vec![of(Projection::Down, "mlp.down_proj", [hidden, ffn], Cut::Columns)],
    ]
}

/// How a parameter is cut over the tensor-parallel ranks. Dims are those of its shape in a file.
#[derive(Clone, Copy)]
enum Cut {
    /// Every rank holds all of it.
    Nowhere,
    /// Likewise, and what each rank computes of its gradient is only a part of the sum.
    Summed,
    /// Along the first dim.
    Rows,
    /// Along the second dim.
    Columns,
    /// Along the first dim, each part on so many neighbouring ranks.
    Heads { replicas: usize },
}

/// A unit's parameters, one after the other.
struct Builder {
    split: TensorSplit,
    prefix: String,
    params: Vec<ParamLayout>,
    whole_offset: usize,
}

impl Builder {
    fn new(split: TensorSplit, prefix: String) -> Self {
        Self { split, prefix, params: Vec::new(), whole_offset: 0 }
    }

    fn add(&mut self, name: &str, disk_shape: &[usize], cut: Cut) {
        let TensorSplit { size, rank, sequence } = self.split;
        let mut shape = disk_shape.to_vec();
        let is_transposed = matches!(cut, Cut::Columns);
        if is_transposed {
            shape.reverse();
        }
        let whole_rows = shape[0];
        let (replicas, sums_replicas) = match cut {
            Cut::Nowhere => (size, size > 1 && sequence),
            Cut::Summed => (size, size > 1),
            Cut::Rows | Cut::Columns => (1, false),
            // Each rank's query heads are only some of those that use the key/value head.
            Cut::Heads { replicas } => (replicas, replicas > 1),
        };
        let parts = TensorSplit { size: size / replicas, rank: rank / replicas, sequence };
        shape[0] = parts.part(whole_rows);
        let param = ParamLayout {
            name: format!("{}{name}", self.prefix),
            offset: 0, // until it is placed
            rows: parts.rows(whole_rows),
            whole_rows,
            whole_offset: self.whole_offset,
            is_transposed,
            replicas,
            replica: rank % replicas,
            sums_replicas,
            is_trained: true,
            packed: None,
            shape,
        };
        self.whole_offset += whole_rows * param.row_numel();
        self.params.push(param);
    }

    /// Adds the adapters of a block's projections: of those that are one matrix first every `A`, then every `B`, then the magnitudes.
    /// An `A` reads what its projection reads, and a `B` adds to what it makes, so one of them is cut as the projection is. A magnitude
    /// is of a row of `B`.
    fn add_adapters(&mut self, adapter: &Adapter, projections: &[Vec<Adapted>]) {
        for fused in projections {
            let targets = || fused.iter().filter(|of| adapter.targets.contains(&of.projection));
            for Adapted { name, shape, cut, .. } in targets() {
                let cut = if matches!(cut, Cut::Columns) { Cut::Columns } else { Cut::Summed };
                self.add(&format!("{name}.lora_A.weight"), &[adapter.rank, shape[1]], cut);
            }
            for Adapted { name, shape, cut, .. } in targets() {
                let cut = if matches!(cut, Cut::Columns) { Cut::Summed } else { *cut };
                self.add(&format!("{name}.lora_B.weight"), &[shape[0], adapter.rank], cut);
            }
            for Adapted { name, shape, cut, .. } in targets().filter(|_| adapter.dora) {
                let cut = if matches!(cut, Cut::Columns) { Cut::Summed } else { *cut };
                self.add(&format!("{name}{}", Adapter::MAGNITUDE), &[shape[0]], cut);
            }
        }
    }

    /// Keeps the weights of a block's projections in few bits.
    fn pack(&mut self, format: Format, projections: &[Vec<Adapted>]) {
        let names: Vec<String> = projections.iter().flatten().map(|of| format!("{}.weight", of.name)).collect();
        let mut start = 0;
        for param in self.params.iter_mut().filter(|param| names.iter().any(|name| param.name.ends_with(name.as_str())))
        {
            let [rows, width] = param.disk_shape()[..] else { unreachable!("{} is a matrix", param.name) };
            let (of_rows, of_columns) = match param.is_transposed {
                true => (0..rows, param.rows.clone()),
                false => (param.rows.clone(), 0..width),
            };
            let packed = PackedMatrix { format, whole: [rows, width], rows: of_rows, columns: of_columns, start };
            start += packed.bytes();
            param.packed = Some(packed);
        }
    }

    fn finish(self, name: String, kind: UnitKind) -> UnitLayout {
        UnitLayout { name, kind, is_tied_copy: false, params: self.params }
    }
}

impl UnitLayout {
    /// Gives every parameter its place in the flat buffer: the trained ones first (`LAY-3`).
    fn place(mut self, trained: &Trained) -> Self {
        if let Some(names) = torn(&self.params, trained) {
            panic!("{} are one matrix, which is trained whole or not at all", names.join(", "));
        }
        let mut offset = 0;
        for is_trained in [true, false] {
            for param in self.params.iter_mut().filter(|param| trained.includes(&param.name) == is_trained) {
                param.is_trained = is_trained;
                if param.packed.is_none() {
                    param.offset = offset;
                    offset += param.numel();
                }
            }
        }
        self
    }
}
