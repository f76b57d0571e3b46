//! The agents' service: a thin adapter from gRPC to the [`Coordinator`].
//!
//! Owns the socket, the clock and the calls that wait. It decides nothing, and hears only whom the [`gate`] lets through.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::agents;
use proto::agents::agents_server::{Agents, AgentsServer};
use proto::agents::{heartbeat_reply, join_reply};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::coordinator::{Answer, Call, Caller, Coordinator, HangUp, Refusal};
use super::gate::{self, Limits, Line, Tell};
use super::handshake::Secret;
use super::token::Token;
use super::{HOLD, Word, wire};

/// How long the socket stays open for answers that are under way at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long a port may belong to somebody else, and how often that is tried: nobody tells when it is free.
const PORT_DEADLINE: Duration = Duration::from_secs(5);
const PORT_RETRY: Duration = Duration::from_millis(50);

/// Connections that may wait to be taken. The kernel has a limit of its own, usually the same.
const BACKLOG: u32 = 4096;

/// What an agent may ask for at a time. It has a handful of calls under way at most, each of a few kilobytes.
const CALLS: u32 = 32;
const MESSAGE_BYTES: usize = 64 << 10;
const HEADER_BYTES: u32 = 8 << 10;
const FRAME_BYTES: u32 = 16 << 10;
const WINDOW_BYTES: u32 = 64 << 10;
/// Calls that an agent has opened and given up, before its connection is closed.
const RESETS: usize = 32;
/// No call takes longer: those that wait are answered after [`HOLD`].
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A running service. Dropping it closes the socket.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    waiting_calls: Arc<WaitingCalls>,
    stop: Option<oneshot::Sender<()>>,
    gate: JoinHandle<()>,
    serve: JoinHandle<Result<(), tonic::transport::Error>>,
    clock: JoinHandle<()>,
}

impl Server {
    /// Listens at `addresses`, which are those of one name; only who knows `token` is heard, and `tell` is told of others.
    pub async fn start(
        addresses: &[SocketAddr],
        token: Token,
        coordinator: Coordinator,
        tell: Tell,
    ) -> io::Result<Self> {
        let listener = listen(addresses).await?;
        let address = reachable(listener.local_addr()?);
        let (changed, _) = watch::channel(coordinator.generation());
        let waiting_calls = Arc::new(WaitingCalls { coordinator: Mutex::new(coordinator), changed });
        let service = AgentsServer::new(Service { waiting_calls: waiting_calls.clone() })
            .max_decoding_message_size(MESSAGE_BYTES);
        let (admitted, connections) = mpsc::channel(1);
        let gate = gate::keep(listener, Secret::of(&token)?, Limits::of_this_process(), tell, admitted);
        let connections = ReceiverStream::new(connections).map(Ok::<_, io::Error>);
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // Closed without a word: the same.
            let _ = stopped.await;
        };
        let serve = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(1)))
            .http2_keepalive_timeout(Some(Duration::from_secs(3)))
            .timeout(CALL_TIMEOUT)
            .max_concurrent_streams(CALLS)
            .max_frame_size(FRAME_BYTES)
            .http2_max_header_list_size(HEADER_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_max_pending_accept_reset_streams(Some(RESETS))
            .http2_max_local_error_reset_streams(Some(RESETS))
            .serve_with_incoming_shutdown(service, connections, stopped);
        let clock = tokio::spawn(watch_the_clock(waiting_calls.clone()));
        Ok(Self {
            address,
            waiting_calls,
            stop: Some(stop),
            gate: tokio::spawn(gate),
            serve: tokio::spawn(serve),
            clock,
        })
    }

    /// Returns the address at which this process reaches it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Node 0's part is done; whatever else nodes could wait for does not come.
    pub fn close(&self) {
        self.waiting_calls.with(Coordinator::close);
    }

    /// Waits until every agent that is there knows how the run has ended; then closes the socket.
    pub async fn finish(mut self) {
        let mut changes = self.waiting_calls.changed.subscribe();
        loop {
            let known_by = self.waiting_calls.lock().known_by();
            let Some(known_by) = known_by.filter(|&known_by| Instant::now() < known_by) else { break };
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(known_by.into()) => {}
            }
        }
        self.gate.abort();
        drop(self.stop.take());
        // Connections of agents that are gone without a word may stay open.
        let _ = tokio::time::timeout(LAST_ANSWERS, &mut self.serve).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.gate.abort();
        self.serve.abort();
        self.clock.abort();
    }
}

/// Listens as soon as nobody else does any more: a launcher that was killed takes a moment to let go.
async fn listen(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let deadline = Instant::now() + PORT_DEADLINE;
    loop {
        match bind(addresses) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(PORT_RETRY).await;
            }
            bound => return bound,
        }
    }
}

/// The first of the addresses that is this machine's; if none is, somebody translates them, and all of the machine's are
/// listened at.
fn bind(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    for &address in addresses {
        match queue_at(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            bound => return bound,
        }
    }
    let first = addresses.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let any: IpAddr = if first.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    queue_at((any, first.port()).into())
}

/// Listens at `address` for as many as may come at once: with the usual queue of 128, whoever comes after them is heard a second
/// later, or not at all.
fn queue_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, bound.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, bound.port()).into(),
        _ => bound,
    }
}

/// The coordinator, and how those who wait are woken.
#[derive(Debug)]
struct WaitingCalls {
    coordinator: Mutex<Coordinator>,
    /// Its generation.
    changed: watch::Sender<u64>,
}

impl WaitingCalls {
    fn lock(&self) -> MutexGuard<'_, Coordinator> {
        self.coordinator.lock().expect("no code panics while it holds the coordinator")
    }

    /// Does something to the coordinator, and wakes those who wait if that may concern them.
    fn with<T>(&self, act: impl FnOnce(&mut Coordinator) -> T) -> T {
        let mut coordinator = self.lock();
        let result = act(&mut coordinator);
        let generation = coordinator.generation();
        self.changed.send_if_modified(|seen| std::mem::replace(seen, generation) != generation);
        result
    }
}

/// Tells the coordinator when something is due. Calls only ever move a deadline away, unless they change the generation.
async fn watch_the_clock(waiting_calls: Arc<WaitingCalls>) {
    let mut changes = waiting_calls.changed.subscribe();
    loop {
        let deadline = waiting_calls.lock().next_deadline();
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = over => waiting_calls.with(|coordinator| coordinator.tick(Instant::now())),
        }
    }
}

/// Tells the coordinator if a call is given up before it is answered: its connection is broken.
struct OnHangUp<'a> {
    waiting_calls: &'a WaitingCalls,
    /// `None` once the call is answered.
    caller: Option<Caller>,
    line: Line,
}

impl Drop for OnHangUp<'_> {
    fn drop(&mut self) {
        if let Some(caller) = self.caller.take() {
            let how = if self.line.is_closed() { HangUp::Closed } else { HangUp::Lost };
            self.waiting_calls.with(|coordinator| coordinator.hung_up(&caller, how, Instant::now()));
        }
    }
}

struct Service {
    waiting_calls: Arc<WaitingCalls>,
}

impl Service {
    fn call(&self, caller: &Caller, call: Call) -> Result<Answer, Status> {
        self.waiting_calls.with(|coordinator| coordinator.call(caller, call, Instant::now())).map_err(status)
    }

    /// Asks again whenever the answer may be another one, for a while.
    async fn ask(&self, line: Line, caller: Caller, call: Call) -> Result<Answer, Status> {
        let (told, who) = (self.waiting_calls.clone(), caller.clone());
        // It may close between two calls.
        line.when_closed(move || told.with(|coordinator| coordinator.hung_up(&who, HangUp::Closed, Instant::now())));
        let mut changes = self.waiting_calls.changed.subscribe();
        let until = tokio::time::Instant::now() + HOLD;
        let mut open = OnHangUp { waiting_calls: &self.waiting_calls, caller: Some(caller.clone()), line };
        let answer = loop {
            // The call is still here, and its agent is not: asking again would say that it was heard.
            if open.line.is_closed() {
                break Err(Status::cancelled("the agent has closed its connection"));
            }
            match self.call(&caller, call.clone()) {
                Ok(Answer::Wait) => {}
                answer => break answer,
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(until) => break Ok(Answer::Wait),
            }
        };
        open.caller = None;
        answer
    }
}

#[tonic::async_trait]
impl Agents for Service {
    async fn join(&self, request: Request<agents::JoinRequest>) -> Result<Response<agents::JoinReply>, Status> {
        let line = line(&request);
        let request = request.into_inner();
        let offer = wire::offer(&request)?;
        let answer = match self.ask(line, wire::caller(request.caller)?, Call::Join(offer)).await? {
            Answer::Place(place) => wire::place_answer(place),
            Answer::Word(Word::Over(ending)) => join_reply::Answer::Over(ending.into()),
            Answer::Wait | Answer::Noted | Answer::Word(Word::Again(_)) => join_reply::Answer::Wait(agents::Wait {}),
        };
        Ok(Response::new(agents::JoinReply { answer: Some(answer) }))
    }

    async fn heartbeat(
        &self,
        request: Request<agents::HeartbeatRequest>,
    ) -> Result<Response<agents::HeartbeatReply>, Status> {
        let line = line(&request);
        let caller = wire::caller(request.into_inner().caller)?;
        let answer = match self.ask(line, caller, Call::Heartbeat).await? {
            Answer::Word(word) => word.into(),
            Answer::Wait | Answer::Noted | Answer::Place(_) => heartbeat_reply::Answer::Wait(agents::Wait {}),
        };
        Ok(Response::new(agents::HeartbeatReply { answer: Some(answer) }))
    }

    async fn report(&self, request: Request<agents::ReportRequest>) -> Result<Response<agents::ReportReply>, Status> {
        let agents::ReportRequest { caller, event } = request.into_inner();
        self.call(&wire::caller(caller)?, Call::Report(wire::report(event)?))?;
        Ok(Response::new(agents::ReportReply {}))
    }

    async fn leave(&self, request: Request<agents::LeaveRequest>) -> Result<Response<agents::LeaveReply>, Status> {
        self.call(&wire::caller(request.into_inner().caller)?, Call::Leave)?;
        Ok(Response::new(agents::LeaveReply {}))
    }
}

/// The connection that `request` has come over.
fn line<T>(request: &Request<T>) -> Line {
    request.extensions().get::<Line>().cloned().unwrap_or_default()
}

fn status(refusal: Refusal) -> Status {
    let code = match refusal {
        Refusal::OtherRun { .. } | Refusal::OtherSize { .. } | Refusal::NoSuchNode { .. } => Code::FailedPrecondition,
        Refusal::Replaced(_) => Code::Aborted,
    };
    Status::new(code, refusal.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::client::{Agent, AgentError, Contact, Heard, Joined};
    use crate::agents::coordinator::Terms;
    use crate::agents::{Cause, Ending, Meeting, Offer, Report};

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Run {
        server: Server,
        token: Token,
    }

    async fn run(num_nodes: u32, max_restarts: u32) -> Run {
        let token = Token::random().unwrap();
        let terms = Terms { run_id: "id".into(), num_nodes, max_restarts, join_timeout: PATIENCE };
        let coordinator = Coordinator::new(terms, Instant::now());
        let anywhere = [(Ipv4Addr::LOCALHOST, 0).into()];
        let server = Server::start(&anywhere, token.clone(), coordinator, Box::new(|_| {}));
        let server = server.await.unwrap();
        Run { server, token }
    }

    impl Run {
        fn agent(&self, node_rank: u32, token: &Token) -> Agent {
            let contact = Contact {
                endpoint: self.server.address().to_string(),
                token: token.clone(),
                run_id: "id".into(),
                node_rank,
                incarnation: Token::random().unwrap().expose().into(),
            };
            Agent::new(contact).unwrap()
        }

        async fn join(&self, agents: [&Agent; 2], round: u32) {
            let offer = |meeting| Offer { num_nodes: 2, num_workers: 4, meeting };
            let meeting = Some(Meeting { addr: "h".into(), port: 9 });
            let (zero, one) = tokio::join!(
                agents[0].join(round, offer(meeting.clone()), PATIENCE),
                agents[1].join(round, offer(None), PATIENCE)
            );
            let first_rank = |joined: Result<Joined, AgentError>| match joined {
                Ok(Joined::Round(place)) => {
                    assert_eq!((place.round, place.world_size, Some(place.meeting)), (round, 8, meeting.clone()));
                    place.first_rank
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((first_rank(zero), first_rank(one)), (0, 4));
        }
    }

    #[tokio::test]
    async fn agents_meet_fail_and_finish_together() {
        let run = run(2, 1).await;
        let (zero, one) = (run.agent(0, &run.token), run.agent(1, &run.token));
        run.join([&zero, &one], 0).await;
        let (mut zero_hears, mut one_hears) = (zero.watch(0, |_| {}), one.watch(0, |_| {}));
        let cause = Cause { node: 1, rank: Some(5), exit: None, message: "boom".into(), round: 0 };
        one.tell(0, Report::Failed(cause.clone()));
        let again = Heard::Word(Word::Again(Some(cause)));
        assert_eq!((zero_hears.heard().await, one_hears.heard().await), (again.clone(), again));
        run.join([&zero, &one], 1).await;
        let (mut zero_hears, mut one_hears) = (zero.watch(1, |_| {}), one.watch(1, |_| {}));
        zero.tell(1, Report::Done);
        one.tell(1, Report::Done);
        let over = Heard::Word(Word::Over(Ending::Done));
        assert_eq!((zero_hears.heard().await, one_hears.heard().await), (over.clone(), over));
        let since = Instant::now();
        tokio::join!(zero.leave(), one.leave());
        run.server.finish().await;
        assert!(since.elapsed() < super::super::SILENCE, "nobody is waited for who has left");
    }

    #[tokio::test]
    async fn a_wrong_token_changes_nothing() {
        let run = run(2, 0).await;
        let stranger = run.agent(1, &Token::random().unwrap());
        let offer = Offer { num_nodes: 2, num_workers: 1, meeting: None };
        let endpoint = run.server.address().to_string();
        assert_eq!(stranger.join(0, offer, PATIENCE).await, Err(AgentError::Token(endpoint.clone())));
        assert_eq!(stranger.watch(0, |_| {}).heard().await, Heard::Refused(AgentError::Token(endpoint)));
        stranger.tell_to_stop(0, Report::Stopped(crate::process::signals::Interrupt::Interrupt)).await;
        stranger.leave().await;
        run.join([&run.agent(0, &run.token), &run.agent(1, &run.token)], 0).await;
    }

    #[tokio::test]
    async fn an_agent_that_hangs_up_is_gone_soon() {
        let run = run(2, 0).await;
        let (zero, one) = (run.agent(0, &run.token), run.agent(1, &run.token));
        run.join([&zero, &one], 0).await;
        let mut zero_hears = zero.watch(0, |_| {});
        let one_hears = one.watch(0, |_| {});
        let since = Instant::now();
        // It is in the middle of a call, by and by.
        tokio::time::sleep(HOLD / 2).await;
        drop((one_hears, one));
        let Heard::Word(Word::Over(Ending::Failed { cause, .. })) = zero_hears.heard().await else { panic!() };
        assert_eq!((cause.node, cause.rank), (1, None));
        assert!(since.elapsed() < super::super::SILENCE, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn an_agent_that_nobody_answers_says_so() {
        let run = run(2, 0).await;
        let (endpoint, agent) = (run.server.address().to_string(), run.agent(1, &run.token));
        drop(run);
        let offer = Offer { num_nodes: 2, num_workers: 1, meeting: None };
        let error = agent.join(0, offer, Duration::from_millis(100)).await.unwrap_err();
        let told = format!("no dslaunch of node 0 answers at {endpoint}, for 0 s: Connection refused");
        assert!(error.to_string().starts_with(&told), "{error}");
    }
}
