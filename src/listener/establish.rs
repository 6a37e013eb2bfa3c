//! From a socket that was accepted to a peer that may have a connection.
//!
//! All of it happens in the peer's own task, with its permit held: a peer that is slow, or never finishes, delays
//! only itself, and gives its permit back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::Flow;
use super::access::{Access, Effect};
use super::per_address::{Entered, Limits, Refusal, SharedAddressLimits};
use super::proxy::{self, Carried};
use super::{HandshakeError, Socket, dtls, tls};
use crate::conn::limit::Permit;
use crate::conn::{ConnInfo, ListenAddr, PeerAddr, SocketKind};
use crate::rate::Rate;
use crate::telemetry::ListenerMetrics;

/// What a peer has to pass before it has a connection. A reload replaces it as a whole, for the peers that come then.
#[derive(Clone, Debug)]
pub struct Admission {
    /// How long everything before the connection may take: the handshake above all.
    pub handshake_timeout: Duration,
    /// Which addresses may connect.
    pub access: Access,
    /// How fast peers are accepted; without it, as fast as they come.
    pub connection_rate: Option<Rate>,
    /// What each address is held to.
    pub addresses: Limits,
    /// Whether a connection begins with a PROXY header, and whose is believed.
    pub proxy: Option<proxy::Options>,
    /// What makes TLS of its stream, on a listener that speaks it.
    pub tls: Option<tls::Acceptor>,
    /// What makes DTLS of its datagrams, on a listener that speaks it.
    pub dtls: Option<dtls::Context>,
}

impl Default for Admission {
    /// Everybody, at once.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            access: Access::default(),
            connection_rate: None,
            addresses: Limits::default(),
            proxy: None,
            tls: None,
            dtls: None,
        }
    }
}

impl Admission {
    /// The one that goes on when this one is to take over from `last`.
    pub(super) fn after(&self, last: &Self) -> Self {
        Self { tls: self.tls.clone().map(|tls| tls.after(last.tls.as_ref())), ..self.clone() }
    }
}

/// A peer that was accepted and has passed nothing yet.
#[derive(Debug)]
pub struct Pending {
    pub(super) listener: Arc<str>,
    pub(super) kind: SocketKind,
    pub(super) peer: PeerAddr,
    pub(super) local: ListenAddr,
    pub(super) socket: RawSocket,
    pub(super) admission: Arc<Admission>,
    pub(super) sources: Arc<SharedAddressLimits>,
    pub(super) metrics: ListenerMetrics,
    /// The right to be one of those that have not passed; given back once it has.
    pub(super) _turn: Option<Permit>,
}

/// A socket as it was accepted.
#[derive(Debug)]
pub(super) enum RawSocket {
    Tcp(TcpStream),
    Udp(Flow),
}

/// A peer that has passed everything.
#[derive(Debug)]
pub struct Accepted {
    /// What is known of it.
    pub info: ConnInfo,
    /// Its socket.
    pub socket: Socket,
    /// That it counts for its address; to be dropped when it has ended.
    pub entered: Option<Entered>,
}

/// Why a peer gets no connection.
#[derive(Debug, thiserror::Error)]
pub enum RejectReason {
    /// Its address may not connect.
    #[error("its address may not connect")]
    Denied,
    /// Its address has too many connections, or makes them too fast.
    #[error(transparent)]
    Address(Refusal),
    /// PROXY headers are not taken from its address.
    #[error("PROXY headers of its address are not trusted")]
    Untrusted,
    /// It has sent no PROXY header, or a wrong one.
    #[error(transparent)]
    Proxy(proxy::ReadError),
    /// Its PROXY header has not come in time.
    #[error("expected a PROXY header, found none within {} ms", .0.as_millis())]
    ProxyTimeout(Duration),
    /// It has not passed in time.
    #[error("did not finish the handshake within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The handshake has failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl RejectReason {
    /// The reason's name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Denied => "access",
            Self::Address(Refusal::Connections { .. }) => "address_connections",
            Self::Address(Refusal::Rate { .. }) => "address_rate",
            Self::Untrusted => "proxy_untrusted",
            Self::Proxy(_) => "proxy_malformed",
            Self::ProxyTimeout(_) => "proxy_timed_out",
            Self::Timeout(_) => "handshake_timed_out",
            Self::Handshake(error) => error.name(),
        }
    }
}

impl Admission {
    /// Whether a peer with this address may connect now; it counts for its address as long as what is given back lives.
    ///
    /// # Errors
    ///
    /// [`RejectReason::Denied`] or [`RejectReason::Address`].
    pub fn admit(
        &self,
        sources: &Arc<SharedAddressLimits>,
        now: Instant,
        peer: PeerAddr,
    ) -> Result<Option<Entered>, RejectReason> {
        match self.access.decide(peer.host()) {
            Effect::Allow => sources.enter(&self.addresses, now, peer.host()).map_err(RejectReason::Address),
            Effect::Deny => Err(RejectReason::Denied),
        }
    }
}

/// The addresses in the PROXY header of a connection from this peer; `None` when the socket's own stay.
async fn carried(
    proxy: &proxy::Options,
    peer: PeerAddr,
    socket: &mut RawSocket,
) -> Result<Option<Carried>, RejectReason> {
    if !proxy.trusts(peer.host()) {
        return Err(RejectReason::Untrusted);
    }
    match socket {
        RawSocket::Tcp(stream) => match tokio::time::timeout(proxy.timeout, proxy::read(stream)).await {
            Ok(header) => header.map_err(RejectReason::Proxy),
            Err(_) => Err(RejectReason::ProxyTimeout(proxy.timeout)),
        },
        // The configuration does not ask for one there.
        RawSocket::Udp(_) => Ok(None),
    }
}

impl Pending {
    /// Lets the peer pass, or tells the log and the metrics why not.
    pub async fn establish(self) -> Option<Accepted> {
        let (listener, mut peer, metrics) = (Arc::clone(&self.listener), self.peer, self.metrics.clone());
        let timeout = self.admission.handshake_timeout;
        let passed = tokio::time::timeout(timeout, self.establish_inner(&mut peer)).await;
        match passed.unwrap_or(Err(RejectReason::Timeout(timeout))) {
            Ok(accepted) => Some(accepted),
            Err(why) => {
                metrics.rejected(why.name());
                if let RejectReason::Handshake(HandshakeError::Ours(_)) = why {
                    tracing::error!(%listener, %peer, reason = why.name(), "turned away: {why}");
                } else {
                    tracing::debug!(%listener, %peer, reason = why.name(), "turned away: {why}");
                }
                None
            }
        }
    }

    /// Everything in its order. `peer` is left as the address of whom a PROXY header names, once there is one.
    async fn establish_inner(self, peer: &mut PeerAddr) -> Result<Accepted, RejectReason> {
        let Self { kind, mut local, mut socket, admission, sources, .. } = self;
        if let Some(proxy) = &admission.proxy
            && let Some(carried) = carried(proxy, *peer, &mut socket).await?
        {
            (*peer, local) = (PeerAddr(carried.peer), ListenAddr(carried.local));
        }
        let entered = admission.admit(&sources, Instant::now(), *peer)?;
        let peer = *peer;
        let (socket, certificate) = match socket {
            RawSocket::Tcp(stream) if kind.is_secure() => {
                let Some(tls) = &admission.tls else {
                    return Err(HandshakeError::Ours("the listener has no certificate".to_owned()).into());
                };
                let (stream, certificate) = tls.accept(stream).await?;
                (Socket::Tls(stream), certificate)
            }
            RawSocket::Tcp(stream) => (Socket::Tcp(stream), None),
            RawSocket::Udp(flow) if kind.is_secure() => {
                let Some(context) = &admission.dtls else {
                    return Err(HandshakeError::Ours("the listener has no certificate".to_owned()).into());
                };
                let (flow, certificate) = dtls::establish(flow, context).await?;
                (Socket::Dtls(Box::new(flow)), certificate)
            }
            RawSocket::Udp(flow) => (Socket::Udp(flow), None),
        };
        Ok(Accepted { info: ConnInfo { kind, peer, local, certificate }, socket, entered })
    }

    /// Lets go of a peer that cannot be held now, and counts it.
    pub fn shed(self, reason: &'static str) {
        self.metrics.rejected(reason);
        tracing::debug!(listener = %self.listener, peer = %self.peer, reason, "turned away");
    }
}
