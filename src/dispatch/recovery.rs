//! What happens to an event that its handler did not handle. Pure: no clock, `now` is an argument.

use std::time::{Duration, Instant};

use crate::handler::CallError;

/// The first pause before a held event is tried again; each further one is twice as long.
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);

/// The longest pause: a handler that is back is found by every connection within this time.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What the operator wants when a handler fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Try again, start anew, go on with the next handler; close when nothing of it helps.
    Fallback,
    /// Close the connection at once, as EMQX does.
    Close,
}

/// How a handler's failures are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What is done at all.
    pub on_failure: OnFailure,
    /// How long an event is held for a handler that cannot be reached.
    pub hold_timeout: Duration,
}

/// What is to be done about one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The handler gets the event again then; it stays the first of those that wait.
    Hold {
        /// When.
        until: Instant,
    },
    /// The same handler starts anew with this connection (a guest in a fresh instance), and gets the event again.
    Renew,
    /// The next handler of the chain takes the connection over, and gets the event.
    FallBack,
    /// The connection ends.
    GiveUp,
}

impl Next {
    /// The name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hold { .. } => "hold",
            Self::Renew => "renew",
            Self::FallBack => "fall_back",
            Self::GiveUp => "give_up",
        }
    }
}

/// The failures of one event at one handler.
#[derive(Debug)]
pub(crate) struct Recovery {
    policy: Policy,
    /// Whether there is another handler behind this one.
    has_next: bool,
    held_since: Option<Instant>,
    back_off: Duration,
    renewed: bool,
}

impl Recovery {
    /// Nothing has failed yet.
    pub(crate) fn new(policy: Policy, has_next: bool) -> Self {
        Self { policy, has_next, held_since: None, back_off: BACKOFF_INITIAL, renewed: false }
    }

    /// The handler did not handle the event. `jitter` in `0.0..=1.0` moves the next attempt between half the pause and
    /// the whole of it, so that connections which failed together do not come back together.
    pub(crate) fn handle_failure(&mut self, now: Instant, error: &CallError, jitter: f64) -> Next {
        if self.policy.on_failure == OnFailure::Close {
            return Next::GiveUp;
        }
        match error {
            CallError::Unavailable(_) => {
                let since = *self.held_since.get_or_insert(now);
                let end = since + self.policy.hold_timeout;
                if now >= end {
                    return self.next();
                }
                let pause = self.back_off.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
                self.back_off = (self.back_off * 2).min(BACKOFF_MAX);
                Next::Hold { until: (now + pause).min(end) }
            }
            CallError::Fault(_) if !self.renewed => {
                self.renewed = true;
                Next::Renew
            }
            CallError::Fault(_) | CallError::Timeout(_) | CallError::Unfit(_) => self.next(),
        }
    }

    fn next(&self) -> Next {
        if self.has_next { Next::FallBack } else { Next::GiveUp }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    fn recovery(has_next: bool) -> Recovery {
        Recovery::new(Policy { on_failure: OnFailure::Fallback, hold_timeout: HOLD }, has_next)
    }

    fn unavailable() -> CallError {
        CallError::Unavailable("no".to_owned())
    }

    fn fault() -> CallError {
        CallError::Fault("trap".to_owned())
    }

    /// The table of failures, each kind with a next handler and without.
    #[test]
    fn each_kind_has_its_way() {
        let now = Instant::now();
        for (has_next, last) in [(true, Next::FallBack), (false, Next::GiveUp)] {
            let first = |error: CallError| recovery(has_next).handle_failure(now, &error, 1.0);
            assert_eq!(first(unavailable()), Next::Hold { until: now + BACKOFF_INITIAL });
            assert_eq!(first(CallError::Timeout(HOLD)), last);
            assert_eq!(first(CallError::Unfit("no".to_owned())), last);
            assert_eq!(first(fault()), Next::Renew);

            let mut held = recovery(has_next);
            held.handle_failure(now, &unavailable(), 0.0);
            assert_eq!(held.handle_failure(now + HOLD, &unavailable(), 0.0), last);

            let mut renewed = recovery(has_next);
            renewed.handle_failure(now, &fault(), 0.0);
            assert_eq!(renewed.handle_failure(now, &fault(), 0.0), last, "a fresh start is tried once");
        }
    }

    /// `on_failure = "close"` closes, whatever has failed.
    #[test]
    fn closing_is_what_was_asked_for() {
        for error in [unavailable(), fault(), CallError::Timeout(HOLD), CallError::Unfit("no".to_owned())] {
            let policy = Policy { on_failure: OnFailure::Close, hold_timeout: HOLD };
            assert_eq!(Recovery::new(policy, true).handle_failure(Instant::now(), &error, 0.5), Next::GiveUp);
        }
    }

    /// What an event goes through when it is held, then gets a fresh start that cannot be made, then is held again: the
    /// time of holding is counted in all, so it ends.
    #[test]
    fn holding_is_counted_in_all() {
        let now = Instant::now();
        let mut recovery = recovery(true);
        assert!(matches!(recovery.handle_failure(now, &unavailable(), 0.0), Next::Hold { .. }));
        assert_eq!(recovery.handle_failure(now + HOLD / 2, &fault(), 0.0), Next::Renew);
        assert!(matches!(recovery.handle_failure(now + HOLD / 2, &unavailable(), 0.0), Next::Hold { .. }));
        assert_eq!(recovery.handle_failure(now + HOLD, &unavailable(), 0.0), Next::FallBack);
    }

    proptest! {
        /// A held event is tried again and again, never later than the longest pause, never beyond the hold timeout, and
        /// the number of its attempts is bounded.
        #[test]
        fn holding_ends(spreads in proptest::collection::vec(0.0..=1.0f64, 100)) {
            let start = Instant::now();
            let mut now = start;
            let mut recovery = recovery(true);
            let mut attempts = 0;
            for jitter in spreads {
                match recovery.handle_failure(now, &unavailable(), jitter) {
                    Next::Hold { until } => {
                        prop_assert!(until > now && until <= now + BACKOFF_MAX && until <= start + HOLD);
                        now = until;
                        attempts += 1;
                    }
                    end @ (Next::Renew | Next::FallBack | Next::GiveUp) => {
                        prop_assert_eq!(end, Next::FallBack);
                        prop_assert_eq!(now, start + HOLD);
                        prop_assert!(attempts > 15, "only {} attempts", attempts);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "held for ever");
        }
    }
}
