//! Guest log: rate limits and escaping of the lines that guests write to the gateway's log.
//!
//! Writing to a terminal or a pipe is slow and log storage is finite, so the lines of each instance, and of all
//! instances of a handler together, are rate-limited; suppressed lines are counted and reported. Control characters,
//! which could end a line or move a terminal's cursor, are escaped.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use crate::conn::ConnId;
use crate::rate::Rate;
use crate::telemetry::{LogBudget, LogDecision, LogLimiter, lines_in};
use crate::wit::types::Level;

/// Maximum length of one line, in bytes; longer lines are truncated.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// Rate of one instance: a guest that logs every few frames stays below.
static INSTANCE_RATE: LazyLock<Rate> = LazyLock::new(|| lines_in(200, Duration::from_secs(10)));

/// Rate of all instances of a handler: it admits a fault report of each of a thousand devices; a hundred thousand would
/// fill the disk.
static HANDLER_RATE: LazyLock<Rate> = LazyLock::new(|| lines_in(2000, Duration::from_secs(4)));

/// Rate of the logged backtraces of a handler. Each has several lines; one is enough to find a fault, and twenty at
/// once show several different faults.
static FAILURE_RATE: LazyLock<Rate> = LazyLock::new(|| lines_in(20, Duration::from_secs(10)));

/// Limiter of the lines of all instances of a handler.
pub(super) fn handler_limiter() -> LogLimiter {
    LogLimiter::new(&HANDLER_RATE)
}

/// Limiter of the backtraces of a handler.
pub(super) fn failure_limiter() -> LogLimiter {
    LogLimiter::new(&FAILURE_RATE)
}

/// The log of one instance.
#[derive(Debug)]
pub(super) struct GuestLog {
    conn: ConnId,
    handler: Arc<str>,
    budget: LogBudget,
    handler_limiter: LogLimiter,
    suppressed: Counter,
}

impl GuestLog {
    pub(super) fn new(conn: ConnId, handler: Arc<str>, handler_limiter: LogLimiter, suppressed: Counter) -> Self {
        Self { conn, handler, budget: LogBudget::new(&INSTANCE_RATE, Instant::now()), handler_limiter, suppressed }
    }

    /// Counts a line that is suppressed because the event has exceeded its budget of lines.
    pub(super) fn suppress(&mut self) {
        self.budget.suppress();
        self.suppressed.inc();
    }

    /// Sets the connection of the following lines.
    pub(super) fn set_conn(&mut self, conn: ConnId) {
        self.conn = conn;
    }

    /// Logs one line, truncated to [`LINE_BYTES_MAX`], within the rate limits.
    pub(super) fn line(&mut self, level: Level, text: &str) {
        let text = reported(text);
        macro_rules! emit {
            ($level:ident) => {
                // A line below the configured log level is not charged to the rate limits.
                if tracing::enabled!(target: "polygate::guest", tracing::Level::$level) && self.is_admitted() {
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
            Level::Trace => emit!(TRACE),
            Level::Debug => emit!(DEBUG),
            Level::Info => emit!(INFO),
            Level::Warn => emit!(WARN),
            Level::Error => emit!(ERROR),
        }
    }

    fn is_admitted(&mut self) -> bool {
        let now = Instant::now();
        let decision = self.budget.handle_line(now);
        // A line beyond the instance's rate is not charged to the handler's rate.
        if decision == LogDecision::No || self.handler_limiter.handle_line() == LogDecision::No {
            self.suppressed.inc();
            return false;
        }
        if let LogDecision::After(suppressed) = decision {
            self.log_suppressed(suppressed);
        }
        true
    }

    fn log_suppressed(&self, suppressed: u64) {
        tracing::warn!(conn = %self.conn, handler = %self.handler, suppressed, "guest log rate-limited");
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        match self.budget.suppressed() {
            0 => {}
            suppressed => self.log_suppressed(suppressed),
        }
    }
}

/// A guest's error text, escaped and truncated as a log line.
pub(super) fn reported(text: &str) -> Cow<'_, str> {
    one_line(&text[..text.floor_char_boundary(LINE_BYTES_MAX)])
}

/// Escapes control characters except tabs.
fn one_line(text: &str) -> Cow<'_, str> {
    let is_escaped = |character: char| character.is_control() && character != '\t';
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().fold(String::with_capacity(text.len() + 16), |mut line, character| {
        if is_escaped(character) {
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

    /// A guest cannot forge a log line of the gateway or clear the screen.
    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            one_line("a\n2026-01-01 ERROR polygate: x\r\u{1b}[2J\ttab é"),
            "a\\n2026-01-01 ERROR polygate: x\\r\\u{1b}[2J\ttab é"
        );
        assert!(matches!(one_line("plain"), Cow::Borrowed("plain")));
    }

    /// A guest's reason is part of the gateway's own log lines.
    #[test]
    fn reasons_are_escaped_and_truncated() {
        assert_eq!(reported("no\nroom"), "no\\nroom");
        assert_eq!(reported(&"é".repeat(1 << 20)).len(), LINE_BYTES_MAX);
    }
}
