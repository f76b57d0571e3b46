//! Streamed training data on its way to the ranks: their questions for rows, and what users hear while they wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::control;

use crate::data::{Answer, Asker, DataError, Stream};
use crate::output::Output;
use crate::output::units;
use crate::ranks::notice::WindowAsk;

/// Nobody hears of waits that are shorter.
const SHORTEST_TOLD: Duration = Duration::from_secs(2);

/// A wait that goes on is told this often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Ranks ask again and again: a wait is over once none has asked for so long.
const BETWEEN_ASKS: Duration = Duration::from_secs(2);

/// A look counts for no more than this: whoever was stopped in between has not waited.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// The data of an attempt.
#[derive(Debug)]
pub struct Supply {
    stream: Arc<Stream>,
    /// How long nothing may come of the sources while ranks wait.
    patience: Duration,
    wait: Option<Wait>,
}

/// Ranks wait for rows.
#[derive(Debug, Clone, Copy)]
struct Wait {
    since: Instant,
    told: Option<Instant>,
    /// When a rank was last seen waiting.
    asked: Instant,
    /// The stream's pulse, and for how long it has not beaten.
    pulse: u64,
    still: Duration,
    /// The latest look.
    looked: Instant,
}

impl Supply {
    /// For an attempt.
    pub fn new(stream: Arc<Stream>, patience: Duration) -> Self {
        Self { stream, patience, wait: None }
    }

    /// A rank waits for rows.
    pub fn ask(&self, ask: WindowAsk) {
        self.stream.ask(ask.position, Box::new(ask));
    }

    /// Tells what is to be told of the data. Ranks that wait when the job `is_leaving`, or when nothing comes any more, hear that there
    /// are no rows, and end with a checkpoint.
    pub fn look(&mut self, is_leaving: bool, output: &mut Output) {
        for note in self.stream.take_notes() {
            output.console().warn(&note);
        }
        let now = Instant::now();
        if !self.stream.is_waited_for() {
            if let Some(wait) = self.wait.take_if(|wait| now - wait.asked >= BETWEEN_ASKS)
                && wait.told.is_some()
            {
                output.console().warn(&format!("the rows came after {}", units::duration(wait.asked - wait.since)));
            }
            return;
        }
        if is_leaving {
            self.stream.give_up(None);
            return;
        }
        let pulse = self.stream.pulse();
        let still = Duration::ZERO;
        let new = Wait { since: now, told: None, asked: now, pulse, still, looked: now };
        let wait = self.wait.get_or_insert(new);
        wait.still += (now - wait.looked).min(LONGEST_LOOK);
        (wait.asked, wait.looked) = (now, now);
        if wait.pulse != pulse {
            (wait.pulse, wait.still) = (pulse, Duration::ZERO);
            output.progress();
        }
        if wait.still >= self.patience {
            let error = DataError::Stalled { sources: self.stream.names(), seconds: self.patience.as_secs() };
            self.stream.give_up(Some(error));
            return;
        }
        let last = wait.told.map_or(wait.since + SHORTEST_TOLD, |told| told + TOLD_EVERY);
        if now >= last {
            wait.told = Some(now);
            let how_far = self.stream.text();
            output.console().warn(&format!("training waits for data: {how_far}"));
        }
    }
}

impl Asker for WindowAsk {
    fn is_gone(&self) -> bool {
        WindowAsk::is_gone(self)
    }

    fn answer(self: Box<Self>, answer: Answer) {
        WindowAsk::answer(
            *self,
            match answer {
                Answer::Window(spot) => {
                    Some(control::Window { number: spot.number, pass: spot.pass, first_position: spot.first_position })
                }
                Answer::Failed => None,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Spot;

    #[test]
    fn a_rank_hears_of_its_window_or_that_there_is_none() {
        let answer = |answer| {
            let (ask, mut told) = WindowAsk::new(7);
            assert!(!Asker::is_gone(&ask));
            Asker::answer(Box::new(ask), answer);
            told.try_recv().unwrap()
        };
        let spot = Spot { number: 3, pass: 1, first_position: 24 };
        let window = control::Window { number: 3, pass: 1, first_position: 24 };
        assert_eq!(answer(Answer::Window(spot)), Some(window));
        assert_eq!(answer(Answer::Failed), None);
    }
}
