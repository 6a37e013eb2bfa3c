//! From a socket that was accepted to a peer that may have a connection.
//!
//! All of it happens in the peer's own task, with its permit held: a peer that is slow, or never finishes, delays
//! only itself, and gives its permit back.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Flow, HandshakeError, Socket, dtls, tls};
use crate::conn::room::Permit;
use crate::conn::{ConnInfo, ListenAddr, PeerAddr, SocketKind};
use crate::telemetry::ListenerMetrics;

/// What a peer has to pass before it has a connection. A reload replaces it as a whole, for the peers that come then.
#[derive(Clone, Debug)]
pub struct Admission {
    /// How long everything before the connection may take: the handshake above all.
    pub handshake_timeout: Duration,
    /// What makes TLS of its stream, on a listener that speaks it.
    pub tls: Option<tls::Acceptor>,
    /// What makes DTLS of its datagrams, on a listener that speaks it.
    pub dtls: Option<dtls::Context>,
}

impl Admission {
    /// The one that goes on when this one is to take over from `last`.
    pub(super) fn after(&self, last: &Self) -> Self {
        Self { tls: self.tls.clone().map(|tls| tls.after(last.tls.as_ref())), ..self.clone() }
    }
}

/// A peer that was accepted and has passed nothing yet.
#[derive(Debug)]
pub struct Arrived {
    pub(super) listener: Arc<str>,
    pub(super) kind: SocketKind,
    pub(super) peer: PeerAddr,
    pub(super) local: ListenAddr,
    pub(super) socket: Raw,
    pub(super) admission: Arc<Admission>,
    pub(super) metrics: ListenerMetrics,
    /// The right to be one of those that have not passed; given back once it has.
    pub(super) _turn: Option<Permit>,
}

/// A socket as it was accepted.
#[derive(Debug)]
pub(super) enum Raw {
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
}

/// Why a peer gets no connection.
#[derive(Debug, thiserror::Error)]
pub enum TurnedAway {
    /// It has not passed in time.
    #[error("did not finish the handshake within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The handshake has failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl TurnedAway {
    /// The reason's name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "handshake_timed_out",
            Self::Handshake(error) => error.name(),
        }
    }
}

impl Arrived {
    /// Lets the peer pass, or tells the log and the metrics why not.
    pub async fn establish(self) -> Option<Accepted> {
        let (listener, peer, metrics) = (Arc::clone(&self.listener), self.peer, self.metrics.clone());
        let timeout = self.admission.handshake_timeout;
        let passed = tokio::time::timeout(timeout, self.pass()).await;
        match passed.unwrap_or(Err(TurnedAway::Timeout(timeout))) {
            Ok(accepted) => Some(accepted),
            Err(why) => {
                metrics.turned_away(why.name());
                match why {
                    TurnedAway::Handshake(HandshakeError::Ours(_)) => {
                        tracing::error!(%listener, %peer, reason = why.name(), "turned away: {why}");
                    }
                    TurnedAway::Handshake(_) | TurnedAway::Timeout(_) => {
                        tracing::debug!(%listener, %peer, reason = why.name(), "turned away: {why}");
                    }
                }
                None
            }
        }
    }

    async fn pass(self) -> Result<Accepted, TurnedAway> {
        let Self { kind, peer, local, socket, admission, .. } = self;
        let (socket, certificate) = match socket {
            Raw::Tcp(stream) if kind.is_secure() => {
                let Some(tls) = &admission.tls else {
                    return Err(HandshakeError::Ours("the listener has no certificate".to_owned()).into());
                };
                let (stream, certificate) = tls.accept(stream).await?;
                (Socket::Tls(stream), certificate)
            }
            Raw::Tcp(stream) => (Socket::Tcp(stream), None),
            Raw::Udp(flow) if kind.is_secure() => {
                let Some(context) = &admission.dtls else {
                    return Err(HandshakeError::Ours("the listener has no certificate".to_owned()).into());
                };
                let (flow, certificate) = dtls::establish(flow, context).await?;
                (Socket::Dtls(Box::new(flow)), certificate)
            }
            Raw::Udp(flow) => (Socket::Udp(flow), None),
        };
        Ok(Accepted { info: ConnInfo { kind, peer, local, certificate }, socket })
    }

    /// Lets go of a peer that cannot be held now, and counts it.
    pub fn shed(self, reason: &'static str) {
        self.metrics.turned_away(reason);
        tracing::debug!(listener = %self.listener, peer = %self.peer, reason, "turned away");
    }
}
