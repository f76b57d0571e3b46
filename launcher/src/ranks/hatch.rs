//! The launcher's end of a [hatch](proto::dial): connections as they are dialled.

#![allow(unsafe_code, reason = "a descriptor that a packet carries belongs to nobody before it is taken")]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockType, getsockopt, recvmsg, sockopt};
use proto::dial;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio_stream::Stream;

/// Connections that are dialled through the descriptor beside them, which is to be inherited. They end when nobody has it any
/// more. Needs a tokio runtime.
pub fn connections() -> io::Result<(Connections, OwnedFd)> {
    let dial::Hatch { inside, outside } = dial::hatch()?;
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, and the `AsyncFd` drops it after its own
    // registration.
    let inside = unsafe { AsyncFd::register(inside)? };
    Ok((Connections { inside }, outside))
}

/// See [`connections`].
#[derive(Debug)]
pub struct Connections {
    inside: AsyncFd<OwnedFd>,
}

impl Stream for Connections {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let mut ready = ready!(self.inside.poll_read_ready(context))?;
            match ready.try_io(|inside| take(inside.get_ref())) {
                Ok(Ok(Packet::Connection(stream))) => return Poll::Ready(Some(Ok(stream))),
                // Whoever has dialled sees it closed, and dials again.
                Ok(Ok(Packet::Lost)) => {}
                Ok(Ok(Packet::End)) => return Poll::Ready(None),
                Ok(Err(error)) => return Poll::Ready(Some(Err(error))),
                Err(_would_block) => {}
            }
        }
    }
}

/// What came out of a hatch.
enum Packet {
    Connection(UnixStream),
    /// It carried nothing that is a connection, or this process has no descriptor left for it.
    Lost,
    /// Nobody can dial any more.
    End,
}

fn take(inside: &OwnedFd) -> io::Result<Packet> {
    let (mut byte, mut space) = (dial::PACKET, nix::cmsg_space!(RawFd));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = loop {
        match recvmsg::<()>(inside.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    // There is room for one descriptor: more than that, the kernel closes itself.
    let carried = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows its number.
    let carried = carried.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(match carried {
        None if message.bytes == 0 => Packet::End,
        None => Packet::Lost,
        Some(descriptor) => connection(descriptor).map_or(Packet::Lost, Packet::Connection),
    })
}

fn connection(descriptor: OwnedFd) -> io::Result<UnixStream> {
    if getsockopt(&descriptor, sockopt::SockType)? != SockType::Stream {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let stream = StdUnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    use nix::sys::socket::{ControlMessage, sendmsg};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn what_is_dialled_is_taken_in_turn_until_nobody_can_dial() {
        let (mut connections, outside) = connections().unwrap();
        for word in [b"a", b"b"] {
            let mut rank = dial::dial(outside.as_raw_fd()).unwrap();
            std::io::Write::write_all(&mut rank, word).unwrap();
            let mut taken = connections.next().await.unwrap().unwrap();
            let mut said = [0];
            taken.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, word);
            taken.write_all(b"!").await.unwrap();
            std::io::Read::read_exact(&mut rank, &mut said).unwrap();
        }
        drop(outside);
        assert!(connections.next().await.is_none());
    }

    #[tokio::test]
    async fn what_carries_no_connection_is_passed_over() {
        let (mut connections, outside) = connections().unwrap();
        let send = |bytes: &[u8], descriptors: &[RawFd]| {
            let carried = [ControlMessage::ScmRights(descriptors)];
            let carried = if descriptors.is_empty() { &carried[1..] } else { &carried };
            sendmsg::<()>(outside.as_raw_fd(), &[IoSlice::new(bytes)], carried, MsgFlags::empty(), None).unwrap();
        };
        let (mut read, write) = io::pipe().unwrap();
        send(b"nonsense", &[]);
        send(&[1], &[write.as_raw_fd()]);
        send(&[], &[write.as_raw_fd()]);
        drop(write);
        let rank = dial::dial(outside.as_raw_fd()).unwrap();
        let taken = connections.next().await.unwrap().unwrap();
        assert_eq!(std::io::Read::read(&mut read, &mut [0]).unwrap(), 0, "nothing is left of what was passed over");
        drop((rank, taken));
    }
}
