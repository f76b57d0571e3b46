//! Rows that are there more than once, found by hashes of what is trained of them.

use std::collections::HashMap;

use proto::dataset::Sample;

/// The hash of a row: of the tokens and labels of all its samples. 128 bits, so that no two rows of any data share one by chance.
pub type Key = u128;

/// Hashes the samples of one row.
#[derive(Debug, Default)]
pub struct RowHasher(blake3::Hasher);

impl RowHasher {
    /// Adds the next sample of the row.
    pub fn add(&mut self, sample: &Sample) {
        let labels = sample.labels.as_deref().unwrap_or(&sample.tokens);
        self.0.update(&(sample.tokens.len() as u64).to_le_bytes());
        self.0.update(bytemuck::cast_slice(&sample.tokens));
        self.0.update(bytemuck::cast_slice(labels));
    }

    /// The hash of the samples since the last call.
    pub fn take(&mut self) -> Key {
        let hash = self.0.finalize();
        self.0.reset();
        let (half, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        Key::from_le_bytes(*half)
    }
}

/// The rows of `keys` that are also earlier in it, each with the first of its kind, by their indices.
pub fn duplicates(keys: &[Key]) -> Vec<(usize, usize)> {
    let mut first = HashMap::with_capacity(keys.len());
    let same = keys.iter().enumerate().filter_map(|(idx, key)| {
        let found = *first.entry(*key).or_insert(idx);
        (found < idx).then_some((idx, found))
    });
    same.collect()
}

/// The rows of `keys` that are also in `others`, each with the first that it is there, by their indices.
pub fn shared(keys: &[Key], others: &[Key]) -> Vec<(usize, usize)> {
    let places: HashMap<_, _> = others.iter().enumerate().rev().map(|(idx, key)| (*key, idx)).collect();
    keys.iter().enumerate().filter_map(|(idx, key)| Some((idx, *places.get(key)?))).collect()
}

#[cfg(test)]
mod tests {
    use proto::dataset::Origin;

    use super::*;

    #[test]
    fn every_row_but_the_first_of_its_kind_is_a_duplicate() {
        assert_eq!(duplicates(&[1, 2, 1, 3, 2, 1]), [(2, 0), (4, 1), (5, 0)]);
        assert_eq!(duplicates(&[1, 2, 3]), []);
        assert_eq!(duplicates(&[]), []);
    }

    #[test]
    fn rows_of_another_split_are_found_where_they_are_first() {
        assert_eq!(shared(&[5, 1, 7, 5], &[7, 5, 5]), [(0, 1), (2, 0), (3, 1)]);
    }

    #[test]
    fn rows_are_the_same_if_all_tokens_and_labels_are_and_their_samples_end_where_the_others_do() {
        let key = |samples: &[(&[i32], Option<&[i32]>)]| {
            let mut hasher = RowHasher::default();
            for (tokens, labels) in samples {
                let origin = Origin { source: 0, line: 1 };
                hasher.add(&Sample { tokens: tokens.to_vec(), labels: labels.map(<[i32]>::to_vec), origin, class: 0 });
            }
            hasher.take()
        };
        let row = key(&[(&[1, 2, 3], Some(&[-100, 2, 3]))]);
        assert_eq!(row, key(&[(&[1, 2, 3], Some(&[-100, 2, 3]))]));
        assert_ne!(row, key(&[(&[1, 2, 3], Some(&[-100, -100, 3]))]));
        assert_ne!(row, key(&[(&[1, 2, 4], Some(&[-100, 2, 3]))]));
        assert_ne!(key(&[(&[1, 2], None), (&[3], None)]), key(&[(&[1], None), (&[2, 3], None)]));
    }
}
