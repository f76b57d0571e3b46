//! The units of a pipeline stage: its chunks of the model, and the place of the head's matrix. Pure.

use std::ops::Range;

use proto::layout::{UnitKind, UnitLayout};

/// The units of this rank, by their numbers on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stage {
    /// In the order of the forward pass.
    pub chunks: Vec<Chunk>,
    /// The unit that holds the head's matrix, where that is not the head.
    pub tied: Option<usize>,
}

/// Consecutive units that compute one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The embedding, if the model begins here.
    pub embedding: Option<usize>,
    /// The blocks.
    pub blocks: Range<usize>,
    /// Number of the first of them, over the whole model.
    pub first_layer: usize,
    /// The head, if the model ends here.
    pub head: Option<usize>,
}

impl Chunk {
    /// All its units.
    pub fn units(&self) -> Range<usize> {
        self.embedding.unwrap_or(self.blocks.start)..self.head.map_or(self.blocks.end, |head| head + 1)
    }
}

impl Stage {
    /// `layouts`: this rank's units; `chunks`: the units of each chunk, counted over the whole model. A copy of a tied
    /// embedding comes after all chunks.
    pub fn new(layouts: &[UnitLayout], chunks: impl Iterator<Item = Range<usize>>) -> Self {
        let mut start = 0;
        let chunk = |of_model: Range<usize>| {
            let units = start..start + of_model.len();
            start = units.end;
            let of_kind = |kind| units.clone().find(|&unit| layouts[unit].kind == kind);
            let (embedding, head) = (of_kind(UnitKind::Embedding), of_kind(UnitKind::Head));
            let blocks = units.start + usize::from(embedding.is_some())..units.end - usize::from(head.is_some());
            // The embedding is the model's first unit.
            Chunk { embedding, blocks, first_layer: of_model.start.saturating_sub(1), head }
        };
        let chunks: Vec<Chunk> = chunks.map(chunk).collect();
        let head = chunks.iter().find_map(|chunk| chunk.head);
        let is_tied = head.is_some_and(|head| layouts[head].params.len() == 1);
        let embedding = || layouts.iter().position(|layout| layout.kind == UnitKind::Embedding);
        Self { chunks, tied: if is_tied { embedding() } else { None } }
    }

    /// Number of a block among the stage's blocks, from 0, in the order of the forward pass. `unit`: the block's.
    pub fn block_of(&self, unit: usize) -> usize {
        let before = self.chunks.iter().filter(|chunk| chunk.blocks.end <= unit).map(|chunk| chunk.blocks.len());
        let own = self.chunks.iter().find(|chunk| chunk.blocks.contains(&unit)).expect("a unit that is a block");
        before.sum::<usize>() + unit - own.blocks.start
    }

    /// Number of a block over the whole model, from 0. `unit`: the block's.
    pub fn layer_of(&self, unit: usize) -> usize {
        let own = self.chunks.iter().find(|chunk| chunk.blocks.contains(&unit)).expect("a unit that is a block");
        own.first_layer + unit - own.blocks.start
    }

    /// Whether the embedding's own backward pass is on this rank too, after the head's has added to the same gradient.
    pub fn shares_embedding(&self) -> bool {
        self.tied.is_some() && self.chunks[0].embedding == self.tied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::layout::{TensorSplit, model_layout};
    use proto::model_config::ModelConfig;

    fn layouts(extra: &str) -> Vec<UnitLayout> {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
                "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 8 {extra}}}"#
        );
        model_layout(&ModelConfig::parse("config.json".as_ref(), &text).unwrap(), TensorSplit::WHOLE)
    }

    #[test]
    fn chunks_take_the_units_in_order() {
        let stage = Stage::new(&layouts(""), [0..2, 2..5].into_iter());
        let expected = [
            Chunk { embedding: Some(0), blocks: 1..2, first_layer: 0, head: None },
            Chunk { embedding: None, blocks: 2..4, first_layer: 1, head: Some(4) },
        ];
        assert_eq!((&stage.chunks[..], stage.tied), (&expected[..], None));
        assert_eq!(stage.chunks[1].units(), 2..5);
        assert_eq!([1, 2, 3].map(|unit| stage.block_of(unit)), [0, 1, 2]);
        // The same units as the second and the last chunk of a model of eight blocks.
        let stage = Stage::new(&layouts("")[2..], [4..5, 8..10].into_iter());
        assert_eq!([0, 1].map(|unit| (stage.block_of(unit), stage.layer_of(unit))), [(0, 3), (1, 7)]);
    }

    #[test]
    fn a_tied_head_takes_the_embedding_or_its_copy() {
        let layouts = layouts(r#", "tie_word_embeddings": true"#);
        let whole = Stage::new(&layouts, std::iter::once(0..5));
        assert_eq!((whole.tied, whole.shares_embedding()), (Some(0), true));
        let last: Vec<UnitLayout> =
            layouts[4..].iter().cloned().chain([UnitLayout { is_tied_copy: true, ..layouts[0].clone() }]).collect();
        let last = Stage::new(&last, std::iter::once(4..5));
        assert_eq!((last.tied, last.shares_embedding()), (Some(1), false));
        let first = Stage::new(&layouts[..2], std::iter::once(0..2));
        assert_eq!((first.tied, first.shares_embedding()), (None, false));
    }
}
