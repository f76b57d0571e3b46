//! Dialling: how a rank connects to its launcher without an address that anybody else could connect to.
//!
//! ```text
//! launcher                                      rank
//! [`hatch`] ── inside ─── sequenced packets ─── outside, inherited (DSLAUNCH_CONTROL_FD)
//!    │                                           │ [`dial`]: makes a pair of stream sockets,
//!    └──<── one packet that carries an end ───<──┘ keeps one, sends the other
//! ```
//!
//! All ranks of an attempt inherit the same end of one hatch, and dial as often as their connections break. A socket without
//! a name cannot be connected to, nor opened through /proc: only who has inherited it has it, and with the attempt it goes.
//!
//! Owns the packet and the client's half. Packets are taken by the launcher, where descriptors become owned ones.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::sync::oneshot;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// The byte that a packet consists of besides its descriptor: a packet without any reads like the end.
pub const PACKET: [u8; 1] = [1];

/// Longest wait for room in a hatch: hundreds of packets fit, and the launcher takes them at once.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A pair of sockets through which connections are handed. Neither has a name.
#[derive(Debug)]
pub struct Hatch {
    /// The launcher's: packets come out of it. It does not block.
    pub inside: OwnedFd,
    /// The ranks': see [`dial`].
    pub outside: OwnedFd,
}

/// A new hatch; both ends are close-on-exec.
pub fn hatch() -> io::Result<Hatch> {
    let (inside, outside) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // The flag belongs to the end, whoever inherits it: who dials may wait, within limits.
    nix::fcntl::fcntl(&outside, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
    setsockopt(&outside, sockopt::SendTimeout, &TimeVal::seconds(SEND_TIMEOUT.as_secs() as i64))?;
    Ok(Hatch { inside, outside })
}

/// Connects through a hatch, from its `outside`. Blocks while the hatch is full, for seconds at most.
///
/// The connection is the launcher's once this returns. It may still be closed without a word: a launcher that has no
/// descriptor left cannot take it. Whoever dials tries again, as after any broken connection.
pub fn dial(outside: RawFd) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let descriptors = [theirs.as_raw_fd()];
    let carried = [ControlMessage::ScmRights(&descriptors)];
    loop {
        // A launcher that is gone is an error, not a signal.
        match sendmsg::<()>(outside, &[IoSlice::new(&PACKET)], &carried, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(ours),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A gRPC channel to whoever is at the inside of the hatch. It dials at once, and again whenever its connection is broken
/// and a call is made.
pub async fn channel(outside: RawFd) -> Result<Channel, tonic::transport::Error> {
    channel_by(move || dial(outside)).await
}

/// The same where `dial` connects, on a thread that may block.
pub async fn channel_by(
    dial: impl Fn() -> io::Result<UnixStream> + Clone + Send + 'static,
) -> Result<Channel, tonic::transport::Error> {
    // The name is nobody's: HTTP wants one.
    Endpoint::from_static("http://launcher").connect_with_connector(Connector(dial)).await
}

/// What tonic connects with.
#[derive(Clone)]
struct Connector<F>(F);

impl<F: Fn() -> io::Result<UnixStream> + Clone + Send + 'static> Service<Uri> for Connector<F> {
    type Response = TokioIo<tokio::net::UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move {
            let (done, dialled) = oneshot::channel();
            let dial = move || drop(done.send(dial()));
            thread::Builder::new().name("dial".into()).spawn(dial)?;
            let stream = dialled.await.map_err(io::Error::other)??;
            stream.set_nonblocking(true)?;
            Ok(TokioIo::new(tokio::net::UnixStream::from_std(stream)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{IoSliceMut, Read};

    use nix::sys::socket::recvmsg;

    /// Takes one packet and lets go of what it carries.
    fn take(hatch: &Hatch) -> usize {
        let (mut byte, mut space) = ([0], nix::cmsg_space!(RawFd));
        let mut parts = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(hatch.inside.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let carried = message.cmsgs().unwrap().count();
        assert_eq!(message.bytes, PACKET.len());
        carried
    }

    #[test]
    fn each_call_sends_one_end_of_a_new_pair() {
        let hatch = hatch().unwrap();
        for _ in 0..2 {
            dial(hatch.outside.as_raw_fd()).unwrap();
        }
        assert_eq!((take(&hatch), take(&hatch)), (1, 1));
    }

    #[test]
    fn a_hatch_whose_launcher_is_gone_says_so() {
        let hatch = hatch().unwrap();
        let mut queued = dial(hatch.outside.as_raw_fd()).unwrap();
        drop(hatch.inside);
        // The kernel tells first that a packet was left unread, then that nobody is there.
        let kinds = [(); 2].map(|()| dial(hatch.outside.as_raw_fd()).unwrap_err().kind());
        assert_eq!(kinds, [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe]);
        assert_eq!(queued.read(&mut [0]).unwrap(), 0, "one that was not taken is closed");
    }

    #[test]
    fn a_hatch_has_no_name_and_cannot_be_opened() {
        let hatch = hatch().unwrap();
        let path = format!("/proc/self/fd/{}", hatch.outside.as_raw_fd());
        let error = std::fs::File::options().read(true).write(true).open(path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENXIO as i32));
        let name: nix::sys::socket::UnixAddr = nix::sys::socket::getsockname(hatch.outside.as_raw_fd()).unwrap();
        assert_eq!((name.path(), name.as_abstract()), (None, None));
    }
}
