use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Pieces offered to one vectored write; more gains nothing, the kernel copies them all the same.
const SLICES_MAX: usize = 16;

/// Bytes that wait for the peer's socket, in order.
#[derive(Debug)]
pub struct Outbound {
    /// The oldest; the queue holds the others. Mostly there is one at a time, and then no queue.
    first: Bytes,
    more: VecDeque<Bytes>,
    bytes: usize,
    bytes_max: usize,
}

impl Outbound {
    /// Nothing waits. At `bytes_max` it is full; the piece that reaches the bound may go over it.
    pub fn new(bytes_max: usize) -> Self {
        Self { first: Bytes::new(), more: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether no more may be queued.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bound.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Queues a piece. The caller asked [`Outbound::is_full`] before.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.bytes += piece.len();
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.more.push_back(piece);
        }
    }

    /// The oldest bytes, when there is nothing behind them: for a plain write.
    pub fn only(&self) -> Option<&[u8]> {
        self.more.is_empty().then_some(&*self.first)
    }

    /// The oldest bytes, for a vectored write.
    pub fn slices(&self) -> ([IoSlice<'_>; SLICES_MAX], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(std::iter::once(&self.first).chain(&self.more)) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        (slices, count)
    }

    /// The socket took this many bytes.
    pub fn advance(&mut self, mut taken: usize) {
        self.bytes -= taken;
        while taken >= self.first.len() {
            taken -= self.first.len();
            match self.more.pop_front() {
                Some(next) => self.first = next,
                None => {
                    // An idle connection keeps no memory for what once waited.
                    self.clear();
                    return;
                }
            }
        }
        self.first.advance(taken);
    }

    /// Drops what waits: the socket is broken.
    pub fn clear(&mut self) {
        self.first = Bytes::new();
        self.more = VecDeque::new();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the socket takes them, the bytes leave in the order in which they came, each once.
        #[test]
        fn bytes_keep_their_order(pieces in proptest::collection::vec(0..50usize, 0..40), cut in 1..70usize) {
            let mut outbound = Outbound::new(1 << 20);
            let mut expected = Vec::new();
            for (number, size) in pieces.iter().enumerate() {
                let piece: Vec<u8> = (0..*size).map(|byte| (byte + number) as u8).collect();
                expected.extend_from_slice(&piece);
                outbound.push(Bytes::from(piece));
            }
            let mut written = Vec::new();
            while !outbound.is_empty() {
                let (slices, count) = outbound.slices();
                let offered: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                let taken = cut.min(offered.len());
                written.extend_from_slice(&offered[..taken]);
                outbound.advance(taken);
            }
            prop_assert_eq!(written, expected);
            prop_assert_eq!(outbound.bytes(), 0);
        }
    }

    /// It is full at its bound, and the piece that reaches the bound is taken whole.
    #[test]
    fn it_is_bounded() {
        let mut outbound = Outbound::new(4);
        outbound.push(Bytes::from_static(b"abc"));
        assert!(!outbound.is_full());
        outbound.push(Bytes::from_static(b"defgh"));
        assert!(outbound.is_full());
        outbound.advance(5);
        assert!(!outbound.is_full());
    }
}
