//! Health window of a new version: decides on automatic rollback from event and failure counts. Pure: no clock, `now`
//! is an argument.

use std::time::Instant;

use super::Rollback;

/// Minimum number of failures for a rollback: one failure among the first ten events says nothing of the version.
pub const FAILURES_MIN: u64 = 5;

/// Health window of one version, from its first connection on.
#[derive(Debug)]
pub(super) struct HealthWindow {
    rollback: Rollback,
    /// The version's counts at the start of the window.
    events: u64,
    failures: u64,
    ends: Option<Instant>,
}

/// Verdict on a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Keep watching.
    GoOn,
    /// The window has passed.
    Over,
    /// Roll back to the previous version.
    RollBack {
        /// Events in the window.
        events: u64,
        /// Failed events in the window.
        failures: u64,
    },
}

impl HealthWindow {
    /// Starts a window at the version's counts. A version on trial is watched without an end.
    pub(super) fn new(now: Instant, rollback: Rollback, is_tried: bool, (events, failures): (u64, u64)) -> Self {
        let ends = if is_tried { None } else { Some(now + rollback.window) };
        Self { rollback, events, failures, ends }
    }

    /// End of the window.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.ends
    }

    /// Checks the version's counts, after a failure or at the end.
    pub(super) fn handle_outcomes(&self, now: Instant, (events, failures): (u64, u64)) -> Verdict {
        let (events, failures) = (events.saturating_sub(self.events), failures.saturating_sub(self.failures));
        if self.ends.is_some_and(|ends| now >= ends) {
            return Verdict::Over;
        }
        if failures >= FAILURES_MIN && self.rollback.threshold.is_exceeded(failures, events) {
            return Verdict::RollBack { events, failures };
        }
        Verdict::GoOn
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::percent::Percent;

    const WINDOW: Duration = Duration::from_secs(60);

    fn rollback(basis_points: u16) -> Rollback {
        Rollback { threshold: Percent::new(basis_points), window: WINDOW }
    }

    /// One failure in ten events is 10 %, and no reason for a rollback.
    #[test]
    fn one_failure_does_not_roll_back() {
        let now = Instant::now();
        let watch = HealthWindow::new(now, rollback(500), false, (0, 0));
        assert_eq!(watch.handle_outcomes(now, (10, 1)), Verdict::GoOn);
        assert_eq!(watch.handle_outcomes(now, (4, 4)), Verdict::GoOn);
        assert_eq!(watch.handle_outcomes(now, (5, 5)), Verdict::RollBack { events: 5, failures: 5 });
        assert_eq!(watch.handle_outcomes(now, (100, 5)), Verdict::GoOn, "5 % is not over 5 %");
        assert_eq!(watch.handle_outcomes(now, (99, 5)), Verdict::RollBack { events: 99, failures: 5 });
    }

    /// Failures of an earlier activation do not count.
    #[test]
    fn counts_start_at_the_activation() {
        let now = Instant::now();
        let watch = HealthWindow::new(now, rollback(500), false, (1000, 900));
        assert_eq!(watch.handle_outcomes(now, (1010, 904)), Verdict::GoOn);
        assert_eq!(watch.handle_outcomes(now, (1010, 905)), Verdict::RollBack { events: 10, failures: 5 });
    }

    proptest! {
        /// A rollback happens exactly when the counts exceed the threshold, and never after the window.
        #[test]
        fn the_threshold_decides(
            basis_points in 1..=10_000u16,
            events in 0..1_000_000u64,
            share in 0.0..=1.0f64,
            after_ms in 0..120_000u64,
            is_tried: bool,
        ) {
            let failures = (events as f64 * share) as u64;
            let start = Instant::now();
            let now = start + Duration::from_millis(after_ms);
            let watch = HealthWindow::new(start, rollback(basis_points), is_tried, (0, 0));
            let over = !is_tried && after_ms >= 60_000;
            let too_many = failures >= FAILURES_MIN && failures * 10_000 > events * u64::from(basis_points);
            let expected = match (over, too_many) {
                (true, _) => Verdict::Over,
                (false, true) => Verdict::RollBack { events, failures },
                (false, false) => Verdict::GoOn,
            };
            prop_assert_eq!(watch.handle_outcomes(now, (events, failures)), expected);
        }
    }
}
