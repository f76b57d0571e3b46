//! Wrong guesses of a secret: how often an origin may be heard after one, and when to tell of them. Pure.
//!
//! - GUE-1 Whoever has guessed wrong is heard once in [`BETWEEN_GUESSES`] from then on, over however many connections. Others
//!   are heard at once.
//! - GUE-2 The first wrong guess of an origin is told of at once, and every later one by the next line at the latest; lines
//!   become rarer up to one a minute.
//! - GUE-3 Only so many origins are kept, those that have guessed last.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Between two guesses of an origin: fifty a second find no word of sixteen characters that anybody has drawn.
pub const BETWEEN_GUESSES: Duration = Duration::from_millis(20);
/// Between the first two lines about an origin; doubled from line to line.
const FIRST_LINES: Duration = Duration::from_secs(1);
/// Between two lines about an origin, at most.
const RAREST_LINE: Duration = Duration::from_secs(60);
/// An origin that has made none for this long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Origins that are kept.
const MOST_ORIGINS: usize = 1024;

/// The wrong guesses that one listener has heard.
#[derive(Debug)]
pub struct Guesses<Origin> {
    origins: HashMap<Origin, Guesser>,
}

#[derive(Debug)]
struct Guesser {
    wrong: u64,
    latest: Instant,
    /// When it is heard again.
    next_turn: Instant,
    /// When the next line about it is due, and how long after that the one after it.
    next_line: Instant,
    between_lines: Duration,
}

impl<Origin: Copy + Eq + Hash> Guesses<Origin> {
    /// Nobody has guessed yet.
    pub fn none() -> Self {
        Self { origins: HashMap::new() }
    }

    /// When somebody from `origin`, who has come at `now`, is to be heard. Each call is one turn.
    pub fn turn(&mut self, origin: Origin, now: Instant) -> Instant {
        let Some(guesser) = self.origins.get_mut(&origin) else { return now };
        let turn = guesser.next_turn.max(now);
        guesser.next_turn = turn + BETWEEN_GUESSES;
        turn
    }

    /// A guess was wrong. The number of those so far, if it is time to tell of them.
    pub fn wrong(&mut self, origin: Origin, now: Instant) -> Option<u64> {
        if !self.origins.contains_key(&origin) {
            self.make_room(now);
        }
        let guesser = self.origins.entry(origin).or_insert(Guesser {
            wrong: 0,
            latest: now,
            next_turn: now,
            next_line: now,
            between_lines: FIRST_LINES,
        });
        guesser.wrong += 1;
        guesser.latest = now;
        guesser.next_turn = guesser.next_turn.max(now + BETWEEN_GUESSES);
        if now < guesser.next_line {
            return None;
        }
        guesser.next_line = now + guesser.between_lines;
        guesser.between_lines = (guesser.between_lines * 2).min(RAREST_LINE);
        Some(guesser.wrong)
    }

    fn make_room(&mut self, now: Instant) {
        if self.origins.len() < MOST_ORIGINS {
            return;
        }
        self.origins.retain(|_, guesser| now.saturating_duration_since(guesser.latest) < FORGOTTEN);
        while self.origins.len() >= MOST_ORIGINS {
            let oldest = self.origins.iter().min_by_key(|(_, guesser)| guesser.latest);
            let origin = *oldest.expect("there are many").0;
            self.origins.remove(&origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gue_1_whoever_has_guessed_wrong_takes_turns_and_others_do_not() {
        let now = Instant::now();
        let mut guesses = Guesses::none();
        assert_eq!([guesses.turn('a', now), guesses.turn('a', now)], [now, now]);
        guesses.wrong('a', now);
        let turns: Vec<_> = (0..3).map(|_| guesses.turn('a', now)).collect();
        assert_eq!(turns, [1, 2, 3].map(|nth| now + BETWEEN_GUESSES * nth));
        assert_eq!(guesses.turn('b', now), now);
        let later = now + Duration::from_secs(1);
        assert_eq!(guesses.turn('a', later), later);
    }

    #[test]
    fn gue_2_every_guess_is_told_of_in_ever_fewer_lines() {
        let start = Instant::now();
        let mut guesses = Guesses::none();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut told = |seconds: f64| guesses.wrong('a', at(seconds));
        assert_eq!([0.0, 0.5, 1.0, 2.9, 3.0, 100.0].map(&mut told), [Some(1), None, Some(3), None, Some(5), Some(6)]);
        let lines = (0..36_000).filter(|tenth| told(200.0 + f64::from(*tenth) / 10.0).is_some()).count();
        assert!((60..=66).contains(&lines), "{lines} lines in an hour");
        assert_eq!(guesses.wrong('b', start), Some(1));
    }

    #[test]
    fn gue_3_those_that_have_guessed_last_are_kept() {
        let start = Instant::now();
        let mut guesses = Guesses::none();
        for origin in 0..=MOST_ORIGINS {
            guesses.wrong(origin, start + Duration::from_millis(origin as u64));
        }
        assert_eq!(guesses.origins.len(), MOST_ORIGINS);
        assert!(!guesses.origins.contains_key(&0) && guesses.origins.contains_key(&MOST_ORIGINS));
        guesses.wrong(0, start + FORGOTTEN + Duration::from_secs(60));
        assert_eq!(guesses.origins.len(), 1);
    }
}
