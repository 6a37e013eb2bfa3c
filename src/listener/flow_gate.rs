//! Who gets a flow: what stands between the first datagram of a peer and everything that is kept for it.

use std::time::Instant;

use super::dtls;
use crate::conn::{ListenAddr, PeerAddr};

/// What a datagram of a peer without a flow comes to; each socket has one.
#[derive(Debug)]
pub(crate) enum FlowGate {
    /// Every peer gets a flow at once.
    Open,
    /// Peers get one that have shown with a cookie that they receive at their address.
    Dtls(Box<dtls::CookieVerifier>),
    /// A test decides.
    #[cfg(test)]
    Scripted(Scripted),
}

/// What the door says to a datagram.
#[derive(Debug)]
pub(crate) enum GateDecision {
    /// The peer gets a flow, with this. If it has one, the new one takes its place.
    Enter(FlowStart),
    /// The peer is sent this, and nothing is kept of it.
    Answer(Vec<u8>),
    /// Nothing happens; the datagram is counted.
    Ignore,
}

/// What a flow begins with.
#[derive(Debug)]
pub enum FlowStart {
    /// The datagram that opened it is its first.
    Datagram,
    /// So it is here, and it is a hello of this attempt at a handshake.
    Hello(dtls::HandshakeId),
    /// The door kept the datagram to itself.
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

    /// By what [`FlowGate::is_restart`] tells the flow's own datagrams.
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
    /// What becomes of a datagram of a peer that has no flow, or that begins anew.
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

    /// Whether a datagram of a known peer is none of its flow's, which has this mark, and goes to the door instead.
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

/// Answers `hello` with a number, and lets in who says `hello` with a number.
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
