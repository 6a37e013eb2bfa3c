//! Whether a handler is fit for new connections. Pure: no clock, `now` is an argument.

use std::time::{Duration, Instant};

/// Failures without a success in between that trip the breaker.
pub(crate) const FAILURES_TO_OPEN: u32 = 5;

/// The pause before the first probe; each further one is twice as long.
const PROBE_FIRST: Duration = Duration::from_secs(1);

/// The longest pause: a handler that has recovered is found within this time.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// Counts a handler's failures, and says when it is to be looked at again.
#[derive(Debug)]
pub(crate) struct Breaker {
    failures: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// New connections are served. `last_pause` is what a relapse starts from.
    Closed { last_pause: Option<Duration> },
    /// New connections go elsewhere until a probe succeeds.
    Open { probe_at: Instant, pause: Duration },
}

/// What a report has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// The handler gets no new connections any more.
    Tripped,
    /// The handler gets new connections again.
    Recovered,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 0, state: State::Closed { last_pause: None } }
    }
}

impl Breaker {
    /// Whether new connections are to go elsewhere.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// An event was handled: the handler works.
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

    /// The handler cannot do its work at all: one failure is enough.
    pub(crate) fn handle_unfit(&mut self, now: Instant) -> Change {
        self.failures = self.failures.max(FAILURES_TO_OPEN);
        self.handle_failure(now)
    }

    /// When the handler is to be probed; `None` while nothing is wrong with it.
    pub(crate) fn poll_probe(&self) -> Option<Instant> {
        match self.state {
            State::Open { probe_at, .. } => Some(probe_at),
            State::Closed { .. } => None,
        }
    }

    /// What a probe has found.
    ///
    /// It shows only that the handler can be reached and started, so the next failure trips the breaker again, and
    /// then for longer.
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

    fn tripped(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 1..FAILURES_TO_OPEN {
            assert_eq!(breaker.handle_failure(now), Change::None);
        }
        assert_eq!(breaker.handle_failure(now), Change::Tripped);
        breaker
    }

    /// One device that fails among many that do not is no reason to take the handler from the others.
    #[test]
    fn a_success_starts_the_count_anew() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            for _ in 1..FAILURES_TO_OPEN {
                assert_eq!(breaker.handle_failure(Instant::now()), Change::None);
            }
            assert_eq!(breaker.handle_success(), Change::None);
        }
        assert!(!breaker.is_open());
    }

    /// A connection that is still with the handler, and is served, ends the outage before any probe does.
    #[test]
    fn a_success_ends_the_outage() {
        let mut breaker = tripped(Instant::now());
        assert_eq!(breaker.handle_success(), Change::Recovered);
        assert!(!breaker.is_open());
        assert_eq!(breaker.poll_probe(), None);
    }

    /// A handler that can be reached but fails again is taken out at once, for longer each time.
    #[test]
    fn a_relapse_is_taken_at_its_first_failure() {
        let start = Instant::now();
        let mut breaker = tripped(start);
        let probe = breaker.poll_probe().unwrap();
        assert_eq!(probe, start + PROBE_FIRST);
        assert_eq!(breaker.handle_probe(probe, true), Change::Recovered);
        assert_eq!(breaker.handle_failure(probe), Change::Tripped);
        assert_eq!(breaker.poll_probe(), Some(probe + 2 * PROBE_FIRST));
    }

    /// A handler that does not speak the interface is out with its first failure.
    #[test]
    fn unfit_is_out_at_once() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.handle_unfit(Instant::now()), Change::Tripped);
    }

    proptest! {
        /// However long it was away, a handler that is back is found within a minute.
        #[test]
        fn recovery_is_found_within_a_minute(outage_s in 0..100_000u64) {
            let start = Instant::now();
            let back = start + Duration::from_secs(outage_s);
            let mut breaker = tripped(start);
            let mut now = start;
            while breaker.is_open() {
                now = breaker.poll_probe().unwrap();
                breaker.handle_probe(now, now >= back);
            }
            prop_assert!(now <= back + MINUTE);
        }
    }
}
