//! Listeners: bound addresses that accept connections over TCP, TLS, UDP and DTLS.
//!
//! A listener owns its socket until it is dropped. It never fails once it is bound: an error of one peer ends that
//! peer, and a shortage of resources (no descriptors left) is counted, logged and retried.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::byte_budget::ByteBudget;
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
mod unverified_places;

pub(crate) use accept_limiter::AcceptLimiter;
pub(crate) use bind::Bind;
pub(crate) use establish::{Accepted, Admission, Pending};
pub(crate) use flow_gate::FlowGate;
pub(crate) use handshake::HandshakeError;
pub(crate) use socket::{Received, Socket};
pub(crate) use socket_activation::ActivatedSockets;
pub(crate) use socket_options::{Keepalive, SocketOptions};
pub(crate) use udp::{Datagrams, Flow};
pub(crate) use unverified_places::Place;

/// The options of a listener.
#[derive(Clone, Debug)]
pub struct Options {
    /// In the configuration, in logs and metrics.
    pub name: Arc<str>,
    /// Where it accepts.
    pub bind: Bind,
    /// Length of the kernel's accept queue, `1..`; the kernel's own bound (`net.core.somaxconn`) applies besides.
    pub backlog: u32,
    /// Unverified peers at a time, `1..`: handshakes in progress (TLS, DTLS), or flows that may be spoofed (UDP).
    pub unverified_max: usize,
    /// The checks before a peer gets a connection.
    pub admission: Admission,
    /// Options of its sockets.
    pub socket_options: SocketOptions,
    /// A socket that another program has bound for it (socket activation).
    pub given: Option<Arc<OwnedFd>>,
    /// For datagram transports.
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
    Tcp(Box<tcp::TcpListener>),
    /// UDP, plain or below DTLS.
    Udp(udp::UdpListener),
}

/// Sockets with a cookie exchange.
fn bind_dtls(
    options: &Options,
    predecessor: Option<&udp::Settings>,
    metrics: ListenerMetrics,
    queued: &Arc<ByteBudget>,
) -> io::Result<udp::UdpListener> {
    let secret = dtls::Secret::new()?;
    let now = Instant::now();
    let gate = move || FlowGate::Dtls(Box::new(dtls::CookieVerifier::new(&secret, now)));
    udp::UdpListener::bind(options, predecessor, metrics, queued, gate)
}

impl Listener {
    /// Binds the address; from here on peers can connect. Datagrams that wait take from the budget `queued`. A listener with the same address that is about to end hands
    /// its socket over, if its transport allows it.
    ///
    /// # Errors
    ///
    /// [`BindError`]: the operating system refuses the address.
    pub fn bind(
        options: &Options,
        predecessor: Option<&Handle>,
        metrics: ListenerMetrics,
        queued: &Arc<ByteBudget>,
    ) -> Result<Self, BindError> {
        let (stream, datagrams) = match predecessor.map(|handle| &handle.of) {
            Some(HandleOf::Tcp(settings)) => (Some(settings), None),
            Some(HandleOf::Udp(settings)) => (None, Some(settings.as_ref())),
            None => (None, None),
        };
        let bound = match options.bind.transport {
            SocketKind::Tcp | SocketKind::Tls if let Some(settings) = stream => {
                settings.hand_over(options, metrics).map(Box::new).map(Self::Tcp)
            }
            SocketKind::Tcp | SocketKind::Tls => tcp::TcpListener::bind(options, metrics).map(Box::new).map(Self::Tcp),
            SocketKind::Udp => {
                udp::UdpListener::bind(options, datagrams, metrics, queued, || FlowGate::Open).map(Self::Udp)
            }
            SocketKind::Dtls => bind_dtls(options, datagrams, metrics, queued).map(Self::Udp),
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

    /// The handle that changes it while it accepts.
    pub fn handle(&self) -> Handle {
        match self {
            Self::Tcp(listener) => Handle { bind: listener.bind_asked(), of: HandleOf::Tcp(listener.settings()) },
            Self::Udp(listener) => Handle { bind: listener.bind_asked(), of: HandleOf::Udp(listener.settings()) },
        }
    }

    /// The current admission checks.
    pub fn admission(&self) -> Arc<Admission> {
        match self {
            Self::Tcp(listener) => listener.admission(),
            Self::Udp(listener) => listener.admission(),
        }
    }

    /// Whether unaccepted peers wait in a backlog. Datagram sockets have none.
    pub fn has_backlog(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            Self::Udp(_) => false,
        }
    }

    /// Starts to receive new peers, if it takes over the sockets of another listener. Until then they are the other's,
    /// so the caller may still discard this one.
    pub fn begin(&mut self) {
        match self {
            Self::Tcp(_) => {}
            Self::Udp(listener) => listener.begin(),
        }
    }

    /// The next peer. Cancel safe.
    pub async fn accept(&mut self) -> Pending {
        match self {
            Self::Tcp(listener) => listener.accept().await,
            Self::Udp(listener) => listener.accept().await,
        }
    }
}

/// Handle of an accepting listener, to change its options.
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
    /// The configured address and transport.
    pub fn bind(&self) -> Bind {
        self.bind
    }

    /// Whether its sockets stay bound for its open connections after it stops accepting.
    pub fn outlives_accepting(&self) -> bool {
        match &self.of {
            HandleOf::Tcp(_) => false,
            HandleOf::Udp(_) => true,
        }
    }

    /// Applies other options with the same address to new peers.
    ///
    /// # Errors
    ///
    /// Those of the operating system.
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
            unverified_max: 1,
            admission: Admission::default(),
            socket_options: SocketOptions::default(),
            given: None,
            datagrams: Datagrams { sockets: 1, flows_max: 1, queue: flow::Bounds { datagrams_max: 1, bytes_max: 1 } },
        }
    }

    /// An option that needs another socket is reported at each reload until it is reverted, also by the listener that
    /// takes over the socket.
    #[tokio::test]
    async fn options_that_need_another_socket_are_reported() {
        for transport in [SocketKind::Tcp, SocketKind::Udp] {
            let plain = options(transport, SocketAddr::from(([127, 0, 0, 1], 0)));
            let other = Options {
                socket_options: SocketOptions { reuse_port: true, ..SocketOptions::default() },
                ..plain.clone()
            };
            let metrics = || crate::telemetry::Telemetry::new().listener(&plain.name);
            let queued = Arc::new(ByteBudget::new(usize::MAX));
            let listener = Listener::bind(&plain, None, metrics(), &queued).unwrap();
            let message = |handle: &Handle, options| handle.follow(options).map_err(|error| error.to_string());
            let refused = Err("reuse_port needs a restart, or another address".to_owned());
            for _ in 0..2 {
                assert_eq!(message(&listener.handle(), &other), refused, "{transport}");
            }
            assert_eq!(message(&listener.handle(), &plain), Ok(()), "{transport}");
            let successor = Listener::bind(&other, Some(&listener.handle()), metrics(), &queued).unwrap();
            assert_eq!(successor.local_addr(), listener.local_addr());
            assert_eq!(message(&successor.handle(), &other), refused, "{transport}");
        }
    }

    /// The error is one sentence, with a hint for ports below 1024.
    #[test]
    fn a_refused_address_is_one_sentence() {
        let message = |port: u16, number: i32| {
            let options = options(SocketKind::Tcp, SocketAddr::from(([0, 0, 0, 0], port)));
            report(&BindError::new(&options, io::Error::from_raw_os_error(number)))
        };
        let denied = rustix::io::Errno::ACCESS.raw_os_error();
        assert_eq!(
            message(502, denied),
            "cannot bind listener \"modbus\" on tcp://0.0.0.0:502: permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)"
        );
        assert_eq!(message(7993, denied), "cannot bind listener \"modbus\" on tcp://0.0.0.0:7993: permission denied");
        assert_eq!(
            message(502, rustix::io::Errno::ADDRINUSE.raw_os_error()),
            "cannot bind listener \"modbus\" on tcp://0.0.0.0:502: address already in use"
        );
    }
}
