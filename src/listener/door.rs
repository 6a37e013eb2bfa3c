//! Who gets a flow: what stands between the first datagram of a peer and everything that is kept for it.

use std::time::Instant;

use super::dtls;
use crate::conn::{ListenAddr, PeerAddr};

/// What a datagram of a peer without a flow comes to; each socket has one.
#[derive(Debug)]
pub enum Door {
    /// Every peer gets a flow at once.
    Open,
    /// Peers get one that have shown with a cookie that they receive at their address.
    Dtls(Box<dtls::Door>),
    /// A test decides.
    #[cfg(test)]
    Scripted(Scripted),
}

/// What the door says to a datagram.
#[derive(Debug)]
pub enum Knock {
    /// The peer gets a flow, with this. If it has one, the new one takes its place.
    Enter(Entry),
    /// The peer is sent this, and nothing is kept of it.
    Answer(Vec<u8>),
    /// Nothing happens; the datagram is counted.
    Ignore,
}

/// What a flow begins with.
#[derive(Debug)]
pub enum Entry {
    /// The datagram that opened it is its first.
    Datagram,
    /// So it is here, and it is a hello of this attempt at a handshake.
    Hello(dtls::Attempt),
    /// The door kept the datagram to itself.
    #[cfg(test)]
    Scripted(u64),
}

impl Entry {
    /// Whether the flow's queue begins with the datagram that opened it.
    pub fn keeps_datagram(&self) -> bool {
        match self {
            Self::Datagram | Self::Hello(_) => true,
            #[cfg(test)]
            Self::Scripted(_) => false,
        }
    }

    /// By what [`Door::is_restart`] tells the flow's own datagrams.
    pub fn mark(&self) -> u64 {
        match self {
            Self::Datagram => 0,
            Self::Hello(attempt) => attempt.to_u64(),
            #[cfg(test)]
            Self::Scripted(mark) => *mark,
        }
    }
}

impl Door {
    /// What becomes of a datagram of a peer that has no flow, or that begins anew.
    pub fn knock(&mut self, peer: PeerAddr, local: ListenAddr, datagram: &[u8]) -> Knock {
        match self {
            Self::Open => {
                let (_, _, _) = (peer, local, datagram);
                Knock::Enter(Entry::Datagram)
            }
            Self::Dtls(door) => match door.handle(Instant::now(), peer.0, local.0, datagram) {
                dtls::Knock::Enter(attempt) => Knock::Enter(Entry::Hello(attempt)),
                dtls::Knock::Answer(answer) => Knock::Answer(answer.to_vec()),
                dtls::Knock::Stranger => Knock::Ignore,
            },
            #[cfg(test)]
            Self::Scripted(door) => door.knock(peer, local, datagram),
        }
    }

    /// Whether a datagram of a known peer is none of its flow's, which has this mark, and goes to the door instead.
    pub fn is_restart(&self, mark: u64, datagram: &[u8]) -> bool {
        match self {
            Self::Open => {
                let (_, _) = (mark, datagram);
                false
            }
            Self::Dtls(_) => dtls::Attempt::of_datagram(datagram).is_some_and(|attempt| attempt.to_u64() != mark),
            #[cfg(test)]
            Self::Scripted(_) => datagram.starts_with(b"hello") && datagram != format!("hello {mark}").as_bytes(),
        }
    }
}

/// Answers `hello` with a number, and lets in who says `hello` with a number.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Scripted;

#[cfg(test)]
impl Scripted {
    fn knock(&mut self, peer: PeerAddr, local: ListenAddr, datagram: &[u8]) -> Knock {
        match datagram {
            b"hello" => Knock::Answer(format!("{peer} {local:?}").into()),
            _ => match std::str::from_utf8(datagram).ok().and_then(|text| text.strip_prefix("hello ")?.parse().ok()) {
                Some(mark) => Knock::Enter(Entry::Scripted(mark)),
                None => Knock::Ignore,
            },
        }
    }
}
