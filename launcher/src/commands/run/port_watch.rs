//! Watches that nobody but rank 0 listens at the port that is held for it.
//!
//! A program must be able to bind that port, so any other process may as well: SO_REUSEADDR asks for no user. Whoever listens
//! there first is taken for rank 0 by all its peers. The kernel says who it is, so the attempt ends, and the next one has
//! another port.
//!
//! - PRT-1 A stranger that listens while a look is taken ends the attempt, by its name. Nobody has to listen.
//! - PRT-2 Looks take no more than a fiftieth of one processor's time, however many sockets the machine has.

use std::io;
use std::time::{Duration, Instant};

use super::rendezvous::HeldPort;
use crate::attempt::Ranks;
use crate::process::listeners::{self, Listening};

/// Between two looks while nobody listens: peers try to reach rank 0 all the time.
const PAUSE: Duration = Duration::from_millis(50);
/// The same once rank 0 listens: the kernel lets no other user listen beside it.
const PAUSE_BESIDE_RANK_0: Duration = Duration::from_secs(1);
/// PRT-2: a pause is at least this many times as long as the look before it.
const PAUSE_PER_LOOK: u32 = 50;

/// The watch over one attempt's port.
#[derive(Debug)]
pub struct PortWatch {
    /// `None`: there is nothing to watch, or nothing any more.
    port: Option<u16>,
    /// The other ranks of this machine. Written by the first look.
    others: Vec<u32>,
    next_look: Instant,
    thief: Option<String>,
    warned: bool,
}

/// What a watch has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A sentence that names whoever listens in rank 0's place.
    Thief(String),
    /// For the user: why nobody can tell. Comes once.
    Warning(String),
}

impl PortWatch {
    /// Watches over `port`, if this machine holds one. One that the user has named is not watched: whoever names it may have
    /// given it to another process on purpose.
    pub fn over(port: Option<&HeldPort>) -> Self {
        let port = port.filter(|port| port.is_held()).map(HeldPort::number);
        Self { port, others: vec![], next_look: Instant::now() + PAUSE, thief: None, warned: false }
    }

    /// Whoever has taken the port, if somebody was found to.
    pub fn thief(&self) -> Option<&str> {
        self.thief.as_deref()
    }

    /// Waits until there is something to tell. Cancel safe: a look is taken at once or not at all.
    pub async fn found(&mut self, ranks: &Ranks) -> Found {
        loop {
            if self.port.is_none() || !ranks.is_running(0) {
                return std::future::pending().await;
            }
            tokio::time::sleep_until(self.next_look.into()).await;
            self.others = ranks.pids().split_off(1);
            if let Some(found) = self.look() {
                return found;
            }
        }
    }

    /// Looks now.
    pub fn look(&mut self) -> Option<Found> {
        let port = self.port?;
        let began = Instant::now();
        let seen = listeners::at(port, &self.others);
        self.next_look = Instant::now() + pause(&seen, began.elapsed());
        match seen {
            Ok(Listening::Stranger(who)) => {
                let sentence = format!("{who} listens at MASTER_PORT {port}, which was held for it");
                (self.port, self.thief) = (None, Some(sentence.clone()));
                Some(Found::Thief(sentence))
            }
            Err(error) if !self.warned => {
                self.warned = true;
                Some(Found::Warning(format!("warning: cannot look who listens at MASTER_PORT {port}: {error}")))
            }
            Ok(Listening::Nobody | Listening::Family) | Err(_) => None,
        }
    }
}

/// How long to wait after a look that took `took`.
fn pause(seen: &io::Result<Listening>, took: Duration) -> Duration {
    let least = if matches!(seen, Ok(Listening::Family)) { PAUSE_BESIDE_RANK_0 } else { PAUSE };
    least.max(took.saturating_mul(PAUSE_PER_LOOK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prt_2_a_look_that_takes_long_is_taken_seldom() {
        let check = |seen, took_ms, pause_ms| {
            assert_eq!(pause(&seen, Duration::from_millis(took_ms)), Duration::from_millis(pause_ms));
        };
        check(Ok(Listening::Nobody), 0, 50);
        check(Ok(Listening::Nobody), 1, 50);
        check(Ok(Listening::Nobody), 20, 1000);
        check(Ok(Listening::Family), 1, 1000);
        check(Ok(Listening::Family), 40, 2000);
        check(Err(io::ErrorKind::PermissionDenied.into()), 1, 50);
    }
}
