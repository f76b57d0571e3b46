//! The client of the control socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use proto::run_dir::RunDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::{REPLY_BYTES, Reply, Request};
use super::{ControlError, address};
use crate::run_dir::lock;

/// How long a job may take for its first answer: it does nothing else for it than look.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A job that was asked for something.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
    dir: PathBuf,
    socket: PathBuf,
}

impl Connection {
    /// Asks the job in `run_dir`, and returns its first answer. `None`: nobody is there to be asked.
    pub async fn ask(run_dir: &RunDir, request: Request) -> Result<Option<(Self, Reply)>, ControlError> {
        let (dir, socket) = (run_dir.root().to_owned(), run_dir.control_socket());
        let no_answer = || ControlError::NoAnswer { dir: dir.clone(), pid: lock::holder(&dir) };
        let unusable = |source| ControlError::Io { socket: socket.clone(), source };
        let connected = match address::connect(&socket) {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            // Its queue is full: nobody takes from it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(no_answer()),
            Err(error) => return Err(unusable(error)),
        };
        connected.set_nonblocking(true).map_err(unusable)?;
        let stream = UnixStream::from_std(connected).map_err(unusable)?;
        let mut connection = Self { stream: BufReader::new(stream), dir: dir.clone(), socket: socket.clone() };
        let asked = timeout(ANSWER_TIMEOUT, async {
            match connection.stream.get_mut().write_all(request.line().as_bytes()).await {
                Ok(()) => connection.next().await,
                Err(error) if is_nobody(&error) => Ok(None),
                Err(error) => Err(connection.broken(error)),
            }
        });
        match asked.await {
            Ok(Ok(Some(Reply::Refused(answer)))) => Err(ControlError::Answer { dir, answer }),
            Ok(Ok(Some(reply))) => Ok(Some((connection, reply))),
            // It has ended just now, or it does not talk to us.
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(no_answer()),
        }
    }

    /// The next answer; `None` when the job has closed. Cancelling it may lose an answer.
    pub async fn next(&mut self) -> Result<Option<Reply>, ControlError> {
        let mut line = vec![];
        let mut bounded = (&mut self.stream).take(REPLY_BYTES as u64);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(_) => {}
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(self.broken(error)),
        }
        if line.last() != Some(&b'\n') && line.len() < REPLY_BYTES {
            // A torn line is the last of a launcher that was killed.
            return Ok(None);
        }
        let answer = || String::from_utf8_lossy(&line).chars().take(80).collect();
        let reply = serde_json::from_slice(&line);
        reply.map(Some).map_err(|_| ControlError::Answer { dir: self.dir.clone(), answer: answer() })
    }

    /// Waits until the job has closed.
    pub async fn closed(&mut self) -> Result<(), ControlError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    fn broken(&self, source: io::Error) -> ControlError {
        ControlError::Io { socket: self.socket.clone(), source }
    }
}

/// No socket, one that nobody listens on, or one whose owner has just gone.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe)
}
