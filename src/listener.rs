//! A bound address that accepts peers.
//!
//! A listener owns its socket until it is dropped. It never fails once it is bound: what goes wrong with
//! one peer ends that peer, and what goes wrong with the machine (no descriptors left) is counted, told
//! and tried again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::conn::{ListenAddr, SocketKind};
use crate::telemetry::ListenerMetrics;

mod accept_limiter;
pub(crate) mod access;
mod bind;
pub(crate) mod credentials;
pub(crate) mod dtls;
mod establish;
pub(crate) mod flow;
mod flow_gate;
mod handshake;
mod openssl;
pub(crate) mod per_address;
pub(crate) mod proxy;
pub(crate) mod psk;
mod socket;
mod socket_activation;
mod socket_options;
mod tcp;
pub(crate) mod tls;
mod udp;

pub(crate) use accept_limiter::AcceptLimiter;
pub(crate) use bind::{Bind, MalformedBind};
pub(crate) use establish::{Accepted, Admission, Pending};
pub(crate) use flow_gate::FlowGate;
pub(crate) use handshake::HandshakeError;
pub(crate) use socket::{Received, Socket};
pub(crate) use socket_activation::ActivatedSockets;
pub(crate) use socket_options::{Keepalive, SocketOptions};
pub(crate) use udp::{Datagrams, Flow};

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
    /// Peers that may be about their handshake at a time, `1..`; more wait in the backlog.
    pub handshakes_max: usize,
    /// What a peer has to pass.
    pub admission: Admission,
    /// What the operating system is told of its sockets.
    pub socket_options: SocketOptions,
    /// A socket that another program has bound for it.
    pub given: Option<Arc<OwnedFd>>,
    /// For transports of datagrams.
    pub datagrams: Datagrams,
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
    /// TCP, plain or below TLS.
    Tcp(tcp::TcpListener),
    /// UDP, plain or below DTLS.
    Udp(udp::UdpListener),
}

/// Sockets whose doors ask for cookies.
fn bind_dtls(
    options: &Options,
    predecessor: Option<&udp::Settings>,
    metrics: ListenerMetrics,
) -> io::Result<udp::UdpListener> {
    let secret = dtls::Secret::new()?;
    let now = Instant::now();
    let gate = move || FlowGate::Dtls(Box::new(dtls::CookieVerifier::new(&secret, now)));
    udp::UdpListener::bind(options, predecessor, metrics, gate)
}

impl Listener {
    /// Binds the address; from here on peers may connect. A listener that has the address already and is about to end
    /// hands its socket over, as far as its transport allows.
    ///
    /// # Errors
    ///
    /// [`BindError`], when the operating system refuses the address.
    pub fn bind(options: &Options, predecessor: Option<&Handle>, metrics: ListenerMetrics) -> Result<Self, BindError> {
        let (stream, datagrams) = match predecessor.map(|handle| &handle.of) {
            Some(HandleOf::Tcp(settings)) => (Some(settings), None),
            Some(HandleOf::Udp(settings)) => (None, Some(settings.as_ref())),
            None => (None, None),
        };
        let bound = match options.bind.transport {
            SocketKind::Tcp | SocketKind::Tls if let Some(settings) = stream => {
                settings.hand_over(options, metrics).map(Self::Tcp)
            }
            SocketKind::Tcp | SocketKind::Tls => tcp::TcpListener::bind(options, metrics).map(Self::Tcp),
            SocketKind::Udp => udp::UdpListener::bind(options, datagrams, metrics, || FlowGate::Open).map(Self::Udp),
            SocketKind::Dtls => bind_dtls(options, datagrams, metrics).map(Self::Udp),
        };
        bound.map_err(|source| BindError::new(options, source))
    }

    /// The bound address, with the port that the system chose.
    pub fn local_addr(&self) -> ListenAddr {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(listener) => listener.local_addr(),
        }
    }

    /// What stays with whoever may change it while it accepts.
    pub fn handle(&self) -> Handle {
        match self {
            Self::Tcp(listener) => Handle { bind: listener.bind_asked(), of: HandleOf::Tcp(listener.settings()) },
            Self::Udp(listener) => Handle { bind: listener.bind_asked(), of: HandleOf::Udp(listener.settings()) },
        }
    }

    /// What peers have to pass now.
    pub fn admission(&self) -> Arc<Admission> {
        match self {
            Self::Tcp(listener) => listener.admission(),
            Self::Udp(listener) => listener.admission(),
        }
    }

    /// Whether peers wait somewhere until they are accepted. Those that send datagrams do not.
    pub fn has_backlog(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            Self::Udp(_) => false,
        }
    }

    /// Has the peers that come from now on, where it takes the sockets of another listener over. Until it is called, those
    /// are the other's: whoever binds it may still do without it.
    pub fn begin(&mut self) {
        match self {
            Self::Tcp(_) => {}
            Self::Udp(listener) => listener.begin(),
        }
    }

    /// The next peer. Can be dropped and called again without losing one.
    pub async fn accept(&mut self) -> Pending {
        match self {
            Self::Tcp(listener) => listener.accept().await,
            Self::Udp(listener) => listener.accept().await,
        }
    }
}

/// A listener that accepts, for whoever may change it meanwhile.
#[derive(Clone, Debug)]
pub struct Handle {
    bind: Bind,
    of: HandleOf,
}

#[derive(Clone, Debug)]
enum HandleOf {
    Tcp(Arc<tcp::Settings>),
    Udp(Arc<udp::Settings>),
}

impl Handle {
    /// The address as it was asked for, and the transport.
    pub fn bind(&self) -> Bind {
        self.bind
    }

    /// Whether its sockets stay bound after it accepts no more, for the peers that it has.
    pub fn outlives_accepting(&self) -> bool {
        match &self.of {
            HandleOf::Tcp(_) => false,
            HandleOf::Udp(_) => true,
        }
    }

    /// Follows other options with the same address, for the peers that come from now on.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn follow(&self, options: &Options) -> io::Result<()> {
        match &self.of {
            HandleOf::Tcp(settings) => settings.follow(options),
            HandleOf::Udp(settings) => settings.follow(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::error::report;

    fn options(transport: SocketKind, address: SocketAddr) -> Options {
        Options {
            name: "modbus".into(),
            bind: Bind { transport, address },
            backlog: 1,
            handshakes_max: 1,
            admission: Admission::default(),
            socket_options: SocketOptions::default(),
            given: None,
            datagrams: Datagrams { sockets: 1, flows_max: 1, queue: flow::Bounds { datagrams_max: 1, bytes_max: 1 } },
        }
    }

    /// What only another socket could follow is told, each time until it is taken back, and by the listener that takes the socket
    /// over too.
    #[tokio::test]
    async fn what_a_socket_cannot_follow_is_told() {
        for transport in [SocketKind::Tcp, SocketKind::Udp] {
            let plain = options(transport, SocketAddr::from(([127, 0, 0, 1], 0)));
            let other = Options {
                socket_options: SocketOptions { reuse_port: true, ..SocketOptions::default() },
                ..plain.clone()
            };
            let metrics = || crate::telemetry::Telemetry::new().listener(&plain.name);
            let listener = Listener::bind(&plain, None, metrics()).unwrap();
            let told = |handle: &Handle, options| handle.follow(options).map_err(|error| error.to_string());
            let refused = Err("reuse_port takes a restart, or another address".to_owned());
            for _ in 0..2 {
                assert_eq!(told(&listener.handle(), &other), refused, "{transport}");
            }
            assert_eq!(told(&listener.handle(), &plain), Ok(()), "{transport}");
            let successor = Listener::bind(&other, Some(&listener.handle()), metrics()).unwrap();
            assert_eq!(successor.local_addr(), listener.local_addr());
            assert_eq!(told(&successor.handle(), &other), refused, "{transport}");
        }
    }

    /// What the operator reads is one sentence, and a low port says what it needs.
    #[test]
    fn a_refused_address_is_one_sentence() {
        let told = |port: u16, number: i32| {
            let options = options(SocketKind::Tcp, SocketAddr::from(([0, 0, 0, 0], port)));
            report(&BindError::new(&options, io::Error::from_raw_os_error(number)))
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
}
