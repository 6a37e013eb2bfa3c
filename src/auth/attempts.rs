//! Allowance of password attempts for each source address; pure, `now` is an argument.
//!
//! An attempt is charged when it begins and refunded when it succeeds, so attempts that run at the same time count too.
//! A source that has used up its allowance is not locked out, because a whole fleet may share one address: its attempts
//! are verified only while a place is free, and never wait.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Attempts of one source that may be open or have failed before it has to stand back.
const ALLOWANCE: u32 = 20;

/// Interval after which one failure is forgotten.
const FORGIVEN_EVERY: Duration = Duration::from_secs(3);

/// Maximum number of sources with open or failed attempts; further sources share one allowance.
const SOURCES_MAX: usize = 65_536;

/// An IPv4 address, or an IPv6 /64, which one subscriber has as a whole. `None`: unknown, or beyond [`SOURCES_MAX`].
pub(super) type Source = Option<IpAddr>;

#[derive(Debug, Default)]
pub(super) struct Attempts(HashMap<Source, Charged>);

#[derive(Clone, Copy, Debug)]
struct Charged {
    attempts: u32,
    /// The time up to which failures have been forgotten.
    since: Instant,
}

impl Charged {
    fn forgive(&mut self, now: Instant) {
        let periods = now.saturating_duration_since(self.since).as_nanos() / FORGIVEN_EVERY.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.attempts = self.attempts.saturating_sub(periods);
        self.since = if self.attempts == 0 { now } else { self.since + FORGIVEN_EVERY * periods };
    }
}

/// A charged attempt, to be refunded when it succeeds.
#[derive(Debug)]
pub(super) struct Attempt {
    source: Source,
    /// Whether the attempt is within the allowance of its source.
    pub(super) is_allowed: bool,
}

impl Attempts {
    /// Charges an attempt to its source.
    pub(super) fn begin(&mut self, address: Option<IpAddr>, now: Instant) -> Attempt {
        let mut source = address.map(subscriber);
        if self.0.len() >= SOURCES_MAX && !self.0.contains_key(&source) {
            self.0.retain(|_, charged| {
                charged.forgive(now);
                charged.attempts > 0
            });
            if self.0.len() >= SOURCES_MAX {
                source = None;
            }
        }
        let charged = self.0.entry(source).or_insert(Charged { attempts: 0, since: now });
        charged.forgive(now);
        let is_allowed = charged.attempts < ALLOWANCE;
        // An attempt beyond the allowance adds nothing, so a flood does not prolong its own effect without end.
        charged.attempts += u32::from(is_allowed);
        Attempt { source, is_allowed }
    }

    /// Takes back the charge of an attempt that succeeded, or was not made.
    pub(super) fn refund(&mut self, attempt: &Attempt) {
        if !attempt.is_allowed {
            return;
        }
        if let Some(charged) = self.0.get_mut(&attempt.source) {
            charged.attempts = charged.attempts.saturating_sub(1);
            if charged.attempts == 0 {
                self.0.remove(&attempt.source);
            }
        }
    }
}

fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn allowed(attempts: &mut Attempts, from: Option<IpAddr>, now: Instant) -> u32 {
        (0..100).map(|_| u32::from(attempts.begin(from, now).is_allowed)).sum()
    }

    #[test]
    fn failures_use_up_the_allowance_of_their_source_alone() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for from in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(allowed(&mut attempts, address(from), now), ALLOWANCE);
        }
        for (from, expected) in
            [("192.0.2.2", ALLOWANCE), ("::ffff:192.0.2.1", 0), ("2001:db8::ffff", 0), ("2001:db8:0:1::1", ALLOWANCE)]
        {
            assert_eq!(allowed(&mut attempts, address(from), now), expected, "{from}");
        }
    }

    #[test]
    fn failures_are_forgotten_in_time() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let from = address("192.0.2.1");
        assert_eq!(allowed(&mut attempts, from, now), ALLOWANCE);
        assert_eq!(allowed(&mut attempts, from, now + FORGIVEN_EVERY * 5), 5);
        assert_eq!(allowed(&mut attempts, from, now + FORGIVEN_EVERY * 1000), ALLOWANCE);
    }

    /// Any number of sources takes a bounded amount of memory, and those beyond the bound are not free of limits.
    #[test]
    fn sources_are_bounded() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let allowed = (0..SOURCES_MAX as u32 + 1000)
            .filter(|number| attempts.begin(Some(std::net::Ipv4Addr::from_bits(*number).into()), now).is_allowed)
            .count();
        assert_eq!(allowed, SOURCES_MAX + ALLOWANCE as usize);
        assert!(attempts.0.len() <= SOURCES_MAX + 1);
    }

    proptest! {
        /// Successes cost nothing, however many there are and whatever failed before them.
        #[test]
        fn successes_are_free(failures in 0..ALLOWANCE, successes in 0..200_u32) {
            let (mut attempts, now) = (Attempts::default(), Instant::now());
            let from = address("192.0.2.1");
            for _ in 0..failures {
                attempts.begin(from, now);
            }
            for _ in 0..successes {
                let attempt = attempts.begin(from, now);
                prop_assert!(attempt.is_allowed);
                attempts.refund(&attempt);
            }
            prop_assert_eq!(allowed(&mut attempts, from, now), ALLOWANCE - failures);
        }
    }
}
