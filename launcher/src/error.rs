//! The reasons why dslaunch cannot do what it is asked for, and their exit codes.
//!
//! Holds what several rooms meet, and knows no command and no room above it: an error of theirs becomes a [`Refusal`] in the
//! file that declares it, by `impl From<XError> for LaunchError`.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use proto::config::ConfigErrors;
use proto::memory::Shortage;
use proto::model_config::ModelConfigError;

use crate::process::signals::Interrupt;
use crate::process::spawn::SpawnError;

/// A reason why the launcher cannot do what it is asked for. A rank's failure is not among these: it is an outcome.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// train.toml is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The model's config.json is wrong or not supported.
    #[error(transparent)]
    Model(#[from] ModelConfigError),
    /// The job needs more memory than there is: of GPUs, of the host, or of both.
    #[error("{}", .0.iter().map(Shortage::to_string).collect::<Vec<_>>().join("\n"))]
    Memory(Vec<Shortage>),
    /// A process cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The worker binary is not where it should be.
    #[error("{} is missing: it is built with dslaunch and has to lie beside it", .path.display())]
    NoWorker {
        /// Its expected place.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {what}")]
    Io {
        /// The attempt, as a phrase: `cannot {what}`.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The user stopped the launcher before any rank was started.
    #[error("stopped by {}", .0.name())]
    Interrupted(Interrupt),
    /// A room refuses for a reason of its own.
    #[error(transparent)]
    Refused(Refusal),
}

impl LaunchError {
    /// An I/O error while trying `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    /// A room's own error, which ends dslaunch with `exit_code`.
    pub fn refused(error: impl Error + Send + Sync + 'static, exit_code: u8) -> Self {
        Self::Refused(Refusal { error: Box::new(error), exit_code })
    }

    /// The error and its causes, a line each.
    pub fn explanation(&self) -> String {
        // Problems in train.toml say by themselves that they are errors.
        let prefix = if matches!(self, Self::Config(_)) { "" } else { "error: " };
        let mut text = format!("{prefix}{self}");
        let mut cause = self.source();
        while let Some(error) = cause {
            text += &format!("\n  {error}");
            cause = error.source();
        }
        text
    }

    /// The launcher's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Model(_) => 2,
            Self::Memory(_) | Self::Spawn(_) | Self::NoWorker { .. } | Self::Io { .. } => 3,
            Self::Interrupted(interrupt) => interrupt.exit_code(),
            Self::Refused(refusal) => refusal.exit_code,
        }
    }
}

/// A room's own error, with its text and its causes, and the exit code that the room gives it.
#[derive(Debug)]
pub struct Refusal {
    error: Box<dyn Error + Send + Sync>,
    exit_code: u8,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the roof leaks")]
    struct Leak {
        source: io::Error,
    }

    #[test]
    fn a_refusal_has_the_text_the_causes_and_the_code_of_its_error() {
        let error = LaunchError::refused(Leak { source: io::Error::other("rain") }, 75);
        assert_eq!(error.explanation(), "error: the roof leaks\n  rain");
        assert_eq!(error.exit_code(), 75);
    }
}
