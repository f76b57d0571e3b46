//! The watcher thread: holds a pidfd of every peer and turns its death into the fault `PeerDied`.
//!
//! It touches the control page alone, waits in poll(2) without a deadline, and ends when the world drops its end of
//! the pipe. Ranks that are threads of one process (as in tests) are not watched: they die together.

use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::process;
use super::shared::Shared;
use crate::ranks::RankSet;
use crate::{CommError, FlightState, Result};

/// The world's handle of its watcher; dropping it ends the thread.
pub(super) struct Watcher {
    pipe: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub fn start(shared: Arc<Shared>) -> Result<Watcher> {
        let (reader, writer) = std::io::pipe().map_err(CommError::system("pipe of the watcher"))?;
        let thread = std::thread::Builder::new()
            .name("comm-watcher".into())
            .spawn(move || Watch { shared, seen: RankSet::default(), peers: Vec::new() }.run(reader))
            .map_err(CommError::system("start of the watcher"))?;
        Ok(Watcher { pipe: Some(writer), thread: Some(thread) })
    }

    /// Tells the watcher that more ranks have joined.
    pub fn rescan(&self) {
        let pipe = self.pipe.as_ref().expect("open until dropped");
        // A full pipe holds a byte that has the same effect.
        let _ = (&*pipe).write(&[0]);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but the pipe. A panic in it was printed when it happened.
            let _ = thread.join();
        }
    }
}

struct Watch {
    shared: Arc<Shared>,
    /// Ranks that need no further look: ourselves, those in `peers`, those that died.
    seen: RankSet,
    peers: Vec<(usize, OwnedFd)>,
}

impl Watch {
    fn run(mut self, mut pipe: std::io::PipeReader) {
        let mut bytes = [0; 64];
        loop {
            self.find_peers();
            let ready = match self.wait(pipe.as_fd()) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => return self.give_up("poll on pidfds", errno),
            };
            if ready.contains(&true) {
                self.bury(&ready[1..]);
            }
            if ready[0] && !matches!(pipe.read(&mut bytes), Ok(1..)) {
                return;
            }
        }
    }

    /// Opens a pidfd of each rank that joined since the last look.
    fn find_peers(&mut self) {
        for rank in 0..self.shared.world_size() {
            let cell = &self.shared.control().cells[rank];
            if self.seen.contains(rank) || cell.state() == FlightState::Absent {
                continue;
            }
            self.seen.0 |= RankSet::one(rank).0;
            let pid = cell.pid.load(Acquire);
            if pid == std::process::id() {
                continue;
            }
            match process::open(pid, cell.start_ticks.load(Acquire)) {
                Ok(Some(pidfd)) => self.peers.push((rank, pidfd)),
                Ok(None) => self.mourn(rank),
                Err(errno) => self.give_up("pidfd_open of a peer", errno),
            }
        }
    }

    /// Waits for the pipe or a death. Entry 0 of the answer is the pipe, the others are `peers`.
    fn wait(&self, pipe: std::os::fd::BorrowedFd<'_>) -> nix::Result<Vec<bool>> {
        let peers = self.peers.iter().map(|(_, pidfd)| pidfd.as_fd());
        let mut fds: Vec<PollFd> =
            std::iter::once(pipe).chain(peers).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::NONE)?;
        Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect())
    }

    fn bury(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        let (dead, alive) =
            std::mem::take(&mut self.peers).into_iter().partition(|_| *ready.next().expect("one answer per peer"));
        self.peers = alive;
        let dead: Vec<(usize, OwnedFd)> = dead;
        for (rank, _) in dead {
            self.mourn(rank);
        }
    }

    fn mourn(&self, rank: usize) {
        let flight = self.shared.flight(rank);
        if flight.state != FlightState::Left {
            self.shared.report(CommError::PeerDied { rank, op: flight.op, seq: flight.seq });
        }
    }

    /// Without a watcher a death would go unnoticed, so this rank gives up at once.
    fn give_up(&self, call: &str, errno: Errno) {
        let rank = self.shared.rank();
        self.shared.report(CommError::Aborted { rank, reason: format!("{call} failed: {errno}") });
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::super::mapping::ControlMap;
    use super::super::wait::{Interrupted, Patience, Wait};
    use super::*;
    use crate::Op;

    /// A rank 1 that published `pid` and `start` and ended before rank 0 looked.
    fn check_is_dead(pid: u32, start: u64) {
        let memfd = nix::sys::memfd::memfd_create("comm-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let map = ControlMap::new(&File::from(memfd.expect("memfd_create"))).expect("map");
        let shared = Arc::new(Shared::new(map, 0, 2));
        let cell = &shared.control().cells[1];
        cell.pid.store(pid, Relaxed);
        cell.start_ticks.store(start, Relaxed);
        cell.set_state(FlightState::Idle);
        let _watcher = Watcher::start(shared.clone()).expect("start");
        let wait = Wait {
            word: &shared.control().joined,
            reached: |_| false,
            missing: || RankSet::one(1),
            gone: RankSet::default,
        };
        let patience = Patience::new(Duration::from_secs(60), false);
        assert_eq!(patience.wait(&wait), Err(Interrupted::Fault));
        assert_eq!(shared.check(), Err(CommError::PeerDied { rank: 1, op: Op::Join, seq: 0 }));
    }

    #[test]
    fn a_peer_that_died_before_we_looked_is_dead() {
        // Above the largest pid_max.
        check_is_dead(1 << 30, 0);
    }

    #[test]
    fn a_recycled_pid_is_dead() {
        check_is_dead(std::os::unix::process::parent_id(), 1);
    }
}
