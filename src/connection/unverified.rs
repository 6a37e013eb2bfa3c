//! An unverified peer of plain UDP, whose source address may be spoofed.
//!
//! It is verified once its handler has authenticated it, or once a datagram of it arrives after an answer to it was sent:
//! then it receives at its address. Until then its flow ends at a deadline, or when another unverified peer needs its place
//! (see `listener/unverified_places.rs`), and the bytes of its answers are bounded by those it has sent.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::listener::Place;

/// Bytes of the IPv4 and UDP headers of a datagram, which load a network as its payload does.
const HEADER_BYTES: u64 = 28;

/// Limits of unverified peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first datagram on.
    pub timeout: Duration,
    /// Bytes of answers for each received byte, `1..`, both with the headers of their datagrams.
    pub answer_factor: u32,
}

/// One unverified peer.
pub(super) struct Unverified {
    deadline: Instant,
    proof: Proof,
    displaced: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: Place,
}

impl std::fmt::Debug for Unverified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unverified").field("proof", &self.proof).finish_non_exhaustive()
    }
}

impl Unverified {
    pub(super) fn new(place: Place, limits: Limits, now: Instant) -> Self {
        let proof = Proof { answer_factor: limits.answer_factor.into(), received: 0, sent: 0, earlier: None };
        Self { deadline: now + limits.timeout, proof, displaced: Box::pin(place.displaced()), _place: place }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn proof(&mut self) -> &mut Proof {
        &mut self.proof
    }

    /// Ready when another peer has got the place.
    pub(super) fn poll_displaced(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.displaced.as_mut().poll(cx)
    }
}

/// What a peer has sent and got. Pure.
#[derive(Debug)]
pub(super) struct Proof {
    answer_factor: u64,
    received: u64,
    sent: u64,
    /// Datagrams that had arrived before the first answer and are not received yet; `None` before an answer.
    earlier: Option<usize>,
}

impl Proof {
    /// A datagram was received; `true` once the peer is verified.
    pub(super) fn handle_received(&mut self, bytes: usize) -> bool {
        match &mut self.earlier {
            Some(0) => return true,
            Some(earlier) => *earlier -= 1,
            None => {}
        }
        self.received += bytes as u64 + HEADER_BYTES;
        false
    }

    /// Whether a datagram of this size may be sent.
    pub(super) fn may_send(&self, bytes: usize) -> bool {
        self.sent + bytes as u64 + HEADER_BYTES <= self.received * self.answer_factor
    }

    /// A datagram was sent, while `queued` others had arrived.
    pub(super) fn handle_sent(&mut self, bytes: usize, queued: usize) {
        self.sent += bytes as u64 + HEADER_BYTES;
        self.earlier.get_or_insert(queued);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn unverified() -> Proof {
        Proof { answer_factor: 10, received: 0, sent: 0, earlier: None }
    }

    /// Datagrams that were sent before the answer prove nothing, however late they are received.
    #[test]
    fn a_datagram_after_an_answer_verifies() {
        let mut proof = unverified();
        assert!(!proof.handle_received(1) && !proof.handle_received(1));
        proof.handle_sent(5, 2);
        assert!(!proof.handle_received(1) && !proof.handle_received(1));
        assert!(proof.handle_received(1));
    }

    proptest! {
        /// For a peer that does not see the answers, and so sends without regard to them, no more than ten times its bytes are
        /// sent, and it is verified only by a datagram that it sent after an answer.
        #[test]
        fn answers_are_bounded(steps in proptest::collection::vec((0..3_u8, 0..100_usize), 1..100)) {
            let mut proof = unverified();
            let (mut queue, mut is_answered, mut received, mut sent) = (VecDeque::new(), false, 0, 0);
            for (kind, bytes) in steps {
                match kind {
                    0 => queue.push_back((bytes, is_answered)),
                    1 => if let Some((bytes, is_proof)) = queue.pop_front() {
                        prop_assert_eq!(proof.handle_received(bytes), is_proof);
                        if is_proof {
                            return Ok(());
                        }
                        received += bytes + 28;
                    },
                    _ => if proof.may_send(bytes) {
                        proof.handle_sent(bytes, queue.len());
                        (is_answered, sent) = (true, sent + bytes + 28);
                    },
                }
                prop_assert!(sent <= 10 * received);
            }
        }
    }
}
