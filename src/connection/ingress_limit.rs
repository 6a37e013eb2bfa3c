//! Ingress rate limit of one device, in bytes and in packets (token buckets). Pure: `now` is an argument.

use std::time::Instant;

use crate::rate::{Rate, TokenBucket};

/// Ingress rates of a device. A packet is a datagram, or one read of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub bytes: Option<Rate>,
    pub packets: Option<Rate>,
}

/// The rate that a device exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    Bytes,
    Packets,
}

impl Exceeded {
    /// Reason in metrics: the configuration key.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes_rate",
            Self::Packets => "packets_rate",
        }
    }
}

#[derive(Debug)]
pub(super) struct IngressLimiter {
    bytes: TokenBucket,
    packets: TokenBucket,
}

impl IngressLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: TokenBucket::full(now), packets: TokenBucket::full(now) }
    }

    /// The rate that is exceeded now, and until when; of two, the one that lasts longer.
    pub(super) fn exceeded(&self, rates: &Rates, now: Instant) -> Option<(Instant, Exceeded)> {
        let ready = |rate: &Option<Rate>, bucket: &TokenBucket| rate.as_ref().map(|rate| bucket.ready_at(rate));
        let bytes = ready(&rates.bytes, &self.bytes).map(|ready| (ready, Exceeded::Bytes));
        let packets = ready(&rates.packets, &self.packets).map(|ready| (ready, Exceeded::Packets));
        bytes.into_iter().chain(packets).max_by_key(|(ready, _)| *ready).filter(|(ready, _)| *ready > now)
    }

    /// Charges one packet of `bytes` bytes.
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
    /// Maximum size of one read, up to `most`: little more than the burst of the byte rate, so that a slow rate does
    /// not cause a long pause after a large read. At least 1 KiB, which is more than a frame of most devices.
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

    /// Of two exceeded rates, the one that lasts longer decides, and is the reported one.
    #[test]
    fn the_stricter_rate_decides() {
        let (start, rates) = (Instant::now(), Rates { bytes: Some(rate(1000)), packets: Some(rate(10)) });
        let mut limiter = IngressLimiter::new(start);
        assert_eq!(limiter.exceeded(&rates, start), None);
        limiter.charge(&rates, start, 10);
        assert_eq!(limiter.exceeded(&rates, start), Some((start + SECOND / 10, Exceeded::Packets)));
        assert_eq!(limiter.exceeded(&rates, start + SECOND / 10), None);
        limiter.charge(&rates, start + SECOND / 10, 1100);
        assert_eq!(
            limiter.exceeded(&rates, start + SECOND / 10),
            Some((start + Duration::from_millis(1101), Exceeded::Bytes))
        );
        assert_eq!(limiter.exceeded(&Rates::default(), start), None);
    }

    /// The size of a read follows the burst, within bounds.
    #[test]
    fn read_sizes_have_bounds() {
        for (bytes, read_size) in [(1, 1024), (100_000, 10_000), (1 << 30, 65_536)] {
            assert_eq!(Rates { bytes: Some(rate(bytes)), packets: None }.read_size(65_536), read_size);
        }
        assert_eq!(Rates::default().read_size(65_536), 65_536);
    }
}
