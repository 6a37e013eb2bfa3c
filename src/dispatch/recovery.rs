//! Recovery from failed events: exponential backoff with jitter while a handler is unavailable, one replay in a fresh
//! instance, fallback, close. Pure: no clock, `now` is an argument.

use std::time::{Duration, Instant};

use crate::handler::CallError;

/// First backoff pause of a held event; each further pause is twice as long.
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);

/// Longest backoff pause: every connection finds a recovered handler within this time.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// `on_failure` of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Retry, replay in a fresh instance, fall back to the next handler; close when all fail.
    Fallback,
    /// Close the connection at once, as EMQX does.
    Close,
}

/// Failure policy of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub on_failure: OnFailure,
    /// How long an event is held for an unavailable handler.
    pub hold_timeout: Duration,
}

/// Next step after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Retry at `until`; the event stays first in the queue.
    Hold { until: Instant },
    /// Attach the same handler anew (a guest in a fresh instance), and replay the event.
    Renew,
    /// The next handler of the chain takes the connection over, and gets the event.
    FallBack,
    /// Close the connection.
    GiveUp,
}

impl Next {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hold { .. } => "hold",
            Self::Renew => "renew",
            Self::FallBack => "fall_back",
            Self::GiveUp => "give_up",
        }
    }
}

/// Recovery state of one event at one handler.
#[derive(Debug)]
pub(crate) struct Recovery {
    policy: Policy,
    /// Whether the chain has another handler.
    has_next: bool,
    held_since: Option<Instant>,
    backoff: Duration,
    renewed: bool,
}

impl Recovery {
    pub(crate) fn new(policy: Policy, has_next: bool) -> Self {
        Self { policy, has_next, held_since: None, backoff: BACKOFF_INITIAL, renewed: false }
    }

    /// The event failed. `jitter` in `0.0..=1.0` moves the retry between half the pause and the whole of it, so that
    /// connections that failed together do not retry together.
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
                let pause = self.backoff.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
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

    /// Each kind of failure, with a next handler and without.
    #[test]
    fn each_kind_of_failure() {
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
            assert_eq!(renewed.handle_failure(now, &fault(), 0.0), last, "a fresh instance is tried once");
        }
    }

    /// `on_failure = "close"` closes on any failure.
    #[test]
    fn on_failure_close() {
        for error in [unavailable(), fault(), CallError::Timeout(HOLD), CallError::Unfit("no".to_owned())] {
            let policy = Policy { on_failure: OnFailure::Close, hold_timeout: HOLD };
            assert_eq!(Recovery::new(policy, true).handle_failure(Instant::now(), &error, 0.5), Next::GiveUp);
        }
    }

    /// Held, then replayed in a fresh instance that cannot be made, then held again: the hold timeout covers all of it.
    #[test]
    fn the_hold_timeout_covers_all_retries() {
        let now = Instant::now();
        let mut recovery = recovery(true);
        assert!(matches!(recovery.handle_failure(now, &unavailable(), 0.0), Next::Hold { .. }));
        assert_eq!(recovery.handle_failure(now + HOLD / 2, &fault(), 0.0), Next::Renew);
        assert!(matches!(recovery.handle_failure(now + HOLD / 2, &unavailable(), 0.0), Next::Hold { .. }));
        assert_eq!(recovery.handle_failure(now + HOLD, &unavailable(), 0.0), Next::FallBack);
    }

    proptest! {
        /// A held event is retried within the longest pause and the hold timeout, and the number of attempts is
        /// bounded.
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
