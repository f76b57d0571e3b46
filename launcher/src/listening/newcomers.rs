//! Connections that have not said yet who they are: how many there may be, and which of them goes for another. Pure.
//!
//! - NEW-1 There are never more than the limit.
//! - NEW-2 Nobody goes for another before its grace is over: time enough for whoever knows what to say.
//! - NEW-3 Who goes is the oldest of the origin that has the most: many from one place push out each other, not somebody
//!   from elsewhere.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The newcomers of one listener. `Origin` is where they come from, `Handle` what ends one.
#[derive(Debug)]
pub struct Newcomers<Origin, Handle> {
    limit: usize,
    grace: Duration,
    /// The oldest first.
    waiting: Vec<Newcomer<Origin, Handle>>,
}

#[derive(Debug)]
struct Newcomer<Origin, Handle> {
    origin: Origin,
    since: Instant,
    handle: Handle,
}

impl<Origin: Copy + Eq + Hash, Handle> Newcomers<Origin, Handle> {
    /// None yet; at most `limit` at a time, which is above 0.
    pub fn new(limit: usize, grace: Duration) -> Self {
        assert!(limit > 0, "somebody has to be let in");
        Self { limit, grace, waiting: vec![] }
    }

    /// When there is room for another; `None`: at once.
    pub fn room_at(&self) -> Option<Instant> {
        let is_full = self.waiting.len() >= self.limit;
        is_full.then(|| self.waiting[self.next_to_go().expect("it is full")].since + self.grace)
    }

    /// Lets one in, and returns whoever has to go for it. [`Newcomers::room_at`] says when that is fair.
    pub fn enter(&mut self, origin: Origin, handle: Handle, now: Instant) -> Option<Handle> {
        let goes = if self.waiting.len() >= self.limit { self.drop_one() } else { None };
        self.waiting.push(Newcomer { origin, since: now, handle });
        goes
    }

    /// Somebody has to go, whatever its grace: `None` if nobody is there.
    pub fn drop_one(&mut self) -> Option<Handle> {
        self.next_to_go().map(|index| self.waiting.remove(index).handle)
    }

    /// Lets those go that `is_over` says are no newcomers any more.
    pub fn retain(&mut self, is_over: impl Fn(&Handle) -> bool) {
        self.waiting.retain(|newcomer| !is_over(&newcomer.handle));
    }

    fn next_to_go(&self) -> Option<usize> {
        let mut counts: HashMap<Origin, usize> = HashMap::new();
        for newcomer in &self.waiting {
            *counts.entry(newcomer.origin).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        self.waiting.iter().position(|newcomer| counts[&newcomer.origin] == most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(100);

    #[test]
    fn new_1_and_3_the_oldest_of_the_most_numerous_origin_goes() {
        let now = Instant::now();
        let mut newcomers = Newcomers::new(4, GRACE);
        for (origin, handle) in [('a', 0), ('b', 1), ('b', 2), ('c', 3)] {
            assert_eq!(newcomers.room_at(), None);
            assert_eq!(newcomers.enter(origin, handle, now), None);
        }
        assert_eq!(newcomers.enter('d', 4, now), Some(1));
        assert_eq!(newcomers.enter('b', 5, now), Some(0), "the oldest where all have one");
        assert_eq!(newcomers.enter('b', 6, now), Some(2), "their own");
        newcomers.retain(|&handle| handle == 5);
        assert_eq!(newcomers.room_at(), None);
        let left: Vec<_> = std::iter::from_fn(|| newcomers.drop_one()).collect();
        assert_eq!(left, [3, 4, 6]);
    }

    #[test]
    fn new_2_there_is_room_once_the_grace_of_who_goes_next_is_over() {
        let start = Instant::now();
        let mut newcomers = Newcomers::new(2, GRACE);
        newcomers.enter('a', 0, start);
        newcomers.enter('a', 1, start + GRACE / 2);
        assert_eq!(newcomers.room_at(), Some(start + GRACE));
        assert_eq!(newcomers.enter('b', 2, start + GRACE), Some(0));
        assert_eq!(newcomers.room_at(), Some(start + GRACE / 2 + GRACE));
    }
}
