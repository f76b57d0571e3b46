//! The process that computes: starts it, tells it what to do, and hears what it says. It dies with this process.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::env::GenerateEnv;
use proto::generate::{self as wire, FromRank, Load, Loading, Request, Stop, ToRank, from_rank, to_rank};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::error::GenerateError;
use super::ground::Ground;
use crate::error::LaunchError;
use crate::job::attempt::IGNORED_BY_RANKS;
use crate::job::setup::worker_binary;
use crate::job::threads::env_of_threads;
use crate::output::console::Console;
use crate::process::exit::Exit;
use crate::process::signals::{Interrupt, Signals};
use crate::process::spawn::{Process, Sink, Spawner, Spec};
use crate::process::timer::Timer;

/// The process says something with every token, every 512 tokens of a prompt and every part of a model that it loads. If it has said
/// nothing for this long, it stands still.
const SILENCE: Duration = Duration::from_secs(600);

/// Whoever closes its end of the wire has ended, or ends within this time.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The process that computes.
pub struct Worker {
    wire: UnixStream,
    said: mpsc::UnboundedReceiver<from_rank::What>,
    process: Process,
    ended: oneshot::Receiver<Exit>,
    /// What it does, as far as it is known here.
    doing: &'static str,
}

impl Worker {
    /// Starts it, and has it load a model.
    pub fn start(ground: &Ground, load: Load) -> Result<Self, LaunchError> {
        let (wire, theirs) = UnixStream::pair().map_err(LaunchError::io("make a way to the process that computes"))?;
        let theirs = Arc::new(OwnedFd::from(theirs));
        let env = GenerateEnv { fd: theirs.as_raw_fd(), gpu: 0, threads: ground.threads };
        let mut vars: Vec<_> = env.to_vars().into_iter().map(|(name, value)| (name, Some(value))).collect();
        vars.extend(env_of_threads(ground.threads));
        // The driver numbers GPUs so for whoever asks it, as was done here.
        vars.push(("CUDA_DEVICE_ORDER", Some("PCI_BUS_ID".into())));
        let spec = Spec {
            program: worker_binary()?,
            args: vec![],
            env: vars,
            stdout: Sink::Null,
            stderr: Sink::Inherit,
            ignore: IGNORED_BY_RANKS.to_vec(),
            cgroup: None,
            inherit: vec![theirs],
        };
        let spawner = Spawner::start().map_err(LaunchError::io("start a thread that starts processes"))?;
        let (sender, ended) = oneshot::channel();
        let process = spawner.spawn(spec, move |exit| {
            // Nobody asks any more once dslaunch ends.
            let _ = sender.send(exit);
        })?;
        let said = listen(&wire).map_err(LaunchError::io("listen to the process that computes"))?;
        wire.set_write_timeout(Some(SILENCE)).map_err(LaunchError::io("limit how long a message may take"))?;
        let mut worker = Self { wire, said, process, ended, doing: "loaded the model" };
        worker.tell(to_rank::What::Load(load))?;
        Ok(worker)
    }

    /// Waits until the model is there, and shows how far it is. `Some`: the user wants to stop.
    pub async fn loaded(
        &mut self,
        console: &mut Console,
        signals: &mut Signals,
    ) -> Result<Option<Interrupt>, LaunchError> {
        let loaded = loop {
            let said = tokio::select! {
                said = self.next() => said,
                interrupt = signals.next() => break Ok(Some(interrupt)),
            };
            match said {
                Ok(from_rank::What::Loading(Loading { units, of })) => {
                    console.preparing(&format!("loading the model: {units} of {of} parts"));
                }
                Ok(from_rank::What::Loaded(_)) => break Ok(None),
                Ok(other) => break Err(out_of_turn(&other).into()),
                Err(error) => break Err(error.into()),
            }
        };
        console.end_wait();
        loaded
    }

    /// Asks it to write.
    pub fn ask(&mut self, request: Request) -> Result<(), GenerateError> {
        self.doing = "read the prompt";
        self.tell(to_rank::What::Request(request))
    }

    /// Asks it to write no more for this request.
    pub fn stop(&mut self, id: u64) -> Result<(), GenerateError> {
        self.tell(to_rank::What::Stop(Stop { id }))
    }

    /// What it says next. Cancel safe.
    pub async fn next(&mut self) -> Result<from_rank::What, GenerateError> {
        let said = tokio::select! {
            said = self.said.recv() => said,
            () = async { Timer::after(SILENCE).over().await } => {
                return Err(GenerateError::Silent { doing: self.doing, pid: self.process.pid(), silence: SILENCE });
            }
        };
        match said {
            Some(from_rank::What::Failed(failed)) => Err(GenerateError::Failed { message: failed.message }),
            Some(what) => {
                if let from_rank::What::Token(_) = what {
                    self.doing = "wrote";
                }
                Ok(what)
            }
            None => Err(self.end().await),
        }
    }

    /// It has closed its end of the wire.
    async fn end(&mut self) -> GenerateError {
        match timeout(END_LIMIT, &mut self.ended).await {
            Ok(Ok(exit)) => GenerateError::Died { doing: self.doing, exit },
            _ => GenerateError::Wire(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    fn tell(&mut self, what: to_rank::What) -> Result<(), GenerateError> {
        match wire::write(&mut self.wire, &ToRank { what: Some(what) }) {
            // It has ended: whoever hears it next hears why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            told => told.map_err(GenerateError::Wire),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nothing of it is needed any more. It dies with this process in any case.
        let _ = self.wire.shutdown(Shutdown::Both);
        let _ = self.process.signal(Signal::SIGKILL);
    }
}

/// An answer that does not fit what was asked.
pub(super) fn out_of_turn(what: &from_rank::What) -> GenerateError {
    GenerateError::Wire(io::Error::other(format!("it says {what:?} out of turn")))
}

/// Passes on what comes over the wire, on a thread of its own, until its end.
fn listen(wire: &UnixStream) -> io::Result<mpsc::UnboundedReceiver<from_rank::What>> {
    let mut wire = wire.try_clone()?;
    let (sender, said) = mpsc::unbounded_channel();
    thread::Builder::new().name("rank".into()).spawn(move || {
        // A message that is none, or half of one, is the end: of a process that has died, or is not ours.
        while let Ok(Some(FromRank { what: Some(what) })) = wire::read(&mut wire) {
            if sender.send(what).is_err() {
                break;
            }
        }
    })?;
    Ok(said)
}
