//! The other machines of a run during one attempt, if there are any.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::agents::client::{Agent, Heard, Watch};
use crate::agents::{FENCED, Report};
use crate::process::fence::Fence;

/// The other machines of a run, during one attempt; or nobody.
#[derive(Debug)]
pub struct PeerNodes(Option<Connection>);

#[derive(Debug)]
struct Connection {
    agent: Agent,
    round: u32,
    watch: Watch,
    /// The word that has ended the round, once it was heard.
    heard: Option<Heard>,
    fence: LeasedFence,
}

/// Kills this process and its ranks when node 0 has not answered for too long and this process has not stopped them: AGT-5.
/// Node 0 itself has none: without it nobody replaces anybody.
#[derive(Debug, Clone, Default)]
pub struct LeasedFence(Option<Arc<Mutex<Armed>>>);

#[derive(Debug)]
struct Armed {
    timer: Fence,
    /// Whether there are ranks that it is for: answers may come when there are none.
    has_ranks: bool,
}

impl LeasedFence {
    /// For a node other than 0.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Some(Arc::new(Mutex::new(Armed { timer: Fence::new()?, has_ranks: false })))))
    }

    /// Ranks are about to begin: node 0 has just given this node its place.
    fn begin(&self) {
        self.with(|fence| fence.has_ranks = true);
        self.answered(Instant::now());
    }

    /// Node 0 has answered a call that was sent at `sent`.
    fn answered(&self, sent: Instant) {
        self.with(|fence| {
            if fence.has_ranks {
                fence.timer.put_off(sent, FENCED).expect("the kernel sets a timer that it has made");
            }
        });
    }

    /// No rank is left, or all of them were sent SIGKILL.
    fn lift(&self) {
        self.with(|fence| {
            fence.has_ranks = false;
            fence.timer.lift().expect("the kernel sets a timer that it has made");
        });
    }

    fn with(&self, act: impl FnOnce(&mut Armed)) {
        if let Some(fence) = &self.0 {
            act(&mut fence.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl PeerNodes {
    /// This machine is alone: nobody hears, and nobody says anything.
    pub fn none() -> Self {
        Self(None)
    }

    /// The nodes that `agent` talks to, in this round. From now on they know that this machine is alive.
    pub fn of(agent: &Agent, round: u32, fence: &LeasedFence) -> Self {
        fence.begin();
        let leased = fence.clone();
        let watch = agent.watch(round, move |sent| leased.answered(sent));
        Self(Some(Connection { agent: agent.clone(), round, watch, heard: None, fence: fence.clone() }))
    }

    /// No rank is left here.
    pub fn ranks_are_gone(&self) {
        if let Some(line) = &self.0 {
            line.fence.lift();
        }
    }

    /// Tells them, in the background.
    pub fn tell(&self, report: Report) {
        if let Some(line) = &self.0 {
            line.agent.tell(line.round, report);
        }
    }

    /// Waits for the word that ends the round, which comes once. Cancel safe.
    pub async fn next(&mut self) -> &Heard {
        let Some(line) = &mut self.0 else { return std::future::pending().await };
        if line.heard.is_some() {
            // Whoever has heard the word has acted on it: a rank may take its time to die of SIGKILL.
            line.fence.lift();
            return std::future::pending().await;
        }
        line.heard.insert(line.watch.heard().await)
    }

    /// The word that has ended the round, if it was heard.
    pub fn heard(&self) -> Option<&Heard> {
        self.0.as_ref()?.heard.as_ref()
    }
}
