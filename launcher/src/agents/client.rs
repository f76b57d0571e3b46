//! An agent: a node's line to the coordinator. It repeats its calls until they are answered, and says when nobody is there.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use proto::agents;
use proto::agents::agents_client::AgentsClient;
use proto::agents::{heartbeat_reply, join_reply};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::coordinator::Caller;
use super::handshake::{self, HandshakeError, Secret};
use super::token::Token;
use super::{Ending, LOST, NodePlace, Offer, Report, Word, wire};

/// One call may take this long. It is held for a part of that at most.
const CALL: Duration = Duration::from_secs(2);
/// A connection may take this long to begin: longer than a call, which is made again meanwhile. Where strangers crowd, it
/// waits in the listener's queue, and one that is given up joins that at the end.
const CONNECT: Duration = Duration::from_secs(5);
/// The pause after a call that failed: nobody tells when a machine can be reached again.
const RETRY: Duration = Duration::from_millis(200);
/// The last calls may take this long: whoever is gone misses nothing.
const FAREWELL: Duration = Duration::from_secs(2);

/// A reason why an agent gives up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// Nobody is there.
    #[error("no dslaunch of node 0 answers at {endpoint}, for {seconds} s: {reason}")]
    Unreachable {
        /// Its expected place.
        endpoint: String,
        /// For how long.
        seconds: u64,
        /// The result of the last try.
        reason: String,
    },
    /// It has another token.
    #[error(
        "{0} refuses this node's token: --token-file, or DSLAUNCH_JOB_TOKEN_FILE or DSLAUNCH_JOB_TOKEN, must be the same on \
         all nodes; where none was given, all nodes must be of one user with one cache folder"
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
    /// The agent's node.
    pub node_rank: u32,
    /// Random: which agent of that node.
    pub incarnation: String,
}

/// A node's line to the coordinator.
#[derive(Debug, Clone)]
pub struct Agent {
    contact: Contact,
    client: AgentsClient<Channel>,
}

/// Connects to the coordinator and proves who this is.
#[derive(Clone)]
struct Connector {
    endpoint: String,
    secret: Secret,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = HandshakeError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, HandshakeError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { endpoint, secret } = self.clone();
        Box::pin(async move {
            let mut stream = TcpStream::connect(endpoint).await?;
            stream.set_nodelay(true)?;
            handshake::introduce(&mut stream, &secret).await?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// The answer to the wish to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// The round begins.
    Round(NodePlace),
    /// The run has ended.
    Over(Ending),
}

/// The word that a watch has heard.
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
        let unusable =
            |error: &dyn Error| AgentError::Refused(format!("{} is no address to call: {error}", contact.endpoint));
        let endpoint =
            Endpoint::from_shared(format!("http://{}", contact.endpoint)).map_err(|error| unusable(&error))?;
        let secret = Secret::of(&contact.token).map_err(|error| unusable(&error))?;
        let channel = endpoint
            .connect_timeout(CONNECT)
            // A machine that is gone closes no connection.
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(3))
            .connect_with_connector_lazy(Connector { endpoint: contact.endpoint.clone(), secret });
        Ok(Self { client: AgentsClient::new(channel), contact })
    }

    /// Joins round `round` or a later one; returns when all nodes have. While nobody answers, it tries for `patience`.
    pub async fn join(&self, round: u32, offer: Offer, patience: Duration) -> Result<Joined, AgentError> {
        let mut calls = RepeatedCalls::new(self);
        loop {
            let request = wire::join_request(self.caller(round), offer.clone());
            let mut client = self.client.clone();
            let Some(reply) = calls.call(client.join(request), patience).await? else { continue };
            let answer = match reply.answer {
                Some(join_reply::Answer::Place(place)) => wire::place(place).map(Joined::Round),
                Some(join_reply::Answer::Over(over)) => wire::ending(over).map(Joined::Over),
                Some(join_reply::Answer::Wait(_)) | None => continue,
            };
            return answer.map_err(|status| AgentError::Refused(status.message().to_owned()));
        }
    }

    /// Says that this node is alive, in the background, until the round has ended. Whenever the coordinator has answered,
    /// `answered` is told when the call was sent: AGT-5.
    pub fn watch(&self, round: u32, answered: impl FnMut(Instant) + Send + 'static) -> Watch {
        let (sender, heard) = oneshot::channel();
        let agent = self.clone();
        let task = tokio::spawn(async move {
            // Nobody listens any more when the round is given up here.
            let _ = sender.send(agent.listen(round, answered).await);
        });
        Watch { heard, task }
    }

    async fn listen(&self, round: u32, mut answered: impl FnMut(Instant)) -> Heard {
        let mut calls = RepeatedCalls::new(self);
        loop {
            let request = agents::HeartbeatRequest { caller: Some(self.caller(round).into()) };
            let mut client = self.client.clone();
            let reply = match calls.call(client.heartbeat(request), LOST).await {
                Ok(Some(reply)) => {
                    answered(calls.heard);
                    reply
                }
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
        let mut calls = RepeatedCalls::new(self);
        let request = agents::ReportRequest { caller: Some(self.caller(round).into()), event: Some(report.into()) };
        let mut client = self.client.clone();
        // Whoever cannot be told finds out by the silence.
        while let Ok(None) = calls.call(client.report(request.clone()), LOST).await {}
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
struct RepeatedCalls<'a> {
    agent: &'a Agent,
    /// When the latest call was sent that the coordinator has answered; before that, when it was first called.
    heard: Instant,
}

impl<'a> RepeatedCalls<'a> {
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
        let sent = Instant::now();
        // No call outlasts the patience: AGT-5. Where that is over before, this one is still made.
        let left = (self.heard + patience).saturating_duration_since(sent);
        let status = match tokio::time::timeout(CALL.min(left.max(RETRY)), call).await {
            Ok(Ok(reply)) => {
                self.heard = sent;
                return Ok(Some(reply.into_inner()));
            }
            Ok(Err(status)) => status,
            Err(_) => Status::unavailable("it does not answer"),
        };
        match handshake_error(&status) {
            Some(HandshakeError::Refused) => return Err(AgentError::Token(endpoint.clone())),
            Some(error @ (HandshakeError::Impostor | HandshakeError::Version { .. })) => {
                return Err(AgentError::Refused(format!("{endpoint}: {error}")));
            }
            // It may be another one that still holds the port.
            Some(HandshakeError::Stranger | HandshakeError::Broken(_)) | None => {}
        }
        match status.code() {
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

/// Why the connection did not begin, if that is what the call failed of.
fn handshake_error(status: &Status) -> Option<&HandshakeError> {
    let mut causes = std::iter::successors(status.source(), |&cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref())
}

/// tonic's own words say no more than "transport error".
fn root_cause(status: &Status) -> String {
    let mut cause: &dyn Error = status;
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
