//! The sockets of this machine that take TCP connections at a port, as the kernel lists them: of every user.
//!
//! Asked over netlink (sock_diag(7)), the kernel looks through its listening sockets alone: some microseconds. Where it does not
//! answer (its module is not there, or a sandbox is in the way), /proc/net says the same after a look through its table of all
//! connections, which is milliseconds long on a large machine.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A socket that takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Names the socket.
    pub inode: u64,
    /// Whose process has made it.
    pub uid: u32,
}

/// The listeners at `port`, on any of this machine's addresses.
pub fn at(port: u16) -> io::Result<Vec<Listener>> {
    asked(port).or_else(|_| listed(port))
}

/// The state of a socket that listens: the kernel's TCP_LISTEN.
const LISTEN: u8 = 10;
/// The type of a question, and of each answer.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of a message's header: length u32, type u16, flags u16, sequence u32, port u32.
const HEADER: usize = 16;
/// Bytes of a question: header, family u8, protocol u8, two u8, states u32, and the socket's id, of which only the port in front
/// is asked for.
const QUESTION: usize = HEADER + 8 + 48;
/// Bytes of an answer without its header: family, state and two more u8, the socket's id (48, the port in front), three u32,
/// uid u32, inode u32.
const ANSWER: usize = 72;
/// The kernel has its answer when it is asked for it; no wait is without an end.
const PATIENCE: i64 = 1;

fn asked(port: u16) -> Result<Vec<Listener>, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let kernel = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&kernel, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    let mut found = vec![];
    for family in [libc::AF_INET, libc::AF_INET6] {
        sendto(kernel.as_raw_fd(), &question(family as u8, port), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; 1 << 15];
        loop {
            let len = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if answers(&buffer[..len], port, &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

fn question(family: u8, port: u16) -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    question[..4].copy_from_slice(&(QUESTION as u32).to_ne_bytes());
    question[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    question[6..8].copy_from_slice(&flags.to_ne_bytes());
    question[HEADER] = family;
    question[HEADER + 1] = libc::IPPROTO_TCP as u8;
    question[HEADER + 4..HEADER + 8].copy_from_slice(&(1u32 << LISTEN).to_ne_bytes());
    question[HEADER + 8..HEADER + 10].copy_from_slice(&port.to_be_bytes());
    question
}

/// Takes the listeners out of what the kernel has sent. True: that was all.
fn answers(mut messages: &[u8], port: u16, found: &mut Vec<Listener>) -> Result<bool, Errno> {
    let u32_at = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    while messages.len() >= HEADER {
        let (len, kind) = (u32_at(messages, 0) as usize, u16::from_ne_bytes([messages[4], messages[5]]));
        if len < HEADER || len > messages.len() {
            return Err(Errno::EBADMSG);
        }
        let body = &messages[HEADER..len];
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR if body.len() >= 4 => return Err(Errno::from_raw(-u32_at(body, 0).cast_signed())),
            _ if kind == SOCK_DIAG_BY_FAMILY && body.len() >= ANSWER => {
                if body[1] == LISTEN && u16::from_be_bytes([body[4], body[5]]) == port {
                    found.push(Listener { inode: u64::from(u32_at(body, 68)), uid: u32_at(body, 64) });
                }
            }
            _ => return Err(Errno::EBADMSG),
        }
        messages = &messages[len.next_multiple_of(4).min(messages.len())..];
    }
    Ok(false)
}

fn listed(port: u16) -> io::Result<Vec<Listener>> {
    let mut all = vec![];
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => all.extend(parse(&text, port)),
            // A kernel without version 6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/net/tcp").exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The listeners at `port` in the text of /proc/net/tcp or tcp6. After a line of titles, each line is a socket:
/// `NUMBER: ADDRESS:PORT REMOTE STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE ...`, address, port and state in hexadecimal.
fn parse(table: &str, port: u16) -> Vec<Listener> {
    const LISTENS: &str = "0A";
    let listener = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().take(10).collect();
        let [_, local, _, state, _, _, _, uid, _, inode] = fields[..] else { return None };
        let at = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let is_it = state == LISTENS && at == port;
        is_it.then_some(Listener { inode: inode.parse().ok()?, uid: uid.parse().ok()? })
    };
    table.lines().skip(1).filter_map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::TcpListener;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000000000000000 20 4 30 10 -1
   2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0
";

    #[test]
    fn lst_1_only_what_listens_at_the_port_is_a_listener() {
        let found = |port| parse(TABLE, port).iter().map(|found| (found.inode, found.uid)).collect::<Vec<_>>();
        assert_eq!(found(8080), [(4711, 1000)], "a connection is none");
        assert_eq!(found(8081), [(4713, 0)]);
        assert_eq!(found(80), []);
        let six = "titles\n 0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A \
                   00000000:00000000 00:00000000 00000000 7 0 99 1 0";
        assert_eq!(parse(six, 8080), [Listener { inode: 99, uid: 7 }]);
        for torn in ["", "titles", "titles\n 0: 0100007F:1F90 00000000:0000 0A", "titles\n a b c d e f g h i j"] {
            assert_eq!(parse(torn, 8080), [], "{torn:?}");
        }
    }

    #[test]
    fn asked_and_listed_are_the_same() {
        let listeners = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"].map(|address| TcpListener::bind(address).ok());
        let ports = listeners.iter().flatten().map(|listener| listener.local_addr().unwrap().port());
        for port in ports.chain([1]) {
            let mut asked = asked(port).unwrap();
            let mut listed = listed(port).unwrap();
            asked.sort();
            listed.sort();
            assert_eq!(asked, listed, "{port}");
            assert_eq!(asked.len(), usize::from(port != 1), "{port}");
        }
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        let mut found = vec![];
        assert_eq!(answers(&[], 1, &mut found), Ok(false));
        assert_eq!(answers(&[9; 40], 1, &mut found), Err(Errno::EBADMSG));
        let mut refused = [0; HEADER + 4];
        refused[0] = 20;
        refused[4] = libc::NLMSG_ERROR as u8;
        refused[HEADER..].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(answers(&refused, 1, &mut found), Err(Errno::ENOENT));
    }
}
