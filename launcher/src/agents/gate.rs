//! The gate before the agents' service: who connects from the network and has not proved itself costs little, and not for long.
//!
//! - GAT-1 Nobody reaches the service who has not shaken hands ([`handshake`]), in [`HANDSHAKE_TIMEOUT`].
//! - GAT-2 Strangers are limited in number; when more come, they push out each other ([`Newcomers`]), never anybody admitted.
//! - GAT-3 No error of the listener ends it or makes it spin. Without a free descriptor a stranger goes, and it pauses.
//! - GAT-5 A wrong guess is answered after a second, is told of, and makes its origin wait for its turn ([`Guesses`]).
//! - GAT-4 All that is taken here leaves the launcher descriptors for its own work.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use tonic::transport::server::Connected;

use super::handshake::{self, Claim, Secret, VERSION};
use crate::listening::descriptors;
use crate::listening::guesses::Guesses;
use crate::listening::newcomers::Newcomers;

/// How long a connection may take to prove itself.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// A wrong guess is answered after this time.
const DELAY: Duration = Duration::from_secs(1);
/// For how long it is safe from those who come after it: a few round trips.
const LONGEST_GRACE: Duration = Duration::from_millis(100);
/// The same, divided among the strangers that there may be: where they are few, each is safe for less, or an agent would wait
/// for ever behind the thousands that the kernel keeps in the listener's queue.
const GRACE_EACH: Duration = Duration::from_micros(500);
/// Strangers at a time, if the process may have descriptors enough.
const MOST_STRANGERS: usize = 512;
/// Pause after a connection that could not be taken for lack of something: nobody tells when it is there again.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that are to be taken.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// That have not proved themselves.
    pub strangers: usize,
    /// That have.
    pub admitted: usize,
}

impl Limits {
    /// What this process can afford: the rest of its descriptors is for the launcher's own work.
    pub fn of_this_process() -> Self {
        Self { strangers: MOST_STRANGERS.min(descriptors::share(8)).max(1), admitted: descriptors::share(2).max(1) }
    }
}

/// Takes a line for the user.
pub type Tell = Box<dyn Fn(String) + Send + Sync>;

/// Shakes hands with whoever connects to `listener`, and hands on those that know the secret, until nobody takes them. `tell` is
/// told of those that do not.
pub async fn keep(listener: TcpListener, secret: Secret, limits: Limits, tell: Tell, admitted: mpsc::Sender<Admitted>) {
    let places = Arc::new(Semaphore::new(limits.admitted));
    let doorkeeper = Arc::new(Doorkeeper { secret, places, guesses: Mutex::new(Guesses::none()), tell });
    let mut handshakes = JoinSet::new();
    let grace = GRACE_EACH.saturating_mul(limits.strangers as u32).min(LONGEST_GRACE);
    let mut strangers: Newcomers<IpAddr, AbortHandle> = Newcomers::new(limits.strangers, grace);
    let mut paused_until = None;
    loop {
        let not_before = strangers.room_at().max(paused_until);
        let accept = async {
            if let Some(instant) = not_before {
                sleep_until(instant.into()).await;
            }
            listener.accept().await
        };
        tokio::select! {
            () = admitted.closed() => return,
            Some(ended) = handshakes.join_next() => {
                strangers.retain(AbortHandle::is_finished);
                // One that has failed, or had to go, needs no word.
                let Ok(Some(connection)) = ended else { continue };
                if admitted.send(connection).await.is_err() {
                    return;
                }
            }
            accepted = accept => match accepted {
                Ok((stream, address)) => {
                    let (ip, doorkeeper) = (address.ip(), doorkeeper.clone());
                    let handshake = async move { doorkeeper.shake_hands(stream, ip).await };
                    let goes = strangers.enter(network(ip), handshakes.spawn(handshake), Instant::now());
                    goes.iter().for_each(AbortHandle::abort);
                }
                Err(error) if is_its_own(&error) => {}
                Err(_) => {
                    strangers.drop_one().iter().for_each(AbortHandle::abort);
                    paused_until = Some(Instant::now() + PAUSE);
                }
            },
        }
    }
}

/// Whether the error is about the connection that was to be taken: it is gone, and the next one may be good.
fn is_its_own(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, NetworkDown, NetworkUnreachable, TimedOut};
    let kinds = [ConnectionAborted, ConnectionReset, Interrupted, NetworkDown, NetworkUnreachable, TimedOut];
    kinds.contains(&error.kind())
}

/// Whether the error says that the other end's system has no such connection any more.
fn is_of_the_other_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Whoever has one address of version 6 has 2^64 of them.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// All that a handshake needs.
struct Doorkeeper {
    secret: Secret,
    /// For those that are admitted.
    places: Arc<Semaphore>,
    guesses: Mutex<Guesses<IpAddr>>,
    tell: Tell,
}

/// What becomes of a connection.
enum Verdict {
    Admitted(Admitted),
    WrongGuess(TcpStream),
}

impl Doorkeeper {
    /// `None`: it is no agent of this run, it takes too long, or there are too many.
    async fn shake_hands(&self, stream: TcpStream, ip: IpAddr) -> Option<Admitted> {
        // Without it, answers are only slower.
        let _ = stream.set_nodelay(true);
        match timeout(HANDSHAKE_TIMEOUT, self.judge(stream, ip)).await.ok()?? {
            Verdict::Admitted(admitted) => Some(admitted),
            Verdict::WrongGuess(mut stream) => {
                // GAT-5.
                let line = self.guesses().wrong(network(ip), Instant::now());
                if let Some(number) = line {
                    let guesses = if number == 1 { "guess" } else { "guesses" };
                    (self.tell)(format!("{ip} does not know this run's token: {number} wrong {guesses} so far"));
                }
                sleep(DELAY).await;
                // It may be gone.
                let _ = handshake::refuse(&mut stream).await;
                None
            }
        }
    }

    async fn judge(&self, mut stream: TcpStream, ip: IpAddr) -> Option<Verdict> {
        let proof = match handshake::challenge(&mut stream, &self.secret).await.ok()? {
            Claim::Proof(proof) => proof,
            Claim::OtherVersion(there) => {
                (self.tell)(format!(
                    "{ip} speaks version {there} of the agents' protocol, this dslaunch version {VERSION}: all nodes need the \
                     same dslaunch"
                ));
                return None;
            }
        };
        let turn = self.guesses().turn(network(ip), Instant::now());
        sleep_until(turn.into()).await;
        let Some(session) = proof.session(&self.secret) else { return Some(Verdict::WrongGuess(stream)) };
        let place = self.places.clone().try_acquire_owned().ok()?;
        handshake::welcome(&mut stream, &self.secret, session).await.ok()?;
        Some(Verdict::Admitted(Admitted { stream, line: Line::default(), _place: place }))
    }

    fn guesses(&self) -> std::sync::MutexGuard<'_, Guesses<IpAddr>> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call may know of the connection that it comes over.
#[derive(Clone, Default)]
pub struct Line(Arc<LineState>);

#[derive(Default)]
struct LineState {
    closed: AtomicBool,
    on_closed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line {{ closed: {} }}", self.is_closed())
    }
}

impl Line {
    /// Whether the other end's system has closed it: its process has, or is gone.
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Relaxed)
    }

    /// Calls `act` when the other end's system closes it. The first to ask this is heard.
    pub fn when_closed(&self, act: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_closed.set(Box::new(act));
    }

    /// An answer may be the first to find out.
    fn note(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Err(error)) if is_of_the_other_end(error)) {
            self.close();
        }
    }

    fn close(&self) {
        if !self.0.closed.swap(true, Ordering::Relaxed)
            && let Some(act) = self.0.on_closed.get()
        {
            act();
        }
    }
}

/// The connection of an agent of this run.
#[derive(Debug)]
pub struct Admitted {
    stream: TcpStream,
    line: Line,
    /// One of those that there are, until it is closed.
    _place: OwnedSemaphorePermit,
}

impl Connected for Admitted {
    type ConnectInfo = Line;

    fn connect_info(&self) -> Line {
        self.line.clone()
    }
}

impl AsyncRead for Admitted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (filled, room) = (buf.filled().len(), buf.remaining());
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let is_closed = match &read {
            Poll::Ready(Ok(())) => room > 0 && buf.filled().len() == filled,
            Poll::Ready(Err(error)) => is_of_the_other_end(error),
            Poll::Pending => false,
        };
        if is_closed {
            self.line.close();
        }
        read
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.line.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.line.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::token::Token;
    use tokio::io::AsyncReadExt;
    use tokio::task::JoinHandle;

    struct Gate {
        address: std::net::SocketAddr,
        admitted: mpsc::Receiver<Admitted>,
        secret: Secret,
        task: JoinHandle<()>,
        told: std::sync::mpsc::Receiver<String>,
    }

    async fn gate(strangers: usize, admitted: usize) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let secret = Secret::of(&Token::random().unwrap()).unwrap();
        let (sender, receiver) = mpsc::channel(1);
        let (lines, told) = std::sync::mpsc::channel();
        let tell = Box::new(move |line| lines.send(line).unwrap());
        let task = tokio::spawn(keep(listener, secret.clone(), Limits { strangers, admitted }, tell, sender));
        Gate { address, admitted: receiver, secret, task, told }
    }

    impl Gate {
        async fn agent(&self) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            handshake::introduce(&mut stream, &self.secret).await.unwrap();
            stream
        }
    }

    /// Reads until the other end closes.
    async fn closed(mut stream: TcpStream) {
        let mut rest = vec![];
        // However it does that.
        let _ = stream.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn gat_1_who_says_nothing_is_dropped_in_time() {
        let mut gate = gate(4, 4).await;
        let silent = TcpStream::connect(gate.address).await.unwrap();
        let since = Instant::now();
        closed(silent).await;
        assert!(since.elapsed() < HANDSHAKE_TIMEOUT + Duration::from_secs(2), "{:?}", since.elapsed());
        assert!(gate.admitted.try_recv().is_err());
    }

    #[tokio::test]
    async fn gat_2_agents_get_through_a_crowd_and_keep_their_places() {
        let mut gate = gate(4, 4).await;
        let first = gate.agent().await;
        let first_inside = gate.admitted.recv().await.unwrap();
        let mut crowd = vec![];
        for _ in 0..20 {
            crowd.push(TcpStream::connect(gate.address).await.unwrap());
        }
        let second = gate.agent().await;
        let second_inside = gate.admitted.recv().await.unwrap();
        // Sixteen had to go before the last four.
        for stranger in crowd.drain(..16) {
            closed(stranger).await;
        }
        for (mut inside, mut outside) in [(first_inside, first), (second_inside, second)] {
            tokio::io::AsyncWriteExt::write_all(&mut inside, b"x").await.unwrap();
            assert_eq!(outside.read_u8().await.unwrap(), b'x');
        }
    }

    #[tokio::test]
    async fn gat_4_there_are_only_so_many_places_and_they_are_given_back() {
        let mut gate = gate(4, 1).await;
        let first = gate.agent().await;
        let inside = gate.admitted.recv().await.unwrap();
        let mut second = TcpStream::connect(gate.address).await.unwrap();
        assert!(handshake::introduce(&mut second, &gate.secret).await.is_err(), "it is not told that it is in");
        drop((first, inside));
        gate.agent().await;
        gate.admitted.recv().await.unwrap();
        drop(gate.admitted);
        gate.task.await.unwrap();
    }

    #[tokio::test]
    async fn gat_5_a_wrong_guess_is_told_of_and_answered_late_and_the_next_one_waits_for_its_turn() {
        let mut gate = gate(8, 4).await;
        let since = Instant::now();
        let wrong = Secret::of(&Token::random().unwrap()).unwrap();
        let mut guesser = TcpStream::connect(gate.address).await.unwrap();
        let error = handshake::introduce(&mut guesser, &wrong).await.unwrap_err();
        assert!(matches!(error, handshake::HandshakeError::Refused), "{error:?}");
        assert!(since.elapsed() >= DELAY, "{:?}", since.elapsed());
        let told: Vec<_> = gate.told.try_iter().collect();
        assert_eq!(told, ["127.0.0.1 does not know this run's token: 1 wrong guess so far"]);
        // An agent at the same address gets in all the same.
        let _agent = gate.agent().await;
        gate.admitted.recv().await.unwrap();
    }

    #[tokio::test]
    async fn an_agent_of_another_version_is_told_of() {
        let gate = gate(8, 4).await;
        let mut agent = TcpStream::connect(gate.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut agent, b"dslaunch-agent-7").await.unwrap();
        closed(agent).await;
        let told = gate.told.try_iter().next().unwrap();
        assert!(
            told.starts_with("127.0.0.1 speaks version 7 of the agents' protocol, this dslaunch version 2"),
            "{told}"
        );
    }

    #[test]
    fn strangers_of_one_network_are_of_one_origin() {
        let same = |one: &str, other: &str| network(one.parse().unwrap()) == network(other.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:2") && same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1") && !same("10.0.0.1", "10.0.0.2"));
    }
}
