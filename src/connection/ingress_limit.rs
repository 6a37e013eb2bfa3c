//! How fast one device may send. Pure: `now` is an argument.

use std::time::Instant;

use crate::rate::{Rate, TokenBucket};

/// What a device is held to, by the bytes and by the packets that it sends. A packet is a datagram, or a piece that a stream
/// is read in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Packets.
    pub packets: Option<Rate>,
}

/// Which of the two a device is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    Bytes,
    Packets,
}

impl Exceeded {
    /// Its name in metrics, which is that of the key.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes_rate",
            Self::Packets => "packets_rate",
        }
    }
}

/// What one device has left.
#[derive(Debug)]
pub(super) struct IngressLimiter {
    bytes: TokenBucket,
    packets: TokenBucket,
}

impl IngressLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: TokenBucket::full(now), packets: TokenBucket::full(now) }
    }

    /// Whether the device may not send now; then until when, and over what it is.
    pub(super) fn exceeded(&self, rates: &Rates, now: Instant) -> Option<(Instant, Exceeded)> {
        let ready = |rate: &Option<Rate>, bucket: &TokenBucket| rate.as_ref().map(|rate| bucket.ready_at(rate));
        let bytes = ready(&rates.bytes, &self.bytes).map(|ready| (ready, Exceeded::Bytes));
        let packets = ready(&rates.packets, &self.packets).map(|ready| (ready, Exceeded::Packets));
        bytes.into_iter().chain(packets).max_by_key(|(ready, _)| *ready).filter(|(ready, _)| *ready > now)
    }

    /// One packet of so many bytes has come.
    pub(super) fn charge(&mut self, rates: &Rates, now: Instant, bytes: usize) {
        if let Some(rate) = &rates.bytes {
            self.bytes.charge(rate, now, bytes as u64);
        }
        if let Some(rate) = &rates.packets {
            self.packets.charge(rate, now, 1);
        }
    }
}

impl Rates {
    /// The largest piece to read of a stream, up to `most`: one that takes little more than may pass at once, so that a slow
    /// rate is not a long silence after a large read. A KiB in any case, which is more than a frame of most devices.
    pub(super) fn read_size(&self, most: usize) -> usize {
        const LEAST: usize = 1024;
        let burst = self.bytes.map_or(usize::MAX, |rate| usize::try_from(rate.burst()).unwrap_or(usize::MAX));
        burst.max(LEAST).min(most)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(amount: u64) -> Rate {
        Rate::smooth(NonZeroU64::new(amount).unwrap(), SECOND)
    }

    /// The one of the two that lasts longer decides, and is told.
    #[test]
    fn the_stricter_rate_decides() {
        let (start, rates) = (Instant::now(), Rates { bytes: Some(rate(1000)), packets: Some(rate(10)) });
        let mut meter = IngressLimiter::new(start);
        assert_eq!(meter.exceeded(&rates, start), None);
        meter.charge(&rates, start, 10);
        assert_eq!(meter.exceeded(&rates, start), Some((start + SECOND / 10, Exceeded::Packets)));
        assert_eq!(meter.exceeded(&rates, start + SECOND / 10), None);
        meter.charge(&rates, start + SECOND / 10, 1100);
        assert_eq!(
            meter.exceeded(&rates, start + SECOND / 10),
            Some((start + Duration::from_millis(1101), Exceeded::Bytes))
        );
        assert_eq!(meter.exceeded(&Rates::default(), start), None);
    }

    /// A read takes what may pass at once, within bounds.
    #[test]
    fn pieces_have_bounds() {
        for (bytes, read_size) in [(1, 1024), (100_000, 10_000), (1 << 30, 65_536)] {
            assert_eq!(Rates { bytes: Some(rate(bytes)), packets: None }.read_size(65_536), read_size);
        }
        assert_eq!(Rates::default().read_size(65_536), 65_536);
    }
}
