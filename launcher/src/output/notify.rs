//! Tells the service manager (systemd) that training has begun, that it goes on, and that it is about to stop.
//!
//! - NTF-1 The watchdog is fed by training progress and by nothing else. A timer would say that a launcher lives whose
//!   ranks hang.
//! - NTF-2 READY=1 follows the first step, or the end of a job that has no step left: a job that cannot train has never been
//!   started.
//!
//! Texts are pure ([`Service`]); [`Notifier`] sends them, and never waits.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant};

use proto::env::ServiceEnv;

use crate::output::units::printable;

/// How often the status line changes at most: systemd keeps one, and steps may take milliseconds.
const STATUS_PAUSE: Duration = Duration::from_secs(1);
/// How long the stop may take from each sign of life on: a checkpoint of a large model tells nothing until it is whole.
const STOP_EXTENSION: Duration = Duration::from_secs(120);

/// The state behind the messages. Pure.
#[derive(Debug)]
pub struct Service {
    /// `None` without WatchdogSec=.
    watchdog: Option<Duration>,
    ready: bool,
    stopping: bool,
    last_ping: Option<Instant>,
    last_status: Option<Instant>,
    /// The longest that a checkpoint has taken.
    checkpoint: Duration,
}

impl Service {
    /// Before the first step. `watchdog` is the time after which systemd takes silence for death.
    pub fn new(watchdog: Option<Duration>) -> Self {
        Self { watchdog, ready: false, stopping: false, last_ping: None, last_status: None, checkpoint: Duration::ZERO }
    }

    /// A step is done. Returns the message, empty if there is nothing to say so soon.
    pub fn step(&mut self, step: u64, steps: u64, loss: f64, now: Instant) -> String {
        let mut message = self.progress(now);
        if !self.ready {
            self.ready = true;
            message += "READY=1\n";
        }
        let is_due = self.last_status.is_none_or(|last| now.duration_since(last) >= STATUS_PAUSE);
        if (is_due || step == steps) && !self.stopping {
            self.last_status = Some(now);
            message += &format!("STATUS=step {step}/{steps}, loss {loss:.4}\n");
        }
        message
    }

    /// All steps are done, in this launch or before it: a service that ends without ever being ready has failed.
    pub fn done(&mut self) -> String {
        if std::mem::replace(&mut self.ready, true) { String::new() } else { "READY=1\nSTATUS=done\n".to_owned() }
    }

    /// A checkpoint is complete.
    pub fn checkpoint(&mut self, took: Duration, now: Instant) -> String {
        self.checkpoint = self.checkpoint.max(took);
        self.progress(now)
    }

    /// Any sign that training goes on.
    pub fn progress(&mut self, now: Instant) -> String {
        let mut message = String::new();
        if let Some(watchdog) = self.watchdog
            && self.last_ping.is_none_or(|last| now.duration_since(last) >= watchdog / 4)
        {
            self.last_ping = Some(now);
            message += "WATCHDOG=1\n";
        }
        if self.stopping {
            message += &self.extension();
        }
        message
    }

    /// The job is not training for this reason, so that the status line should not say that it is.
    pub fn status(&mut self, text: &str, now: Instant) -> String {
        self.last_status = Some(now);
        format!("STATUS={}\n", printable(text))
    }

    /// The user wants the job to stop.
    pub fn stopping(&mut self) -> String {
        if self.stopping {
            return String::new();
        }
        self.stopping = true;
        format!("STOPPING=1\nSTATUS=stopping\n{}", self.extension())
    }

    fn extension(&self) -> String {
        let extension = STOP_EXTENSION.max(self.checkpoint.saturating_mul(2));
        format!("EXTEND_TIMEOUT_USEC={}\n", extension.as_micros())
    }
}

/// Tells the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    service: Service,
    /// `None` where nobody listens.
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// For a launcher that no service manager has started.
    pub fn nobody() -> Self {
        Self { service: Service::new(None), socket: None }
    }

    /// For the service manager that `env` names.
    pub fn connect(env: &ServiceEnv) -> io::Result<Self> {
        let Some(address) = &env.notify_socket else { return Ok(Self::nobody()) };
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(Path::new(address))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { service: Service::new(env.watchdog), socket: Some(socket) })
    }

    /// Says what `message` makes of the service's state.
    pub fn tell(&mut self, message: impl FnOnce(&mut Service, Instant) -> String) {
        let Some(socket) = &self.socket else { return };
        let message = message(&mut self.service, Instant::now());
        if !message.is_empty() {
            // A service manager that is gone, or does not keep up, is no reason to stop training.
            let _ = socket.send(message.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCHDOG: Duration = Duration::from_secs(40);

    #[test]
    fn ready_comes_with_the_first_step_and_once() {
        let (mut service, now) = (Service::new(None), Instant::now());
        assert_eq!(service.progress(now), "", "loading is not readiness");
        assert_eq!(service.step(1, 9, 2.5, now), "READY=1\nSTATUS=step 1/9, loss 2.5000\n");
        assert_eq!(service.step(2, 9, 2.5, now + STATUS_PAUSE / 2), "", "so soon there is nothing to say");
        assert_eq!(service.step(3, 9, f64::NAN, now + STATUS_PAUSE), "STATUS=step 3/9, loss NaN\n");
        assert_eq!(service.step(9, 9, 1.0, now + STATUS_PAUSE), "STATUS=step 9/9, loss 1.0000\n", "the last is said");
    }

    #[test]
    fn a_job_without_a_step_left_is_ready_before_it_ends() {
        let mut service = Service::new(None);
        assert_eq!(service.done(), "READY=1\nSTATUS=done\n");
        let (mut service, now) = (Service::new(None), Instant::now());
        service.step(9, 9, 1.0, now);
        assert_eq!(service.done(), "", "it has been said");
    }

    #[test]
    fn the_watchdog_is_fed_by_progress_at_most_four_times_in_its_time() {
        let (mut service, now) = (Service::new(Some(WATCHDOG)), Instant::now());
        assert_eq!(service.progress(now), "WATCHDOG=1\n");
        assert_eq!(service.progress(now + WATCHDOG / 5), "");
        assert_eq!(service.progress(now + WATCHDOG / 4), "WATCHDOG=1\n");
        let later = now + WATCHDOG;
        assert_eq!(service.step(1, 9, 2.0, later), "WATCHDOG=1\nREADY=1\nSTATUS=step 1/9, loss 2.0000\n");
        assert_eq!(service.checkpoint(Duration::from_secs(1), later), "");
    }

    #[test]
    fn the_stop_is_given_time_as_long_as_something_happens() {
        let (mut service, now) = (Service::new(None), Instant::now());
        assert_eq!(service.stopping(), "STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=120000000\n");
        assert_eq!(service.stopping(), "", "said once");
        let took = Duration::from_secs(200);
        assert_eq!(service.checkpoint(took, now), "EXTEND_TIMEOUT_USEC=400000000\n", "as long as checkpoints take");
        assert_eq!(service.step(7, 9, 1.0, now), "EXTEND_TIMEOUT_USEC=400000000\nREADY=1\n");
    }

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(Service::new(None).status("a\nREADY=1", Instant::now()), "STATUS=a\u{fffd}READY=1\n");
    }

    #[test]
    fn messages_arrive_whatever_kind_of_address_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify.sock");
        let name = format!("@dslaunch-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let sockets = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (name.into(), UnixDatagram::bind_addr(&abstract_address).unwrap()),
        ];
        for (address, manager) in sockets {
            manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let env = ServiceEnv { notify_socket: Some(address), watchdog: None };
            let mut notifier = Notifier::connect(&env).unwrap();
            notifier.tell(|service, now| service.progress(now));
            notifier.tell(|service, now| service.step(1, 2, 3.0, now));
            let mut buffer = [0; 256];
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=step 1/2, loss 3.0000\n", "and nothing empty before it");
            drop(manager);
            notifier.tell(|service, _| service.stopping());
        }
        Notifier::nobody().tell(|_, _| unreachable!("nobody is told"));
        let gone = ServiceEnv { notify_socket: Some("/nowhere/notify.sock".into()), watchdog: None };
        Notifier::connect(&gone).unwrap_err();
    }
}
