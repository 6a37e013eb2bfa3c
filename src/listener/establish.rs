//! Connection establishment: from an accepted socket to a peer that gets a connection (PROXY header, access control,
//! limits for each address, TLS or DTLS handshake).
//!
//! All of it runs in the peer's own task, with its permit held: a peer that is slow, or never finishes, delays
//! only itself, and returns its permit at the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::net::TcpStream;

use super::Flow;
use super::access::{Access, Effect};
use super::per_address::{Entered, Limits, Refusal, SharedAddressLimits};
use super::proxy::{self, Carried};
use super::unverified_places::Place;
use super::{HandshakeError, Socket, dtls, tls};
use crate::conn::{ConnInfo, ListenAddr, PeerAddr, SocketKind};
use crate::rate::Rate;
use crate::telemetry::ListenerMetrics;

/// Time limit of the first byte of a TLS handshake: a device that wants one begins at once.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(3);

/// The checks before a peer gets a connection. A reload replaces it as a whole, for new peers.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Deadline of everything before the connection: the handshake above all.
    pub handshake_timeout: Duration,
    /// Access control by address.
    pub access: Access,
    /// Accepts per time; `None` is unlimited.
    pub connection_rate: Option<Rate>,
    /// Limits of each address.
    pub addresses: Limits,
    /// Whether a connection begins with a PROXY header, and the trusted senders.
    pub proxy: Option<proxy::Options>,
    /// TLS, on a listener with TLS.
    pub tls: Option<tls::Acceptor>,
    /// DTLS, on a listener with DTLS.
    pub dtls: Option<dtls::Context>,
}

impl Default for Admission {
    /// No checks.
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
    /// These checks as the successor of `last`.
    pub(super) fn after(&self, last: &Self) -> Self {
        Self { tls: self.tls.clone().map(|tls| tls.after(last.tls.as_ref())), ..self.clone() }
    }
}

/// An accepted peer before any check.
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
    /// Its place while it is unverified: until the end of its handshake, or over plain UDP until its connection returns it.
    pub(super) place: Option<Place>,
}

/// An accepted socket.
#[derive(Debug)]
pub(super) enum RawSocket {
    Tcp(TcpStream),
    Udp(Flow),
}

/// A peer that has passed all checks.
#[derive(Debug)]
pub struct Accepted {
    /// The information about the connection.
    pub info: ConnInfo,
    /// Its established socket.
    pub socket: Socket,
    /// Its registration for the limits of its address; to be dropped when it has ended.
    pub entered: Option<Entered>,
    /// The place of a peer of plain UDP, which is unverified.
    pub place: Option<Place>,
}

/// Why a peer is rejected.
#[derive(Debug, thiserror::Error)]
pub enum RejectReason {
    /// Access control denies its address.
    #[error("access rules deny its address")]
    Denied,
    /// Its address has too many connections, or opens them too fast.
    #[error(transparent)]
    Address(Refusal),
    /// Its address is not trusted to send PROXY headers.
    #[error("PROXY headers of its address are not trusted")]
    Untrusted,
    /// The PROXY header is missing or malformed.
    #[error(transparent)]
    Proxy(proxy::ReadError),
    /// The PROXY header has not arrived in time.
    #[error("expected a PROXY header, found none within {} ms", .0.as_millis())]
    ProxyTimeout(Duration),
    /// The handshake has not finished in time.
    #[error("did not finish the handshake within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The peer has sent nothing.
    #[error("sent nothing within {} ms", .0.as_millis())]
    Silent(Duration),
    /// Another handshake has got its place.
    #[error(
        "lost its place to another handshake: its source held more than its share, or it was the oldest that had sent nothing"
    )]
    Displaced,
    /// The handshake has failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl RejectReason {
    /// The reason label in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Denied => "access",
            Self::Address(Refusal::Connections { .. }) => "address_connections",
            Self::Address(Refusal::Rate { .. }) => "address_rate",
            Self::Untrusted => "proxy_untrusted",
            Self::Proxy(_) => "proxy_malformed",
            Self::ProxyTimeout(_) => "proxy_timed_out",
            Self::Timeout(_) => "handshake_timed_out",
            Self::Silent(_) => "handshake_silent",
            Self::Displaced => "handshake_displaced",
            Self::Handshake(error) => error.name(),
        }
    }
}

impl Admission {
    /// Checks the address of a new peer; it counts for its address until the returned registration is dropped.
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

/// The addresses in the PROXY header of this peer's connection; `None` keeps those of the socket.
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
        // The configuration refuses `proxy_protocol` there.
        RawSocket::Udp(_) => Ok(None),
    }
}

/// Waits for the first byte of a handshake, which stays in the socket.
async fn first_byte(stream: &TcpStream) -> Result<(), RejectReason> {
    match tokio::time::timeout(FIRST_BYTE_MAX, stream.peek(&mut [0])).await {
        Ok(peeked) => peeked.map(drop).map_err(|error| HandshakeError::from(error).into()),
        Err(_) => Err(RejectReason::Silent(FIRST_BYTE_MAX)),
    }
}

impl Pending {
    /// Runs all checks; logs and counts a rejection.
    pub async fn establish(self) -> Option<Accepted> {
        let (listener, mut peer, metrics) = (Arc::clone(&self.listener), self.peer, self.metrics.clone());
        let timeout = self.admission.handshake_timeout;
        // Over plain UDP there is no handshake that could end.
        let displaced = self.place.as_ref().filter(|_| self.kind.is_secure()).map(Place::displaced);
        let has_place = displaced.is_some();
        let passed = tokio::select! {
            passed = tokio::time::timeout(timeout, self.establish_inner(&mut peer)) => {
                passed.unwrap_or(Err(RejectReason::Timeout(timeout)))
            }
            () = futures::future::OptionFuture::from(displaced).map(drop), if has_place => Err(RejectReason::Displaced),
        };
        match passed {
            Ok(accepted) => Some(accepted),
            Err(why) => {
                metrics.rejected(why.name());
                if let RejectReason::Handshake(HandshakeError::Ours(_)) = why {
                    tracing::error!(%listener, %peer, reason = why.name(), "connection rejected: {why}");
                } else {
                    tracing::debug!(%listener, %peer, reason = why.name(), "connection rejected: {why}");
                }
                None
            }
        }
    }

    /// All checks in order. `peer` becomes the address in the PROXY header, once it is read.
    async fn establish_inner(self, peer: &mut PeerAddr) -> Result<Accepted, RejectReason> {
        let Self { kind, mut local, mut socket, admission, sources, place, .. } = self;
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
                first_byte(&stream).await?;
                if let Some(place) = &place {
                    place.has_spoken();
                }
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
        let place = place.filter(|_| kind == SocketKind::Udp);
        Ok(Accepted { info: ConnInfo { kind, peer, local, certificate }, socket, entered, place })
    }

    /// Rejects a peer before any check, and counts it.
    pub fn shed(self, reason: &'static str) {
        self.metrics.rejected(reason);
        tracing::debug!(listener = %self.listener, peer = %self.peer, reason, "connection rejected");
    }
}
