//! How much may pass in which time. Pure: `now` is an argument.
//!
//! A [`Rate`] is what the operator wrote; a [`TokenBucket`] is how much of it one user has left. A bucket is a single
//! instant, the one at which it is full again (the "virtual scheduling" form of the generic cell rate algorithm, ITU-T
//! I.371 annex A): no timer fills it, and a million buckets that nobody uses cost their memory and nothing else.

use std::fmt;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// An amount in a time, and how much of it may pass at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    amount: NonZeroU64,
    per: Duration,
    burst: u64,
}

/// A tenth of a second: what may pass at once where who is over the rate waits.
const SMOOTH_BURST: Duration = Duration::from_millis(100);

impl Rate {
    /// `amount` in `per`, evenly: at once passes what a tenth of a second lets pass, and at least 1.
    ///
    /// For a user who waits when he is over it. He loses nothing by waiting, so the burst need only be as large as the timers
    /// that wake him are coarse; over any second at most 1.1 times the rate passes.
    ///
    /// A span of no length counts as a nanosecond.
    pub fn smooth(amount: NonZeroU64, per: Duration) -> Self {
        let per = per.max(Duration::from_nanos(1));
        let tenth = u128::from(amount.get()) * SMOOTH_BURST.as_nanos() / per.as_nanos();
        Self { amount, per, burst: u64::try_from(tenth).unwrap_or(u64::MAX).clamp(1, amount.get()) }
    }

    /// The same, all of it at once if need be.
    ///
    /// For a user who is refused when he is over it: what comes in clusters, such as the devices behind one address after a
    /// power cut, must not be refused as long as its number is the one that was allowed. Over any span of the rate, at most
    /// twice the amount passes.
    #[must_use]
    pub fn with_full_burst(self) -> Self {
        Self { burst: self.amount.get(), ..self }
    }

    /// What may pass in [`per`](Self::per).
    pub fn amount(&self) -> u64 {
        self.amount.get()
    }

    /// The span that [`amount`](Self::amount) is for.
    pub fn per(&self) -> Duration {
        self.per
    }

    /// What may pass at once, `1..=amount`.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// The time in which this much passes, rounded up to a nanosecond, so that rounding lets nothing more pass.
    fn span_of(&self, amount: u64) -> Duration {
        let nanos = u128::from(amount).saturating_mul(self.per.as_nanos()).div_ceil(u128::from(self.amount.get()));
        // 584 years are as good as any longer debt.
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

/// What one user has left of a [`Rate`], which is an argument of each call: it is the same for all of a listener's users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// When at least 1 may pass; not after `now` when it may at once.
    pub(crate) fn ready_at(&self, rate: &Rate) -> Instant {
        // The time in which the rest of the burst fills is not waited for.
        let spare = rate.span_of(rate.burst).saturating_sub(rate.span_of(1));
        self.full_at.checked_sub(spare).unwrap_or(self.full_at)
    }

    /// Takes `amount` if at least 1 may pass, also when it is more than there is: the rest is a debt, after which nothing
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

    /// Takes `amount`, whatever there is: for what was not known before it had passed.
    pub(crate) fn charge(&mut self, rate: &Rate, now: Instant, amount: u64) {
        let full_at = self.full_at.max(now);
        self.full_at = full_at.checked_add(rate.span_of(amount)).unwrap_or(full_at);
    }

    /// Gives back `amount` that was taken or charged before; it is never more than full.
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

    /// Whether it is as good as a new one.
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

    /// Thirty who come within a second at 5/s: six get in, one at once and one every 200 ms.
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

    /// Where who is over the rate is refused, the whole number may come at once.
    #[test]
    fn the_number_may_come_at_once() {
        let (start, rate) = (Instant::now(), Rate::smooth(amount(10), 60 * SECOND).with_full_burst());
        let mut bucket = TokenBucket::full(start);
        assert_eq!((0..30).filter(|_| bucket.take(&rate, start, 1).is_ok()).count(), 10);
        assert_eq!(bucket.take(&rate, start, 1), Err(start + 6 * SECOND));
        assert!(!bucket.is_full(start + 59 * SECOND) && bucket.is_full(start + 60 * SECOND));
    }

    /// What goes over is paid back before anything passes again.
    #[test]
    fn a_debt_is_paid() {
        let (start, rate) = (Instant::now(), smooth(1000));
        assert_eq!(rate.burst(), 100);
        let mut bucket = TokenBucket::full(start);
        assert_eq!(bucket.take(&rate, start, 5000), Ok(()));
        // 4,900 of debt, and the 1 that is asked for.
        assert_eq!(bucket.take(&rate, start, 1), Err(start + Duration::from_millis(4901)));
        assert_eq!(bucket.take(&rate, start + Duration::from_millis(4901), 1), Ok(()));
    }

    /// What a slower rate has left does not outlive it.
    #[test]
    fn a_debt_is_forgiven() {
        let (start, hourly) = (Instant::now(), Rate::smooth(amount(1), 3600 * SECOND));
        let mut bucket = TokenBucket::full(start);
        bucket.take(&hourly, start, 1).unwrap();
        bucket.cap_debt(&hourly, start, 0);
        assert_eq!(bucket.ready_at(&hourly), start + 3600 * SECOND, "what was taken at the same rate stays taken");
        bucket.cap_debt(&smooth(5), start, 0);
        assert_eq!(bucket.ready_at(&smooth(5)), start + SECOND / 5);
    }

    /// The largest debts end at the largest instants, without a panic.
    #[test]
    fn debts_end_somewhere() {
        let (now, rate) = (Instant::now(), Rate::smooth(amount(1), Duration::MAX));
        let mut bucket = TokenBucket::full(now);
        for _ in 0..10 {
            bucket.charge(&rate, now, u64::MAX);
        }
        assert!(bucket.ready_at(&rate) > now + Duration::from_secs(400 * 365 * 24 * 3600));
        assert_eq!(Rate::smooth(amount(u64::MAX), Duration::ZERO).burst(), u64::MAX);
    }

    /// One lives in every connection.
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
        /// Over any span between two reads, what passed is at most what the rate allows in it, the burst and the last read.
        #[test]
        fn no_more_passes_than_was_said(
            rate in rates(),
            asked in prop::collection::vec((0u64..2_000_000_000, 1u64..1000), 1..60),
        ) {
            let mut now = Instant::now();
            let mut bucket = TokenBucket::full(now);
            let mut passed: Vec<(Instant, u64)> = Vec::new();
            for (wait, amount) in asked {
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

        /// Who comes back when he was told to gets the whole rate, however much he takes each time.
        #[test]
        fn a_patient_user_gets_all_of_it(rate in rates(), amounts in prop::collection::vec(1u64..1000, 1..60)) {
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
            // One at which the last would have had to pass, and a nanosecond of rounding for each time.
            let fair = start + rate.span_of(taken) + Duration::from_nanos(amounts.len() as u64 + 2);
            prop_assert!(now <= fair, "{:?} late", now - fair);
        }
    }
}
