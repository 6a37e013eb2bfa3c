//! Flow admission of a datagram socket: whether the first datagram of a peer opens a flow, with or without the DTLS
//! cookie exchange (RFC 6347 section 4.2.1).

use std::time::Instant;

use super::dtls;
use crate::conn::{ListenAddr, PeerAddr};

/// The admission of one socket.
#[derive(Debug)]
pub(crate) enum FlowGate {
    /// Every peer gets a flow at once.
    Open,
    /// A peer gets a flow once its cookie has proved that it receives at its source address.
    Dtls(Box<dtls::CookieVerifier>),
    /// For tests.
    #[cfg(test)]
    Scripted(Scripted),
}

/// The decision about a datagram.
#[derive(Debug)]
pub(crate) enum GateDecision {
    /// Open a flow with this. It replaces an existing flow of the peer.
    Enter(FlowStart),
    /// Send this response, and keep no state.
    Answer(Vec<u8>),
    /// Drop and count the datagram.
    Ignore,
}

/// The start of a flow.
#[derive(Debug)]
pub enum FlowStart {
    /// The datagram that opened the flow is its first.
    Datagram,
    /// The same, and it is a ClientHello of this handshake.
    Hello(dtls::HandshakeId),
    /// The gate consumed the datagram.
    #[cfg(test)]
    Scripted(u64),
}

impl FlowStart {
    /// Whether the flow's queue begins with the datagram that opened it.
    pub fn keeps_datagram(&self) -> bool {
        match self {
            Self::Datagram | Self::Hello(_) => true,
            #[cfg(test)]
            Self::Scripted(_) => false,
        }
    }

    /// The number by which [`FlowGate::is_restart`] recognizes the flow's own datagrams.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Datagram => 0,
            Self::Hello(attempt) => attempt.to_u64(),
            #[cfg(test)]
            Self::Scripted(epoch) => *epoch,
        }
    }
}

impl FlowGate {
    /// Decides about a datagram of a peer that has no flow, or that restarts.
    pub(crate) fn decide(&mut self, peer: PeerAddr, local: ListenAddr, datagram: &[u8]) -> GateDecision {
        match self {
            Self::Open => {
                let (_, _, _) = (peer, local, datagram);
                GateDecision::Enter(FlowStart::Datagram)
            }
            Self::Dtls(gate) => match gate.handle(Instant::now(), peer.0, local.0, datagram) {
                dtls::CookieCheck::Enter(attempt) => GateDecision::Enter(FlowStart::Hello(attempt)),
                dtls::CookieCheck::Answer(answer) => GateDecision::Answer(answer.to_vec()),
                dtls::CookieCheck::NotClientHello => GateDecision::Ignore,
            },
            #[cfg(test)]
            Self::Scripted(gate) => gate.decide(peer, local, datagram),
        }
    }

    /// Whether a datagram of a peer with a flow of this epoch starts a new handshake, and so goes to the gate.
    pub(crate) fn is_restart(&self, epoch: u64, datagram: &[u8]) -> bool {
        match self {
            Self::Open => {
                let (_, _) = (epoch, datagram);
                false
            }
            Self::Dtls(_) => dtls::HandshakeId::of_datagram(datagram).is_some_and(|attempt| attempt.to_u64() != epoch),
            #[cfg(test)]
            Self::Scripted(_) => datagram.starts_with(b"hello") && datagram != format!("hello {epoch}").as_bytes(),
        }
    }
}

/// Answers `hello` with a number, and admits `hello` with a number.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Scripted;

#[cfg(test)]
impl Scripted {
    fn decide(&mut self, peer: PeerAddr, local: ListenAddr, datagram: &[u8]) -> GateDecision {
        match datagram {
            b"hello" => GateDecision::Answer(format!("{peer} {local:?}").into()),
            _ => match std::str::from_utf8(datagram).ok().and_then(|text| text.strip_prefix("hello ")?.parse().ok()) {
                Some(epoch) => GateDecision::Enter(FlowStart::Scripted(epoch)),
                None => GateDecision::Ignore,
            },
        }
    }
}
