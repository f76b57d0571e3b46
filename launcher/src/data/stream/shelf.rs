//! Decides which windows of streamed data are on disk: those around the one that is trained. Pure.
//!
//! ```text
//!            kept behind          prepared ahead
//!       ├──────────────────┤├────────────────────────┤
//!   ... │ 4 │ 5 │ 6 │ 7 │ 8 │ 9 │ 10 │ 11 │ 12 │ 13 │ ...
//!                           at
//! ```
//!
//! After the last window comes the first again, once it is known which one is the last.
//!
//! - SHE-1 No more windows are kept than `ahead`, as many behind, and the one that is trained.
//! - SHE-2 The window that is trained is made before any other, and those ahead in the order in which they come.

use std::collections::BTreeSet;

/// Fewer windows are never kept behind: ranks are a step apart, and look back one.
const LEAST_BEHIND: u64 = 2;

/// The windows as they are.
#[derive(Debug, Clone, Copy)]
pub struct Shelf<'a> {
    /// The window that is trained, as if the sources had no end before it.
    pub at: u64,
    /// How many are prepared ahead of it.
    pub ahead: u64,
    /// Those that are there.
    pub ready: &'a BTreeSet<u64>,
    /// How many it is known of where they begin: from the first on, and at least one. Unless all are known, the last of these was
    /// never made.
    pub known: u64,
    /// How many there are, once that is known.
    pub count: Option<u64>,
    /// One that cannot be made.
    pub failed: Option<u64>,
}

impl Shelf<'_> {
    /// The window to make next, if there is one. SHE-2.
    pub fn next(&self) -> Option<u64> {
        for distance in 0..self.count.map_or(self.ahead + 1, |count| count.min(self.ahead + 1)) {
            // Where one begins is found out by making those before it.
            let window = match self.count {
                Some(count) => (self.at + distance) % count,
                None => (self.at + distance).min(self.known - 1),
            };
            if self.failed == Some(window) {
                return None;
            }
            if !self.ready.contains(&window) {
                return Some(window);
            }
        }
        None
    }

    /// Whether the window is kept. SHE-1.
    pub fn keeps(&self, window: u64) -> bool {
        let behind = self.ahead.max(LEAST_BEHIND);
        match self.count {
            Some(count) => {
                let at = self.at % count;
                (at + count - window) % count <= behind || (window + count - at) % count <= self.ahead
            }
            None => window + behind >= self.at && window <= self.at + self.ahead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes and removes until there is nothing to do; the order in which windows were made.
    fn settle(ready: &mut BTreeSet<u64>, known: &mut u64, shelf: Shelf<'_>, count: u64) -> Vec<u64> {
        let mut made = vec![];
        loop {
            let shelf = Shelf { ready: &*ready, known: *known, count: (*known == count).then_some(count), ..shelf };
            // The last one is known to be the last only when it was made.
            let shelf = Shelf {
                count: shelf.count.filter(|count| ready.contains(&(count - 1)) || made.contains(&(count - 1))),
                ..shelf
            };
            let Some(window) = shelf.next() else {
                let keeps: Vec<u64> = ready.iter().copied().filter(|window| shelf.keeps(*window)).collect();
                *ready = keeps.into_iter().collect();
                return made;
            };
            assert!(made.len() < 100, "{made:?}");
            made.push(window);
            ready.insert(window);
            *known = (*known).max((window + 2).min(count));
        }
    }

    #[test]
    fn windows_are_made_as_training_comes_to_them_and_few_are_kept() {
        let empty = BTreeSet::new();
        let (mut ready, mut known) = (BTreeSet::new(), 1);
        let mut go = |at| {
            let shelf = Shelf { at, ahead: 3, ready: &empty, known: 0, count: None, failed: None };
            let made = settle(&mut ready, &mut known, shelf, 20);
            (made, ready.iter().copied().collect::<Vec<_>>())
        };
        assert_eq!(go(0), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
        assert_eq!(go(1), (vec![4], vec![0, 1, 2, 3, 4]));
        assert_eq!(go(5), (vec![5, 6, 7, 8], vec![2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(go(5), (vec![], vec![2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(go(1), (vec![1], vec![1, 2, 3, 4]), "a run that goes on from an earlier checkpoint");
        assert_eq!(go(9).0, [9, 10, 11, 12].map(|window| window.min(12)), "the windows between are known");
        assert_eq!(go(18).0[..3], [13, 14, 15], "where one begins is found out by making those before it");
    }

    #[test]
    fn after_the_last_window_comes_the_first() {
        let shelf = |at, ahead, ready| Shelf { at, ahead, ready, known: 5, count: Some(5), failed: None };
        let ready = BTreeSet::from([3, 4]);
        assert_eq!(shelf(3, 3, &ready).next(), Some(0));
        assert_eq!(shelf(3, 1, &ready).next(), None);
        assert_eq!(shelf(8, 1, &ready).next(), None, "another pass");
        let kept = |at, ahead| (0..5).filter(|window| shelf(at, ahead, &ready).keeps(*window)).collect::<Vec<_>>();
        assert_eq!(kept(0, 1), [0, 1, 3, 4]);
        assert_eq!(kept(4, 1), [0, 2, 3, 4]);
        assert_eq!(kept(2, 4), [0, 1, 2, 3, 4]);
        let all = BTreeSet::from([0, 1, 2, 3, 4]);
        assert_eq!(shelf(2, 100, &all).next(), None, "each is there once");
    }

    #[test]
    fn what_cannot_be_made_is_not_tried_again_and_nothing_beyond_it() {
        let ready = BTreeSet::from([5, 6]);
        let shelf = |at| Shelf { at, ahead: 4, ready: &ready, known: 8, count: None, failed: Some(7) };
        assert_eq!(shelf(5).next(), None);
        assert_eq!(shelf(9).next(), None);
        assert_eq!(shelf(4).next(), Some(4), "those before it can");
    }
}
