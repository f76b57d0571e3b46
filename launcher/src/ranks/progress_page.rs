//! The launcher's side of the progress page, on which ranks write their current work (`proto::progress`). The launcher
//! makes one for each attempt and reads it at any time, also when a rank is stopped or dead.

#![allow(unsafe_code, reason = "words of memory that ranks write")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::time::{ClockId, clock_gettime};
use proto::progress::{BUSY, CALL, CALL_SINCE, LINE_WORDS, Line, PLACE, PLACE_SINCE, STOP, page_bytes, wish_word};

/// The lines of all ranks of an attempt.
#[derive(Debug)]
pub struct ProgressPage {
    map: MmapRaw,
    world_size: usize,
}

impl ProgressPage {
    /// Makes a page for so many ranks, and the descriptor that they inherit.
    pub fn create(world_size: usize) -> io::Result<(Self, Arc<OwnedFd>)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("dslaunch-progress", flags)?);
        file.set_len(page_bytes(world_size) as u64)?;
        // A page that somebody cut short would end the launcher with SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let map = MmapOptions::new().len(page_bytes(world_size)).map_raw(&file)?;
        Ok((Self { map, world_size }, Arc::new(file.as_fd().try_clone_to_owned()?)))
    }

    /// Reads the line of `rank`: its current work, or its last.
    pub fn line(&self, rank: usize) -> Line {
        assert!(rank < self.world_size, "rank {rank} of {}", self.world_size);
        let word = |word: usize| self.word(rank * LINE_WORDS + word).load(Relaxed);
        Line::from_words([PLACE, PLACE_SINCE, CALL, CALL_SINCE, BUSY].map(word))
    }

    /// How long ago `rank` gave its last sign of life; nothing if it has not given any.
    pub fn silent(&self, rank: usize) -> Duration {
        match self.line(rank).last_change() {
            0 => Duration::ZERO,
            last => Duration::from_nanos(now().saturating_sub(last)),
        }
    }

    /// Ranks are to stop after a step, with a checkpoint: they see it when they next meet.
    pub fn ask_to_stop(&self) {
        self.word(wish_word(self.world_size)).store(STOP, Relaxed);
    }

    fn word(&self, idx: usize) -> &AtomicU64 {
        assert!(idx * 8 < page_bytes(self.world_size), "word {idx} of a page for {} ranks", self.world_size);
        // SAFETY: the map has `page_bytes`, and maps begin at a page, so words are aligned. It lives as long as `self`, and
        // the file's seals keep it as long as it is. All who touch the page do it through atomics.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(idx)) }
    }

    /// Reads the lines of all ranks.
    pub fn lines(&self) -> Vec<Line> {
        (0..self.world_size).map(|rank| self.line(rank)).collect()
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, by which ranks say since when they do what they do.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::progress::{Call, CallKind, CallState, Phase, Place};
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_a_rank_writes_is_seen_at_once() {
        let (page, fd) = ProgressPage::create(3).unwrap();
        assert_eq!(page.line(2).place, Place::START);
        let rank = File::from(fd.try_clone().unwrap());
        let place = Place { step: 5, phase: Phase::Update, unit: None };
        let call = Call { number: 9, kind: CallKind::Recv, state: CallState::Arrived };
        for (idx, word) in [place.to_word(), 100, call.to_word(), 200, 300].into_iter().enumerate() {
            rank.write_all_at(&word.to_ne_bytes(), ((LINE_WORDS + idx) * 8) as u64).unwrap();
        }
        assert_eq!(page.lines()[1], Line { place, place_since: 100, call, call_since: 200, busy: 300 });
        assert_eq!(page.line(1).last_change(), 200);
        assert_eq!(page.line(0).last_change(), 0);
    }
}
