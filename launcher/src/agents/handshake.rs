//! How a connection between an agent and the coordinator begins: each end proves that it knows the run's token, before either
//! hears anything else of the other.
//!
//! ```text
//! coordinator -> agent   GREETING, a number N used once
//! agent -> coordinator   a number M used once, MAC("agent", N, M)
//! coordinator -> agent   ADMITTED or REFUSED, MAC("coordinator", N, M)
//! ```
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

/// The coordinator's first words. Another version of the protocol has others.
const GREETING: [u8; 16] = *b"dslaunch-agent-1";
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
    /// Something else listens there, or another version.
    #[error("what listens there is no dslaunch of this version")]
    Stranger,
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
        blake3::keyed_hash(&self.key, &[&coordinators, &agents, who.as_bytes()].concat())
    }
}

/// The coordinator's half, up to its verdict: the session that the other end has proved itself in. `None`: it has not, and was
/// told so.
pub async fn challenge(stream: &mut TcpStream, secret: &Secret) -> io::Result<Option<Session>> {
    let coordinators = secret.draw();
    stream.write_all(&[&GREETING[..], &coordinators].concat()).await?;
    let (mut agents, mut mac) = ([0; BYTES], [0; BYTES]);
    stream.read_exact(&mut agents).await?;
    stream.read_exact(&mut mac).await?;
    let session = Session { coordinators, agents };
    if secret.mac("agent", session) == mac {
        return Ok(Some(session));
    }
    stream.write_all(&[REFUSED; 1 + BYTES]).await?;
    Ok(None)
}

/// The coordinator's last word: the other end is in.
pub async fn welcome(stream: &mut TcpStream, secret: &Secret, session: Session) -> io::Result<()> {
    stream.write_all(&[&[ADMITTED], &secret.mac("coordinator", session).as_bytes()[..]].concat()).await
}

/// The agent's half.
pub async fn introduce(stream: &mut TcpStream, secret: &Secret) -> Result<(), HandshakeError> {
    let (mut greeting, mut coordinators) = ([0; GREETING.len()], [0; BYTES]);
    stream.read_exact(&mut greeting).await?;
    if greeting != GREETING {
        return Err(HandshakeError::Stranger);
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
        match challenge(stream, secret).await? {
            Some(session) => welcome(stream, secret, session).await.map(|()| true),
            None => Ok(false),
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
            let mut greeting = [0; GREETING.len() + BYTES];
            agent.read_exact(&mut greeting).await.unwrap();
            let session = Session { coordinators: greeting[GREETING.len()..].try_into().unwrap(), agents: [7; BYTES] };
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
            ([&GREETING[..], &[3; BYTES], &[ADMITTED], &[0; BYTES]].concat(), "Impostor"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "Stranger"),
            (GREETING.to_vec(), "Broken"),
        ] {
            let (mut agent, mut other) = pair().await;
            other.write_all(&answer).await.unwrap();
            other.shutdown().await.unwrap();
            let error = introduce(&mut agent, &secret).await.unwrap_err();
            assert!(format!("{error:?}").starts_with(is_right), "{error:?}");
        }
    }
}
