//! Whatever bytes come to the services for ranks and for agents, from whoever may talk to them or may not: the launcher
//! answers, and lives.
//!
//! A fuzz target without a fuzzer: messages are real ones, mutated by a generator whose seed is printed, sent as they are. More
//! [`SEEDS`] and [`MESSAGES`] look further.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use launcher::agents::coordinator::{Coordinator, Terms};
use launcher::agents::handshake::{self, Secret};
use launcher::agents::service as agents_service;
use launcher::agents::token::Token;
use launcher::ranks::notice::Notice;
use launcher::ranks::rendezvous::Rendezvous;
use launcher::ranks::service::Server;
use launcher::supervise::{Event, OnInterrupt, Supervisor};
use prost::Message;
use prost::bytes::{Buf, BufMut};
use proto::agents;
use proto::control::report_request::Event as Report;
use proto::control::{
    BarrierRequest, Caller, CheckpointSaved, EvalMetrics, FailedRequest, Finished, GetKeyRequest, HeartbeatRequest,
    PutKeyRequest, RegisterRequest, ReportRequest, SkippedStep, Started, StepMetrics,
};
use proto::dial;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Messages of a seed.
const MESSAGES: usize = 4000;
/// Generators.
const SEEDS: [u64; 3] = [1, 2, 3];
/// How often a stranger tries: each wrong guess of the token is answered after a second (GAT-5).
const WRONG_GUESSES: usize = 15;
/// Longest wait for one answer; waits that the service itself ends take less.
const PATIENCE: Duration = Duration::from_secs(20);

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A number that is likely to be at an edge.
    fn number(&mut self) -> u64 {
        [0, 1, 2, 7, u64::from(u32::MAX), u64::MAX, i64::MAX as u64, self.next()][self.below(8)]
    }

    fn float(&mut self) -> f64 {
        [0.0, -0.0, 1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::from_bits(self.next())]
            [self.below(8)]
    }

    fn text(&mut self) -> String {
        let text = ["", "a", "\u{1b}[2J\r\n", "\u{202e}", "{\"ms\":1}\n", "/"][self.below(6)];
        text.repeat([1, 1, 1, 1000][self.below(4)])
    }
}

/// Bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// A method and a message that it takes, with values from the edges.
fn message(random: &mut Random) -> (&'static str, Vec<u8>) {
    let caller = Some(Caller {
        attempt: [0, 0, 0, 1, u32::MAX][random.below(5)],
        rank: [0, 1, 1, 2, u32::MAX][random.below(5)],
    });
    let (step, number) = (random.number(), random.number());
    match random.below(7) {
        0 => (
            "Register",
            RegisterRequest { caller, pid: number as u32, version: proto::control::VERSION }.encode_to_vec(),
        ),
        // Short waits: there is nobody to meet.
        1 => ("Barrier", BarrierRequest { caller, name: random.text(), timeout_ms: number % 3 }.encode_to_vec()),
        2 => ("PutKey", PutKeyRequest { caller, key: random.text(), value: random.text().into() }.encode_to_vec()),
        3 => ("GetKey", GetKeyRequest { caller, key: random.text(), timeout_ms: number % 3 }.encode_to_vec()),
        4 => ("Heartbeat", HeartbeatRequest { caller, step, phase: random.text() }.encode_to_vec()),
        5 => {
            let kind = number as i32;
            ("Failed", FailedRequest { caller, kind, step, message: random.text() }.encode_to_vec())
        }
        _ => ("Report", ReportRequest { caller, event: report(random, step), number }.encode_to_vec()),
    }
}

fn report(random: &mut Random, step: u64) -> Option<Report> {
    let (loss, grad_norm) = (random.float(), random.float());
    Some(match random.below(7) {
        0 => Report::Started(Started { resumed_step: step }),
        1 => Report::Step(StepMetrics { step, loss, grad_norm, tokens: step, logged: true, ..Default::default() }),
        2 => Report::Eval(EvalMetrics { step, eval_loss: loss, label_tokens: step, ..Default::default() }),
        3 => Report::Checkpoint(CheckpointSaved { step, path: random.text(), seconds: loss }),
        4 => Report::Finished(Finished { step, peak_memory_bytes: step, ..Default::default() }),
        5 => Report::Skipped(SkippedStep { step, loss, grad_norm, in_a_row: step, samples: vec![random.text(); 3] }),
        _ => return None,
    })
}

/// Half of the messages are no longer what they were.
fn mutate(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    match random.below(10) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => (0..1 + random.below(8)).for_each(|_| {
            if !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }),
        2 => bytes.splice(0..0, [0xff; 10]).for_each(drop),
        3 => bytes.extend_from_within(..),
        4 => bytes = (0..random.below(200)).map(|_| random.next() as u8).collect(),
        _ => {}
    }
    bytes
}

/// A method of the agents' service and a message that it takes, with values from the edges.
fn agents_message(random: &mut Random) -> (&'static str, Vec<u8>) {
    let caller = Some(agents::Caller {
        run_id: ["id", "id", "id", "", "other"][random.below(5)].into(),
        node_rank: [0, 1, 1, 2, u32::MAX][random.below(5)],
        incarnation: random.text(),
        round: [0, 0, 0, 1, u32::MAX][random.below(5)],
    });
    let number = random.number() as u32;
    match random.below(4) {
        0 => {
            let master = Some(agents::Master { addr: random.text(), port: number });
            let master = master.filter(|_| number.is_multiple_of(2));
            ("Join", agents::JoinRequest { caller, num_nodes: 2, num_workers: number, master }.encode_to_vec())
        }
        1 => ("Leave", agents::LeaveRequest { caller }.encode_to_vec()),
        2 => {
            let (message, round) = (random.text(), number);
            let cause = agents::Cause { node: number, rank: Some(number), exit: None, message, round };
            // Neither "done" nor "stopped": the run would be over, and nothing left to harm.
            let event = Some(agents::report_request::Event::Failed(cause)).filter(|_| number.is_multiple_of(3));
            ("Report", agents::ReportRequest { caller, event }.encode_to_vec())
        }
        // Held for a while if it is a good one: not many of these.
        _ if random.below(20) == 0 => ("Heartbeat", agents::HeartbeatRequest { caller }.encode_to_vec()),
        _ => ("Heartbeat", agents::HeartbeatRequest { caller: None }.encode_to_vec()),
    }
}

struct Client {
    grpc: Grpc<Channel>,
    service: &'static str,
}

impl Client {
    async fn call(&mut self, method: &str, bytes: Vec<u8>) -> Result<Vec<u8>, Status> {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(format!("/{}/{method}", self.service)).unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.grpc.unary(Request::new(bytes), path, Raw)).await;
        answer.expect("every call is answered").map(tonic::Response::into_inner)
    }
}

async fn rank(outside: &OwnedFd) -> Client {
    let grpc = Grpc::new(dial::channel(outside.as_raw_fd()).await.unwrap());
    Client { grpc, service: "dslaunch.control.v1.Control" }
}

/// Connects to a coordinator, as an agent does or as somebody who knows nothing of handshakes.
#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    secret: Option<Secret>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, secret } = self.clone();
        Box::pin(async move {
            let mut stream = TcpStream::connect(address).await?;
            if let Some(secret) = secret {
                handshake::introduce(&mut stream, &secret).await.map_err(io::Error::other)?;
            }
            Ok(TokioIo::new(stream))
        })
    }
}

fn agent(address: SocketAddr, token: Option<&Token>) -> Client {
    let secret = token.map(|token| Secret::of(token).unwrap());
    let channel = Endpoint::from_static("http://x").connect_with_connector_lazy(Connector { address, secret });
    Client { grpc: Grpc::new(channel), service: "dslaunch.agents.v1.Agents" }
}

/// A server of two ranks, and what a job hears of it, which acknowledges reports at once.
fn server() -> (Server, OwnedFd, mpsc::UnboundedReceiver<Notice>) {
    let (sender, mut all) = mpsc::unbounded_channel();
    let (heard, notices) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(notice) = all.recv().await {
            match notice {
                Notice::Receipt(receipt) => receipt.acknowledge(),
                other => drop(heard.send(other)),
            }
        }
    });
    let rendezvous = Rendezvous::new(0, 2, Duration::from_millis(50), Instant::now());
    let (server, outside) = Server::start(rendezvous, sender).unwrap();
    (server, outside, notices)
}

async fn coordinator(token: &Token) -> agents_service::Server {
    let terms = Terms { run_id: "id".into(), num_nodes: 2, max_restarts: u32::MAX, join_timeout: PATIENCE };
    let coordinator = Coordinator::new(terms, Instant::now());
    let anywhere = ["127.0.0.1:0".parse().unwrap()];
    agents_service::Server::start(&anywhere, token.clone(), coordinator, Box::new(|_| {})).await.unwrap()
}

#[tokio::test]
async fn no_message_harms_the_launcher() {
    for seed in SEEDS {
        println!("seed {seed}");
        let mut random = Random(seed);
        let (_server, outside, mut notices) = server();
        let mut rank = rank(&outside).await;
        let mut supervisor = Supervisor::new(2, OnInterrupt::Kill);
        let mut refused = 0;
        for _ in 0..MESSAGES {
            let (method, bytes) = message(&mut random);
            let bytes = mutate(&mut random, bytes);
            if let Err(status) = rank.call(method, bytes).await {
                refused += 1;
                assert!(!matches!(status.code(), Code::Unavailable | Code::Unknown), "{method}: {status:?}");
            }
            while let Ok(notice) = notices.try_recv() {
                // What is the supervisor's business is about a rank that there is.
                if let Notice::Supervise(event) = notice {
                    supervisor.handle(event);
                }
            }
        }
        assert!(refused > MESSAGES / 10 && refused < MESSAGES, "both kinds are played: {refused} refused");
        // It still does what it is for.
        let heartbeat =
            HeartbeatRequest { caller: Some(Caller { attempt: 0, rank: 1 }), step: 5, phase: String::new() };
        rank.call("Heartbeat", heartbeat.encode_to_vec()).await.unwrap();
        assert_eq!(notices.recv().await, Some(Notice::Supervise(Event::Heartbeat { rank: 1, step: 5 })));
    }
}

#[tokio::test]
async fn no_message_of_an_agent_harms_the_coordinator() {
    for seed in SEEDS {
        println!("seed {seed}");
        let (token, mut random) = (Token::random().unwrap(), Random(seed));
        let server = coordinator(&token).await;
        let mut agent = agent(server.address(), Some(&token));
        let mut refused = 0;
        // Some are held for a while.
        for _ in 0..MESSAGES / 40 {
            let (method, bytes) = agents_message(&mut random);
            let bytes = mutate(&mut random, bytes);
            if let Err(status) = agent.call(method, bytes).await {
                refused += 1;
                assert!(!matches!(status.code(), Code::Unavailable | Code::Unknown), "{method}: {status:?}");
            }
        }
        assert!(refused > MESSAGES / 400, "{refused} refused");
        assert_eq!(agent.call("Leave", vec![]).await.unwrap_err().code(), Code::InvalidArgument, "it still answers");
    }
}

#[tokio::test]
async fn without_the_token_nothing_is_even_read() {
    let (token, mut random) = (Token::random().unwrap(), Random(4));
    let server = coordinator(&token).await;
    // Two at once, neither with the right one.
    let wrong = Token::random().unwrap();
    let mut strangers = [agent(server.address(), None), agent(server.address(), Some(&wrong))];
    for _ in 0..WRONG_GUESSES {
        let (method, bytes) = agents_message(&mut random);
        let bytes = mutate(&mut random, bytes);
        let [first, second] = &mut strangers;
        let (first, second) = tokio::join!(first.call(method, bytes.clone()), second.call(method, bytes));
        for answer in [first, second] {
            // No word of gRPC comes back.
            let status = answer.unwrap_err();
            assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal), "{status:?}");
            assert!(std::error::Error::source(&status).is_some(), "it is the connection that failed: {status:?}");
        }
    }
    assert_eq!(
        agent(server.address(), Some(&token)).call("Leave", vec![]).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

/// Sends garbage, half of it after HTTP/2's preface, and waits until the other end closes.
async fn garbage(random: &mut Random, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let garbage: Vec<u8> = (0..random.below(400)).map(|_| random.next() as u8).collect();
    let bytes = if random.below(2) == 0 { [preface, garbage].concat() } else { garbage };
    // It may be closed while we still write.
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = vec![];
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection is closed");
}

#[tokio::test]
async fn what_is_not_even_http_harms_nothing() {
    let token = Token::random().unwrap();
    let (_server, outside, mut notices) = server();
    let coordinator = coordinator(&token).await;
    let mut random = Random(5);
    for _ in 0..200 {
        let stream = dial::dial(outside.as_raw_fd()).unwrap();
        stream.set_nonblocking(true).unwrap();
        garbage(&mut random, UnixStream::from_std(stream).unwrap()).await;
    }
    for _ in 0..2 * WRONG_GUESSES {
        let mut stream = TcpStream::connect(coordinator.address()).await.unwrap();
        // Strangers, and agents that have lost their wits once they were in.
        if random.below(2) == 0 {
            handshake::introduce(&mut stream, &Secret::of(&token).unwrap()).await.unwrap();
        }
        garbage(&mut random, stream).await;
    }
    assert!(notices.try_recv().is_err());
    let heartbeat = HeartbeatRequest { caller: Some(Caller { attempt: 0, rank: 1 }), step: 5, phase: String::new() };
    rank(&outside).await.call("Heartbeat", heartbeat.encode_to_vec()).await.unwrap();
    let mut agent = agent(coordinator.address(), Some(&token));
    assert_eq!(agent.call("Leave", vec![]).await.unwrap_err().code(), Code::InvalidArgument);
}
