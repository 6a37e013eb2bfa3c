//! Circuit breaker of one handler: opens after consecutive failures, probes with exponential backoff, closes on
//! success. Pure: no clock, `now` is an argument.

use std::time::{Duration, Instant};

/// Consecutive failures that open the breaker.
pub(crate) const FAILURES_TO_OPEN: u32 = 5;

/// Pause before the first probe; each further pause is twice as long.
const PROBE_FIRST: Duration = Duration::from_secs(1);

/// Longest pause between probes: a recovered handler is found within this time.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// Circuit breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    failures: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The handler gets new connections. `last_pause`: the next opening doubles it.
    Closed { last_pause: Option<Duration> },
    /// The handler gets no new connections until a probe succeeds.
    Open { probe_at: Instant, pause: Duration },
}

/// Effect of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// The breaker opened: the handler gets no new connections.
    Tripped,
    /// The breaker closed: the handler gets new connections again.
    Recovered,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 0, state: State::Closed { last_pause: None } }
    }
}

impl Breaker {
    /// Whether new connections must use another handler.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// An event was handled.
    pub(crate) fn handle_success(&mut self) -> Change {
        self.failures = 0;
        let was_open = self.is_open();
        self.state = State::Closed { last_pause: None };
        if was_open { Change::Recovered } else { Change::None }
    }

    /// An event was not handled.
    pub(crate) fn handle_failure(&mut self, now: Instant) -> Change {
        self.failures = self.failures.saturating_add(1);
        match self.state {
            State::Closed { last_pause } if self.failures >= FAILURES_TO_OPEN => {
                let pause = last_pause.map_or(PROBE_FIRST, |pause| (pause * 2).min(PROBE_MAX));
                self.state = State::Open { probe_at: now + pause, pause };
                Change::Tripped
            }
            State::Closed { .. } | State::Open { .. } => Change::None,
        }
    }

    /// The handler is unfit: one failure opens the breaker.
    pub(crate) fn handle_unfit(&mut self, now: Instant) -> Change {
        self.failures = self.failures.max(FAILURES_TO_OPEN);
        self.handle_failure(now)
    }

    /// Time of the next probe; `None` while closed.
    pub(crate) fn poll_probe(&self) -> Option<Instant> {
        match self.state {
            State::Open { probe_at, .. } => Some(probe_at),
            State::Closed { .. } => None,
        }
    }

    /// Reports the result of a probe.
    ///
    /// A probe shows only that the handler can be reached and started, so the next failure opens the breaker again, and
    /// for longer.
    pub(crate) fn handle_probe(&mut self, now: Instant, succeeded: bool) -> Change {
        let State::Open { pause, .. } = self.state else {
            return Change::None;
        };
        if succeeded {
            self.failures = FAILURES_TO_OPEN - 1;
            self.state = State::Closed { last_pause: Some(pause) };
            Change::Recovered
        } else {
            let pause = (pause * 2).min(PROBE_MAX);
            self.state = State::Open { probe_at: now + pause, pause };
            Change::None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 1..FAILURES_TO_OPEN {
            assert_eq!(breaker.handle_failure(now), Change::None);
        }
        assert_eq!(breaker.handle_failure(now), Change::Tripped);
        breaker
    }

    /// Failures of single devices among successes of others do not open the breaker.
    #[test]
    fn a_success_resets_the_count() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            for _ in 1..FAILURES_TO_OPEN {
                assert_eq!(breaker.handle_failure(Instant::now()), Change::None);
            }
            assert_eq!(breaker.handle_success(), Change::None);
        }
        assert!(!breaker.is_open());
    }

    /// A success of an existing connection closes the breaker before any probe does.
    #[test]
    fn a_success_closes_the_breaker() {
        let mut breaker = opened(Instant::now());
        assert_eq!(breaker.handle_success(), Change::Recovered);
        assert!(!breaker.is_open());
        assert_eq!(breaker.poll_probe(), None);
    }

    /// After a successful probe, the first failure opens the breaker again, for longer each time.
    #[test]
    fn a_failure_after_a_probe_reopens_the_breaker() {
        let start = Instant::now();
        let mut breaker = opened(start);
        let probe = breaker.poll_probe().unwrap();
        assert_eq!(probe, start + PROBE_FIRST);
        assert_eq!(breaker.handle_probe(probe, true), Change::Recovered);
        assert_eq!(breaker.handle_failure(probe), Change::Tripped);
        assert_eq!(breaker.poll_probe(), Some(probe + 2 * PROBE_FIRST));
    }

    /// A handler of another interface version opens the breaker with its first failure.
    #[test]
    fn unfit_opens_at_once() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.handle_unfit(Instant::now()), Change::Tripped);
    }

    proptest! {
        /// After an outage of any length, recovery is found within a minute.
        #[test]
        fn recovery_is_found_within_a_minute(outage_s in 0..100_000u64) {
            let start = Instant::now();
            let back = start + Duration::from_secs(outage_s);
            let mut breaker = opened(start);
            let mut now = start;
            while breaker.is_open() {
                now = breaker.poll_probe().unwrap();
                breaker.handle_probe(now, now >= back);
            }
            prop_assert!(now <= back + MINUTE);
        }
    }
}
