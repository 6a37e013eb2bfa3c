//! How many lines somebody may add to the log.
//!
//! A log that is written to a terminal or a pipe is slow and its space is finite: what comes with every event of every device is
//! bounded, and what was left out is told with the next line.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::rate::{Bucket, Rate};

/// So many lines in this time, all at once if need be.
pub fn lines_in(count: u64, per: Duration) -> Rate {
    Rate::evenly(NonZeroU64::new(count).unwrap_or(NonZeroU64::MIN), per).at_once()
}

/// Whether a line may be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaySay {
    /// Yes.
    Yes,
    /// Yes, and before it so many were left out.
    After(u64),
    /// No; it is left out.
    No,
}

/// How many lines may still be said. Pure: `now` is an argument.
#[derive(Debug)]
pub struct LineBudget {
    rate: &'static Rate,
    lines: Bucket,
    left_out: u64,
}

impl LineBudget {
    /// Nothing is said yet.
    pub fn new(rate: &'static Rate, now: Instant) -> Self {
        Self { rate, lines: Bucket::full(now), left_out: 0 }
    }

    /// Takes one more line, or leaves it out.
    pub fn handle_line(&mut self, now: Instant) -> MaySay {
        if self.lines.take(self.rate, now, 1).is_err() {
            self.leave_out();
            return MaySay::No;
        }
        match std::mem::take(&mut self.left_out) {
            0 => MaySay::Yes,
            left_out => MaySay::After(left_out),
        }
    }

    /// A line is left out for another reason.
    pub fn leave_out(&mut self) {
        self.left_out += 1;
    }

    /// Lines that were left out and not told of.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

/// The same for all who speak of one thing.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Mutex<LineBudget>>);

impl Lines {
    /// Nothing is said yet.
    pub fn new(rate: &'static Rate) -> Self {
        Self(Arc::new(Mutex::new(LineBudget::new(rate, Instant::now()))))
    }

    /// Takes one more line, or leaves it out.
    pub fn handle_line(&self) -> MaySay {
        self.0.lock().handle_line(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static RATE: LazyLock<Rate> = LazyLock::new(|| lines_in(200, Duration::from_secs(10)));

    const LINE_INTERVAL: Duration = Duration::from_millis(50);

    /// So many lines at once, then one an interval; what was left out is told with the next line, once.
    #[test]
    fn lines_are_bounded() {
        let start = Instant::now();
        let mut budget = LineBudget::new(&RATE, start);
        for _ in 0..200 {
            assert_eq!(budget.handle_line(start), MaySay::Yes);
        }
        assert_eq!(budget.handle_line(start), MaySay::No);
        assert_eq!(budget.handle_line(start + LINE_INTERVAL - Duration::from_millis(1)), MaySay::No);
        assert_eq!(budget.handle_line(start + LINE_INTERVAL), MaySay::After(2));
        assert_eq!(budget.handle_line(start + LINE_INTERVAL), MaySay::No);
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), MaySay::After(1));
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), MaySay::Yes);
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), MaySay::No);
    }

    /// A long silence earns no more than may be said at once.
    #[test]
    fn silence_is_not_saved_up() {
        let start = Instant::now();
        let mut budget = LineBudget::new(&RATE, start);
        let later = start + Duration::from_secs(100_000);
        let said = (0..10_000).filter(|_| budget.handle_line(later) != MaySay::No).count();
        assert_eq!(said, 200);
    }

    /// Who speaks of the same thing is bounded together.
    #[test]
    fn all_are_bounded_together() {
        let lines = Lines::new(&RATE);
        let others = lines.clone();
        while lines.handle_line() != MaySay::No {}
        assert!((0..100).any(|_| others.handle_line() == MaySay::No));
    }
}
