//! Puts messages together from their sub-packages. Pure; bounded in number, size and age.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::header::{Header, Part};

/// Unfinished messages at a time; one more drops the one that was quiet longest.
pub const MESSAGES_MAX: usize = 4;
/// Sub-packages of one message; a message of more is refused at its first.
pub const PARTS_MAX: u16 = 1024;
/// Bytes of all unfinished messages together; over it the one that was quiet longest is dropped.
pub const BYTES_MAX: usize = 256 << 10;
/// How long an unfinished message waits for its next sub-package, in milliseconds.
pub const AGE_MAX_MS: u64 = 60_000;

/// What became of a sub-package.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept until the others are there.
    Kept,
    /// It was the last one missing: the body.
    Whole(Vec<u8>),
    /// It cannot be kept.
    Refused,
}

/// An unfinished message that was given up, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The message's id.
    pub id: u16,
    /// The serial of its first sub-package that came.
    pub serial: u16,
    /// How many sub-packages there would be.
    pub total: u16,
    /// The numbers of those that came.
    pub found: Vec<u16>,
    /// Their bodies, one behind the other.
    pub body: Vec<u8>,
    reason: &'static str,
}

impl fmt::Display for Dropped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, found, total, reason, .. } = self;
        write!(out, "message {id:#06x} dropped with {} of {total} sub-packages: {reason}", found.len())
    }
}

/// The unfinished messages of a terminal.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Assembler {
    /// The one that was quiet longest comes first.
    partials: Vec<Partial>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Partial {
    id: u16,
    total: u16,
    seen_ms: u64,
    /// Sorted by number.
    parts: Vec<Piece>,
}

/// A sub-package.
#[derive(Debug, Serialize, Deserialize)]
struct Piece {
    index: u16,
    serial: u16,
    body: Box<[u8]>,
}

/// How well a sub-package goes with an unfinished message; the better the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// Its number is missing there, but its serial says another order: sent once more, under a new serial.
    OutOfOrder,
    /// Number and serial rise together, with other messages between.
    WithGaps,
    /// Number and serial rise by the same, or all have one serial.
    Exact,
}

/// The unfinished messages as the first format of a connection's state had them.
#[derive(Deserialize)]
pub(crate) struct AssemblerV1 {
    partials: Vec<PartialV1>,
}

#[derive(Deserialize)]
struct PartialV1 {
    id: u16,
    total: u16,
    /// Number and serial of the sub-package that came first; the others' serials followed from it.
    first: (u16, u16),
    seen_ms: u64,
    parts: Vec<(u16, Box<[u8]>)>,
}

impl From<AssemblerV1> for Assembler {
    fn from(old: AssemblerV1) -> Self {
        let partial = |PartialV1 { id, total, first: (first, serial), seen_ms, parts }| {
            let piece = |(index, body): (u16, Box<[u8]>)| {
                let serial = serial.wrapping_add(index).wrapping_sub(first);
                Piece { index, serial, body }
            };
            Partial { id, total, seen_ms, parts: parts.into_iter().map(piece).collect() }
        };
        Self { partials: old.partials.into_iter().map(partial).collect() }
    }
}

impl Assembler {
    /// Takes one sub-package; `dropped` hears of every message that is given up on the way.
    pub fn push(
        &mut self,
        header: &Header,
        part: Part,
        body: &[u8],
        now_ms: u64,
        mut dropped: impl FnMut(Dropped),
    ) -> Outcome {
        self.expire(now_ms, &mut dropped);
        // Of those that it goes with equally well, the latest.
        let fits = self.partials.iter().enumerate().filter_map(|(at, partial)| Some((partial.fit(header, part)?, at)));
        let found = fits.max().map(|(_, at)| at);
        let mut partial = found.map_or_else(|| Partial::new(header, part), |at| self.partials.remove(at));
        if part.total > PARTS_MAX {
            dropped(partial.dropped("more than 1024"));
            return Outcome::Refused;
        }
        partial.seen_ms = now_ms;
        partial.insert(part.index, header.serial, body);
        if partial.parts.len() == usize::from(part.total) {
            return Outcome::Whole(partial.parts.iter().flat_map(|piece| piece.body.iter().copied()).collect());
        }
        self.partials.push(partial);
        while self.partials.len() > MESSAGES_MAX || self.bytes() > BYTES_MAX {
            dropped(self.partials.remove(0).dropped("too much is unfinished"));
        }
        if self.partials.is_empty() { Outcome::Refused } else { Outcome::Kept }
    }

    /// Gives up what waits for too long.
    pub fn expire(&mut self, now_ms: u64, mut dropped: impl FnMut(Dropped)) {
        let old = |partial: &Partial| now_ms.saturating_sub(partial.seen_ms) > AGE_MAX_MS;
        while let Some(at) = self.partials.iter().position(old) {
            dropped(self.partials.remove(at).dropped("none came for 60 s"));
        }
    }

    /// Whether nothing is unfinished.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.partials.is_empty()
    }

    /// Bytes of bodies kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.partials.iter().flat_map(|partial| &partial.parts).map(|piece| piece.body.len()).sum()
    }

    /// Gives all up: the connection has ended.
    pub fn finish(self, mut dropped: impl FnMut(Dropped)) {
        for partial in self.partials {
            dropped(partial.dropped("the connection ended"));
        }
    }
}

impl Partial {
    fn new(header: &Header, part: Part) -> Self {
        Self { id: header.id, total: part.total, seen_ms: 0, parts: Vec::new() }
    }

    /// Serials count all frames of a terminal, so they have gaps where positions and heartbeats go out between the
    /// sub-packages of a message; and a sub-package that is sent once more may have a new one. None for what belongs to
    /// another message, however alike: two photographs must not be mixed. The first sub-package of one always begins it,
    /// unless its serial comes before the others'.
    fn fit(&self, header: &Header, part: Part) -> Option<Fit> {
        if self.id != header.id || self.total != part.total {
            return None;
        }
        let one_serial = self.parts.iter().all(|piece| piece.serial == header.serial);
        if let Some(present) = self.parts.iter().find(|piece| piece.index == part.index) {
            // The terminal missed the answer to it.
            return (present.serial == header.serial).then_some(Fit::Exact);
        }
        let mut fit = Fit::Exact;
        for piece in &self.parts {
            let (serials, indexes) = if part.index > piece.index {
                (header.serial.wrapping_sub(piece.serial), part.index - piece.index)
            } else {
                (piece.serial.wrapping_sub(header.serial), piece.index - part.index)
            };
            if serials != indexes {
                fit =
                    fit.min(if (indexes..=u16::MAX / 2).contains(&serials) { Fit::WithGaps } else { Fit::OutOfOrder });
            }
        }
        match fit {
            _ if one_serial => Some(Fit::Exact),
            Fit::OutOfOrder if part.index == 1 => None,
            Fit::OutOfOrder | Fit::WithGaps | Fit::Exact => Some(fit),
        }
    }

    fn insert(&mut self, index: u16, serial: u16, body: &[u8]) {
        let piece = Piece { index, serial, body: body.into() };
        match self.parts.binary_search_by_key(&index, |piece| piece.index) {
            Ok(at) => self.parts.iter_mut().skip(at).take(1).for_each(|old| old.body = body.into()),
            Err(at) => self.parts.insert(at, piece),
        }
    }

    fn dropped(self, reason: &'static str) -> Dropped {
        Dropped {
            id: self.id,
            serial: self.parts.first().map_or(0, |piece| piece.serial),
            total: self.total,
            found: self.parts.iter().map(|piece| piece.index).collect(),
            body: self.parts.iter().flat_map(|piece| piece.body.iter().copied()).collect(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::BODY_MAX;

    struct Bench {
        assembler: Assembler,
        dropped: Vec<String>,
    }

    impl Bench {
        fn new() -> Self {
            Self { assembler: Assembler::default(), dropped: Vec::new() }
        }

        fn push(&mut self, id: u16, serial: u16, (index, total): (u16, u16), body: &[u8], now_ms: u64) -> Outcome {
            let content = [id.to_be_bytes().as_slice(), &[0; 8], &serial.to_be_bytes()].concat();
            let (header, _) = Header::parse(&content).unwrap();
            let Self { assembler, dropped } = self;
            assembler.push(&header, Part { total, index }, body, now_ms, |message| dropped.push(message.to_string()))
        }
    }

    /// In any order, and with one sent twice, the body is the same.
    #[test]
    fn assembles() {
        let mut bench = Bench::new();
        assert_eq!(bench.push(0x801, 12, (3, 3), b"c", 0), Outcome::Kept);
        assert_eq!(bench.push(0x801, 10, (1, 3), b"a", 0), Outcome::Kept);
        assert_eq!(bench.push(0x801, 10, (1, 3), b"a", 0), Outcome::Kept);
        assert_eq!(bench.push(0x801, 11, (2, 3), b"b", 0), Outcome::Whole(b"abc".to_vec()));
        assert_eq!(bench.push(0x801, 13, (1, 1), b"z", 0), Outcome::Whole(b"z".to_vec()));
        assert_eq!(bench.assembler.bytes(), 0);
        assert!(bench.dropped.is_empty());
    }

    /// Serials that wrap around, and one serial for all.
    #[test]
    fn serials() {
        let mut bench = Bench::new();
        assert_eq!(bench.push(0x801, u16::MAX, (1, 2), b"a", 0), Outcome::Kept);
        assert_eq!(bench.push(0x801, 0, (2, 2), b"b", 0), Outcome::Whole(b"ab".to_vec()));
        assert_eq!(bench.push(0x801, 5, (1, 2), b"c", 0), Outcome::Kept);
        assert_eq!(bench.push(0x801, 5, (2, 2), b"d", 0), Outcome::Whole(b"cd".to_vec()));
    }

    /// Other messages between the sub-packages take serials of their own, and a sub-package may come again under a new one.
    #[test]
    fn serials_with_gaps() {
        let mut bench = Bench::new();
        assert_eq!(bench.push(0x104, 0x4d1, (1, 2), b"a", 0), Outcome::Kept);
        assert_eq!(bench.push(0x104, 0x4e2, (2, 2), b"b", 0), Outcome::Whole(b"ab".to_vec()));
        for (serial, index, body) in [(65_530, 1, b"a"), (65_534, 2, b"b"), (3, 4, b"d")] {
            assert_eq!(bench.push(0x801, serial, (index, 4), body, 0), Outcome::Kept);
        }
        assert_eq!(bench.push(0x801, 9, (3, 4), b"c", 0), Outcome::Whole(b"abcd".to_vec()));
    }

    /// A message that lost its end is not completed by the end of the next one, whatever lies between their serials.
    #[test]
    fn messages_do_not_mix() {
        let mut bench = Bench::new();
        for (serial, index, body) in [(10, 1, "old 1"), (12, 2, "old 2"), (20, 1, "new 1 "), (22, 2, "new 2 ")] {
            assert_eq!(bench.push(0x801, serial, (index, 3), body.as_bytes(), 0), Outcome::Kept);
        }
        assert_eq!(bench.push(0x801, 25, (3, 3), b"new 3", 0), Outcome::Whole(b"new 1 new 2 new 3".to_vec()));
        assert_eq!(bench.assembler.bytes(), 10);
    }

    /// A message waits 60 s for its next sub-package, and not a millisecond more.
    #[test]
    fn age() {
        let mut bench = Bench::new();
        bench.push(0x801, 1, (1, 3), b"a", 0);
        assert_eq!(bench.push(0x801, 2, (2, 3), b"b", AGE_MAX_MS), Outcome::Kept);
        assert_eq!(bench.push(0x801, 3, (3, 3), b"c", 2 * AGE_MAX_MS + 1), Outcome::Kept);
        assert_eq!(bench.dropped, ["message 0x0801 dropped with 2 of 3 sub-packages: none came for 60 s"]);
    }

    /// Of five unfinished messages the oldest goes.
    #[test]
    fn messages_max() {
        let mut bench = Bench::new();
        for id in 1..=5 {
            bench.push(id, 1, (1, 2), b"a", 0);
        }
        assert_eq!(bench.dropped, ["message 0x0001 dropped with 1 of 2 sub-packages: too much is unfinished"]);
        assert_eq!(bench.push(5, 2, (2, 2), b"b", 0), Outcome::Whole(b"ab".to_vec()));
    }

    /// Too many sub-packages are refused at once, too many bytes when they are there.
    #[test]
    fn parts_and_bytes_max() {
        let mut bench = Bench::new();
        assert_eq!(bench.push(0x801, 1, (1, PARTS_MAX + 1), b"a", 0), Outcome::Refused);
        let body = [0; BODY_MAX];
        for index in 1..=256 {
            assert_eq!(bench.push(0x801, index, (index, 1000), &body, 0), Outcome::Kept);
            assert!(bench.assembler.bytes() <= BYTES_MAX);
        }
        assert_eq!(bench.push(0x801, 257, (257, 1000), &body, 0), Outcome::Refused);
        assert_eq!(bench.assembler.bytes(), 0);
        assert_eq!(
            bench.dropped.last().unwrap(),
            "message 0x0801 dropped with 257 of 1000 sub-packages: too much is unfinished"
        );
    }
}
