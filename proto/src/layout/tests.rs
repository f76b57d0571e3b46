use super::*;
use crate::config::{Projection, Quantize};
use crate::model_config::ModelConfig;
use crate::plan::{Adapter, Trained};

fn config(extra: &str) -> ModelConfig {
    let text = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400 {extra}}}"#
    );
    ModelConfig::parse("config.json".as_ref(), &text).unwrap()
}

/// Everything that can be odd at once: 6 query heads over 2 key/value heads, sizes that no power of two divides.
fn odd() -> ModelConfig {
    let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 77,
        "num_hidden_layers": 2, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 101,
        "attention_bias": true, "mlp_bias": true}"#;
    ModelConfig::parse("config.json".as_ref(), text).unwrap()
}

fn split(size: usize, rank: usize) -> TensorSplit {
    TensorSplit { size, rank, sequence: true }
}

#[test]
fn deepseek_has_its_published_parameter_count() {
    let units = model_layout(&config(""), TensorSplit::WHOLE);
    assert_eq!(units.iter().map(UnitLayout::numel).sum::<usize>(), 6_910_365_696);
}

#[test]
fn a_tied_head_owns_only_its_norm() {
    let units = model_layout(&config(r#", "tie_word_embeddings": true"#), TensorSplit::WHOLE);
    assert_eq!(units.last().unwrap().params.len(), 1);
}

/// Everything, nothing, whole units, and parts of units that lie between others.
fn choices() -> Vec<Trained> {
    let containing = |parts: &[&str]| Trained::Containing(parts.iter().map(|part| (*part).to_owned()).collect());
    vec![
        Trained::All,
        containing(&[]),
        containing(&["layers.1.", "lm_head"]),
        containing(&["layernorm"]),
        containing(&["bias"]),
        containing(&["mlp.", "norm"]),
        containing(&["down_proj", "embed_tokens"]),
    ]
}

#[test]
fn parameters_lie_without_gaps_and_the_trained_ones_first() {
    // LAY-1, LAY-3
    for (size, trained) in [1, 2, 4, 6].into_iter().flat_map(|size| choices().into_iter().map(move |to| (size, to))) {
        let units = model_layout_with(&odd(), split(size, size - 1), &trained);
        for unit in &units {
            let (first, second): (Vec<_>, Vec<_>) = unit.params.iter().partition(|param| param.is_trained);
            let mut end = 0;
            for param in first.iter().chain(&second) {
                assert_eq!(param.offset, end, "{} {trained:?}", param.name);
                assert_eq!(param.is_trained, trained.includes(&param.name));
                end += param.numel();
            }
            let trained_end = first.last().map_or(0, |param| param.range().end);
            assert_eq!((unit.trained_range(), unit.frozen_range()), (0..trained_end, trained_end..end));
            assert_eq!((unit.trained_numel(), unit.numel()), (trained_end, end));
        }
    }
    assert_eq!(model_layout(&odd(), TensorSplit::WHOLE)[1].params.len(), 2 + 7 + 7);
}

#[test]
fn the_place_in_the_whole_unit_does_not_depend_on_what_is_trained() {
    // LAY-3
    for trained in choices() {
        for unit in model_layout_with(&odd(), split(2, 1), &trained) {
            let mut end = 0;
            for param in &unit.params {
                assert_eq!(param.whole_offset, end, "{} {trained:?}", param.name);
                end += param.whole_rows * param.row_numel();
            }
            assert_eq!(end, unit.whole_numel());
        }
    }
}

#[test]
fn ranks_that_count_hold_every_trained_element_once() {
    // LAY-2
    for (size, trained) in
        [1, 2, 3, 4, 6, 12].into_iter().flat_map(|size| choices().into_iter().map(move |to| (size, to)))
    {
        let ranks: Vec<Vec<UnitLayout>> =
            (0..size).map(|rank| model_layout_with(&odd(), split(size, rank), &trained)).collect();
        for (unit, whole) in model_layout(&odd(), TensorSplit::WHOLE).iter().enumerate() {
            let mut held = vec![0; whole.numel()];
            for layout in ranks.iter().map(|layouts| &layouts[unit]) {
                assert_eq!(layout.whole_numel(), whole.numel());
                assert_eq!(layout.numel(), ranks[0][unit].numel(), "every rank stores equally much");
                let numel = layout.numel();
                for piece in
                    layout.primary_pieces(0..numel / 3).into_iter().chain(layout.primary_pieces(numel / 3..numel))
                {
                    assert!(piece.local + piece.whole.len() <= layout.trained_numel());
                    held[piece.whole].iter_mut().for_each(|count| *count += 1);
                }
            }
            let counts = whole.params.iter().map(|param| (param.numel(), usize::from(trained.includes(&param.name))));
            let expected: Vec<usize> = counts.flat_map(|(numel, count)| std::iter::repeat_n(count, numel)).collect();
            assert!(held == expected, "{} over {size}, {trained:?}", whole.name);
        }
    }
}

#[test]
fn pieces_ascend_in_the_flat_buffer_and_hold_frozen_parameters_too() {
    for trained in choices() {
        for unit in model_layout_with(&odd(), TensorSplit::WHOLE, &trained) {
            let pieces = unit.pieces(0..unit.numel());
            let mut end = 0;
            let mut held = vec![0; unit.whole_numel()];
            for Piece { local, whole } in pieces {
                assert_eq!(local, end, "{} {trained:?}", unit.name);
                end += whole.len();
                held[whole].iter_mut().for_each(|count| *count += 1);
            }
            assert!(end == unit.numel() && held.iter().all(|&count| count == 1));
        }
    }
}

#[test]
fn a_matrix_that_is_used_as_one_is_not_trained_in_part() {
    let parts = |part: &str| partly_trained(&odd(), &Trained::Containing(vec![part.to_owned()]));
    let query = ["q", "k", "v"].map(|name| format!("model.layers.0.self_attn.{name}_proj.weight"));
    assert_eq!(parts("q_proj.weight"), Some(query.to_vec()));
    let gate = ["gate", "up"].map(|name| format!("model.layers.1.mlp.{name}_proj.bias"));
    assert_eq!(parts("layers.1.mlp.up_proj.bias"), Some(gate.to_vec()));
    assert!(choices().iter().all(|trained| partly_trained(&odd(), trained).is_none()));
}

#[test]
#[should_panic(expected = "mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight are one matrix")]
fn a_layout_of_a_matrix_trained_in_part_is_refused() {
    model_layout_with(&odd(), TensorSplit::WHOLE, &Trained::Containing(vec!["up_proj.weight".into()]));
}

#[test]
fn the_whole_is_one_piece() {
    let unit = &model_layout(&odd(), TensorSplit::WHOLE)[1];
    assert_eq!(unit.pieces(5..unit.numel()), [Piece { local: 5, whole: 5..unit.numel() }]);
}

#[test]
fn a_part_says_where_it_comes_from_in_a_file() {
    let unit = &model_layout(&odd(), split(2, 1))[1];
    let check = |suffix: &str, shape: &[usize], rows: Range<usize>, disk: (&[usize], usize)| {
        let param = unit.param(suffix);
        assert_eq!((&param.shape[..], param.rows.clone()), (shape, rows), "{suffix}");
        assert_eq!((&param.disk_shape()[..], param.disk_dim()), disk, "{suffix}");
    };
    check("q_proj.weight", &[24, 48], 24..48, (&[48, 48], 0));
    check("o_proj.weight", &[24, 48], 24..48, (&[48, 48], 1));
    check("gate_proj.weight", &[39, 48], 39..77, (&[77, 48], 0));
    check("down_proj.weight", &[39, 48], 39..77, (&[48, 77], 1));
    check("down_proj.bias", &[48], 0..48, (&[48], 0));
}

#[test]
fn fewer_key_value_heads_than_ranks_are_shared_by_neighbours() {
    let held: Vec<(Range<usize>, bool, bool)> = (0..4)
        .map(|rank| {
            let units = model_layout(&odd(), split(4, rank));
            let param = units[1].param("k_proj.weight");
            (param.rows.clone(), param.is_primary(), param.sums_replicas)
        })
        .collect();
    assert_eq!(held, [(0..4, true, true), (0..4, false, true), (4..8, true, true), (4..8, false, true)]);
}

#[test]
fn only_sequence_parallelism_makes_norm_gradients_partial() {
    for sequence in [false, true] {
        let units = model_layout(&odd(), TensorSplit { size: 2, rank: 0, sequence });
        assert_eq!(units[1].param("input_layernorm.weight").sums_replicas, sequence);
        assert_eq!(units[1].param("down_proj.bias").sums_replicas, sequence);
        assert!(!units[1].param("q_proj.weight").sums_replicas);
    }
}

fn adapters(quantize: Quantize) -> Trained {
    let targets = vec![Projection::Q, Projection::Down];
    Trained::Adapter(Adapter {
        rank: 3,
        alpha: 6.0,
        rslora: false,
        dora: false,
        targets,
        modules_to_save: vec![],
        quantize,
    })
}

/// LAY-4: of a block the seven matrices, and nothing else changes its place in the whole unit.
#[test]
fn what_is_packed_lies_in_bytes_of_its_own() {
    for quantize in [Quantize::Int8, Quantize::Nf4] {
        let [plain, packed] =
            [Quantize::None, quantize].map(|quantize| model_layout_with(&config(""), split(2, 1), &adapters(quantize)));
        assert_eq!((&plain[0], plain.last()), (&packed[0], packed.last()));
        let (plain, block) = (&plain[1], &packed[1]);
        let matrices: Vec<&ParamLayout> = block.params.iter().filter(|param| param.packed.is_some()).collect();
        assert_eq!(matrices.len(), 7);
        let of_matrices: usize = matrices.iter().map(|param| param.numel()).sum();
        assert_eq!(plain.numel() - block.numel(), of_matrices);
        let mut end = 0;
        for param in &matrices {
            let packed = param.packed.as_ref().unwrap();
            assert_eq!((packed.start, packed.numel()), (end, param.numel()), "{}", param.name);
            assert!(!param.is_trained && packed.is_cut_between_blocks());
            end += packed.bytes();
        }
        assert_eq!(block.packed_bytes(), end);
        assert_eq!((plain.whole_numel(), plain.frozen_in_whole()), (block.whole_numel(), block.frozen_in_whole()));
        let whole = |unit: &UnitLayout| {
            unit.pieces(unit.trained_range()).into_iter().map(|piece| piece.whole).collect::<Vec<_>>()
        };
        assert_eq!(whole(plain), whole(block), "what is trained is saved in the same place");
        let held: usize = block.pieces(0..block.numel()).iter().map(|piece| piece.whole.len()).sum();
        assert_eq!(held, block.numel(), "and what is packed is in no piece");
        let [output, down] =
            ["o_proj.weight", "down_proj.weight"].map(|name| block.param(name).packed.clone().unwrap());
        assert_eq!((output.rows, output.columns), (0..4096, 2048..4096));
        assert_eq!((down.whole, down.columns), ([4096, 11008], 5504..11008));
        assert_eq!(block.param("up_proj.weight").packed.as_ref().unwrap().rows, 5504..11008);
    }
}

#[test]
fn a_block_of_few_bits_is_not_cut() {
    let torn = |config: &ModelConfig, size, quantize| torn_block(config, size, &adapters(quantize));
    for size in [1, 2, 4] {
        assert_eq!(torn(&config(""), size, Quantize::Nf4), None);
    }
    let down = Some("model.layers.0.mlp.down_proj.weight".to_owned());
    assert_eq!(torn(&config(""), 8, Quantize::Nf4), down, "1376 is no multiple of 64");
    assert_eq!(torn(&config(""), 8, Quantize::Int8), None);
    assert_eq!(torn(&odd(), 1, Quantize::Nf4), None, "of any size where it is whole");
    let gate = Some("model.layers.0.mlp.gate_proj.weight".to_owned());
    assert_eq!(torn(&odd(), 2, Quantize::Int8), gate, "77 rows are padded");
    assert_eq!(torn(&odd(), 2, Quantize::None), None);
}

#[test]
fn adapters_are_cut_as_what_they_read_and_magnitudes_as_what_they_scale() {
    let adapter = Adapter {
        rank: 3,
        alpha: 6.0,
        rslora: false,
        dora: true,
        targets: Projection::all().collect(),
        modules_to_save: vec![],
        quantize: Quantize::None,
    };
    let units = model_layout_with(&odd(), split(4, 1), &Trained::Adapter(adapter));
    let part = |suffix: &str| {
        let param = units[1].param(suffix);
        assert!(param.is_trained, "{suffix}");
        (param.shape.clone(), param.rows.clone(), param.sums_replicas)
    };
    assert_eq!(part("gate_proj.lora_A.weight"), (vec![3, 48], 0..3, true));
    assert_eq!(part("gate_proj.lora_B.weight"), (vec![20, 3], 20..40, false));
    assert_eq!(part("gate_proj.lora_magnitude_vector"), (vec![20], 20..40, false));
    assert_eq!(part("k_proj.lora_magnitude_vector"), (vec![4], 0..4, true));
    assert_eq!(part("down_proj.lora_A.weight"), (vec![20, 3], 20..40, false));
    assert_eq!(part("down_proj.lora_magnitude_vector"), (vec![48], 0..48, true));
}
