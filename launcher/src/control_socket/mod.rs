//! The control socket, through which another terminal asks, stops and follows a running job.
//!
//! A job listens on a Unix socket in its run directory. A client sends one line, a [`Request`](protocol::Request), and
//! gets lines of JSON, [`Reply`](protocol::Reply) each, until the server closes. Where nobody listens, [`past`] reads the
//! run's files. The commands `status`, `stop` and `attach` ask; the room refuses to know how they print the answer, and what
//! the job does.
//!
//! - CTL-1 Only root and the user whom the job runs as get anything or change anything: the file's mode says so, and the
//!   kernel is asked for every connection who is at its other end.
//! - CTL-2 Nothing that a client does or does not do harms the job: requests have a length and a deadline, connections a
//!   number, and a follower who does not read misses lines. Who says nothing keeps nobody else from being heard.
//! - CTL-3 The name in the run directory appears when the socket listens already and belongs to whoever holds the
//!   directory's lock: a stale one is replaced.

pub mod address;
pub mod client;
pub mod past;
pub mod protocol;
pub mod server;

use std::io;
use std::path::PathBuf;

use crate::error::LaunchError;

/// A reason why a job cannot be looked at, stopped or followed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no run.
    #[error("{}: there is no run (it holds no events.jsonl)", .dir.display())]
    NoRun {
        /// The folder that was named.
        dir: PathBuf,
    },
    /// The job is there and does not answer.
    #[error(
        "{}: {} does not answer on its control socket; SIGTERM stops it", .dir.display(),
        .pid.map_or("the job".to_owned(), |pid| format!("process {pid} holds it and"))
    )]
    NoAnswer {
        /// The run directory.
        dir: PathBuf,
        /// The process that holds its lock.
        pid: Option<u32>,
    },
    /// The job answers something else than it should.
    #[error("{}: the job answers {answer:?}: another version of dslaunch?", .dir.display())]
    Answer {
        /// The run directory.
        dir: PathBuf,
        /// The line.
        answer: String,
    },
    /// The socket is there and cannot be used: another user's, most of all.
    #[error("cannot talk to the job through {}", .socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl ControlError {
    /// The exit code of the command that fails with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            ControlError::NoRun { .. } => 2,
            ControlError::NoAnswer { .. } => 1,
            ControlError::Answer { .. } | ControlError::Io { .. } => 3,
        }
    }
}

impl From<ControlError> for LaunchError {
    fn from(error: ControlError) -> Self {
        let exit_code = error.exit_code();
        Self::refused(error, exit_code)
    }
}
