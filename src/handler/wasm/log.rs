//! What a guest says, on its way to the gateway's log, and how much of it gets there.
//!
//! A log that is written to a terminal or a pipe is slow and its space is finite, so each instance may say so
//! many lines and no more, and all instances of a handler together; what is left out is counted and told. A line is a line:
//! what would break it, or move a terminal's cursor, is escaped.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use crate::conn::ConnId;
use crate::rate::Rate;
use crate::telemetry::{LogBudget, LogDecision, LogLimiter, lines_in};
use crate::wit::types::Level;

/// What one line keeps, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// What an instance may say: a guest that reports every few frames stays below.
static OF_AN_INSTANCE: LazyLock<Rate> = LazyLock::new(|| lines_in(200, Duration::from_secs(10)));

/// What all instances of a handler may say together: a thousand devices that each have a fault to tell get through, a
/// hundred thousand would fill the disk.
static OF_A_HANDLER: LazyLock<Rate> = LazyLock::new(|| lines_in(2000, Duration::from_secs(4)));

/// Failures of a handler's instances that are told with their backtraces. Each is some lines; whoever looks for a fault needs
/// one, and with twenty at once each of some faults is among them.
static OF_FAILURES: LazyLock<Rate> = LazyLock::new(|| lines_in(20, Duration::from_secs(10)));

/// What all instances of one handler may still say.
pub(super) fn of_a_handler() -> LogLimiter {
    LogLimiter::new(&OF_A_HANDLER)
}

/// The same for their failures.
pub(super) fn of_failures() -> LogLimiter {
    LogLimiter::new(&OF_FAILURES)
}

/// One instance's way to the log.
#[derive(Debug)]
pub(super) struct GuestLog {
    conn: ConnId,
    handler: Arc<str>,
    budget: LogBudget,
    together: LogLimiter,
    shed: Counter,
}

impl GuestLog {
    /// `shed` counts the lines that are left out.
    pub(super) fn new(conn: ConnId, handler: Arc<str>, together: LogLimiter, shed: Counter) -> Self {
        Self { conn, handler, budget: LogBudget::new(&OF_AN_INSTANCE, Instant::now()), together, shed }
    }

    /// A line is left out, because the event has said as many as it may.
    pub(super) fn suppress(&mut self) {
        self.budget.suppress();
        self.shed.inc();
    }

    /// From now on the instance speaks about this connection.
    pub(super) fn set_conn(&mut self, conn: ConnId) {
        self.conn = conn;
    }

    /// One line, cut at [`LINE_BYTES_MAX`], unless the instance has said too many.
    pub(super) fn line(&mut self, level: Level, text: &str) {
        let text = reported(text);
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
        let now = Instant::now();
        let may = self.budget.handle_line(now);
        // A line that an instance may not say takes nothing from the others.
        if may == LogDecision::No || self.together.handle_line() == LogDecision::No {
            self.shed.inc();
            return false;
        }
        if let LogDecision::After(left_out) = may {
            self.log_suppressed(left_out);
        }
        true
    }

    fn log_suppressed(&self, left_out: u64) {
        tracing::warn!(conn = %self.conn, handler = %self.handler, left_out, "guest log rate-limited");
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        match self.budget.suppressed() {
            0 => {}
            left_out => self.log_suppressed(left_out),
        }
    }
}

/// What a guest says of a failure, in one line and cut as a line of the log.
pub(super) fn reported(text: &str) -> Cow<'_, str> {
    one_line(&text[..text.floor_char_boundary(LINE_BYTES_MAX)])
}

/// The text without what would end its line or steer a terminal; a tab may stay.
fn one_line(text: &str) -> Cow<'_, str> {
    let breaks = |character: char| character.is_control() && character != '\t';
    if !text.contains(breaks) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().fold(String::with_capacity(text.len() + 16), |mut line, character| {
        if breaks(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
        line
    });
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest cannot write a line that looks as if somebody else had written it, nor clear the screen.
    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(
            one_line("a\n2026-01-01 ERROR polygate: x\r\u{1b}[2J\ttab é"),
            "a\\n2026-01-01 ERROR polygate: x\\r\\u{1b}[2J\ttab é"
        );
        assert!(matches!(one_line("plain"), Cow::Borrowed("plain")));
    }

    /// What a guest gives as a reason stands in the gateway's own lines.
    #[test]
    fn a_reason_stays_one_line() {
        assert_eq!(reported("no\nroom"), "no\\nroom");
        assert_eq!(reported(&"é".repeat(1 << 20)).len(), LINE_BYTES_MAX);
    }
}
