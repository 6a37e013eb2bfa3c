//! Outbound queue of one connection: bytes or datagrams that wait for the socket, in order, bounded in bytes (back-pressure).

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Maximum number of slices of one vectored write; more gain nothing, because the kernel copies them all the same.
const SLICES_MAX: usize = 16;

/// Chunks below this size are copied together while others are queued before them. Otherwise the memory of a chunk
/// beside its bytes (its entry here, and the whole buffer of the request that carried it, 8 KiB with gRPC) would be a
/// hundred times its size, and the limit counts bytes.
const GATHERED_BELOW: usize = 4096;

/// Minimum memory of a queued datagram, in bytes: its entry here and its own small buffer.
const SMALLEST: usize = 64;

/// Bytes queued for the peer's socket, in order.
#[derive(Debug)]
pub struct Outbound {
    /// The oldest chunk; `more` holds the others. Mostly there is at most one, and `more` allocates nothing.
    first: Bytes,
    more: VecDeque<Bytes>,
    /// The newest small chunks, copied together.
    gathered: BytesMut,
    bytes: usize,
    bytes_max: usize,
    /// A lower bound for now.
    limit: usize,
    boundaries: Boundaries,
}

/// Whether chunk boundaries are kept on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boundaries {
    /// A stream: only the order of the bytes matters.
    None,
    /// Each chunk is a datagram.
    Kept,
}

impl Outbound {
    /// An empty queue for a stream. It is full at `bytes_max`; the chunk that reaches the limit may exceed it.
    pub fn of_stream(bytes_max: usize) -> Self {
        Self::new(bytes_max, Boundaries::None)
    }

    /// An empty queue for datagrams: each chunk is one, and is written by itself. It is full at `bytes_max`, and when
    /// the number of datagrams would take that much memory if each had one byte.
    pub fn of_datagrams(bytes_max: usize) -> Self {
        Self::new(bytes_max, Boundaries::Kept)
    }

    fn new(bytes_max: usize, boundaries: Boundaries) -> Self {
        Self {
            first: Bytes::new(),
            more: VecDeque::new(),
            gathered: BytesMut::new(),
            bytes: 0,
            bytes_max,
            limit: usize::MAX,
            boundaries,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub fn is_full(&self) -> bool {
        let many = self.boundaries == Boundaries::Kept && self.more.len() >= self.bytes_max / SMALLEST;
        many || self.bytes >= self.bytes_max.min(self.limit)
    }

    /// Bounds the queue to fewer bytes, `1..`, until the next call; queued bytes stay.
    pub fn limit(&mut self, bytes_max: usize) {
        self.limit = bytes_max;
    }

    /// Queued bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Appends a chunk. The caller checked [`Outbound::is_full`] before.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.bytes += chunk.len();
        if self.first.is_empty() {
            self.first = chunk;
        } else if self.boundaries == Boundaries::Kept {
            // Small ones are copied, because they would keep the request buffer that carried them.
            self.more.push_back(if chunk.len() < GATHERED_BELOW { Bytes::copy_from_slice(&chunk) } else { chunk });
        } else if chunk.len() < GATHERED_BELOW {
            self.gathered.extend_from_slice(&chunk);
            if self.gathered.len() >= GATHERED_BELOW {
                self.end_gathering();
            }
        } else {
            self.end_gathering();
            self.more.push_back(chunk);
        }
    }

    fn end_gathering(&mut self) {
        if !self.gathered.is_empty() {
            self.more.push_back(std::mem::take(&mut self.gathered).freeze());
        }
    }

    /// Drops the newest bytes, so that at most `keep` are left.
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

    /// The oldest bytes, if no others may be written with them: for a plain write.
    pub fn only(&self) -> Option<&[u8]> {
        let is_only = self.boundaries == Boundaries::Kept || (self.more.is_empty() && self.gathered.is_empty());
        is_only.then_some(&*self.first)
    }

    /// The oldest bytes, for a vectored write.
    pub fn slices(&self) -> ([IoSlice<'_>; SLICES_MAX], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let chunks = std::iter::once(&self.first).chain(&self.more).map(|chunk| &**chunk);
        let gathered = std::iter::once(&*self.gathered).filter(|gathered| !gathered.is_empty());
        for (slice, chunk) in slices.iter_mut().zip(chunks.chain(gathered)) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        (slices, count)
    }

    /// Removes bytes that the socket accepted.
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
                    // An idle connection keeps no memory of its queue.
                    self.clear();
                    return;
                }
            }
        }
        self.first.advance(taken);
    }

    /// Discards the queue: the socket is broken.
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
        /// For any sizes of writes, the bytes leave in the order of arrival, each once.
        #[test]
        fn bytes_keep_their_order(
            chunks in proptest::collection::vec(prop_oneof![9 => 0..50usize, 1 => 4090..4100usize], 0..40),
            cut in prop_oneof![1..70usize, 1000..5000usize],
        ) {
            let mut outbound = Outbound::of_stream(1 << 20);
            let mut expected = Vec::new();
            for (number, size) in chunks.iter().enumerate() {
                let chunk: Vec<u8> = (0..*size).map(|byte| (byte + number) as u8).collect();
                expected.extend_from_slice(&chunk);
                outbound.push(Bytes::from(chunk));
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
        /// Truncation removes the newest bytes exactly; the bytes before are written as if nothing had happened.
        #[test]
        fn the_newest_bytes_can_be_truncated(
            chunks in proptest::collection::vec(prop_oneof![9 => 0..50usize, 1 => 4090..4100usize], 0..40),
            keep in 0..20_000usize,
        ) {
            let mut outbound = Outbound::of_stream(1 << 20);
            let mut expected = Vec::new();
            for (number, size) in chunks.iter().enumerate() {
                let chunk: Vec<u8> = (0..*size).map(|byte| (byte + number) as u8).collect();
                expected.extend_from_slice(&chunk);
                outbound.push(Bytes::from(chunk));
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

    /// Many small chunks take little more memory than their bytes.
    #[test]
    fn small_chunks_are_gathered() {
        let mut outbound = Outbound::of_stream(1 << 20);
        for _ in 0..100_000 {
            outbound.push(Bytes::from_static(b"x"));
        }
        assert_eq!(outbound.bytes(), 100_000);
        assert!(outbound.more.len() <= 100_000 / GATHERED_BELOW, "{} chunks", outbound.more.len());
    }

    /// Datagrams are offered one at a time, as they were sent, and their number is bounded too.
    #[test]
    fn datagrams_keep_their_boundaries() {
        let mut outbound = Outbound::of_datagrams(1 << 10);
        for chunk in ["ab", "c", "def"] {
            outbound.push(Bytes::from_static(chunk.as_bytes()));
        }
        for chunk in ["ab", "c", "def"] {
            assert_eq!(outbound.only(), Some(chunk.as_bytes()));
            outbound.advance(chunk.len());
        }
        assert!(outbound.is_empty());

        for _ in 0..=16 {
            assert!(!outbound.is_full());
            outbound.push(Bytes::from_static(b"x"));
        }
        assert!(outbound.is_full());
    }

    /// It is full at its limit, and the chunk that reaches the limit is queued whole.
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
