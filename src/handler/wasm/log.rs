//! What a guest says, on its way to the gateway's log, and how much of it gets there.
//!
//! A log that is written to a terminal or a pipe is slow and its space is finite, so each instance may say so
//! many lines and no more; what is left out is counted and told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use crate::conn::ConnId;
use crate::wit::types::Level;

/// What one line keeps, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// Lines that an instance may say at once.
const LINES_MAX: u32 = 200;

/// How soon it may say one more; a guest that reports every few frames stays below.
const LINE_INTERVAL: Duration = Duration::from_millis(50);

/// One instance's way to the log.
#[derive(Debug)]
pub(super) struct GuestLog {
    conn: ConnId,
    handler: Arc<str>,
    budget: Budget,
    shed: Counter,
}

impl GuestLog {
    /// `shed` counts the lines that are left out.
    pub(super) fn new(conn: ConnId, handler: Arc<str>, shed: Counter) -> Self {
        Self { conn, handler, budget: Budget::new(Instant::now()), shed }
    }

    /// From now on the instance speaks about this connection.
    pub(super) fn speaks_about(&mut self, conn: ConnId) {
        self.conn = conn;
    }

    /// One line, cut at [`LINE_BYTES_MAX`], unless the instance has said too many.
    pub(super) fn line(&mut self, level: Level, text: &str) {
        let text = &text[..text.floor_char_boundary(LINE_BYTES_MAX)];
        macro_rules! say {
            ($level:ident) => {
                // A line that nobody wants to see costs nothing of what may be said.
                if tracing::enabled!(target: "polygate::guest", tracing::Level::$level) && self.may_say() {
                    tracing::event!(
                        target: "polygate::guest",
                        tracing::Level::$level,
                        conn = %self.conn,
                        handler = %self.handler,
                        "{text}"
                    );
                }
            };
        }
        match level {
            Level::Trace => say!(TRACE),
            Level::Debug => say!(DEBUG),
            Level::Info => say!(INFO),
            Level::Warn => say!(WARN),
            Level::Error => say!(ERROR),
        }
    }

    fn may_say(&mut self) -> bool {
        let may = self.budget.handle_line(Instant::now());
        match may {
            May::Say => {}
            May::SayAfter(left_out) => self.tell(left_out),
            May::NotSay => {
                self.shed.inc();
            }
        }
        may != May::NotSay
    }

    fn tell(&self, left_out: u64) {
        tracing::warn!(conn = %self.conn, handler = %self.handler, left_out, "the guest says more than the log takes");
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        if self.budget.left_out > 0 {
            self.tell(self.budget.left_out);
        }
    }
}

/// Whether a line may be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    Say,
    /// Yes, and before it so many were left out.
    SayAfter(u64),
    NotSay,
}

/// How many lines may still be said. Pure: `now` is an argument.
#[derive(Debug)]
struct Budget {
    lines: u32,
    /// When the last line was earned.
    earned: Instant,
    left_out: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { lines: LINES_MAX, earned: now, left_out: 0 }
    }

    fn handle_line(&mut self, now: Instant) -> May {
        let intervals = now.saturating_duration_since(self.earned).as_millis() / LINE_INTERVAL.as_millis();
        let earned = u32::try_from(intervals).unwrap_or(u32::MAX);
        if earned >= LINES_MAX - self.lines {
            self.lines = LINES_MAX;
            self.earned = now;
        } else {
            self.lines += earned;
            self.earned += LINE_INTERVAL * earned;
        }
        if self.lines == 0 {
            self.left_out += 1;
            return May::NotSay;
        }
        self.lines -= 1;
        match std::mem::take(&mut self.left_out) {
            0 => May::Say,
            left_out => May::SayAfter(left_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many lines at once, then one an interval; what was left out is told with the next line, once.
    #[test]
    fn lines_are_bounded() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..LINES_MAX {
            assert_eq!(budget.handle_line(start), May::Say);
        }
        assert_eq!(budget.handle_line(start), May::NotSay);
        assert_eq!(budget.handle_line(start + LINE_INTERVAL - Duration::from_millis(1)), May::NotSay);
        assert_eq!(budget.handle_line(start + LINE_INTERVAL), May::SayAfter(2));
        assert_eq!(budget.handle_line(start + LINE_INTERVAL), May::NotSay);
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), May::SayAfter(1));
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), May::Say);
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), May::NotSay);
    }

    /// A long silence earns no more than may be said at once.
    #[test]
    fn silence_is_not_saved_up() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let later = start + Duration::from_secs(100_000);
        let said = (0..10_000).filter(|_| budget.handle_line(later) != May::NotSay).count();
        assert_eq!(said, LINES_MAX as usize);
    }
}
