//! How a connection between an agent and the coordinator begins: each end proves that it knows the run's token, before either
//! hears anything else of the other.
//!
//! ```text
//! coordinator -> agent   a greeting with its version, a number N used once
//! agent -> coordinator   a number M used once, MAC("agent", N, M)
//! coordinator -> agent   ADMITTED or REFUSED, MAC("coordinator", N, M)
//! ```
//!
//! An agent of another version says its own greeting instead, and goes: so each end can name both versions.
//!
//! The messages have fixed lengths, so whoever does not know the token costs a socket and 64 bytes, and reaches neither HTTP
//! nor gRPC. MACs are keyed BLAKE3; the token never travels. What follows is not encrypted: it holds no secret, and whoever can
//! change packets on the way can end a run in any case.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::token::Token;

/// The version of what agents and coordinator say to each other: the handshake and agents.proto. Whoever changes either so
/// that the other end would misread it takes the next number.
pub const VERSION: u8 = 2;
/// The beginning of a greeting. The version follows as one character, from `0` on.
const NAME: [u8; 15] = *b"dslaunch-agent-";
/// Bytes of a greeting.
const GREETING: usize = NAME.len() + 1;
const ADMITTED: u8 = 1;
const REFUSED: u8 = 0;

/// Bytes of a number that is used once, and of a MAC.
const BYTES: usize = blake3::OUT_LEN;

/// Why a connection does not begin.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It broke, or was dropped for others.
    #[error("the connection broke before it began: {0}")]
    Broken(#[from] io::Error),
    /// Something else listens there.
    #[error("what listens there is no dslaunch of node 0")]
    Stranger,
    /// A dslaunch that speaks otherwise.
    #[error(
        "node 0's dslaunch speaks version {there} of the agents' protocol, this one version {VERSION}: all nodes need the same \
         dslaunch"
    )]
    Version {
        /// The coordinator's.
        there: u8,
    },
    /// The coordinator does not know this token.
    #[error("the token is not this run's")]
    Refused,
    /// What answers does not know this token.
    #[error("what listens there does not know this run's token")]
    Impostor,
}

/// What both ends know.
#[derive(Clone)]
pub struct Secret {
    key: [u8; blake3::KEY_LEN],
    numbers: Arc<Numbers>,
}

/// Numbers that nobody can foretell and none of which comes twice: they need no descriptor, as reading from the kernel would.
struct Numbers {
    seed: [u8; blake3::KEY_LEN],
    drawn: AtomicU64,
}

/// The numbers of one handshake.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    coordinators: [u8; BYTES],
    agents: [u8; BYTES],
}

impl Secret {
    /// That of the run with this token.
    pub fn of(token: &Token) -> io::Result<Self> {
        let seed = Token::random()?;
        let numbers = Numbers {
            seed: blake3::derive_key("dslaunch agents 1 numbers", seed.expose().as_bytes()),
            drawn: AtomicU64::new(0),
        };
        let key = blake3::derive_key("dslaunch agents 1 token", token.expose().as_bytes());
        Ok(Self { key, numbers: Arc::new(numbers) })
    }

    fn draw(&self) -> [u8; BYTES] {
        let number = self.numbers.drawn.fetch_add(1, Ordering::Relaxed);
        *blake3::keyed_hash(&self.numbers.seed, &number.to_le_bytes()).as_bytes()
    }

    /// Comparing two of these takes a time that does not tell how much is right.
    fn mac(&self, who: &str, session: Session) -> blake3::Hash {
        let Session { coordinators, agents } = session;
        blake3::keyed_hash(&self.key, &[&coordinators, &agents, who.as_bytes(), &[VERSION]].concat())
    }
}

fn greeting() -> [u8; GREETING] {
    let mut greeting = [b'0' + VERSION; GREETING];
    greeting[..NAME.len()].copy_from_slice(&NAME);
    greeting
}

/// The version of whoever says `words`, if they are a greeting.
fn version(words: &[u8]) -> Option<u8> {
    words.strip_prefix(&NAME[..])?.first().map(|version| version.wrapping_sub(b'0'))
}

/// What the other end answers to the coordinator's greeting.
#[derive(Debug)]
pub enum Claim {
    /// It claims to know the token.
    Proof(Proof),
    /// It speaks another version, and goes.
    OtherVersion(u8),
}

/// A proof that nobody has looked at yet.
#[derive(Debug)]
pub struct Proof {
    session: Session,
    mac: [u8; BYTES],
}

impl Proof {
    /// The session in which the other end has proved itself; `None`: it does not know the token.
    pub fn session(&self, secret: &Secret) -> Option<Session> {
        (secret.mac("agent", self.session) == self.mac).then_some(self.session)
    }
}

/// The coordinator's half, up to its verdict.
pub async fn challenge(stream: &mut TcpStream, secret: &Secret) -> io::Result<Claim> {
    let coordinators = secret.draw();
    stream.write_all(&[&greeting()[..], &coordinators].concat()).await?;
    let (mut agents, mut mac) = ([0; BYTES], [0; BYTES]);
    stream.read_exact(&mut agents[..GREETING]).await?;
    if let Some(version) = version(&agents[..GREETING]) {
        return Ok(Claim::OtherVersion(version));
    }
    stream.read_exact(&mut agents[GREETING..]).await?;
    stream.read_exact(&mut mac).await?;
    Ok(Claim::Proof(Proof { session: Session { coordinators, agents }, mac }))
}

/// The coordinator's last word: the other end does not know the token.
pub async fn refuse(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[REFUSED; 1 + BYTES]).await
}

/// The coordinator's last word: the other end is in.
pub async fn welcome(stream: &mut TcpStream, secret: &Secret, session: Session) -> io::Result<()> {
    stream.write_all(&[&[ADMITTED], &secret.mac("coordinator", session).as_bytes()[..]].concat()).await
}

/// The agent's half.
pub async fn introduce(stream: &mut TcpStream, secret: &Secret) -> Result<(), HandshakeError> {
    let (mut words, mut coordinators) = ([0; GREETING], [0; BYTES]);
    stream.read_exact(&mut words).await?;
    match version(&words) {
        Some(VERSION) => {}
        Some(there) => {
            // Whether it hears that or not, this end goes.
            let _ = stream.write_all(&greeting()).await;
            return Err(HandshakeError::Version { there });
        }
        None => return Err(HandshakeError::Stranger),
    }
    stream.read_exact(&mut coordinators).await?;
    let session = Session { coordinators, agents: secret.draw() };
    stream.write_all(&[session.agents, *secret.mac("agent", session).as_bytes()].concat()).await?;
    let (mut verdict, mut mac) = ([0], [0; BYTES]);
    stream.read_exact(&mut verdict).await?;
    stream.read_exact(&mut mac).await?;
    match verdict[0] {
        REFUSED => Err(HandshakeError::Refused),
        ADMITTED if secret.mac("coordinator", session) == mac => Ok(()),
        ADMITTED => Err(HandshakeError::Impostor),
        _ => Err(HandshakeError::Stranger),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn admit(stream: &mut TcpStream, secret: &Secret) -> io::Result<bool> {
        let Claim::Proof(proof) = challenge(stream, secret).await? else { panic!("another version") };
        match proof.session(secret) {
            Some(session) => welcome(stream, secret, session).await.map(|()| true),
            None => refuse(stream).await.map(|()| false),
        }
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        (client.unwrap(), served.unwrap().0)
    }

    #[tokio::test]
    async fn only_the_same_token_is_admitted() {
        let token = Token::random().unwrap();
        let secret = |token: &Token| Secret::of(token).unwrap();
        let (mut agent, mut coordinator) = pair().await;
        let (ours, theirs) = (secret(&token), secret(&token));
        let (admitted, introduced) = tokio::join!(admit(&mut coordinator, &ours), introduce(&mut agent, &theirs));
        assert!(admitted.unwrap() && introduced.is_ok());
        let (mut agent, mut coordinator) = pair().await;
        let other = secret(&Token::random().unwrap());
        let (admitted, introduced) = tokio::join!(admit(&mut coordinator, &ours), introduce(&mut agent, &other));
        assert!(!admitted.unwrap() && matches!(introduced, Err(HandshakeError::Refused)));
    }

    #[tokio::test]
    async fn a_proof_is_of_no_use_a_second_time() {
        let secret = Secret::of(&Token::random().unwrap()).unwrap();
        let (mut agent, mut coordinator) = pair().await;
        let overheard = async {
            let mut words = [0; GREETING + BYTES];
            agent.read_exact(&mut words).await.unwrap();
            let session = Session { coordinators: words[GREETING..].try_into().unwrap(), agents: [7; BYTES] };
            let proof = [session.agents, *secret.mac("agent", session).as_bytes()].concat();
            agent.write_all(&proof).await.unwrap();
            proof
        };
        let (admitted, proof) = tokio::join!(admit(&mut coordinator, &secret), overheard);
        assert!(admitted.unwrap());
        let (mut agent, mut coordinator) = pair().await;
        agent.write_all(&proof).await.unwrap();
        assert!(!admit(&mut coordinator, &secret).await.unwrap());
    }

    #[tokio::test]
    async fn who_only_says_that_it_is_the_coordinator_is_not_believed() {
        let secret = Secret::of(&Token::random().unwrap()).unwrap();
        for (answer, is_right) in [
            ([&greeting()[..], &[3; BYTES], &[ADMITTED], &[0; BYTES]].concat(), "Impostor"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "Stranger"),
            (greeting().to_vec(), "Broken"),
            (b"dslaunch-agent-1".to_vec(), "Version { there: 1 }"),
        ] {
            let (mut agent, mut other) = pair().await;
            other.write_all(&answer).await.unwrap();
            other.shutdown().await.unwrap();
            let error = introduce(&mut agent, &secret).await.unwrap_err();
            assert!(format!("{error:?}").starts_with(is_right), "{error:?}");
        }
    }

    #[tokio::test]
    async fn both_ends_name_both_versions() {
        let secret = Secret::of(&Token::random().unwrap()).unwrap();
        let (mut agent, mut coordinator) = pair().await;
        coordinator.write_all(b"dslaunch-agent-9").await.unwrap();
        let told = introduce(&mut agent, &secret).await.unwrap_err().to_string();
        assert!(told.contains("version 9 of the agents' protocol, this one version 2"), "{told}");
        let mut farewell = [0; GREETING];
        coordinator.read_exact(&mut farewell).await.unwrap();
        assert_eq!(version(&farewell), Some(VERSION));
        let (mut agent, mut coordinator) = pair().await;
        agent.write_all(b"dslaunch-agent-9").await.unwrap();
        let claim = challenge(&mut coordinator, &secret).await.unwrap();
        assert!(matches!(claim, Claim::OtherVersion(9)), "{claim:?}");
        assert_eq!(version(b"GET / HTTP/1.1\r\n"), None);
    }
}
