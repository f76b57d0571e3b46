//! The server of the control socket, in the job.

use std::future::pending;
use std::io;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use proto::run_dir::RunDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep_until, timeout};

use super::address;
use super::protocol::{REQUEST_BYTES, Reply, Request};
use crate::listening::descriptors;
use crate::listening::newcomers::Newcomers;
use crate::output::Output;
use crate::output::console::Shown;
use crate::output::stall::Pulse;
use crate::output::status::JobStatus;
use crate::process::signals;

/// Connections at a time that have asked for nothing yet, if the process may have descriptors enough; when more come, they push
/// out each other.
const NEWCOMERS: usize = 64;
/// For how long a newcomer is safe from those who come after it: a line is said at once.
const GRACE: Duration = Duration::from_millis(50);
/// Clients at a time that follow the job, likewise.
const FOLLOWERS: usize = 32;
/// Clients at a time that wait for its end: others than those, so that no number of followers keeps anybody from stopping it.
const WAITERS: usize = 32;
/// How long a client may take for its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may leave a line unread; a stopped follower that comes back later finds the connection closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the end of the job waits for followers to take the last lines.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Pause after a connection could not be accepted: without it, a process without free descriptors would spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The listening socket of a job, and whoever is connected. Dropping it takes the name away.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// The sources of answers.
#[derive(Debug, Clone)]
struct Source {
    status: watch::Receiver<JobStatus>,
    shown: broadcast::WeakSender<Shown>,
    pulse: watch::Receiver<Pulse>,
    start: Instant,
}

impl ControlSocket {
    /// Listens in `run_dir`, whose lock the caller holds. `start` is when the launcher started. Needs a tokio runtime.
    pub fn open(run_dir: &RunDir, output: &mut Output, start: Instant) -> io::Result<Self> {
        let path = run_dir.control_socket();
        let listener = address::listen(&path)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (status, pulse, shown) = (output.status(), output.pulse(), output.console().followers());
        let source = Source { status, shown, pulse, start };
        let (end, ended) = oneshot::channel();
        Ok(Self { path, end: Some(end), task: tokio::spawn(serve(listener, source, ended)) })
    }

    /// Takes nobody any more, and gives followers a moment to read the last lines. [`Output`] must be gone, or they
    /// wait for more of it.
    pub async fn close(mut self) {
        if let Some(end) = self.end.take() {
            // A task that is gone already needs no word.
            let _ = end.send(());
        }
        let _ = timeout(LAST_LINES, &mut self.task).await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
        // Who connects to a name that is left finds nobody: only tidiness is lost.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Until the end is near, and then until followers have read the last lines.
async fn serve(listener: UnixListener, source: Source, mut end: oneshot::Receiver<()>) {
    let affordable = descriptors::share(8).max(1);
    let places = [FOLLOWERS, WAITERS].map(|places| Arc::new(Semaphore::new(places.min(affordable))));
    let mut newcomers: Newcomers<Option<i32>, AbortHandle> = Newcomers::new(NEWCOMERS.min(affordable), GRACE);
    let (mut asking, mut answering) = (JoinSet::new(), JoinSet::new());
    let mut paused_until = None;
    loop {
        let not_before = newcomers.room_at().max(paused_until);
        let accept = async {
            if let Some(instant) = not_before {
                sleep_until(instant.into()).await;
            }
            listener.accept().await
        };
        tokio::select! {
            accepted = accept => match accepted {
                Ok((stream, _)) => {
                    // Those of one process push out each other, and nobody else.
                    let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
                    let goes = newcomers.enter(process, asking.spawn(ask(stream)), Instant::now());
                    goes.iter().for_each(AbortHandle::abort);
                }
                Err(_) => {
                    newcomers.drop_one().iter().for_each(AbortHandle::abort);
                    paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                }
            },
            Some(asked) = asking.join_next() => {
                newcomers.retain(AbortHandle::is_finished);
                // A client that goes away, or had to, is no business of the job.
                if let Ok(Ok(Some((client, request)))) = asked {
                    let [followers, waiters] = &places;
                    let places = if matches!(request, Request::Stop(_)) { waiters } else { followers };
                    let place = places.clone().try_acquire_owned().ok();
                    answering.spawn(answer(client, request, source.clone(), place));
                }
            }
            Some(_) = answering.join_next() => {}
            _ = &mut end => break,
        }
    }
    drop((listener, asking));
    while answering.join_next().await.is_some() {}
}

/// CTL-1.
fn may_ask(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == own_uid || peer_uid == 0
}

/// What the client wants, if it may ask. What is no request is refused here.
async fn ask(stream: UnixStream) -> io::Result<Option<(Client, Request)>> {
    if !may_ask(stream.peer_cred()?.uid(), geteuid().as_raw()) {
        return Ok(None);
    }
    let mut client = Client { stream: BufReader::new(stream) };
    match client.request().await? {
        Some(request) => Ok(Some((client, request))),
        None => {
            client.write(Reply::Refused("expected one line: status, stop or attach".into())).await?;
            Ok(None)
        }
    }
}

/// `place`: a place for one that stays, if there is one.
async fn answer(
    mut client: Client,
    request: Request,
    source: Source,
    place: Option<OwnedSemaphorePermit>,
) -> io::Result<()> {
    match (request, place) {
        (Request::Status, _) => client.write(Reply::Status(source.now())).await,
        (Request::Stop(how), place) => {
            client.write(Reply::Stopping).await?;
            signals::stop_this_process(how)?;
            // On its own: the end of the job does not wait for those who wait for it. Who finds no place hears only that.
            if let Some(place) = place {
                tokio::spawn(async move {
                    let _ = client.wait_for_the_end().await;
                    drop(place);
                });
            }
            Ok(())
        }
        (Request::Attach, Some(_place)) => client.follow(source).await,
        (Request::Attach, None) => {
            client.write(Reply::Refused("as many as may follow this job do already".into())).await
        }
    }
}

impl Source {
    fn now(&self) -> JobStatus {
        let (status, pulse) = (self.status.borrow().clone(), *self.pulse.borrow());
        status.at(self.start.elapsed(), pulse.stall(Instant::now()))
    }
}

/// Somebody who may ask.
struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    async fn request(&mut self) -> io::Result<Option<Request>> {
        let mut line = vec![];
        let mut bounded = (&mut self.stream).take(REQUEST_BYTES as u64);
        timeout(REQUEST_TIMEOUT, bounded.read_until(b'\n', &mut line)).await??;
        Ok(Request::parse(&line))
    }

    async fn write(&mut self, reply: Reply) -> io::Result<()> {
        timeout(WRITE_TIMEOUT, self.stream.get_mut().write_all(&reply.line())).await?
    }

    /// Ends when the client goes away. If the launcher goes first, the kernel closes the connection with its process,
    /// not the runtime with its tasks: the end of the connection says that the launcher is gone.
    async fn wait_for_the_end(self) -> io::Result<()> {
        let mut stream = ManuallyDrop::new(self.stream);
        let ended = until_closed(&mut stream).await;
        drop(ManuallyDrop::into_inner(stream));
        ended
    }

    async fn follow(&mut self, source: Source) -> io::Result<()> {
        // Before the status, so that nothing is missed in between.
        let shown = source.shown.upgrade().map(|sender| sender.subscribe());
        self.write(Reply::Status(source.now())).await?;
        let Some(mut shown) = shown else { return Ok(()) };
        loop {
            let reply = tokio::select! {
                shown = shown.recv() => match shown {
                    Ok(shown) => Reply::Shown(shown),
                    Err(broadcast::error::RecvError::Lagged(missed)) => Reply::Missed(missed),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                closed = until_closed(&mut self.stream) => return closed,
            };
            self.write(reply).await?;
        }
    }
}

/// Waits until the client closes its end. A client that says more has nothing to say.
async fn until_closed(stream: &mut BufReader<UnixStream>) -> io::Result<()> {
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_jobs_user_may_ask() {
        assert!(may_ask(1000, 1000) && may_ask(0, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
    }
}
