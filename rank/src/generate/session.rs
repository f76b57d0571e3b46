//! The rank's end of the wire to dslaunch while text is generated: loads a model, then writes what it is asked for, one request after
//! the other, until nobody asks any more.
//!
//! A thread of its own reads what dslaunch says, so that a wish to stop is heard between two tokens. When dslaunch is gone the rank
//! ends: it sees the end of the stream, and the kernel kills it with its parent anyway.

use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;

use proto::adapter_folder::AdapterFileError;
use proto::env::GenerateEnv;
use proto::generate::{self as wire, FromRank, Load, ToRank, from_rank, to_rank};
use proto::model_config::ModelConfigError;
use proto::say;
use tch::Kind;

use super::weights::{ModelFolders, Weights};
use super::{Audience, Decoder, Reason, Sequence, Wish, WriteError, Written, write};
use crate::checkpoint::CheckpointError;
use crate::device::Device;
use crate::device::cuda::driver::GpuError;
use crate::process;

/// Why a rank cannot generate.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// dslaunch cannot be heard, or not told.
    #[error("the way to dslaunch is broken")]
    Wire(#[from] io::Error),
    /// dslaunch says something that it may not say here.
    #[error("dslaunch says {0}")]
    Unexpected(String),
    /// The GPU cannot be used.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// config.json is wrong.
    #[error(transparent)]
    Config(#[from] ModelConfigError),
    /// The adapter's description is wrong.
    #[error(transparent)]
    Adapter(#[from] AdapterFileError),
    /// Weights cannot be read.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// Nothing can be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Installs the GPU of this number, if the model computes on one.
pub type TakeGpu<'a> = &'a dyn Fn(Option<usize>) -> Result<(), GpuError>;

/// Runs a rank that generates, until dslaunch has no more wishes.
pub fn run(env: GenerateEnv, take_gpu: TakeGpu) -> ExitCode {
    process::set_up(env.threads);
    let wire = UnixStream::from(process::inherited_fd(env.fd));
    let served = wire.try_clone().map_err(SessionError::from).and_then(|answers| {
        let mut session = Session { asked: listen(wire)?, answers };
        session.serve(env.gpu, take_gpu).inspect_err(|error| session.fail(error))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::err(format_args!("dslaunch-rank: {:#}", anyhow::Error::new(error)));
            ExitCode::FAILURE
        }
    }
}

/// Reads what dslaunch says on a thread of its own, which ends with the stream.
fn listen(mut wire: UnixStream) -> io::Result<Receiver<io::Result<to_rank::What>>> {
    let (sender, asked) = mpsc::channel();
    thread::Builder::new().name("asked".into()).spawn(move || {
        loop {
            let said = match wire::read::<ToRank>(&mut wire) {
                Ok(None) => break,
                Ok(Some(ToRank { what: Some(what) })) => Ok(what),
                Ok(Some(ToRank { what: None })) => Err(io::Error::other("a message of a kind that is not known here")),
                Err(error) => Err(error),
            };
            let is_over = said.is_err();
            if sender.send(said).is_err() || is_over {
                break;
            }
        }
    })?;
    Ok(asked)
}

struct Session {
    asked: Receiver<io::Result<to_rank::What>>,
    answers: UnixStream,
}

impl Session {
    fn serve(&mut self, gpu: usize, take_gpu: TakeGpu) -> Result<(), SessionError> {
        let load = match self.next()? {
            Some(to_rank::What::Load(load)) => load,
            Some(other) => return Err(unexpected(&other)),
            None => return Ok(()),
        };
        let mut model = self.load(load, gpu, take_gpu)?;
        self.answer(from_rank::What::Loaded(wire::Loaded {}))?;
        let mut sequence = Sequence::default();
        while let Some(asked) = self.next()? {
            match asked {
                to_rank::What::Request(request) => self.write(&mut model, &mut sequence, request)?,
                // It came when the request had just ended.
                to_rank::What::Stop(_) => {}
                other @ to_rank::What::Load(_) => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    fn load(&mut self, load: Load, gpu: usize, take_gpu: TakeGpu) -> Result<Decoder, SessionError> {
        take_gpu(load.on_gpu.then_some(gpu))?;
        let folders = ModelFolders {
            model: load.model.into(),
            adapter: Some(load.adapter).filter(|adapter| !adapter.is_empty()).map(Into::into),
        };
        let kind = if load.bf16 { Kind::BFloat16 } else { Kind::Float };
        let mut told = Ok(());
        let weights = Weights::load(&folders, kind, Device::of_thread(), |units, of| {
            let (units, of) = (units as u64, of as u64);
            if told.is_ok() {
                told = self.answer(from_rank::What::Loading(wire::Loading { units, of }));
            }
        });
        told?;
        Ok(Decoder::new(weights?))
    }

    fn write(
        &mut self,
        model: &mut Decoder,
        sequence: &mut Sequence,
        request: wire::Request,
    ) -> Result<(), SessionError> {
        let id = request.id;
        if request.prompt.is_empty() {
            return Err(SessionError::Unexpected("a request without a prompt".into()));
        }
        let mut listener = Listener { session: self, id, broken: None };
        let written = write(model, sequence, &Wish::from(request), &mut listener);
        if let Some(error) = listener.broken {
            return Err(error);
        }
        let Written { reason, prompt_seconds, token_seconds, prompt_read } = written?;
        let reason = match reason {
            Reason::EndToken => wire::Reason::EndToken,
            Reason::Length => wire::Reason::Length,
            Reason::Stopped => wire::Reason::Stopped,
        };
        let (reason, prompt_read) = (reason.into(), prompt_read as u64);
        let ended = wire::Ended { id, reason, prompt_seconds, token_seconds, prompt_read };
        Ok(self.answer(from_rank::What::Ended(ended))?)
    }

    /// The next wish; `None` once there are none. Waits for it.
    fn next(&self) -> io::Result<Option<to_rank::What>> {
        self.asked.recv().ok().transpose()
    }

    fn answer(&mut self, what: from_rank::What) -> io::Result<()> {
        wire::write(&mut self.answers, &FromRank { what: Some(what) })
    }

    /// The last words. Whoever does not hear them sees that the rank has ended.
    fn fail(&mut self, error: &SessionError) {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            message += &format!(": {error}");
            cause = error.source();
        }
        let _ = self.answer(from_rank::What::Failed(wire::Failed { message }));
    }
}

fn unexpected(what: &to_rank::What) -> SessionError {
    SessionError::Unexpected(format!("{what:?} out of turn"))
}

/// Passes on what is written to dslaunch.
struct Listener<'a> {
    session: &'a mut Session,
    id: u64,
    /// Why it can no longer, and nothing more is wanted.
    broken: Option<SessionError>,
}

impl Listener<'_> {
    fn tell(&mut self, what: from_rank::What) {
        if self.broken.is_none() {
            self.broken = self.session.answer(what).err().map(SessionError::from);
        }
    }
}

impl Audience for Listener<'_> {
    fn read(&mut self, tokens: usize) {
        self.tell(from_rank::What::PromptRead(wire::PromptRead { id: self.id, tokens: tokens as u64 }));
    }

    fn token(&mut self, token: u32) {
        self.tell(from_rank::What::Token(wire::Token { id: self.id, token }));
    }

    fn wants_more(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        loop {
            match self.session.asked.try_recv() {
                Ok(Ok(to_rank::What::Stop(stop))) if stop.id == self.id => return false,
                // Of a request that has ended.
                Ok(Ok(to_rank::What::Stop(_))) => {}
                Ok(Ok(other)) => self.broken = Some(unexpected(&other)),
                Ok(Err(error)) => self.broken = Some(error.into()),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
            if self.broken.is_some() {
                return false;
            }
        }
    }
}
