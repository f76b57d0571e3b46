//! The messages of the control socket. Pure.

use serde::{Deserialize, Serialize};

use crate::output::console::Shown;
use crate::output::status::JobStatus;
use crate::process::signals::Stop;

/// Longest request, its newline included.
pub const REQUEST_BYTES: usize = 64;
/// Longest reply that a client reads, its newline included.
pub const REPLY_BYTES: usize = 1 << 20;

/// The request of a client: one word on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Asks for the status: one [`Reply::Status`].
    Status,
    /// That the job stops: one [`Reply::Stopping`]. The connection stays open until the launcher's process has ended.
    Stop(Stop),
    /// To see what the terminal shows: one [`Reply::Status`], then [`Reply::Shown`] until the job has ended.
    Attach,
}

impl Request {
    /// All there are.
    const ALL: [Request; 4] =
        [Request::Status, Request::Stop(Stop::AtOnce), Request::Stop(Stop::Saving), Request::Attach];

    /// The request as it is sent.
    pub fn line(self) -> &'static str {
        match self {
            Request::Status => "status\n",
            Request::Stop(Stop::AtOnce) => "stop\n",
            Request::Stop(Stop::Saving) => "save and stop\n",
            Request::Attach => "attach\n",
        }
    }

    /// The request of a line, if it is one.
    pub fn parse(line: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|request| request.line().as_bytes() == line)
    }
}

/// One line of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The status of the job.
    Status(JobStatus),
    /// It is being stopped.
    Stopping,
    /// An item that its terminal shows.
    Shown(Shown),
    /// So many of them were missed: the follower does not keep up.
    Missed(u64),
    /// The request is none.
    Refused(String),
}

impl Reply {
    /// The reply as it is sent.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a reply is plain data");
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::status::State;

    #[test]
    fn requests_are_whole_lines() {
        for request in Request::ALL {
            assert_eq!(Request::parse(request.line().as_bytes()), Some(request));
            assert!(request.line().len() <= REQUEST_BYTES);
        }
        for line in ["", "\n", "status", "status \n", "Stop\n", "stop\0\n", "GET / HTTP/1.1\r\n"] {
            assert_eq!(Request::parse(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn a_reply_is_one_line_that_reads_back() {
        let status = JobStatus { loss: Some(2.5), ..JobStatus::new(State::Training, Some(3)) };
        for reply in [
            Reply::Status(status),
            Reply::Stopping,
            Reply::Shown(Shown::Warn("two\nlines".into())),
            Reply::Shown(Shown::EndWait),
            Reply::Missed(3),
        ] {
            let line = reply.line();
            assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
            assert_eq!(serde_json::from_slice::<Reply>(&line).unwrap(), reply);
        }
        let odd = JobStatus { loss: Some(f64::NAN), ..JobStatus::new(State::Training, None) };
        let Reply::Status(read) = serde_json::from_slice(&Reply::Status(odd).line()).unwrap() else { panic!() };
        assert_eq!(read.loss, None, "JSON has no NaN");
    }
}
