//! Random bits by place: the same for an element of the model in a step, whatever the layout and however often the run was restarted.
//!
//! They are those of SplitMix64 (Steele, Lea and Flood, 2014) from a seed on, whose n-th number needs none before it.

/// Random bits for consecutive elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Draws {
    /// Of all elements of a unit in a step.
    pub seed: u64,
    /// The place of the first element among those of the whole unit.
    pub first: u64,
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draws {
    /// Of the element `idx` places after the first.
    pub fn bits(self, idx: usize) -> u64 {
        let place = self.first.wrapping_add(idx as u64).wrapping_add(1);
        mix(self.seed.wrapping_add(place.wrapping_mul(GAMMA)))
    }

    /// From `by` elements further on.
    pub fn skip(self, by: usize) -> Self {
        Self { first: self.first + by as u64, ..self }
    }
}

/// A seed of two numbers.
pub fn seed_of(one: u64, other: u64) -> u64 {
    mix(mix(one.wrapping_add(GAMMA)) ^ other)
}

fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_published_sequence() {
        // Of SplitMix64 from seed 1234567.
        let draws = Draws { seed: 1_234_567, first: 0 };
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|idx| draws.bits(idx)), expected);
        assert_eq!(draws.skip(2).bits(0), expected[2]);
        assert_ne!(seed_of(1, 2), seed_of(2, 1));
    }
}
