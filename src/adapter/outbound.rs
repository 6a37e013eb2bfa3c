use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces offered to one vectored write; more gains nothing, the kernel copies them all the same.
const SLICES_MAX: usize = 16;

/// Pieces below this many bytes are copied together when they wait behind others. What a piece takes beside its
/// bytes (its entry here, and the whole buffer of the request that brought it, 8 KiB with gRPC) would
/// otherwise be a hundred times its size, and the bound counts bytes.
const GATHERED_BELOW: usize = 4096;

/// What a waiting datagram takes at least, in bytes: its entry here and its own small buffer.
const SMALLEST: usize = 64;

/// Bytes that wait for the peer's socket, in order.
#[derive(Debug)]
pub struct Outbound {
    /// The oldest; the queue holds the others. Mostly there is one at a time, and then no queue.
    first: Bytes,
    more: VecDeque<Bytes>,
    /// The newest, small ones, copied together.
    gathered: BytesMut,
    bytes: usize,
    bytes_max: usize,
    borders: Borders,
}

/// Whether the pieces are told apart on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Borders {
    /// A stream: only the order of the bytes matters.
    None,
    /// Each piece is a datagram.
    Kept,
}

impl Outbound {
    /// Nothing waits for a peer that gets a stream. At `bytes_max` it is full; the piece that reaches the bound may go
    /// over it.
    pub fn of_stream(bytes_max: usize) -> Self {
        Self::new(bytes_max, Borders::None)
    }

    /// Nothing waits for a peer that gets datagrams: each piece is one, and is written by itself. It is full at
    /// `bytes_max` as well, and when as many wait as would take that much memory if they were empty but for a byte.
    pub fn of_datagrams(bytes_max: usize) -> Self {
        Self::new(bytes_max, Borders::Kept)
    }

    fn new(bytes_max: usize, borders: Borders) -> Self {
        Self { first: Bytes::new(), more: VecDeque::new(), gathered: BytesMut::new(), bytes: 0, bytes_max, borders }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether no more may be queued.
    pub fn is_full(&self) -> bool {
        let many = self.borders == Borders::Kept && self.more.len() >= self.bytes_max / SMALLEST;
        many || self.bytes >= self.bytes_max
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
        } else if self.borders == Borders::Kept {
            // A copy of a small one, because the request that brought it would be kept with it.
            self.more.push_back(if piece.len() < GATHERED_BELOW { Bytes::copy_from_slice(&piece) } else { piece });
        } else if piece.len() < GATHERED_BELOW {
            self.gathered.extend_from_slice(&piece);
            if self.gathered.len() >= GATHERED_BELOW {
                self.end_gathering();
            }
        } else {
            self.end_gathering();
            self.more.push_back(piece);
        }
    }

    fn end_gathering(&mut self) {
        if !self.gathered.is_empty() {
            self.more.push_back(std::mem::take(&mut self.gathered).freeze());
        }
    }

    /// Drops the newest bytes, so that `keep` are left; does nothing when there are no more.
    pub fn truncate(&mut self, keep: usize) {
        while self.bytes > keep {
            let excess = self.bytes - keep;
            let length = if !self.gathered.is_empty() {
                let length = self.gathered.len();
                self.gathered.truncate(length.saturating_sub(excess));
                length
            } else if let Some(last) = self.more.back_mut() {
                let length = last.len();
                last.truncate(length.saturating_sub(excess));
                if last.is_empty() {
                    self.more.pop_back();
                }
                length
            } else {
                let length = self.first.len();
                self.first.truncate(length.saturating_sub(excess));
                length
            };
            self.bytes -= length.min(excess);
        }
    }

    /// The oldest bytes, when there is nothing behind them that may be written with them: for a plain write.
    pub fn only(&self) -> Option<&[u8]> {
        let alone = self.borders == Borders::Kept || (self.more.is_empty() && self.gathered.is_empty());
        alone.then_some(&*self.first)
    }

    /// The oldest bytes, for a vectored write.
    pub fn slices(&self) -> ([IoSlice<'_>; SLICES_MAX], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let pieces = std::iter::once(&self.first).chain(&self.more).map(|piece| &**piece);
        let gathered = std::iter::once(&*self.gathered).filter(|gathered| !gathered.is_empty());
        for (slice, piece) in slices.iter_mut().zip(pieces.chain(gathered)) {
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
            if self.more.is_empty() {
                self.end_gathering();
            }
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
        self.gathered = BytesMut::new();
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
        fn bytes_keep_their_order(
            pieces in proptest::collection::vec(prop_oneof![9 => 0..50usize, 1 => 4090..4100usize], 0..40),
            cut in prop_oneof![1..70usize, 1000..5000usize],
        ) {
            let mut outbound = Outbound::of_stream(1 << 20);
            let mut expected = Vec::new();
            for (number, size) in pieces.iter().enumerate() {
                let piece: Vec<u8> = (0..*size).map(|byte| (byte + number) as u8).collect();
                expected.extend_from_slice(&piece);
                outbound.push(Bytes::from(piece));
            }
            let mut written: Vec<u8> = Vec::new();
            while !outbound.is_empty() {
                let (slices, count) = outbound.slices();
                let offered = slices[..count].iter().flat_map(|slice| slice.iter());
                let before = written.len();
                written.extend(offered.take(cut));
                let taken = written.len() - before;
                outbound.advance(taken);
            }
            prop_assert_eq!(written, expected);
            prop_assert_eq!(outbound.bytes(), 0);
        }
    }

    proptest! {
        /// What is taken back is the end, to the byte; what came before is written as if nothing had happened.
        #[test]
        fn the_end_can_be_taken_back(
            pieces in proptest::collection::vec(prop_oneof![9 => 0..50usize, 1 => 4090..4100usize], 0..40),
            keep in 0..20_000usize,
        ) {
            let mut outbound = Outbound::of_stream(1 << 20);
            let mut expected = Vec::new();
            for (number, size) in pieces.iter().enumerate() {
                let piece: Vec<u8> = (0..*size).map(|byte| (byte + number) as u8).collect();
                expected.extend_from_slice(&piece);
                outbound.push(Bytes::from(piece));
            }
            outbound.truncate(keep);
            expected.truncate(keep);
            prop_assert_eq!(outbound.bytes(), expected.len());
            outbound.push(Bytes::from_static(b"and more"));
            expected.extend_from_slice(b"and more");
            let mut written: Vec<u8> = Vec::new();
            while !outbound.is_empty() {
                let (slices, count) = outbound.slices();
                let before = written.len();
                written.extend(slices[..count].iter().flat_map(|slice| slice.iter()));
                outbound.advance(written.len() - before);
            }
            prop_assert_eq!(written, expected);
        }
    }

    /// Many small pieces take little more room than their bytes.
    #[test]
    fn small_pieces_are_gathered() {
        let mut outbound = Outbound::of_stream(1 << 20);
        for _ in 0..100_000 {
            outbound.push(Bytes::from_static(b"x"));
        }
        assert_eq!(outbound.bytes(), 100_000);
        assert!(outbound.more.len() <= 100_000 / GATHERED_BELOW, "{} pieces", outbound.more.len());
    }

    /// Datagrams are offered one at a time, as they were sent, and their number is bounded too.
    #[test]
    fn datagrams_keep_their_borders() {
        let mut outbound = Outbound::of_datagrams(1 << 10);
        for piece in ["ab", "c", "def"] {
            outbound.push(Bytes::from_static(piece.as_bytes()));
        }
        for piece in ["ab", "c", "def"] {
            assert_eq!(outbound.only(), Some(piece.as_bytes()));
            outbound.advance(piece.len());
        }
        assert!(outbound.is_empty());

        for _ in 0..=16 {
            assert!(!outbound.is_full());
            outbound.push(Bytes::from_static(b"x"));
        }
        assert!(outbound.is_full());
    }

    /// It is full at its bound, and the piece that reaches the bound is taken whole.
    #[test]
    fn it_is_bounded() {
        let mut outbound = Outbound::of_stream(4);
        outbound.push(Bytes::from_static(b"abc"));
        assert!(!outbound.is_full());
        outbound.push(Bytes::from_static(b"defgh"));
        assert!(outbound.is_full());
        outbound.advance(5);
        assert!(!outbound.is_full());
    }
}
