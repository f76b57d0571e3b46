//! Decodes the end of a process and puts it into words. Pure.

use std::fmt;

use nix::sys::signal::Signal;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether the kernel wrote a core file.
        core_dumped: bool,
    },
}

impl Exit {
    /// Whether `signal` ended it.
    pub fn is_signal(self, signal: Signal) -> bool {
        matches!(self, Exit::Signal { number, .. } if number == signal as i32)
    }

    /// Returns the usual cause of this end, if there is one.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Exit::Signal { number: libc::SIGKILL, .. } => {
                Some("if nobody sent it, the kernel's out-of-memory killer is the usual cause")
            }
            Exit::Signal { number: libc::SIGBUS, .. } => {
                Some("the usual cause is that the machine's shared memory (/dev/shm, a container's limit) is used up")
            }
            Exit::Signal { number: libc::SIGILL, .. } => {
                Some("the usual cause is a binary built for another processor")
            }
            Exit::Code(126) => Some("the program cannot be executed"),
            Exit::Code(127) => Some("the program or one of its libraries was not found"),
            _ => None,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal { number, core_dumped } => {
                match Signal::try_from(number) {
                    Ok(signal) => write!(f, "killed by {}", signal.as_str())?,
                    Err(_) => write!(f, "killed by signal {number}")?,
                }
                f.write_str(if core_dumped { " (core dumped)" } else { "" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_said_in_words() {
        let check = |exit: Exit, text: &str| assert_eq!(exit.to_string(), text);
        check(Exit::Code(3), "exited with code 3");
        check(Exit::Signal { number: 9, core_dumped: false }, "killed by SIGKILL");
        check(Exit::Signal { number: 11, core_dumped: true }, "killed by SIGSEGV (core dumped)");
        check(Exit::Signal { number: 40, core_dumped: false }, "killed by signal 40");
    }
}
