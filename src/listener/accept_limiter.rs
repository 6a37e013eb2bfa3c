//! The rate at which a listener accepts.

use std::time::Instant;

use super::Listener;
use crate::rate::{Rate, TokenBucket};

/// Token bucket over the accepts of one listener; follows the listener's rate when a reload changes it.
#[derive(Debug)]
pub(crate) struct AcceptLimiter(TokenBucket);

impl Default for AcceptLimiter {
    /// A whole burst may be accepted at once.
    fn default() -> Self {
        Self(TokenBucket::full(Instant::now()))
    }
}

impl AcceptLimiter {
    /// Waits until the rate allows one accept. Must be called again when the rate has changed.
    pub(crate) async fn wait(&mut self, listener: &Listener) {
        while let Some(rate) = self.rate(listener) {
            let ready = self.0.ready_at(&rate);
            if ready <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(ready.into()).await;
        }
    }

    /// The current rate. Accepts are charged one at a time, so a debt can only come from an earlier rate.
    fn rate(&mut self, listener: &Listener) -> Option<Rate> {
        let rate = listener.admission().connection_rate;
        if let Some(rate) = &rate {
            self.0.cap_debt(rate, Instant::now(), 0);
        }
        rate
    }

    /// Charges one accept.
    pub(crate) fn count(&mut self, listener: &Listener) {
        if let Some(rate) = self.rate(listener) {
            self.0.charge(&rate, Instant::now(), 1);
        }
    }

    /// Whether the rate allows one accept; charges it.
    pub(crate) fn take(&mut self, listener: &Listener) -> bool {
        self.rate(listener).is_none_or(|rate| self.0.take(&rate, Instant::now(), 1).is_ok())
    }
}
