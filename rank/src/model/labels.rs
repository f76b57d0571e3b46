//! The labels of a micro-batch as tensors, made once: which tokens have one, and which.

use tch::Tensor;

use crate::device::upload;

/// Label of a token that is not trained on.
const IGNORED: i64 = -100;

/// The tokens of a micro-batch that have a label, and their labels.
#[derive(Debug)]
pub struct Labels {
    /// Tokens of the micro-batch, with and without label: T.
    num_tokens: i64,
    /// Which tokens have a label: `[labels]` int64
    pub(super) places: Tensor,
    /// Their labels: `[labels]` int64
    pub(super) targets: Tensor,
}

impl Labels {
    /// `targets`: of each token the one that follows in the same sample, or -100 where nothing is to be predicted.
    pub fn new(targets: &[i64]) -> Self {
        let labels = targets.iter().enumerate().filter(|&(_, &target)| target != IGNORED);
        let (places, labels): (Vec<i64>, Vec<i64>) = labels.map(|(idx, &target)| (idx as i64, target)).unzip();
        Self {
            num_tokens: targets.len() as i64,
            places: Tensor::from_slice(&places),
            targets: Tensor::from_slice(&labels),
        }
    }

    /// The same labels on `device`, where they are going to be. Does not wait for it.
    pub fn on(self, device: tch::Device) -> Self {
        let Self { num_tokens, places, targets } = self;
        Self { num_tokens, places: upload(places, device), targets: upload(targets, device) }
    }

    /// Tokens of the micro-batch, with and without label.
    pub fn num_tokens(&self) -> i64 {
        self.num_tokens
    }

    /// How many tokens have a label.
    pub fn num_labels(&self) -> usize {
        self.targets.numel()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_without_a_label_are_left_out() {
        let labels = Labels::new(&[7, -100, 0, -100]);
        let values = |tensor: &Tensor| Vec::<i64>::try_from(tensor).unwrap();
        assert_eq!((labels.num_tokens(), labels.num_labels()), (4, 2));
        assert_eq!((values(&labels.places), values(&labels.targets)), (vec![0, 2], vec![7, 0]));
    }
}
