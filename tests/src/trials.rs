//! Trials: a test that draws at random what it does to a job, a few times with fixed seeds in every run of the tests, and
//! hundreds of times with fresh ones by `scripts/trials.sh`, which sets `TRIALS` and `SEED`. Some tests draw nothing: they play
//! a share of all combinations, and all of them by `scripts/trials.sh`.

use std::env;

/// Whether everything is tried that there is to try, as `scripts/trials.sh` does, or a share that meets each thing several times.
#[allow(clippy::disallowed_methods, reason = "a developer says how often, not a launcher")]
pub fn are_all_played() -> bool {
    env::var("TRIALS").is_ok()
}

/// How often to try, and what the draws begin from.
#[derive(Debug, Clone, Copy)]
pub struct Trials {
    /// How many.
    pub count: usize,
    /// Of the first trial; each has its own.
    pub seed: u64,
}

impl Trials {
    /// `count` of them, or as many as `TRIALS` says, from the seed 1, or from what `SEED` says.
    #[allow(clippy::disallowed_methods, reason = "a developer says how often, not a launcher")]
    pub fn or_else(count: usize) -> Self {
        let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        let trials =
            Self { count: number("TRIALS").map_or(count, |count| count as usize), seed: number("SEED").unwrap_or(1) };
        println!("{} trials, SEED={}", trials.count, trials.seed);
        trials
    }

    /// The draws of every trial: its number, and where its random numbers come from.
    pub fn draws(self) -> impl Iterator<Item = (usize, Draw)> {
        (0..self.count).map(move |trial| (trial, Draw(self.seed.wrapping_add(trial as u64))))
    }
}

/// Random numbers (SplitMix64: Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// The numbers that follow from `seed`.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// One of `choices`, of which there are some.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
