//! Draws the next token: temperature, then the k most likely ones, then the most likely ones that have a share of p together, as
//! transformers has them (`TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`, in this order). Pure.

use std::cmp::Ordering;

use proto::generate as wire;

use crate::kernels::Draws;

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it. Above 0.
    pub temperature: f64,
    /// Only so many of the most likely tokens may come, and those that are as likely as the last of them; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that have this share together may come: the fewest that do. From above 0 to 1.
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
}

impl From<wire::Sampling> for Sampling {
    fn from(wire::Sampling { temperature, top_k, top_p, seed }: wire::Sampling) -> Self {
        Self { temperature, top_k: usize::try_from(top_k).unwrap_or(usize::MAX), top_p, seed }
    }
}

/// A token that may come.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: u32,
    /// Divided by the temperature.
    logit: f64,
}

impl Sampling {
    /// The new token of number `place`, from 0, after which the model's logits are `logits`: of each token of the vocabulary, none
    /// of them NaN.
    pub fn draw(&self, logits: &[f32], place: usize) -> u32 {
        let candidates = self.candidates(logits);
        let shares = shares(&candidates);
        // 53 bits: as many as a number from 0 to 1 has.
        let bits = Draws { seed: self.seed, first: 0 }.bits(place) >> 11;
        let drawn = bits as f64 / (1u64 << 53) as f64;
        let mut sum = 0.0;
        let chosen = shares.iter().position(|share| {
            sum += share;
            drawn < sum
        });
        // The sum of all shares may be a bit below 1.
        candidates[chosen.unwrap_or(candidates.len() - 1)].token
    }

    /// The tokens that may come: in the order of the vocabulary or, where the share counts, the most likely first.
    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        let candidate = |(token, logit): (usize, &f32)| Candidate {
            token: token as u32,
            logit: f64::from(*logit) / self.temperature,
        };
        let mut candidates: Vec<Candidate> = logits.iter().enumerate().map(candidate).collect();
        if self.top_k > 0 && self.top_k < candidates.len() {
            let mut sorted = candidates.clone();
            let (_, last, _) = sorted.select_nth_unstable_by(self.top_k - 1, by_likelihood);
            let least = last.logit;
            candidates.retain(|candidate| candidate.logit >= least);
        }
        if self.top_p < 1.0 {
            candidates.sort_by(by_likelihood);
            let shares = shares(&candidates);
            // A token stays if those that are more likely have less than the share without it.
            let mut before = 0.0;
            let kept = shares.iter().take_while(|share| {
                let stays = before < self.top_p;
                before += *share;
                stays
            });
            let kept = kept.count().max(1);
            candidates.truncate(kept);
        }
        candidates
    }
}

/// The most likely first, of equally likely ones the first of the vocabulary.
fn by_likelihood(one: &Candidate, other: &Candidate) -> Ordering {
    other.logit.total_cmp(&one.logit).then(one.token.cmp(&other.token))
}

/// The softmax of the logits.
fn shares(candidates: &[Candidate]) -> Vec<f64> {
    let largest = candidates.iter().map(|candidate| candidate.logit).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = candidates.iter().map(|candidate| (candidate.logit - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// The logits of these shares.
    fn logits(shares: &[f64]) -> Vec<f32> {
        shares.iter().map(|share| share.ln() as f32).collect()
    }

    /// The tokens that may come, sorted, with their shares.
    fn may_come(sampling: Sampling, logits: &[f32]) -> Vec<(u32, f64)> {
        let candidates = sampling.candidates(logits);
        let mut found: Vec<_> = candidates.iter().map(|candidate| candidate.token).zip(shares(&candidates)).collect();
        found.sort_by_key(|(token, _)| *token);
        found
    }

    fn tokens(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        may_come(sampling, logits).into_iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn the_k_most_likely_stay_with_those_that_are_as_likely() {
        let logits = [1.0, 3.0, 2.0, 3.0, 2.0, f32::NEG_INFINITY];
        let kept = |top_k| tokens(Sampling { top_k, ..PLAIN }, &logits);
        assert_eq!(kept(1), [1, 3], "both are the most likely");
        assert_eq!(kept(2), [1, 3]);
        assert_eq!(kept(3), [1, 2, 3, 4]);
        assert_eq!(kept(5), [0, 1, 2, 3, 4]);
        for all in [0, 6, 7, usize::MAX] {
            assert_eq!(kept(all), [0, 1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn the_fewest_that_have_the_share_together_stay_and_at_least_one() {
        let logits = logits(&[0.1, 0.5, 0.15, 0.25]);
        let kept = |top_p| tokens(Sampling { top_p, ..PLAIN }, &logits);
        assert_eq!(kept(1e-9), [1]);
        assert_eq!(kept(0.49), [1]);
        assert_eq!(kept(0.51), [1, 3]);
        assert_eq!(kept(0.74), [1, 3]);
        assert_eq!(kept(0.76), [1, 2, 3]);
        assert_eq!(kept(0.89), [1, 2, 3]);
        assert_eq!(kept(0.91), [0, 1, 2, 3]);
        assert_eq!(kept(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn temperature_comes_before_the_k_most_likely_and_those_before_the_share() {
        // At temperature 2 the shares are as the roots: 7 : 5 : 4 : 3, of 19.
        let logits = logits(&[49.0, 25.0, 16.0, 9.0]);
        let check = |sampling: Sampling, expected: &[(u32, f64)]| {
            let found = may_come(sampling, &logits);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for ((token, share), (expected_token, expected_share)) in found.iter().zip(expected) {
                assert!(token == expected_token && (share - expected_share).abs() < 1e-6, "{found:?}");
            }
        };
        let warm = Sampling { temperature: 2.0, ..PLAIN };
        check(warm, &[(0, 7.0 / 19.0), (1, 5.0 / 19.0), (2, 4.0 / 19.0), (3, 3.0 / 19.0)]);
        // Of three, two have 12 / 16 together.
        check(Sampling { top_k: 3, top_p: 0.7, ..warm }, &[(0, 7.0 / 12.0), (1, 5.0 / 12.0)]);
        // Without the temperature the first two have 74 of 90.
        check(Sampling { top_k: 3, top_p: 0.7, ..PLAIN }, &[(0, 49.0 / 74.0), (1, 25.0 / 74.0)]);
        check(Sampling { top_p: 0.7, ..warm }, &[(0, 7.0 / 16.0), (1, 5.0 / 16.0), (2, 4.0 / 16.0)]);
    }

    #[test]
    fn the_same_seed_and_place_give_the_same_token_and_others_do_not() {
        let logits = vec![0.0; 1000];
        let drawn = |seed| (0..50).map(|place| Sampling { seed, ..PLAIN }.draw(&logits, place)).collect::<Vec<_>>();
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let seven = drawn(7);
        assert!(seven.iter().any(|token| *token != seven[0]), "places differ");
    }

    #[test]
    fn tokens_come_as_often_as_their_shares_say() {
        let (shares, draws) = ([0.05, 0.4, 0.0, 0.25, 0.3], 20_000);
        let logits = logits(&shares);
        let mut counts = [0; 5];
        (0..draws).for_each(|place| counts[Sampling { seed: 3, ..PLAIN }.draw(&logits, place) as usize] += 1);
        assert_eq!(counts[2], 0, "what has no share never comes");
        let chi_square: f64 = shares
            .iter()
            .zip(counts)
            .filter(|(share, _)| **share > 0.0)
            .map(|(share, count)| {
                let expected = share * draws as f64;
                (f64::from(count) - expected).powi(2) / expected
            })
            .sum();
        // Three degrees of freedom: 16.3 is exceeded once in a thousand.
        assert!(chi_square < 16.3, "{chi_square}: {counts:?}");
    }

    #[test]
    fn infinite_and_far_apart_logits_are_no_trouble() {
        let logits = [f32::NEG_INFINITY, 1e30, -1e30, 0.0];
        for sampling in [PLAIN, Sampling { temperature: 1e-6, ..PLAIN }, Sampling { top_p: 0.5, top_k: 2, ..PLAIN }] {
            assert!((0..100).all(|place| sampling.draw(&logits, place) == 1), "{sampling:?}");
        }
    }
}
