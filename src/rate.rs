//! Token-bucket rate limiter (generic cell rate algorithm, GCRA: ITU-T I.371 annex A). Pure: `now` is an argument.
//!
//! A [`Rate`] is configured; a [`TokenBucket`] is the state of one limited entity. A bucket is a single instant, the
//! one at which it is full again (the "virtual scheduling" form of the GCRA): no timer refills it, and a million idle
//! buckets cost only their memory.

use std::fmt;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// An amount per time span, and the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    amount: NonZeroU64,
    per: Duration,
    burst: u64,
}

/// Burst of a smooth rate, as time.
const SMOOTH_BURST: Duration = Duration::from_millis(100);

impl Rate {
    /// `amount` in `per`, smoothly: the burst is a tenth of a second's amount, and at least 1.
    ///
    /// For callers that wait when the rate is exceeded. Waiting loses nothing, so the burst need only cover the
    /// resolution of the timers that wake them; over any second at most 1.1 times the rate passes.
    ///
    /// A zero span counts as one nanosecond.
    pub fn smooth(amount: NonZeroU64, per: Duration) -> Self {
        let per = per.max(Duration::from_nanos(1));
        let tenth = u128::from(amount.get()) * SMOOTH_BURST.as_nanos() / per.as_nanos();
        Self { amount, per, burst: u64::try_from(tenth).unwrap_or(u64::MAX).clamp(1, amount.get()) }
    }

    /// The same rate with the whole amount as burst.
    ///
    /// For callers that are refused when the rate is exceeded: clustered arrivals, such as the devices behind one
    /// address after a power cut, must not be refused while their number is within the amount. Over any span of the
    /// rate, at most twice the amount passes.
    #[must_use]
    pub fn with_full_burst(self) -> Self {
        Self { burst: self.amount.get(), ..self }
    }

    /// The amount per [`per`](Self::per).
    pub fn amount(&self) -> u64 {
        self.amount.get()
    }

    /// The span of [`amount`](Self::amount).
    pub fn per(&self) -> Duration {
        self.per
    }

    /// The burst, `1..=amount`.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// The time for `amount` at this rate, rounded up to a nanosecond, so that rounding never exceeds the rate.
    fn span_of(&self, amount: u64) -> Duration {
        let nanos = u128::from(amount).saturating_mul(self.per.as_nanos()).div_ceil(u128::from(self.amount.get()));
        // Saturates at 584 years.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 => write!(f, "{}/s", self.amount),
            60 => write!(f, "{}/m", self.amount),
            3600 => write!(f, "{}/h", self.amount),
            _ => write!(f, "{} in {:?}", self.amount, self.per),
        }
    }
}

/// State of one limited entity. The [`Rate`] is an argument of each call, because many buckets share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    full_at: Instant,
}

impl TokenBucket {
    pub(crate) fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// The instant at which 1 may pass; not after `now` if it may pass now.
    pub(crate) fn ready_at(&self, rate: &Rate) -> Instant {
        // The time to refill the rest of the burst need not be waited for.
        let spare = rate.span_of(rate.burst).saturating_sub(rate.span_of(1));
        self.full_at.checked_sub(spare).unwrap_or(self.full_at)
    }

    /// Takes `amount` if at least 1 may pass, even if it exceeds the tokens left: the excess is a debt, and nothing
    /// passes until it is paid.
    ///
    /// # Errors
    ///
    /// The instant at which 1 may pass; nothing was taken.
    pub(crate) fn take(&mut self, rate: &Rate, now: Instant, amount: u64) -> Result<(), Instant> {
        match self.ready_at(rate) {
            ready if ready > now => Err(ready),
            _ => {
                self.charge(rate, now, amount);
                Ok(())
            }
        }
    }

    /// Takes `amount` unconditionally: for amounts that are known only afterwards.
    pub(crate) fn charge(&mut self, rate: &Rate, now: Instant, amount: u64) {
        let full_at = self.full_at.max(now);
        self.full_at = full_at.checked_add(rate.span_of(amount)).unwrap_or(full_at);
    }

    /// Returns `amount` taken or charged before; the bucket never exceeds full.
    pub(crate) fn give_back(&mut self, rate: &Rate, amount: u64) {
        self.full_at = self.full_at.checked_sub(rate.span_of(amount)).unwrap_or(self.full_at);
    }

    /// Caps the debt at `debt_max` below empty. Needed where the rate has changed (with `debt_max` 0: a debt made under another
    /// rate would be paid back in that rate's spans, which may be much longer), and where a debt must end in a bounded time.
    pub(crate) fn cap_debt(&mut self, rate: &Rate, now: Instant, debt_max: u64) {
        let lowest = rate.span_of(rate.burst).saturating_add(rate.span_of(debt_max));
        if let Some(lowest) = now.checked_add(lowest) {
            self.full_at = self.full_at.min(lowest);
        }
    }

    /// Whether more was charged than the burst holds.
    pub(crate) fn is_in_debt(&self, rate: &Rate, now: Instant) -> bool {
        now.checked_add(rate.span_of(rate.burst)).is_some_and(|empty| self.full_at > empty)
    }

    /// Whether it is full, and so equal to a new one.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn amount(amount: u64) -> NonZeroU64 {
        NonZeroU64::new(amount).unwrap()
    }

    fn smooth(number: u64) -> Rate {
        Rate::smooth(amount(number), SECOND)
    }

    /// Of thirty arrivals within a second at 5/s, one passes at once and one every 200 ms.
    #[test]
    fn a_small_rate_is_kept_within_the_first_second() {
        let (start, rate) = (Instant::now(), smooth(5));
        let mut bucket = TokenBucket::full(start);
        let passed = |bucket: &mut TokenBucket, ms| bucket.take(&rate, start + Duration::from_millis(ms), 1).is_ok();
        assert_eq!((0..=1000).step_by(34).filter(|ms| passed(&mut bucket, *ms)).count(), 5);

        let mut bucket = TokenBucket::full(start);
        assert!(passed(&mut bucket, 0) && !passed(&mut bucket, 0));
        assert_eq!(bucket.take(&rate, start, 1), Err(start + SECOND / 5));
        assert!(!passed(&mut bucket, 199) && passed(&mut bucket, 200));
    }

    /// With a full burst, the whole amount may pass at once.
    #[test]
    fn the_amount_may_pass_at_once() {
        let (start, rate) = (Instant::now(), Rate::smooth(amount(10), 60 * SECOND).with_full_burst());
        let mut bucket = TokenBucket::full(start);
        assert_eq!((0..30).filter(|_| bucket.take(&rate, start, 1).is_ok()).count(), 10);
        assert_eq!(bucket.take(&rate, start, 1), Err(start + 6 * SECOND));
        assert!(!bucket.is_full(start + 59 * SECOND) && bucket.is_full(start + 60 * SECOND));
    }

    /// A debt is paid before anything passes again.
    #[test]
    fn a_debt_is_paid() {
        let (start, rate) = (Instant::now(), smooth(1000));
        assert_eq!(rate.burst(), 100);
        let mut bucket = TokenBucket::full(start);
        assert_eq!(bucket.take(&rate, start, 5000), Ok(()));
        // 4,900 of debt, and the 1 requested.
        assert_eq!(bucket.take(&rate, start, 1), Err(start + Duration::from_millis(4901)));
        assert_eq!(bucket.take(&rate, start + Duration::from_millis(4901), 1), Ok(()));
    }

    /// A debt under a slower rate does not outlive it.
    #[test]
    fn a_debt_is_capped() {
        let (start, hourly) = (Instant::now(), Rate::smooth(amount(1), 3600 * SECOND));
        let mut bucket = TokenBucket::full(start);
        bucket.take(&hourly, start, 1).unwrap();
        bucket.cap_debt(&hourly, start, 0);
        assert_eq!(bucket.ready_at(&hourly), start + 3600 * SECOND, "a debt under the same rate is kept");
        bucket.cap_debt(&smooth(5), start, 0);
        assert_eq!(bucket.ready_at(&smooth(5)), start + SECOND / 5);
    }

    /// The largest debts saturate without a panic.
    #[test]
    fn debts_saturate() {
        let (now, rate) = (Instant::now(), Rate::smooth(amount(1), Duration::MAX));
        let mut bucket = TokenBucket::full(now);
        for _ in 0..10 {
            bucket.charge(&rate, now, u64::MAX);
        }
        assert!(bucket.ready_at(&rate) > now + Duration::from_secs(400 * 365 * 24 * 3600));
        assert_eq!(Rate::smooth(amount(u64::MAX), Duration::ZERO).burst(), u64::MAX);
    }

    /// Every connection has buckets.
    #[test]
    fn a_bucket_is_small() {
        assert!(size_of::<TokenBucket>() <= 16);
    }

    fn rates() -> impl Strategy<Value = Rate> {
        let span = prop_oneof![Just(SECOND), Just(60 * SECOND), Just(3600 * SECOND)];
        (1u64..100_000, span, any::<bool>()).prop_map(|(number, per, with_full_burst)| match with_full_burst {
            true => Rate::smooth(amount(number), per).with_full_burst(),
            false => Rate::smooth(amount(number), per),
        })
    }

    proptest! {
        /// Over any span between two takes, the passed amount is at most the rate's, plus the burst and the last take.
        #[test]
        fn the_rate_is_never_exceeded(
            rate in rates(),
            takes in prop::collection::vec((0u64..2_000_000_000, 1u64..1000), 1..60),
        ) {
            let mut now = Instant::now();
            let mut bucket = TokenBucket::full(now);
            let mut passed: Vec<(Instant, u64)> = Vec::new();
            for (wait, amount) in takes {
                now += Duration::from_nanos(wait);
                if bucket.take(&rate, now, amount).is_ok() {
                    passed.push((now, amount));
                }
            }
            for (first, (begin, _)) in passed.iter().enumerate() {
                for (last, (end, _)) in passed.iter().enumerate().skip(first) {
                    let sum: u64 = passed[first..last].iter().map(|(_, amount)| amount).sum();
                    let span = end.duration_since(*begin).as_nanos();
                    let allowed = span * u128::from(rate.amount()) / rate.per().as_nanos() + u128::from(rate.burst());
                    prop_assert!(u128::from(sum) <= allowed, "{sum} in {span} ns, not {allowed}");
                }
            }
        }

        /// A caller that returns at the announced instants gets the whole rate, for any sizes of takes.
        #[test]
        fn waiting_callers_get_the_whole_rate(rate in rates(), amounts in prop::collection::vec(1u64..1000, 1..60)) {
            let start = Instant::now();
            let mut bucket = TokenBucket::full(start);
            let (mut now, mut taken) = (start, 0);
            for amount in &amounts {
                if let Err(ready) = bucket.take(&rate, now, *amount) {
                    prop_assert!(ready > now);
                    now = ready;
                    prop_assert_eq!(bucket.take(&rate, now, *amount), Ok(()));
                }
                taken += amount;
            }
            now = now.max(bucket.ready_at(&rate));
            // The instant at which the last take would have passed, and a nanosecond of rounding for each take.
            let fair = start + rate.span_of(taken) + Duration::from_nanos(amounts.len() as u64 + 2);
            prop_assert!(now <= fair, "{:?} late", now - fair);
        }
    }
}
