//! A fault as words of the control page. Pure; `shared.rs` decides which fault is the first.

use std::time::Duration;

use super::control::{FAULT_WORDS, TEXT_WORDS};
use crate::error::Setting;
use crate::ranks::RankSet;
use crate::{CommError, Op, OpDesc};

const TEXT: usize = FAULT_WORDS - TEXT_WORDS;
const TEXT_LEN: usize = TEXT - 1;

/// Kinds, in word 0.
const PEER_DIED: u64 = 1;
const PEER_LEFT: u64 = 2;
const ABORTED: u64 = 3;
const TIMEOUT: u64 = 4;
const MISMATCH: u64 = 5;
const WORLD_MISMATCH: u64 = 6;
const GROUP_MISMATCH: u64 = 7;

/// Encodes a fault; `None` for errors that concern the caller alone.
pub(super) fn encode(error: &CommError) -> Option<[u64; FAULT_WORDS]> {
    let mut words = [0; FAULT_WORDS];
    match error {
        CommError::PeerDied { rank, op, seq } => {
            put(&mut words, &[PEER_DIED, *rank as u64, op.code(), *seq]);
        }
        CommError::PeerLeft { rank, op, seq } => {
            put(&mut words, &[PEER_LEFT, *rank as u64, op.code(), *seq]);
        }
        CommError::Aborted { rank, reason } => {
            put(&mut words, &[ABORTED, *rank as u64]);
            put_text(&mut words, reason);
        }
        CommError::Timeout { op, seq, missing, timeout, last_seen } => {
            let missing: RankSet = missing.iter().copied().collect();
            let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            put(&mut words, &[TIMEOUT, op.code(), *seq, missing.0, nanos]);
            put_text(&mut words, last_seen);
        }
        CommError::Mismatch { rank, theirs, reference_rank, reference } => {
            put(&mut words, &[MISMATCH, *rank as u64, *reference_rank as u64]);
            put(&mut words[3..], &theirs.to_words());
            put(&mut words[7..], &reference.to_words());
        }
        CommError::WorldMismatch { setting, rank, theirs, reference_rank, reference } => {
            let (rank, reference_rank) = (*rank as u64, *reference_rank as u64);
            let setting = *setting as u64;
            put(&mut words, &[WORLD_MISMATCH, setting, rank, *theirs, reference_rank, *reference]);
        }
        CommError::GroupMismatch { slot, rank, theirs, members } => {
            let theirs: RankSet = theirs.iter().copied().collect();
            let members: RankSet = members.iter().copied().collect();
            put(&mut words, &[GROUP_MISMATCH, *slot as u64, *rank as u64, theirs.0, members.0]);
        }
        CommError::InvalidGroup { .. }
        | CommError::InvalidWorld { .. }
        | CommError::RankTaken { .. }
        | CommError::ArenaExhausted { .. }
        | CommError::Unsupported { .. }
        | CommError::System { .. } => return None,
    }
    Some(words)
}

/// The inverse of `encode`.
///
/// # Panics
/// If the words were never written by `encode`: the control page is broken.
pub(super) fn decode(words: &[u64; FAULT_WORDS]) -> CommError {
    let op = |code| Op::from_code(code).expect("the control page holds a known operation");
    let rank = words[1] as usize;
    match words[0] {
        PEER_DIED => CommError::PeerDied { rank, op: op(words[2]), seq: words[3] },
        PEER_LEFT => CommError::PeerLeft { rank, op: op(words[2]), seq: words[3] },
        ABORTED => CommError::Aborted { rank, reason: text(words) },
        TIMEOUT => CommError::Timeout {
            op: op(words[1]),
            seq: words[2],
            missing: RankSet(words[3]).to_vec(),
            timeout: Duration::from_nanos(words[4]),
            last_seen: text(words),
        },
        MISMATCH => CommError::Mismatch {
            rank,
            theirs: Box::new(OpDesc::from_words(std::array::from_fn(|i| words[3 + i]))),
            reference_rank: words[2] as usize,
            reference: Box::new(OpDesc::from_words(std::array::from_fn(|i| words[7 + i]))),
        },
        WORLD_MISMATCH => CommError::WorldMismatch {
            setting: [Setting::Layout, Setting::WorldSize, Setting::ArenaBytes]
                .into_iter()
                .find(|setting| *setting as u64 == words[1])
                .expect("the control page holds a known setting"),
            rank: words[2] as usize,
            theirs: words[3],
            reference_rank: words[4] as usize,
            reference: words[5],
        },
        GROUP_MISMATCH => CommError::GroupMismatch {
            slot: words[1] as usize,
            rank: words[2] as usize,
            theirs: RankSet(words[3]).to_vec(),
            members: RankSet(words[4]).to_vec(),
        },
        other => unreachable!("fault kind {other}"),
    }
}

fn put(to: &mut [u64], words: &[u64]) {
    to[..words.len()].copy_from_slice(words);
}

fn put_text(words: &mut [u64; FAULT_WORDS], text: &str) {
    let text = &text[..text.floor_char_boundary_at(TEXT_WORDS * 8)];
    words[TEXT_LEN] = text.len() as u64;
    for (word, bytes) in words[TEXT..].iter_mut().zip(text.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(padded);
    }
}

fn text(words: &[u64; FAULT_WORDS]) -> String {
    let bytes: Vec<u8> = words[TEXT..].iter().flat_map(|word| word.to_le_bytes()).collect();
    let len = (words[TEXT_LEN] as usize).min(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

trait CharBoundary {
    /// The last character boundary at or before `max`. (`str::floor_char_boundary` is newer than our minimum Rust.)
    fn floor_char_boundary_at(&self, max: usize) -> usize;
}

impl CharBoundary for str {
    fn floor_char_boundary_at(&self, max: usize) -> usize {
        let mut end = max.min(self.len());
        while !self.is_char_boundary(end) {
            end -= 1;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Channel, DType, ReduceOp};

    fn desc(seq: u64, numel: usize) -> OpDesc {
        OpDesc {
            slot: 3,
            seq,
            op: Op::AllReduce,
            reduce: Some(ReduceOp::Sum),
            dtype: Some(DType::F32),
            numel,
            offset_bytes: 64,
            root: None,
        }
    }

    #[test]
    fn every_fault_survives_its_words() {
        let check = |fault: CommError| {
            let words = encode(&fault).expect("a fault");
            assert_eq!(decode(&words), fault);
        };
        check(CommError::PeerDied { rank: 63, op: Op::Barrier, seq: 1 << 50 });
        check(CommError::PeerLeft { rank: 0, op: Op::Recv(Channel::Backward), seq: 7 });
        check(CommError::Aborted { rank: 2, reason: "loss is NaN".into() });
        check(CommError::Timeout {
            op: Op::Join,
            seq: 0,
            missing: vec![1, 63],
            timeout: Duration::from_millis(1500),
            last_seen: "rank 1 has not joined".into(),
        });
        check(CommError::Mismatch {
            rank: 1,
            theirs: Box::new(desc(41, 1000)),
            reference_rank: 0,
            reference: Box::new(desc(42, 7)),
        });
        check(CommError::WorldMismatch {
            setting: Setting::ArenaBytes,
            rank: 1,
            theirs: 1 << 40,
            reference_rank: 3,
            reference: 4096,
        });
        check(CommError::GroupMismatch { slot: 255, rank: 1, theirs: vec![0, 1], members: vec![2] });
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = "x".repeat(255) + "é";
        let words = encode(&CommError::Aborted { rank: 0, reason }).expect("a fault");
        assert_eq!(decode(&words), CommError::Aborted { rank: 0, reason: "x".repeat(255) });
    }
}
