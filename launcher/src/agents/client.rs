//! An agent: a node's line to the coordinator. It repeats its calls until they are answered, and says when nobody is there.

use std::time::{Duration, Instant};

use proto::agents;
use proto::agents::agents_client::AgentsClient;
use proto::agents::{heartbeat_reply, join_reply};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::coordinator::Caller;
use super::{Ending, LOST, Offer, Place, Report, Word, wire};
use crate::ranks::token::Token;

/// How long one call may take. It is held for a part of that at most.
const CALL: Duration = Duration::from_secs(2);
/// How long to wait after a call that failed: nobody tells when a machine can be reached again.
const RETRY: Duration = Duration::from_millis(200);
/// How long the last calls may take: whoever is gone misses nothing.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why an agent gives up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// Nobody is there.
    #[error("no dslaunch of node 0 answers at {endpoint}, for {seconds} s: {reason}")]
    Unreachable {
        /// Where it should be.
        endpoint: String,
        /// For how long.
        seconds: u64,
        /// What the last try came to.
        reason: String,
    },
    /// It has another token.
    #[error(
        "{0} refuses this node's token: --token-file, or DSLAUNCH_JOB_TOKEN_FILE or DSLAUNCH_JOB_TOKEN, must be the same on \
         all nodes"
    )]
    Token(String),
    /// It does not want this node as it is.
    #[error("{0}")]
    Refused(String),
    /// Another agent stands for this node.
    #[error("{0}")]
    Replaced(String),
}

/// Whom an agent talks to, and as whom.
#[derive(Debug, Clone)]
pub struct Contact {
    /// `HOST:PORT` of the coordinator.
    pub endpoint: String,
    /// The run's token.
    pub token: Token,
    /// The run's name.
    pub run_id: String,
    /// Which node's agent.
    pub node_rank: u32,
    /// Random: which agent of that node.
    pub incarnation: String,
}

/// A node's line to the coordinator.
#[derive(Debug, Clone)]
pub struct Agent {
    contact: Contact,
    client: AgentsClient<InterceptedService<Channel, AddToken>>,
}

#[derive(Debug, Clone)]
struct AddToken(MetadataValue<Ascii>);

impl Interceptor for AddToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(agents::TOKEN_KEY, self.0.clone());
        Ok(request)
    }
}

/// What became of the wish to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// The round begins.
    Round(Place),
    /// The run has ended.
    Over(Ending),
}

/// What a watch has heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The coordinator's word.
    Word(Word),
    /// Nothing for too long.
    Lost,
    /// It does not talk to this agent.
    Refused(AgentError),
}

impl Agent {
    /// Nothing is connected yet. Needs a tokio runtime.
    pub fn new(contact: Contact) -> Result<Self, AgentError> {
        let unusable = |error: &dyn std::error::Error| {
            AgentError::Refused(format!("{} is no address to call: {error}", contact.endpoint))
        };
        let endpoint =
            Endpoint::from_shared(format!("http://{}", contact.endpoint)).map_err(|error| unusable(&error))?;
        let channel = endpoint
            .connect_timeout(CALL)
            .tcp_nodelay(true)
            // A machine that is gone closes no connection.
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(3))
            .connect_lazy();
        let token = contact.token.expose().parse().map_err(|error| unusable(&error))?;
        Ok(Self { client: AgentsClient::with_interceptor(channel, AddToken(token)), contact })
    }

    /// Joins round `round` or a later one; returns when all nodes have. While nobody answers, it tries for `patience`.
    pub async fn join(&self, round: u32, offer: Offer, patience: Duration) -> Result<Joined, AgentError> {
        let mut line = Line::new(self);
        loop {
            let request = wire::join_request(self.caller(round), offer.clone());
            let mut client = self.client.clone();
            let Some(reply) = line.call(client.join(request), patience).await? else { continue };
            let answer = match reply.answer {
                Some(join_reply::Answer::Place(place)) => wire::place(place).map(Joined::Round),
                Some(join_reply::Answer::Over(over)) => wire::ending(over).map(Joined::Over),
                Some(join_reply::Answer::Wait(_)) | None => continue,
            };
            return answer.map_err(|status| AgentError::Refused(status.message().to_owned()));
        }
    }

    /// Says that this node is alive, in the background, until the round has ended.
    pub fn watch(&self, round: u32) -> Watch {
        let (sender, heard) = oneshot::channel();
        let agent = self.clone();
        let task = tokio::spawn(async move {
            // Nobody listens any more when the round is given up here.
            let _ = sender.send(agent.listen(round).await);
        });
        Watch { heard, task }
    }

    async fn listen(&self, round: u32) -> Heard {
        let mut line = Line::new(self);
        loop {
            let request = agents::HeartbeatRequest { caller: Some(self.caller(round).into()) };
            let mut client = self.client.clone();
            let reply = match line.call(client.heartbeat(request), LOST).await {
                Ok(Some(reply)) => reply,
                Ok(None) => continue,
                Err(AgentError::Unreachable { .. }) => return Heard::Lost,
                Err(error) => return Heard::Refused(error),
            };
            let word = match reply.answer {
                Some(heartbeat_reply::Answer::Again(again)) => Ok(wire::again(again)),
                Some(heartbeat_reply::Answer::Over(over)) => wire::ending(over).map(Word::Over),
                Some(heartbeat_reply::Answer::Wait(_)) | None => continue,
            };
            return word
                .map_or_else(|status| Heard::Refused(AgentError::Refused(status.message().to_owned())), Heard::Word);
        }
    }

    /// Tells the coordinator, in the background, as long as it takes and makes sense.
    pub fn tell(&self, round: u32, report: Report) {
        let agent = self.clone();
        tokio::spawn(async move { agent.report(round, report).await });
    }

    /// Tells the coordinator that the user wants to stop, and waits until it knows, but not for long.
    pub async fn tell_to_stop(&self, round: u32, report: Report) {
        let _ = tokio::time::timeout(FAREWELL, self.report(round, report)).await;
    }

    async fn report(&self, round: u32, report: Report) {
        let mut line = Line::new(self);
        let request = agents::ReportRequest { caller: Some(self.caller(round).into()), event: Some(report.into()) };
        let mut client = self.client.clone();
        // Whoever cannot be told finds out by the silence.
        while let Ok(None) = line.call(client.report(request.clone()), LOST).await {}
    }

    /// The last call: this agent knows how the run has ended.
    pub async fn leave(&self) {
        let request = agents::LeaveRequest { caller: Some(self.caller(0).into()) };
        let mut client = self.client.clone();
        let _ = tokio::time::timeout(FAREWELL, client.leave(request)).await;
    }

    fn caller(&self, round: u32) -> Caller {
        let Contact { run_id, node_rank, incarnation, .. } = self.contact.clone();
        Caller { run_id, node_rank, incarnation, round }
    }
}

/// Calls that are repeated until they are answered.
struct Line<'a> {
    agent: &'a Agent,
    /// When the coordinator was last heard, or was first called.
    heard: Instant,
}

impl<'a> Line<'a> {
    fn new(agent: &'a Agent) -> Self {
        Self { agent, heard: Instant::now() }
    }

    /// `None`: the call is to be repeated. Fails if that is of no use, or nobody has answered for `patience`.
    async fn call<T>(
        &mut self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
        patience: Duration,
    ) -> Result<Option<T>, AgentError> {
        let endpoint = &self.agent.contact.endpoint;
        let status = match tokio::time::timeout(CALL, call).await {
            Ok(Ok(reply)) => {
                self.heard = Instant::now();
                return Ok(Some(reply.into_inner()));
            }
            Ok(Err(status)) => status,
            Err(_) => Status::unavailable("it does not answer"),
        };
        match status.code() {
            Code::Unauthenticated => return Err(AgentError::Token(endpoint.clone())),
            Code::FailedPrecondition | Code::InvalidArgument => {
                return Err(AgentError::Refused(status.message().to_owned()));
            }
            Code::Aborted => return Err(AgentError::Replaced(status.message().to_owned())),
            _ => {}
        }
        if self.heard.elapsed() >= patience {
            let reason = root_cause(&status);
            return Err(AgentError::Unreachable { endpoint: endpoint.clone(), seconds: patience.as_secs(), reason });
        }
        tokio::time::sleep(RETRY).await;
        Ok(None)
    }
}

/// tonic's own words say no more than "transport error".
fn root_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if cause.is::<Status>() { status.message().to_owned() } else { cause.to_string() }
}

/// Waits for the end of a round.
#[derive(Debug)]
pub struct Watch {
    heard: oneshot::Receiver<Heard>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Waits for it. Comes once. Cancel safe.
    pub async fn heard(&mut self) -> Heard {
        (&mut self.heard).await.unwrap_or(Heard::Lost)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
