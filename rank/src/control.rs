//! The rank's side of the control service, on a thread of its own: the only tokio in the rank. The main thread hands it
//! messages through a channel and never waits for the network, except to register and to say its last words.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use proto::control::VERSION;
use proto::control::control_client::ControlClient;
use proto::control::report_request::Event;
use proto::control::{
    Caller, FailedRequest, FailureKind, GetKeyRequest, GetWindowRequest, HeartbeatRequest, PutKeyRequest,
    RegisterRequest, ReportRequest, Window, get_window_reply,
};
use proto::dial;
use proto::env::WorkerEnv;
use proto::say;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Longest wait for the launcher to take one message. It is on the same machine: it answers or it is gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// As [`CALL_TIMEOUT`], for a report, which is answered once it is written down: disks can stall.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for all messages before this moment: longer than one takes with all its tries.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(330);

/// Between the tries to deliver a message over a connection that breaks.
const RETRY_PAUSES: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(100), Duration::from_millis(500)];

/// The launcher cannot be reached, or refuses this rank.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is at the other end.
    #[error("the launcher cannot be reached through descriptor {descriptor}")]
    Connect {
        /// The outside of its hatch.
        descriptor: RawFd,
        /// The reason.
        source: tonic::transport::Error,
    },
    /// The launcher is of another build.
    #[error(
        "dslaunch speaks version {launcher} of the control protocol, dslaunch-rank version {VERSION}: both must be of one build"
    )]
    Version {
        /// The launcher's.
        launcher: u32,
    },
    /// The launcher does not take what this rank has to say, however often it tries.
    #[error("the connection to the launcher is lost: {message}")]
    Lost {
        /// How the last try ended.
        message: String,
    },
    /// No rank has put the key in time.
    #[error("{message}")]
    Late {
        /// The launcher's words.
        message: String,
    },
    /// The system grants no thread, or no descriptors, to call the launcher with.
    #[error("cannot start what calls the launcher")]
    Start {
        /// The system's reason.
        source: std::io::Error,
    },
    /// The launcher refused the registration, or other ranks did not come.
    #[error("the launcher refused rank {rank}: {message}")]
    Refused {
        /// This rank.
        rank: usize,
        /// Its message.
        message: String,
    },
}

impl ControlError {
    /// Whether the launcher may answer otherwise when it is asked again.
    pub fn is_late(&self) -> bool {
        matches!(self, Self::Late { .. })
    }
}

/// A line to the launcher. Dropping it sends what is still queued.
pub struct Control {
    queue: Option<UnboundedSender<Message>>,
    thread: Option<JoinHandle<()>>,
    caller: Caller,
    /// Number of the latest report.
    reports: Cell<u64>,
    /// Set once, when a message could not be delivered.
    lost: Arc<OnceLock<String>>,
}

enum Message {
    Heartbeat(HeartbeatRequest),
    Report(ReportRequest),
    /// Answered when the launcher has taken it, or cannot be reached.
    Failed(FailedRequest, std::sync::mpsc::Sender<()>),
    /// Answered when the launcher has taken all before it.
    Flush(std::sync::mpsc::Sender<()>),
    /// Answered with what the launcher says.
    Put(PutKeyRequest, std::sync::mpsc::Sender<Result<(), Status>>),
    /// Answered with the value.
    Get(GetKeyRequest, std::sync::mpsc::Sender<Result<Vec<u8>, Status>>),
    /// Answered with the window.
    Window(GetWindowRequest, std::sync::mpsc::Sender<Result<Option<Window>, Status>>),
}

impl Control {
    /// Connects and registers; returns when all ranks of the attempt have. `breaker` gets hold of the connection.
    pub fn register(env: &WorkerEnv, breaker: &Breaker) -> Result<Self, ControlError> {
        let caller = Caller { attempt: env.attempt, rank: env.rank as u32 };
        let (queue, messages) = unbounded_channel();
        let (registered, wait) = std::sync::mpsc::channel();
        let (descriptor, timeout, breaker) = (env.control_fd, env.rendezvous_timeout, breaker.clone());
        let lost = Arc::new(OnceLock::new());
        let tell_lost = lost.clone();
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let runtime = match proto::runtime::on_this_thread() {
                Ok(runtime) => runtime,
                Err(source) => return drop(registered.send(Err(ControlError::Start { source }))),
            };
            runtime.block_on(async {
                match enroll(descriptor, breaker, caller, timeout).await {
                    Ok(client) => {
                        let _ = registered.send(Ok(()));
                        forward(client, messages, &tell_lost).await;
                    }
                    Err(err) => drop(registered.send(Err(err))),
                }
            });
        });
        let thread = thread.map_err(|source| ControlError::Start { source })?;
        wait.recv().expect("the control thread answers before it ends")?;
        Ok(Self { queue: Some(queue), thread: Some(thread), caller, reports: Cell::new(0), lost })
    }

    /// Says which step (from 1) the rank works on, and in which phase.
    pub fn heartbeat(&self, step: u64, phase: &str) {
        self.send(Message::Heartbeat(HeartbeatRequest { caller: Some(self.caller), step, phase: phase.into() }));
    }

    /// Tells the launcher something that its users see.
    pub fn report(&self, event: Event) {
        let number = self.reports.get() + 1;
        self.reports.set(number);
        self.send(Message::Report(ReportRequest { caller: Some(self.caller), event: Some(event), number }));
    }

    /// Whether the launcher has got everything so far that has had time to arrive. A rank that it cannot hear must not go
    /// on.
    pub fn check(&self) -> Result<(), ControlError> {
        self.lost.get().map_or(Ok(()), |message| Err(ControlError::Lost { message: message.clone() }))
    }

    /// Returns when the launcher has taken all that was reported.
    pub fn flush(&self) -> Result<(), ControlError> {
        let (taken, wait) = std::sync::mpsc::channel();
        self.send(Message::Flush(taken));
        if wait.recv_timeout(FLUSH_TIMEOUT).is_err() {
            return Err(ControlError::Lost { message: format!("no answer within {FLUSH_TIMEOUT:?}") });
        }
        self.check()
    }

    /// Gives all ranks of the attempt a value under a key, which is written once. Waits for the launcher.
    pub fn put_key(&self, key: &str, value: &[u8]) -> Result<(), ControlError> {
        let (answered, answer) = std::sync::mpsc::channel();
        let request = PutKeyRequest { caller: Some(self.caller), key: key.into(), value: value.into() };
        self.send(Message::Put(request, answered));
        self.answer(&answer, FLUSH_TIMEOUT)
    }

    /// The value of a key. Waits until a rank has put it, but not for longer than `timeout`.
    pub fn get_key(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, ControlError> {
        let (answered, answer) = std::sync::mpsc::channel();
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.send(Message::Get(GetKeyRequest { caller: Some(self.caller), key: key.into(), timeout_ms }, answered));
        self.answer(&answer, FLUSH_TIMEOUT + timeout)
    }

    /// The window of streamed rows that holds the row at `position`; `None`: it cannot be prepared. Waits until it is, but not for
    /// longer than `timeout`.
    pub fn window(&self, position: u64, timeout: Duration) -> Result<Option<Window>, ControlError> {
        let (answered, answer) = std::sync::mpsc::channel();
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.send(Message::Window(GetWindowRequest { caller: Some(self.caller), position, timeout_ms }, answered));
        self.answer(&answer, FLUSH_TIMEOUT + timeout)
    }

    fn answer<T>(
        &self,
        answer: &std::sync::mpsc::Receiver<Result<T, Status>>,
        limit: Duration,
    ) -> Result<T, ControlError> {
        match answer.recv_timeout(limit) {
            Ok(answer) => answer.map_err(|status| match (status.code(), status.message().to_owned()) {
                (Code::DeadlineExceeded, message) => ControlError::Late { message },
                (_, message) => ControlError::Lost { message },
            }),
            Err(_) => Err(ControlError::Lost { message: format!("no answer within {limit:?}") }),
        }
    }

    /// The last words of this rank; returns when the launcher has them, or cannot be reached.
    pub fn failed(&self, kind: FailureKind, step: u64, message: String) {
        let (taken, wait) = std::sync::mpsc::channel();
        let request = FailedRequest { caller: Some(self.caller), kind: kind.into(), step, message };
        self.send(Message::Failed(request, taken));
        // An error means that the line is gone: the launcher sees this process end all the same.
        let _ = wait.recv_timeout(CALL_TIMEOUT);
    }

    fn send(&self, message: Message) {
        if let Some(queue) = &self.queue {
            // The receiver is gone only when the launcher is, and then this process is about to be killed.
            let _ = queue.send(message);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Breaks the connection to the launcher: the fault of that name.
#[derive(Debug, Clone, Default)]
pub struct Breaker(Arc<Mutex<Option<UnixStream>>>);

impl Breaker {
    /// Breaks the newest connection, if there is one.
    pub fn strike(&self) {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is broken already is as wished.
        let _ = newest.as_ref().map(|connection| connection.shutdown(Shutdown::Both));
    }

    fn hold(&self, connection: UnixStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

type Client = ControlClient<Channel>;

/// Connects; a launcher that has just no descriptor for it is tried again.
async fn connect(descriptor: RawFd, breaker: Breaker) -> Result<Channel, ControlError> {
    let dial = move || -> io::Result<UnixStream> {
        let connection = dial::dial(descriptor)?;
        breaker.hold(connection.try_clone()?);
        Ok(connection)
    };
    let mut pauses = RETRY_PAUSES.iter();
    loop {
        match (dial::channel_by(dial.clone()).await, pauses.next()) {
            (Err(_), Some(&pause)) => tokio::time::sleep(pause).await,
            (connected, _) => return connected.map_err(|source| ControlError::Connect { descriptor, source }),
        }
    }
}

/// Connects and says that this rank is there; returns when all are.
async fn enroll(
    descriptor: RawFd,
    breaker: Breaker,
    caller: Caller,
    timeout: Duration,
) -> Result<Client, ControlError> {
    let mut client = ControlClient::new(connect(descriptor, breaker).await?);
    let mut request = Request::new(RegisterRequest { caller: Some(caller), pid: std::process::id(), version: VERSION });
    // The launcher's own deadline comes first and names who is missing.
    request.set_timeout(timeout + CALL_TIMEOUT);
    let refused =
        |status: Status| ControlError::Refused { rank: caller.rank as usize, message: status.message().into() };
    let launcher = client.register(request).await.map_err(refused)?.into_inner().version;
    if launcher == VERSION {
        Ok(client)
    } else {
        // One that refuses nobody is older than these numbers.
        Err(ControlError::Version { launcher })
    }
}

/// Sends messages in order until the queue closes. Once one cannot be delivered, none after it is: the main thread sees it
/// in `lost` and ends.
async fn forward(mut client: Client, mut messages: UnboundedReceiver<Message>, lost: &OnceLock<String>) {
    while let Some(message) = messages.recv().await {
        let delivered = match message {
            Message::Flush(taken) => {
                let _ = taken.send(());
                continue;
            }
            Message::Failed(request, taken) => {
                let delivered =
                    deliver(&mut client, request, CALL_TIMEOUT, async |client, request| client.failed(request).await)
                        .await;
                let _ = taken.send(());
                delivered.map(|_| ())
            }
            // Whoever asked hears of it, and is the one to say so.
            Message::Put(request, answered) => {
                let put = async |client: &mut Client, request| client.put_key(request).await;
                let answer = deliver(&mut client, request, CALL_TIMEOUT, put).await;
                let _ = answered.send(answer.map(|_| ()));
                continue;
            }
            Message::Get(request, answered) => {
                let limit = Duration::from_millis(request.timeout_ms).saturating_add(CALL_TIMEOUT);
                let get = async |client: &mut Client, request| client.get_key(request).await;
                let answer = deliver(&mut client, request, limit, get).await;
                let _ = answered.send(answer.map(|reply| reply.into_inner().value));
                continue;
            }
            Message::Window(request, answered) => {
                let limit = Duration::from_millis(request.timeout_ms).saturating_add(CALL_TIMEOUT);
                let get = async |client: &mut Client, request| client.get_window(request).await;
                let answer = deliver(&mut client, request, limit, get).await;
                let _ = answered.send(answer.and_then(|reply| match reply.into_inner().answer {
                    Some(get_window_reply::Answer::Window(window)) => Ok(Some(window)),
                    Some(get_window_reply::Answer::Failed(_)) => Ok(None),
                    None => Err(Status::internal("a window is answered with nothing")),
                }));
                continue;
            }
            _ if lost.get().is_some() => continue,
            Message::Heartbeat(request) => {
                deliver(&mut client, request, CALL_TIMEOUT, async |client, request| client.heartbeat(request).await)
                    .await
                    .map(|_| ())
            }
            Message::Report(request) => {
                deliver(&mut client, request, REPORT_TIMEOUT, async |client, request| client.report(request).await)
                    .await
                    .map(|_| ())
            }
        };
        if let Err(status) = delivered {
            let message = status.message();
            say::err(format_args!("dslaunch-rank: the launcher did not take a message: {message}"));
            // The first is what counts.
            let _ = lost.set(status.message().to_owned());
        }
    }
}

/// Makes a call, which takes at most `limit`, again over a new connection if the old one breaks. The launcher knows by their numbers
/// which reports it has got; other messages may come twice.
async fn deliver<M: Clone, R>(
    client: &mut Client,
    message: M,
    limit: Duration,
    call: impl AsyncFn(&mut Client, Request<M>) -> Result<R, Status>,
) -> Result<R, Status> {
    let mut pauses = RETRY_PAUSES.iter();
    loop {
        let status = match call(client, timed(message.clone(), limit)).await {
            Ok(reply) => return Ok(reply),
            Err(status) => status,
        };
        // The launcher's own refusals are final.
        let is_broken = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
        match pauses.next() {
            Some(&pause) if is_broken => tokio::time::sleep(pause).await,
            _ => return Err(status),
        }
    }
}

fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}
