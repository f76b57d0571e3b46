//! The job's end of the control socket.

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
use tokio::sync::{Semaphore, broadcast, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::address;
use super::protocol::{REQUEST_BYTES, Reply, Request};
use crate::output::Output;
use crate::output::console::Shown;
use crate::output::status::JobStatus;
use crate::process::signals;

/// Connections at a time. Whoever comes after them waits in the socket's queue.
const CONNECTIONS: usize = 32;
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

/// Where answers come from.
#[derive(Debug, Clone)]
struct Source {
    status: watch::Receiver<JobStatus>,
    shown: broadcast::WeakSender<Shown>,
    start: Instant,
}

impl ControlSocket {
    /// Listens in `run_dir`, whose lock the caller holds. `start` is when the launcher started. Needs a tokio runtime.
    pub fn open(run_dir: &RunDir, output: &mut Output, start: Instant) -> io::Result<Self> {
        let path = run_dir.control_socket();
        let listener = address::listen(&path)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let source = Source { status: output.status(), shown: output.console().followers(), start };
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
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let permit = free.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        tokio::select! {
            (accepted, permit) = accept => match accepted {
                Ok((stream, _)) => {
                    let source = source.clone();
                    connections.spawn(async move {
                        // A client that goes away is no business of the job.
                        let _ = answer(stream, source).await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
            _ = &mut end => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// CTL-1.
fn may_ask(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == own_uid || peer_uid == 0
}

async fn answer(stream: UnixStream, source: Source) -> io::Result<()> {
    if !may_ask(stream.peer_cred()?.uid(), geteuid().as_raw()) {
        return Ok(());
    }
    let mut client = Client { stream: BufReader::new(stream) };
    match client.request().await? {
        Some(Request::Status) => client.write(Reply::Status(source.now())).await,
        Some(Request::Stop) => {
            client.write(Reply::Stopping).await?;
            signals::stop_this_process()?;
            // On its own: the end of the job does not wait for those who wait for it.
            tokio::spawn(client.wait_for_the_end());
            Ok(())
        }
        Some(Request::Attach) => client.follow(source).await,
        None => client.write(Reply::Refused("expected one line: status, stop or attach".into())).await,
    }
}

impl Source {
    fn now(&self) -> JobStatus {
        let mut status = self.status.borrow().clone();
        status.elapsed_seconds = self.start.elapsed().as_secs_f64();
        status
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
