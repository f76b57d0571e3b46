//! This rank's line on the progress page: what it does now, for the launcher to read. A store or two and a look at the
//! clock, which is no system call.

#![allow(unsafe_code, reason = "words of memory that the launcher reads")]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use memmap2::{MmapOptions, MmapRaw};
use nix::time::{ClockId, clock_gettime};
use proto::progress::{
    BUSY, CALL, CALL_SINCE, Call, CallKind, LINE_WORDS, PLACE, PLACE_SINCE, Phase, Place, STOP, page_bytes, wish_word,
};

use crate::fault::Faults;

/// This rank's line. Clones write the same line; the main thread alone does.
#[derive(Clone)]
pub struct ProgressLine {
    page: Rc<MmapRaw>,
    local_rank: usize,
    local_world_size: usize,
    place: Rc<Cell<Place>>,
    num_calls: Rc<Cell<u64>>,
    /// Whether it is in an exchange.
    is_inside: Rc<Cell<bool>>,
    /// When the line last changed.
    counted_until: Rc<Cell<u64>>,
    faults: Rc<Faults>,
}

impl ProgressLine {
    /// Maps the page behind `fd`, which the launcher made for `local_world_size` ranks.
    /// Where the line comes to a place that `faults` name, they strike.
    pub fn map(fd: impl AsFd, local_rank: usize, local_world_size: usize, faults: Faults) -> io::Result<Self> {
        assert!(local_rank < local_world_size, "local rank {local_rank} of {local_world_size}");
        let page = MmapOptions::new().len(page_bytes(local_world_size)).map_raw(fd.as_fd().as_raw_fd())?;
        let place = Rc::new(Cell::new(Place::START));
        let (page, faults) = (Rc::new(page), Rc::new(faults));
        Ok(Self {
            page,
            local_rank,
            local_world_size,
            place,
            num_calls: Rc::default(),
            is_inside: Rc::default(),
            counted_until: Rc::new(Cell::new(now())),
            faults,
        })
    }

    /// Works on `step` from now on.
    pub fn begin_step(&self, step: u64) {
        self.set(Place { step, phase: Phase::Between, unit: None });
    }

    /// Enters a phase that is about no unit in particular.
    pub fn enter(&self, phase: Phase) {
        self.set(Place { phase, unit: None, ..self.place.get() });
    }

    /// Enters a phase of one of this rank's units.
    pub fn enter_unit(&self, phase: Phase, unit: usize) {
        self.set(Place { phase, unit: Some(unit), ..self.place.get() });
    }

    /// An exchange with other ranks: `call` runs inside it.
    pub fn exchange<T>(&self, kind: CallKind, call: impl FnOnce() -> T) -> T {
        let number = self.num_calls.get() + 1;
        self.num_calls.set(number);
        self.set_call(Call { number, kind, is_inside: true });
        self.faults.strike_inside(self.place.get());
        let result = call();
        self.set_call(Call { number, kind, is_inside: false });
        result
    }

    /// Whether the launcher wishes that the job stops. Ranks see it at different times: they agree before they act.
    pub fn is_asked_to_stop(&self) -> bool {
        self.word(wish_word(self.local_world_size)).load(Relaxed) == STOP
    }

    fn set(&self, place: Place) {
        let now = self.count_up_to_now();
        self.place.set(place);
        self.own_word(PLACE).store(place.to_word(), Relaxed);
        self.own_word(PLACE_SINCE).store(now, Relaxed);
        self.faults.strike(place);
    }

    fn set_call(&self, call: Call) {
        let now = self.count_up_to_now();
        self.own_word(CALL).store(call.to_word(), Relaxed);
        self.own_word(CALL_SINCE).store(now, Relaxed);
        self.is_inside.set(call.is_inside);
    }

    /// Counts the time since the last change as busy, if it was. Returns what the clock says.
    fn count_up_to_now(&self) -> u64 {
        let (now, counted) = (now(), self.counted_until.get());
        if self.place.get().phase.is_of_step() && !self.is_inside.get() {
            self.own_word(BUSY).fetch_add(now - counted, Relaxed);
        }
        self.counted_until.set(now);
        now
    }

    fn own_word(&self, word: usize) -> &AtomicU64 {
        self.word(self.local_rank * LINE_WORDS + word)
    }

    fn word(&self, idx: usize) -> &AtomicU64 {
        debug_assert!(idx * 8 < page_bytes(self.local_world_size));
        // SAFETY: the page has `page_bytes`: `idx` is a word of a line, that of this rank, which `map` has checked, or the
        // launcher's behind them; maps begin at a page, so words are aligned. It lives as long as `self`. All who touch
        // the page, here and in the launcher, do it through atomics.
        unsafe { AtomicU64::from_ptr(self.page.as_mut_ptr().cast::<u64>().add(idx)) }
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, which the launcher's clock agrees with.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Breaker;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proto::progress::Line;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn line(file: &File, rank: usize) -> Line {
        let mut bytes = [0; 40];
        file.read_exact_at(&mut bytes, (rank * LINE_WORDS * 8) as u64).unwrap();
        let word = |idx: usize| u64::from_ne_bytes(bytes[idx * 8..][..8].try_into().unwrap());
        Line::from_words([word(0), word(1), word(2), word(3), word(4)])
    }

    #[test]
    fn a_line_says_what_its_rank_does_and_leaves_others_alone() {
        let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(page_bytes(3) as u64).unwrap();
        let progress = ProgressLine::map(&file, 1, 3, Faults::new(&[], 1, 0, Breaker::default())).unwrap();
        let before = now();
        progress.begin_step(7);
        let first = line(&file, 1);
        progress.enter_unit(Phase::Backward, 4);
        let inside = progress.exchange(CallKind::AllGather, || line(&file, 1));
        assert_eq!(inside.place, Place { step: 7, phase: Phase::Backward, unit: Some(4) });
        assert_eq!(inside.call, Call { number: 1, kind: CallKind::AllGather, is_inside: true });
        assert!(inside.place_since >= before && inside.call_since >= inside.place_since);
        let after = line(&file, 1);
        assert!(!after.call.is_inside);
        assert_eq!(after.busy, inside.call_since - first.place_since, "none of it in the exchange");
        progress.enter(Phase::Checkpoint);
        let busy = line(&file, 1).busy;
        assert!(busy >= after.busy);
        progress.enter(Phase::Between);
        assert_eq!(line(&file, 1).busy, busy, "nor of what not every rank does");
        assert!(!progress.is_asked_to_stop());
        file.write_all_at(&STOP.to_ne_bytes(), (wish_word(3) * 8) as u64).unwrap();
        assert!(progress.is_asked_to_stop());
        assert_eq!((line(&file, 0).last_change(), line(&file, 2).last_change()), (0, 0));
    }
}
