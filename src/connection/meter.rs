//! How fast one device may send. Pure: `now` is an argument.

use std::time::Instant;

use crate::rate::{Bucket, Rate};

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
pub(super) enum Over {
    Bytes,
    Packets,
}

impl Over {
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
pub(super) struct Meter {
    bytes: Bucket,
    packets: Bucket,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: Bucket::full(now), packets: Bucket::full(now) }
    }

    /// Whether the device may not send now; then until when, and over what it is.
    pub(super) fn over(&self, rates: &Rates, now: Instant) -> Option<(Instant, Over)> {
        let ready = |rate: &Option<Rate>, bucket: &Bucket| rate.as_ref().map(|rate| bucket.ready_at(rate));
        let bytes = ready(&rates.bytes, &self.bytes).map(|ready| (ready, Over::Bytes));
        let packets = ready(&rates.packets, &self.packets).map(|ready| (ready, Over::Packets));
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
    pub(super) fn piece(&self, most: usize) -> usize {
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
        Rate::evenly(NonZeroU64::new(amount).unwrap(), SECOND)
    }

    /// The one of the two that lasts longer decides, and is told.
    #[test]
    fn the_stricter_rate_decides() {
        let (start, rates) = (Instant::now(), Rates { bytes: Some(rate(1000)), packets: Some(rate(10)) });
        let mut meter = Meter::new(start);
        assert_eq!(meter.over(&rates, start), None);
        meter.charge(&rates, start, 10);
        assert_eq!(meter.over(&rates, start), Some((start + SECOND / 10, Over::Packets)));
        assert_eq!(meter.over(&rates, start + SECOND / 10), None);
        meter.charge(&rates, start + SECOND / 10, 1100);
        assert_eq!(meter.over(&rates, start + SECOND / 10), Some((start + Duration::from_millis(1101), Over::Bytes)));
        assert_eq!(meter.over(&Rates::default(), start), None);
    }

    /// A read takes what may pass at once, within bounds.
    #[test]
    fn pieces_have_bounds() {
        for (bytes, piece) in [(1, 1024), (100_000, 10_000), (1 << 30, 65_536)] {
            assert_eq!(Rates { bytes: Some(rate(bytes)), packets: None }.piece(65_536), piece);
        }
        assert_eq!(Rates::default().piece(65_536), 65_536);
    }
}
