//! How many may be held at a time, where that may change while some are held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for a number of connections, or of whatever else is bounded. Clones share it.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    permits: Arc<Semaphore>,
    max: Mutex<usize>,
    /// Permits that are held and must not come back, because the room has become smaller.
    owed: AtomicUsize,
}

/// The right to hold one.
#[derive(Debug)]
pub struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    limit: ConnectionLimit,
}

impl ConnectionLimit {
    /// Room for `max`, `1..`; more than a semaphore can count is as much as it can.
    pub fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            permits: Arc::new(Semaphore::new(max)),
            max: Mutex::new(max),
            owed: AtomicUsize::new(0),
        }))
    }

    /// From now on there is room for `max`. Of those who are held beyond it none is sent away; there is no room for
    /// another one until so many have left.
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

    /// Waits until there is room.
    pub async fn permit(&self) -> Permit {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.ok();
        Permit { permit, limit: self.clone() }
    }

    /// The right to hold one more, if there is room now.
    pub fn try_permit(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.0.permits).try_acquire_owned().ok()?;
        Some(Permit { permit: Some(permit), limit: self.clone() })
    }

    /// Pays off one permit that is owed; not if none is.
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
        /// However often it is resized, and whoever comes and goes meanwhile: once those who are too many have left, there is
        /// room for exactly as many as was said last.
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

    /// Who waits gets in when the room grows.
    #[tokio::test]
    async fn who_waits_gets_in() {
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
