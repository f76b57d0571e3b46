//! Writes this rank's line on the progress page: its current work, for the launcher to read. That costs a store or two
//! and a look at the clock, which is no system call.

#![allow(unsafe_code, reason = "words of memory that the launcher reads")]

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use memmap2::{MmapOptions, MmapRaw};
use nix::time::{ClockId, clock_gettime};
use proto::progress::{
    BUSY, CALL, CALL_SINCE, Call, CallKind, CallState, LINE_WORDS, PLACE, PLACE_SINCE, Phase, Place, STOP, page_bytes,
    wish_word,
};

use crate::fault::Faults;
use crate::profile::Profile;

/// This rank's line. Clones write the same line; the main thread alone does.
#[derive(Clone)]
pub struct ProgressLine {
    page: Rc<MmapRaw>,
    local_rank: usize,
    local_world_size: usize,
    place: Rc<Cell<Place>>,
    /// As the line says.
    call: Rc<Cell<Call>>,
    /// When the line last changed.
    counted_until: Rc<Cell<u64>>,
    faults: Rc<Faults>,
    /// Marks each place, if a step is profiled.
    profile: Rc<OnceCell<Profile>>,
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
            call: Rc::new(Cell::new(Call::from_word(0))),
            counted_until: Rc::new(Cell::new(now())),
            faults,
            profile: Rc::default(),
        })
    }

    /// From now on `profile` marks where the rank is.
    ///
    /// # Panics
    /// If there is one already.
    pub fn profile(&self, profile: Profile) {
        assert!(self.profile.set(profile).is_ok(), "a rank has one profile");
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

    /// What the rank does.
    pub fn phase(&self) -> Phase {
        self.place.get().phase
    }

    /// An exchange with other ranks: `call` runs inside it, and [`arrive`](Self::arrive) is called where the others can see that.
    pub fn exchange<T>(&self, kind: CallKind, call: impl FnOnce() -> T) -> T {
        let number = self.call.get().number + 1;
        self.set_call(Call { number, kind, state: CallState::Coming });
        self.faults.strike_inside(self.place.get());
        let result = call();
        self.set_call(Call { number, kind, state: CallState::Outside });
        result
    }

    /// A call that the launcher answers. No rank is to blame for how long that takes.
    pub fn call_launcher<T>(&self, call: impl FnOnce() -> T) -> T {
        self.exchange(CallKind::Launcher, || {
            self.arrive();
            call()
        })
    }

    /// The rank has come to the exchange that it is in: the others do not wait for it any more. A store, without a look at
    /// the clock.
    pub fn arrive(&self) {
        let call = self.call.get();
        if call.state == CallState::Coming {
            let call = Call { state: CallState::Arrived, ..call };
            self.call.set(call);
            self.own_word(CALL).store(call.to_word(), Relaxed);
            self.faults.strike_arrived(self.place.get());
        }
    }

    /// The latest exchange.
    pub fn call(&self) -> Call {
        self.call.get()
    }

    /// Waits for an exchange that is under way: `wait` runs inside `call`. Afterwards the line shows the latest exchange
    /// again, so that of two ranks that make the same calls, the one inside a higher number is further on.
    pub fn wait_for<T>(&self, call: Call, wait: impl FnOnce() -> T) -> T {
        let latest = self.call.get();
        self.set_call(Call { state: CallState::Arrived, ..call });
        let result = wait();
        self.set_call(latest);
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
        if let Some(profile) = self.profile.get() {
            profile.mark(place);
        }
        self.faults.strike(place);
    }

    fn set_call(&self, call: Call) {
        let now = self.count_up_to_now();
        self.own_word(CALL).store(call.to_word(), Relaxed);
        self.own_word(CALL_SINCE).store(now, Relaxed);
        self.call.set(call);
    }

    /// Counts the time since the last change as busy, if it was. Returns what the clock says.
    fn count_up_to_now(&self) -> u64 {
        let (now, counted) = (now(), self.counted_until.get());
        if self.place.get().phase.is_of_step() && !self.call.get().is_inside() {
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
        assert_eq!(inside.call, Call { number: 1, kind: CallKind::AllGather, state: CallState::Coming });
        assert!(inside.place_since >= before && inside.call_since >= inside.place_since);
        let after = line(&file, 1);
        assert!(!after.call.is_inside());
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

    /// A line of its own, and the file behind it.
    fn alone() -> (ProgressLine, File) {
        let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(page_bytes(1) as u64).unwrap();
        (ProgressLine::map(&file, 0, 1, Faults::new(&[], 0, 0, Breaker::default())).unwrap(), file)
    }

    #[test]
    fn a_rank_that_comes_to_an_exchange_says_so() {
        let (progress, file) = alone();
        let call = |number, kind, state| Call { number, kind, state };
        progress.exchange(CallKind::Recv, || {
            let coming = line(&file, 0);
            assert_eq!(coming.call, call(1, CallKind::Recv, CallState::Coming));
            progress.arrive();
            let arrived = line(&file, 0);
            assert_eq!(arrived.call, call(1, CallKind::Recv, CallState::Arrived));
            assert_eq!(arrived.call_since, coming.call_since);
        });
        progress.arrive();
        assert_eq!(line(&file, 0).call, call(1, CallKind::Recv, CallState::Outside), "it is in no exchange");
        let told = progress.call_launcher(|| line(&file, 0).call);
        assert_eq!(told, call(2, CallKind::Launcher, CallState::Arrived));
    }

    #[test]
    fn whoever_waits_for_an_earlier_exchange_is_seen_in_that_one() {
        let (progress, file) = alone();
        progress.exchange(CallKind::AllGather, || ());
        let gather = progress.call();
        progress.exchange(CallKind::Send, || ());
        let waiting = progress.wait_for(gather, || line(&file, 0).call);
        assert_eq!(waiting, Call { number: 1, kind: CallKind::AllGather, state: CallState::Arrived });
        let latest = Call { number: 2, kind: CallKind::Send, state: CallState::Outside };
        assert_eq!(line(&file, 0).call, latest);
    }
}
