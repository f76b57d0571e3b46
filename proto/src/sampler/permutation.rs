//! A keyed permutation that is computed for one index at a time: there is no list to keep and none to replay on resume.
//!
//! It is a balanced Feistel network over the next even power of two, walked until it lands inside, as in
//! format-preserving encryption (Black and Rogaway, 2002).

/// Rounds of the Feistel network; four are the least that mix every bit into every other (Luby and Rackoff, 1988).
const ROUNDS: u64 = 6;

/// The place to which the permutation of `0..len` with this `key` takes `place`, which is below `len`.
pub(super) fn permuted(len: u64, key: u64, place: u64) -> u64 {
    let bits = u64::BITS - (len - 1).leading_zeros();
    let half = bits.div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut value = place;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (mix(key ^ (round << 32) ^ mix(right)) & mask));
        }
        value = (left << half) | right;
        if value < len {
            return value;
        }
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
