//! A model on one rank that reads sequences on.

use std::rc::Rc;

use comm::CommError;
use tch::{Device, Tensor};

use super::sequence::{LanguageModel, NewBatch, NewTokens};
use super::weights::Weights;
use crate::kernels::KeyValueCache;
use crate::model::{Block, BlockSpec, Embedding, Head, RopeTable, Samples, TensorParallel};

/// The model, computed by one rank alone.
pub struct Decoder {
    weights: Weights,
    embedding: Embedding,
    head: Head,
    rope: RopeTable,
    device: Device,
}

/// Nobody else computes a part of a layer.
const ALONE: TensorParallel = TensorParallel::Off;

impl Decoder {
    /// Of these weights.
    pub fn new(weights: Weights) -> Self {
        let device = weights.embedding().weight.device();
        Self {
            embedding: Embedding::new(weights.config.vocab_size, &ALONE),
            // Losses are never asked for.
            head: Head::new(&weights.config, &ALONE, 1),
            rope: RopeTable::new(&weights.config).on(device),
            weights,
            device,
        }
    }

    fn block(&self, samples: &Rc<Samples>) -> Block {
        let spec = BlockSpec { config: &self.weights.config, rope: &self.rope, tp: &ALONE };
        Block::new(spec, samples, self.weights.kind)
    }
}

impl LanguageModel for Decoder {
    fn caches(&self, capacity: usize) -> Vec<KeyValueCache> {
        let block = self.block(&Rc::new(Samples::new(&[1])));
        let (shape, options) = (block.attention_shape(), (self.weights.kind, self.device));
        self.weights.blocks().map(|_| KeyValueCache::new(shape, capacity as i64, options)).collect()
    }

    fn extend(&mut self, sequences: &mut [NewTokens]) -> Result<Tensor, CommError> {
        let _guard = tch::no_grad_guard();
        let batch = NewBatch::of(sequences, self.device);
        let block = self.block(&batch.samples);
        let mut x = self.embedding.forward(&ALONE, self.weights.embedding(), &batch.tokens)?;
        for (idx, weights) in self.weights.blocks().enumerate() {
            let mut caches: Vec<_> = sequences.iter_mut().map(|sequence| &mut sequence.caches[idx]).collect();
            x = block.extend(&ALONE, weights, x, &mut caches)?;
        }
        Ok(self.head.next_logits(&self.weights.head(), &batch.last_rows(&x)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proto::config::Trained;
    use proto::layout::{TensorSplit, model_layout_with};
    use proto::model_config::ModelConfigFile;
    use serde_json::json;
    use tch::Kind;

    use super::super::weights::ModelFolders;
    use super::super::{Audience, Sequence, Wish, write};
    use super::*;
    use crate::device;

    /// A small model of random weights: grouped heads, wider than its hidden state, tied.
    fn decoder() -> Decoder {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 30,
            "tie_word_embeddings": true
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let config = ModelConfigFile::load(&folder.path().join("config.json")).unwrap().config;
        tch::manual_seed(5);
        let layouts = model_layout_with(&config, TensorSplit::WHOLE, &Trained::All);
        let tensors: Vec<(String, Tensor)> = layouts
            .iter()
            .flat_map(|layout| &layout.params)
            .map(|param| {
                let shape: Vec<i64> = param.disk_shape().iter().map(|&size| size as i64).collect();
                (param.name.clone(), Tensor::randn(shape, (Kind::Float, device::HOST)) * 0.3)
            })
            .collect();
        Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
        let folders = ModelFolders { model: folder.path().to_owned(), adapter: None };
        let mut heard = vec![];
        let weights =
            Weights::load(&folders, Kind::Float, device::Device::of_thread(), |units, of| heard.push((units, of)));
        assert_eq!(heard, [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]);
        Decoder::new(weights.unwrap())
    }

    fn read(decoder: &mut Decoder, pieces: &[&[u32]]) -> Tensor {
        let mut sequence = Sequence::default();
        let read = pieces.iter().map(|tokens| sequence.read(decoder, tokens, 1000).unwrap());
        read.last().unwrap()
    }

    fn assert_close(one: &Tensor, other: &Tensor) {
        let difference = (one - other).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}: {one:?} {other:?}");
    }

    #[test]
    fn the_logits_do_not_depend_on_how_a_sequence_is_read_or_what_is_read_beside_it() {
        let mut decoder = decoder();
        let tokens: Vec<u32> = (0..100).map(|place| (place * 7 + place / 3) % 30).collect();
        let whole = read(&mut decoder, &[&tokens]);
        assert_eq!(whole.size(), [1, 30]);
        let one_by_one: Vec<&[u32]> = tokens.chunks(1).collect();
        assert_close(&whole, &read(&mut decoder, &one_by_one));
        assert_close(&whole, &read(&mut decoder, &[&tokens[..64], &tokens[64..65], &tokens[65..]]));
        // Beside two others, in the middle.
        let (mut caches, all) = ([vec![], vec![], vec![]], [&tokens[3..9], &tokens[..], &tokens[50..51]]);
        caches.iter_mut().for_each(|caches| *caches = decoder.caches(100));
        let news = caches.iter_mut().zip(all);
        let mut news: Vec<NewTokens> = news
            .map(|(caches, tokens)| {
                let before = caches[0].len() as usize;
                NewTokens { tokens, before, caches }
            })
            .collect();
        let logits = decoder.extend(&mut news).unwrap();
        assert_eq!(logits.size(), [3, 30]);
        assert_close(&whole, &logits.narrow(0, 1, 1));
        let other = read(&mut decoder, &[&tokens[3..9]]);
        assert_close(&other, &logits.narrow(0, 0, 1));
    }

    #[test]
    fn a_prompt_that_begins_as_the_one_before_gives_what_it_gives_alone() {
        struct Heard(Vec<u32>);
        impl Audience for Heard {
            fn read(&mut self, _: usize) {}
            fn token(&mut self, token: u32) {
                self.0.push(token);
            }
            fn wants_more(&mut self) -> bool {
                true
            }
        }
        let mut decoder = decoder();
        let mut say = |sequence: &mut Sequence, prompt: &[u32]| {
            let mut heard = Heard(vec![]);
            let wish = Wish { prompt: prompt.to_vec(), new_tokens_max: 12, ..Wish::default() };
            let written = write(&mut decoder, sequence, &wish, &mut heard).unwrap();
            (heard.0, written.prompt_read)
        };
        let mut sequence = Sequence::default();
        let (first, read) = say(&mut sequence, &[1, 2, 3]);
        assert_eq!((first.len(), read), (12, 3));
        let next: Vec<u32> = [1, 2, 3].into_iter().chain(first[..8].iter().copied()).chain([9, 9]).collect();
        let (kept, read) = say(&mut sequence, &next);
        assert_eq!((kept, read), (say(&mut Sequence::default(), &next).0, 2));
    }
}
