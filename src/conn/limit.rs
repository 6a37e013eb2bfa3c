//! Connection limit: a counting semaphore that can be resized while permits are held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Maximum number of connections. Clones share it.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    permits: Arc<Semaphore>,
    max: Mutex<usize>,
    /// Held permits that must not return to the semaphore, because the limit was lowered.
    owed: AtomicUsize,
}

/// Permit for one connection.
#[derive(Debug)]
pub struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    limit: ConnectionLimit,
}

impl ConnectionLimit {
    /// A limit of `max`, `1..`, capped at [`Semaphore::MAX_PERMITS`].
    pub fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            permits: Arc::new(Semaphore::new(max)),
            max: Mutex::new(max),
            owed: AtomicUsize::new(0),
        }))
    }

    /// Changes the limit to `max`. Connections above a lower limit stay open; new permits wait until their number is
    /// below it.
    pub fn resize(&self, max: usize) {
        let mut now = self.0.max.lock();
        let max = max.min(Semaphore::MAX_PERMITS);
        if max >= *now {
            let mut more = max - *now;
            while more > 0 && self.absorb_debt() {
                more -= 1;
            }
            self.0.permits.add_permits(more);
        } else {
            let fewer = *now - max;
            let taken = self.0.permits.forget_permits(fewer);
            self.0.owed.fetch_add(fewer - taken, Ordering::Relaxed);
        }
        *now = max;
    }

    /// Waits for a permit.
    pub async fn permit(&self) -> Permit {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.ok();
        Permit { permit, limit: self.clone() }
    }

    /// A permit, if one is free now.
    pub fn try_permit(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.0.permits).try_acquire_owned().ok()?;
        Some(Permit { permit: Some(permit), limit: self.clone() })
    }

    /// Reduces the debt by one; `false` if there is none.
    fn absorb_debt(&self) -> bool {
        self.0.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1)).is_ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.limit.absorb_debt()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(limit: &ConnectionLimit, held: &mut Vec<Permit>) -> usize {
        held.extend(std::iter::from_fn(|| limit.try_permit()));
        held.len()
    }

    proptest! {
        /// After any sequence of resizes, acquires and releases, once the excess permits are released, exactly the last
        /// limit can be held.
        #[test]
        fn the_last_size_counts(start in 1..20usize, steps in proptest::collection::vec((0..3u8, 1..20usize), 0..40)) {
            let limit = ConnectionLimit::new(start);
            let mut held = Vec::new();
            let mut max = start;
            for (kind, number) in steps {
                match kind {
                    0 => {
                        limit.resize(number);
                        max = number;
                    }
                    1 => drop(held.split_off(held.len().saturating_sub(number))),
                    _ => held.extend(limit.try_permit()),
                }
                if held.len() >= max {
                    prop_assert!(limit.try_permit().is_none());
                }
            }
            held.truncate(max);
            prop_assert_eq!(fill(&limit, &mut held), max);
        }
    }

    /// A waiting caller gets a permit when the limit grows.
    #[tokio::test]
    async fn a_larger_limit_admits_a_waiting_caller() {
        let limit = ConnectionLimit::new(1);
        let _first = limit.permit().await;
        let waiting = tokio::spawn({
            let limit = limit.clone();
            async move { limit.permit().await }
        });
        limit.resize(2);
        waiting.await.unwrap();
    }
}
