//! Fragmentation of the device's bytes into events. Pure.

use std::fmt;

use super::frame_lengths;
use crate::conversation::Conversation;

/// Fragmentation of one play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragmentation {
    /// Each `>` line is one event.
    AsRecorded,
    /// Each longer `>` line is two events, the first with this many bytes.
    After(usize),
    /// Each byte is an event.
    EveryByte,
    /// Consecutive `>` lines are one event.
    Joined,
    /// As recorded, but the device disconnects after this many bytes in total. Nothing is compared then.
    Vanishing(usize),
}

impl fmt::Display for Fragmentation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AsRecorded => f.write_str("as recorded"),
            Self::After(1) => f.write_str("with each \">\" line cut after its first byte"),
            Self::After(bytes) => write!(f, "with each \">\" line cut after byte {bytes}"),
            Self::EveryByte => f.write_str("byte by byte"),
            Self::Joined => f.write_str("with \">\" lines that follow one another joined"),
            Self::Vanishing(bytes) => write!(f, "with a device that is gone after {bytes} bytes"),
        }
    }
}

impl Fragmentation {
    /// The events of one `>` line.
    pub(super) fn chunks(self, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let first = match self {
            Self::After(bytes) => bytes.min(len),
            Self::EveryByte => 1,
            Self::AsRecorded | Self::Joined | Self::Vanishing(_) => len,
        };
        let next = if self == Self::EveryByte { 1 } else { len };
        let mut from = 0_usize;
        std::iter::from_fn(move || {
            let size = if from == 0 { first } else { next };
            let chunk = from..from.saturating_add(size).min(len);
            from = chunk.end;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

/// Constructor of a kind of cuts, from the index of a position.
type Kind = fn(usize) -> Fragmentation;

/// Kinds of cuts that a conversation allows, besides the recorded ones, and the number of positions of each.
pub(super) fn kinds(conversation: &Conversation) -> Vec<(Kind, usize)> {
    if conversation.transport().has_datagrams() {
        return Vec::new();
    }
    let longest = frame_lengths(conversation).max().unwrap_or(0);
    let total: usize = frame_lengths(conversation).sum();
    let after: Kind = |index| Fragmentation::After(index + 1);
    let every_byte: Kind = |_| Fragmentation::EveryByte;
    let joined: Kind = |_| Fragmentation::Joined;
    vec![
        (after, longest.saturating_sub(1)),
        (every_byte, usize::from(longest > 2)),
        (joined, usize::from(frame_lengths(conversation).count() > 1)),
        // After all bytes the device disconnects, as recorded; or the close has another cause, which is not the
        // device's.
        (Fragmentation::Vanishing, total),
    ]
}

/// At most `max` of the positions `0..places`, evenly spread, the first and the last included.
pub(super) fn spread(places: usize, max: usize) -> impl Iterator<Item = usize> {
    let count = places.min(max);
    let last = places.saturating_sub(1);
    // The product of two lengths in a file of at most 16 MiB does not overflow.
    (0..count).map(move |index| if count < 2 { index } else { index * last / (count - 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_a_line() {
        let chunks = |fragmentation: Fragmentation, len| {
            fragmentation.chunks(len).map(|chunk| (chunk.start, chunk.end)).collect::<Vec<_>>()
        };
        assert_eq!(chunks(Fragmentation::AsRecorded, 3), [(0, 3)]);
        assert_eq!(chunks(Fragmentation::After(1), 3), [(0, 1), (1, 3)]);
        assert_eq!(chunks(Fragmentation::After(2), 3), [(0, 2), (2, 3)]);
        assert_eq!(chunks(Fragmentation::After(3), 3), [(0, 3)]);
        assert_eq!(chunks(Fragmentation::After(9), 3), [(0, 3)]);
        assert_eq!(chunks(Fragmentation::EveryByte, 3), [(0, 1), (1, 2), (2, 3)]);
    }

    /// Every inner byte is a position to cut at; a datagram has none.
    #[test]
    fn the_places_of_a_conversation() {
        let places = |text: &str| {
            let conversation = Conversation::parse("a", text).unwrap();
            kinds(&conversation).into_iter().map(|(kind, places)| (kind(0), places)).collect::<Vec<_>>()
        };
        let (after, every, joined) = (Fragmentation::After(1), Fragmentation::EveryByte, Fragmentation::Joined);
        let vanishing = Fragmentation::Vanishing(0);
        assert_eq!(places("> \"abc\"\n< \"x\"\n> \"de\"\n"), [(after, 2), (every, 1), (joined, 1), (vanishing, 5)]);
        assert_eq!(places("> \"a\"\n"), [(after, 0), (every, 0), (joined, 0), (vanishing, 1)]);
        assert_eq!(places("transport udp\n> \"abc\"\n"), []);
    }

    #[test]
    fn fewer_places_are_spread() {
        let spread = |places, max| spread(places, max).collect::<Vec<_>>();
        assert_eq!(spread(4, 9), [0, 1, 2, 3]);
        assert_eq!(spread(9, 3), [0, 4, 8]);
        assert_eq!(spread(9, 1), [0]);
        assert!(spread(0, 9).is_empty());
    }
}
