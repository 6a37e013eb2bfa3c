//! What the events of a handler that keeps failing may take, together.
//!
//! Threads that get spare time only keep a failing guest from the processors, and not from what processors share: the kernel
//! zeroes the guest's pages and takes them back, and the caches forget what the others have there. So where a handler fails
//! again and again, the events of its instances that have handled nothing yet take turns: one for the event, which pays for
//! the instance that may be thrown away after it, and one for each growth of its memory. The turns together get a fixed share
//! of the processors. What an event has taken is given back when it succeeds: only failures cost.

use std::num::NonZeroU64;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::rate::{Bucket, Rate};

/// CPU time of all processors, of which such a handler gets one part. With a twentieth, guests that took all their memory made the
/// others' p99 1.2 times as long.
const PARTS: u64 = 50;

/// What an event costs that fails at once: an instance is made, and another one, and both are thrown away.
const EVENT: Duration = Duration::from_millis(2);

/// What memory costs that is zeroed, used and taken back: 4 us for each page.
const MEBIBYTE: Duration = Duration::from_millis(1);

/// What a turn is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// An event, for its beginning.
    Event,
    /// So many bytes more of memory.
    Growth(usize),
}

impl Turn {
    /// CPU time that it takes.
    pub(super) fn cost(self) -> Duration {
        match self {
            Self::Event => EVENT,
            Self::Growth(bytes) => MEBIBYTE.mul_f64(bytes as f64 / f64::from(1 << 20)),
        }
    }
}

/// The share of one handler.
#[derive(Debug)]
pub(super) struct Share {
    /// In microseconds of CPU time.
    rate: Rate,
    left: Mutex<Bucket>,
    /// Who waits for the next turn; the others wait behind it, in order.
    next: Semaphore,
    /// Of those that grow, one at a time waits there.
    again: Semaphore,
}

impl Share {
    /// A fiftieth of the processors, all of it there.
    pub(super) fn new() -> Self {
        Self::of(available_parallelism().map_or(1, usize::from) as u64)
    }

    fn of(processors: u64) -> Self {
        let second = Duration::from_secs(1);
        let amount = NonZeroU64::new(processors * micros(second) / PARTS).unwrap_or(NonZeroU64::MIN);
        Self {
            rate: Rate::evenly(amount, second),
            left: Mutex::new(Bucket::full(Instant::now())),
            next: Semaphore::new(1),
            again: Semaphore::new(1),
        }
    }

    /// Waits for a turn, and takes what it costs. Whether it had to wait comes back.
    ///
    /// Who begins is before all those but one that go on: an event that succeeds does not wait for all that take much.
    pub(super) async fn turn(&self, turn: Turn) -> bool {
        // The semaphores are never closed.
        let _again = match turn {
            Turn::Event => None,
            Turn::Growth(_) => self.again.acquire().await.ok(),
        };
        let _next = self.next.acquire().await.ok();
        let mut has_waited = false;
        while let Err(ready) = self.take(Instant::now(), turn) {
            tokio::time::sleep_until(ready.into()).await;
            has_waited = true;
        }
        has_waited
    }

    /// Takes what a turn costs, or tells when there will be something to take.
    fn take(&self, now: Instant, turn: Turn) -> Result<(), Instant> {
        self.left.lock().take(&self.rate, now, micros(turn.cost()))
    }

    /// Gives back what an event has taken that succeeded.
    pub(super) fn give_back(&self, taken: Duration) {
        self.left.lock().give_back(&self.rate, micros(taken));
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns that fail follow each other as slowly as the share says, and what was used besides them is paid first.
    #[test]
    fn failures_share_what_there_is() {
        let share = Share::of(2);
        assert_eq!(share.rate.amount(), 40_000, "of two million microseconds in a second");
        let started = Instant::now();
        let mut now = started;
        for turn in 0..200 {
            match share.take(now, Turn::Event) {
                Ok(()) => assert!(turn < 5, "a tenth of a second's share is there at once"),
                Err(ready) => {
                    now = ready;
                    share.take(now, Turn::Event).unwrap();
                }
            }
        }
        let earned = now.duration_since(started);
        assert!((9_800..=10_000).contains(&earned.as_millis()), "400 ms of CPU time within {earned:?}");
        let ready = share.take(now, Turn::Growth(20 << 20)).unwrap_err();
        share.take(ready, Turn::Growth(20 << 20)).unwrap();
        let paid = share.take(ready, Turn::Event).unwrap_err().duration_since(ready);
        assert!((450..=600).contains(&paid.as_millis()), "20 ms of CPU time within {paid:?}");
    }

    /// Who begins is before all those but one that go on.
    #[tokio::test]
    async fn a_first_turn_is_soon() {
        let share = Share::of(1000);
        // All that there is at once, and some more.
        share.take(Instant::now(), Turn::Growth(2200 << 20)).unwrap();
        let order = Mutex::new(Vec::new());
        let turn = async |turn| {
            share.turn(turn).await;
            order.lock().push(matches!(turn, Turn::Event));
        };
        let going_on = futures::future::join_all((0..10).map(|_| turn(Turn::Growth(1 << 20))));
        // They are polled in this order, so that ten have waited when the first one comes.
        tokio::join!(biased; going_on, turn(Turn::Event));
        assert!(order.lock()[..2].contains(&true), "{order:?}");
    }

    /// Successes wait for nobody, however many there are.
    #[tokio::test]
    async fn successes_are_free() {
        let share = Share::of(1);
        for _ in 0..1000 {
            for turn in [Turn::Event, Turn::Growth(16 << 20)] {
                assert!(!share.turn(turn).await);
                share.give_back(turn.cost());
            }
        }
    }
}
