//! Strangers from the network, in crowds: what somebody without a token can do to a listener, in HTTP/2's frames by hand.
//!
//! Loopback addresses only; bounded in connections, threads and time.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::trials::Draw;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `POST http://x/`, as HPACK writes it without a table of its own.
const REQUEST: [u8; 6] = [0x83, 0x86, 0x84, 0x41, 0x01, b'x'];
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Frames that are sent at a time.
const BURST: u32 = 100;
const THREADS: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between the bytes of those who are slow.
const SLOW: Duration = Duration::from_secs(1);

/// A way to be a nuisance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Opens streams whose answers it leaves no room for, and reads nothing.
    UnreadStreams,
    /// Settings that want to be acknowledged.
    Settings,
    /// Pings that want to be answered.
    Pings,
    /// Opens streams and gives them up at once.
    RapidReset,
    /// One header that does not end.
    GiantHeaders,
    /// A request whose bytes come one a second.
    SlowHeaders,
    /// Connections that say nothing, by the thousand.
    Silent,
    /// The first half of a TLS hello.
    HalfTls,
    /// The right form, and the wrong secret.
    WrongSecrets,
    /// Frames that are cut off in the middle.
    CutFrames,
    /// Random bytes.
    Noise,
}

impl Flood {
    /// All kinds.
    pub const ALL: [Flood; 11] = [
        Flood::UnreadStreams,
        Flood::Settings,
        Flood::Pings,
        Flood::RapidReset,
        Flood::GiantHeaders,
        Flood::SlowHeaders,
        Flood::Silent,
        Flood::HalfTls,
        Flood::WrongSecrets,
        Flood::CutFrames,
        Flood::Noise,
    ];

    /// Connections that a thread keeps open.
    fn held(self) -> usize {
        match self {
            Flood::Silent | Flood::HalfTls | Flood::SlowHeaders => 500,
            _ => 16,
        }
    }

    /// What a connection says first.
    fn opening(self, draw: &mut Draw) -> Vec<u8> {
        let settings = frame(SETTINGS, 0, 0, &[]);
        // No room for any answer's body.
        let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        match self {
            Flood::UnreadStreams => [PREFACE, &no_window].concat(),
            Flood::Settings | Flood::Pings | Flood::RapidReset => [PREFACE, &settings].concat(),
            // Neither ends its headers.
            Flood::GiantHeaders => [PREFACE, &settings, &frame(HEADERS, 0, 1, &REQUEST)].concat(),
            Flood::SlowHeaders | Flood::Silent => vec![],
            Flood::HalfTls => [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise(draw, 32)].concat(),
            // As long as an agent's proof.
            Flood::WrongSecrets => noise(draw, 64),
            Flood::CutFrames => {
                let whole = [PREFACE, &settings, &headers(1), &frame(DATA, 1, 1, &[0; 64])].concat();
                whole[..1 + draw.below(whole.len() - 1)].to_vec()
            }
            Flood::Noise => {
                let length = 1 + draw.below(4096);
                noise(draw, length)
            }
        }
    }

    /// What it says after that, again and again; `sent` is how often it did. `None`: nothing.
    fn more(self, sent: u32) -> Option<Vec<u8>> {
        let each = |frames: &dyn Fn(u32) -> Vec<u8>| (0..BURST).flat_map(|idx| frames(sent * BURST + idx)).collect();
        match self {
            Flood::UnreadStreams => Some(each(&|idx| headers(2 * idx + 1))),
            Flood::Settings => Some(each(&|_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]))),
            Flood::Pings => Some(each(&|_| frame(PING, 0, 0, &[7; 8]))),
            Flood::RapidReset => {
                Some(each(&|idx| [headers(2 * idx + 1), frame(RST_STREAM, 0, 2 * idx + 1, &[0, 0, 0, 8])].concat()))
            }
            Flood::GiantHeaders => Some(frame(CONTINUATION, 0, 1, &[0x20; 16_000])),
            Flood::SlowHeaders => {
                let bytes = [PREFACE, &headers(1)].concat();
                Some(vec![bytes[sent as usize % bytes.len()]])
            }
            _ => None,
        }
    }

    /// Whether a connection is given up once its opening is said.
    fn hangs_up(self) -> bool {
        matches!(self, Flood::CutFrames | Flood::Noise)
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn headers(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &REQUEST)
}

fn noise(draw: &mut Draw, length: usize) -> Vec<u8> {
    (0..length).map(|_| draw.bits() as u8).collect()
}

/// A flood that lasts until it is ended.
pub struct Running {
    stop: Arc<AtomicBool>,
    connected: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Floods `address`, for `longest` at most.
    pub fn start(flood: Flood, address: SocketAddr, longest: Duration, draw: &mut Draw) -> Self {
        assert!(address.ip().is_loopback() && longest <= Duration::from_secs(60), "ours alone, and not for ever");
        let (stop, connected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let until = Instant::now() + longest;
        let threads = (0..THREADS).map(|_| {
            let (stop, connected, seed) = (stop.clone(), connected.clone(), draw.bits());
            thread::spawn(move || {
                let mut crowd = Crowd { flood, address, draw: Draw::from_seed(seed), members: VecDeque::new() };
                while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                    connected.fetch_add(crowd.act(), Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, connected, threads }
    }

    /// How many connections it has made so far.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Ends it, and returns how many connections it has made.
    pub fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a flood lives"));
        self.connected.load(Ordering::Relaxed)
    }
}

/// The connections of one thread.
struct Crowd {
    flood: Flood,
    address: SocketAddr,
    draw: Draw,
    members: VecDeque<Member>,
}

struct Member {
    stream: TcpStream,
    sent: u32,
    /// When it may say something again.
    next: Instant,
}

impl Crowd {
    /// Makes one connection if some are missing, and lets one say something. Returns how many were made.
    fn act(&mut self) -> usize {
        let mut made = 0;
        if self.members.len() < self.flood.held()
            && let Ok(stream) = self.connect()
        {
            made = 1;
            if !self.flood.hangs_up() {
                self.members.push_back(Member { stream, sent: 0, next: Instant::now() });
            }
        }
        let is_full = self.members.len() >= self.flood.held();
        if let Some(mut member) = self.members.pop_front()
            && self.say(&mut member).is_ok()
        {
            self.members.push_back(member);
        }
        if is_full {
            // What is left to do is to wait: others need the processor too.
            thread::sleep(Duration::from_micros(200));
        }
        made
    }

    fn connect(&mut self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT)?;
        stream.set_nonblocking(true)?;
        let opening = self.flood.opening(&mut self.draw);
        // Short enough for the socket's buffer.
        stream.write_all(&opening)?;
        Ok(stream)
    }

    fn say(&self, member: &mut Member) -> io::Result<()> {
        if self.flood != Flood::UnreadStreams {
            // Whether it was closed; what it is told it does not mind.
            match member.stream.read(&mut [0; 512]) {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        let now = Instant::now();
        let Some(bytes) = self.flood.more(member.sent) else { return Ok(()) };
        if now < member.next {
            return Ok(());
        }
        match member.stream.write(&bytes) {
            // Torn where the socket is full: the rest is another kind of nonsense.
            Ok(_) => member.sent += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.flood == Flood::SlowHeaders {
            member.next = now + SLOW;
        }
        Ok(())
    }
}
