//! Byte budget that many holders share, such as the queues of all sessions. No I/O and no lock.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A holder of more than this may take only from the first half of the budget. So the budget of the others is not used
/// up by a few holders whose queues fill, for example peers that stop reading on purpose.
const SMALL_BYTES: usize = 64 << 10;

/// A number of bytes that holders have together, and its maximum.
///
/// Each holder keeps its own count and reports its changes. Concurrent holders may exceed the maximum by what each of
/// them takes at that moment.
#[derive(Debug)]
pub struct ByteBudget {
    used: AtomicUsize,
    max: usize,
}

impl ByteBudget {
    pub fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Bytes of all holders.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a holder of `held` bytes may take `more`.
    pub fn admits(&self, held: usize, more: usize) -> bool {
        let max = if held.saturating_add(more) > SMALL_BYTES { self.max / 2 } else { self.max };
        self.used().saturating_add(more) <= max
    }

    /// Whether the holders have taken this percentage of the maximum.
    pub fn is_above(&self, percent: usize) -> bool {
        self.used() >= self.max / 100 * percent
    }

    /// Follows the change of one holder's bytes.
    pub fn update(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Holders that take as much as they get leave half of the budget to those that hold little.
    #[test]
    fn large_holders_leave_room_for_small_ones() {
        let budget = ByteBudget::new(1 << 20);
        let mut held = [0; 4];
        for holder in (0..4).cycle().take(4_000) {
            if budget.admits(held[holder], 1 << 10) {
                budget.update(held[holder], held[holder] + (1 << 10));
                held[holder] += 1 << 10;
            }
        }
        assert_eq!(budget.used(), 1 << 19);
        assert!(budget.admits(0, SMALL_BYTES), "a new holder");
        assert!(!budget.admits(0, SMALL_BYTES + 1));
    }

    proptest! {
        /// The sum is that of all holders, and never above the maximum.
        #[test]
        fn the_sum_is_exact(max in 0usize..1 << 20, takes in prop::collection::vec((0usize..8, 0usize..1 << 18), 0..100)) {
            let budget = ByteBudget::new(max);
            let mut held = [0; 8];
            for (holder, bytes) in takes {
                let after = if budget.admits(held[holder], bytes) { held[holder] + bytes } else { 0 };
                budget.update(held[holder], after);
                held[holder] = after;
                prop_assert_eq!(budget.used(), held.iter().sum::<usize>());
                prop_assert!(budget.used() <= max);
            }
        }
    }
}
