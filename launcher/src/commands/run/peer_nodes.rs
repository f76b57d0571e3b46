//! The other machines of a run during one attempt, if there are any.

use crate::agents::Report;
use crate::agents::client::{Agent, Heard, Watch};

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
}

impl PeerNodes {
    /// This machine is alone: nobody hears, and nobody says anything.
    pub fn none() -> Self {
        Self(None)
    }

    /// The nodes that `agent` talks to, in this round. From now on they know that this machine is alive.
    pub fn of(agent: &Agent, round: u32) -> Self {
        Self(Some(Connection { agent: agent.clone(), round, watch: agent.watch(round), heard: None }))
    }

    /// Tells them, in the background.
    pub fn tell(&self, report: Report) {
        if let Some(line) = &self.0 {
            line.agent.tell(line.round, report);
        }
    }

    /// Waits for the word that ends the round, which comes once. Cancel safe.
    pub async fn next(&mut self) -> &Heard {
        match &mut self.0 {
            Some(line) if line.heard.is_none() => line.heard.insert(line.watch.heard().await),
            _ => std::future::pending().await,
        }
    }

    /// The word that has ended the round, if it was heard.
    pub fn heard(&self) -> Option<&Heard> {
        self.0.as_ref()?.heard.as_ref()
    }
}
