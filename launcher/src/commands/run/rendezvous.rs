//! torchrun's rendezvous flags: their grammars, and the address at which rank 0 listens.

use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use tokio::net::TcpSocket;

/// `--rdzv-backend`: how machines find each other, in torchrun. Here it only says which flags name the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The address is that of `--rdzv-endpoint` or `--master-addr` and `--master-port`.
    Static,
    /// The address is `--local-addr`; the port is a free one.
    C10d,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "static" => Ok(Backend::Static),
            "c10d" => Ok(Backend::C10d),
            _ => Err("expected static or c10d".to_owned()),
        }
    }
}

/// `--rdzv-endpoint`: `HOST`, `HOST:PORT` or `[IPV6]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Without brackets.
    pub host: String,
    /// `None` if it is not said.
    pub port: Option<u16>,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address without brackets has no port.
            Some((host, _)) if host.contains(':') && !host.starts_with('[') => (text, None),
            Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        match (bare(host), port.map(str::parse)) {
            (host, None) if !host.is_empty() => Ok(Self { host, port: None }),
            (host, Some(Ok(port))) if !host.is_empty() => Ok(Self { host, port: Some(port) }),
            _ => Err("expected HOST or HOST:PORT, an IPv6 address in brackets".to_owned()),
        }
    }
}

/// `--rdzv-conf`: `key=value,...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RendezvousConf {
    /// `join_timeout`, or `timeout` as the static backend calls it: how long machines may take to come. Other keys have no
    /// meaning here.
    pub join_timeout: Option<Duration>,
}

impl FromStr for RendezvousConf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut join_timeout = None;
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').ok_or("expected KEY=VALUE,...")?;
            match key.trim() {
                "" => return Err("expected KEY=VALUE,...".to_owned()),
                "join_timeout" | "timeout" => {
                    let seconds = value.trim().parse().ok().filter(|&seconds: &f64| seconds > 0.0);
                    let timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                    join_timeout = Some(timeout.ok_or_else(|| format!("{key} = {value}: expected seconds, above 0"))?);
                }
                _ => {}
            }
        }
        Ok(Self { join_timeout })
    }
}

/// Rank 0's address and port for its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    /// An address or a name.
    pub addr: String,
    /// `None`: a free one, another in every attempt.
    pub port: Option<u16>,
}

/// A port for rank 0, held for it while this lives.
#[derive(Debug)]
pub struct HeldPort {
    number: u16,
    socket: Option<TcpSocket>,
}

impl HeldPort {
    /// The port that `master` names, or a free one.
    ///
    /// A free one is bound but not listened on, so the kernel gives it to nobody else, while a program that says
    /// SO_REUSEADDR, as every TCP store does, may bind it too. So may a stranger's, which a [`PortWatch`] finds.
    ///
    /// [`PortWatch`]: super::port_watch::PortWatch
    pub fn take(master: &Master) -> io::Result<Self> {
        if let Some(number) = master.port {
            return Ok(Self { number, socket: None });
        }
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        // On all addresses, as rank 0 will.
        socket.bind((Ipv4Addr::UNSPECIFIED, 0).into())?;
        Ok(Self { number: socket.local_addr()?.port(), socket: Some(socket) })
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Whether it was found free and is held; else the user has named it.
    pub fn is_held(&self) -> bool {
        self.socket.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_perhaps_a_port() {
        let check = |text: &str, host: &str, port| {
            assert_eq!(text.parse(), Ok(Endpoint { host: host.into(), port }), "{text}");
        };
        check("localhost", "localhost", None);
        check("localhost:0", "localhost", Some(0));
        check("10.0.0.1:29400", "10.0.0.1", Some(29400));
        check("[::1]:29400", "::1", Some(29400));
        check("[::1]", "::1", None);
        check("::1", "::1", None);
        for wrong in ["", ":29400", "host:", "host:x", "host:99999"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_configuration_is_pairs() {
        let check = |text: &str, seconds: Option<u64>| {
            let join_timeout = seconds.map(Duration::from_secs);
            assert_eq!(text.parse(), Ok(RendezvousConf { join_timeout }), "{text}");
        };
        check("is_host=1", None);
        check("timeout=900,is_host=1", Some(900));
        check("a=b,join_timeout=5", Some(5));
        for wrong in ["", "timeout", "=1", "a=1,", "timeout=", "timeout=0", "timeout=-1", "join_timeout=soon"] {
            assert!(wrong.parse::<RendezvousConf>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_held_port_is_free_for_rank_0_only() {
        let free = Master { addr: "127.0.0.1".into(), port: None };
        let held: Vec<_> = (0..50).map(|_| HeldPort::take(&free).unwrap()).collect();
        let mut numbers: Vec<_> = held.iter().map(HeldPort::number).collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), held.len(), "each has its own");
        // The standard library says SO_REUSEADDR.
        std::net::TcpListener::bind(("127.0.0.1", numbers[0])).unwrap();
        assert_eq!(HeldPort::take(&Master { port: Some(4000), ..free }).unwrap().number(), 4000);
    }
}
