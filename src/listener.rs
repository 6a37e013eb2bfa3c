//! A bound address that accepts peers.
//!
//! A listener owns its socket until it is dropped. It never fails once it is bound: what goes wrong with
//! one peer ends that peer, and what goes wrong with the machine (no descriptors left) is counted, told
//! and tried again.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::conn::{ConnInfo, ListenAddr};
use crate::telemetry::ListenerMetrics;

mod tcp;

/// A transport and an address, as in `tcp://0.0.0.0:7993`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The transport.
    pub transport: Transport,
    /// Where; port 0 lets the system choose.
    pub address: SocketAddr,
}

/// The transports a listener can speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
        })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport, self.address)
    }
}

/// The text is no transport and address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not of the form \"tcp://0.0.0.0:7993\" or \"tcp://[::]:7993\"")]
pub struct MalformedBind;

impl FromStr for Bind {
    type Err = MalformedBind;

    fn from_str(text: &str) -> Result<Self, MalformedBind> {
        let address = text.strip_prefix("tcp://").ok_or(MalformedBind)?;
        let address = address.parse().map_err(|_| MalformedBind)?;
        Ok(Self { transport: Transport::Tcp, address })
    }
}

/// What a listener is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name in the configuration, in logs and metrics.
    pub name: Arc<str>,
    /// Where it accepts.
    pub bind: Bind,
    /// Peers that the kernel keeps for us until they are accepted, `1..`; the kernel's own bound
    /// (`net.core.somaxconn`) applies besides.
    pub backlog: u32,
}

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind listener {listener:?} on {bind}")]
pub struct BindError {
    listener: Arc<str>,
    bind: Bind,
    #[source]
    source: io::Error,
}

impl BindError {
    fn new(options: &Options, source: io::Error) -> Self {
        let low = options.bind.address.port() < 1024 && source.kind() == io::ErrorKind::PermissionDenied;
        let hint = "permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)";
        let source = if low { io::Error::new(source.kind(), hint) } else { source };
        Self { listener: Arc::clone(&options.name), bind: options.bind, source }
    }
}

/// A listener of any transport.
#[derive(Debug)]
pub enum Listener {
    /// Plain TCP.
    Tcp(tcp::TcpListener),
}

/// A peer that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// What is known of it.
    pub info: ConnInfo,
    /// Its socket.
    pub socket: Socket,
}

/// The socket of an accepted peer.
#[derive(Debug)]
pub enum Socket {
    /// Plain TCP.
    Tcp(tokio::net::TcpStream),
}

impl Listener {
    /// Binds the address; from here on peers may connect.
    ///
    /// # Errors
    ///
    /// [`BindError`], when the operating system refuses the address.
    pub fn bind(options: &Options, metrics: ListenerMetrics) -> Result<Self, BindError> {
        let bound = match options.bind.transport {
            Transport::Tcp => tcp::TcpListener::bind(options, metrics).map(Self::Tcp),
        };
        bound.map_err(|source| BindError::new(options, source))
    }

    /// The bound address, with the port that the system chose.
    pub fn local_addr(&self) -> ListenAddr {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
        }
    }

    /// The next peer. Can be dropped and called again without losing one.
    pub async fn accept(&mut self) -> Accepted {
        match self {
            Self::Tcp(listener) => listener.accept().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::chain;

    /// What the operator reads is one sentence, and a low port says what it needs.
    #[test]
    fn a_refused_address_is_one_sentence() {
        let told = |port: u16, number: i32| {
            let bind = Bind { transport: Transport::Tcp, address: SocketAddr::from(([0, 0, 0, 0], port)) };
            let options = Options { name: "modbus".into(), bind, backlog: 1 };
            chain(&BindError::new(&options, io::Error::from_raw_os_error(number)))
        };
        let denied = rustix::io::Errno::ACCESS.raw_os_error();
        assert_eq!(
            told(502, denied),
            "cannot bind listener \"modbus\" on tcp://0.0.0.0:502: permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)"
        );
        assert_eq!(told(7993, denied), "cannot bind listener \"modbus\" on tcp://0.0.0.0:7993: permission denied");
        assert_eq!(
            told(502, rustix::io::Errno::ADDRINUSE.raw_os_error()),
            "cannot bind listener \"modbus\" on tcp://0.0.0.0:502: address already in use"
        );
    }

    /// The written form is read back, and what is not of the form is refused.
    #[test]
    fn bind_has_a_written_form() {
        for text in ["tcp://0.0.0.0:7993", "tcp://[::1]:0"] {
            assert_eq!(text.parse::<Bind>().unwrap().to_string(), text);
        }
        for text in ["", "tcp://", "0.0.0.0:7993", "tcp://localhost:1", "udp:/1.2.3.4:5", "tcp://1.2.3.4"] {
            assert_eq!(text.parse::<Bind>(), Err(MalformedBind), "{text:?}");
        }
    }
}
