//! The failure of one rank: its own message and the end of its process. Pure.

use proto::control::FailureKind;

use crate::process::exit::Exit;

/// The kind of a failure, as far as the rank or its end tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The rank said: the user's files are wrong.
    Input,
    /// The rank said: this machine cannot do it.
    Environment,
    /// The rank said: another rank is gone or hangs. Never the cause where there is another one.
    Peer,
    /// The rank said: anything else.
    Internal,
    /// The rank said: training has diverged.
    Diverged,
    /// The rank said: the checkpoint that it was to go on from is damaged.
    Damaged,
    /// It said nothing and ended.
    Died,
    /// It was started and never registered.
    Missing,
    /// It runs, or is stopped, and makes no progress.
    Hung,
    /// Somebody else listens where its peers look for it.
    Robbed,
}

impl From<FailureKind> for Kind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Input => Kind::Input,
            FailureKind::Environment => Kind::Environment,
            FailureKind::Peer => Kind::Peer,
            FailureKind::Diverged => Kind::Diverged,
            FailureKind::Damaged => Kind::Damaged,
            FailureKind::Internal | FailureKind::Unspecified => Kind::Internal,
        }
    }
}

/// One rank's failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The rank's number.
    pub rank: usize,
    /// Its kind.
    pub kind: Kind,
    /// The step it worked on, 0 before the first.
    pub step: u64,
    /// The message of the rank or the launcher; one line per cause. `None`: its end says all.
    pub message: Option<String>,
    /// How its process ended, if it did so by itself.
    pub exit: Option<Exit>,
}

impl Failure {
    /// One line: the outermost cause, or how the process ended.
    pub fn summary(&self) -> String {
        let first_line =
            self.message.as_deref().and_then(|message| message.lines().find(|line| !line.trim().is_empty()));
        match (first_line, self.exit) {
            (Some(line), _) => line.trim().to_owned(),
            (None, Some(exit)) => exit.to_string(),
            (None, None) => "failed without a message".to_owned(),
        }
    }
}
