//! Report of a replay: counts, latencies, the first failures.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::JoinError;

use crate::conversation::play::{PlayError, Played};
use crate::error::report;

/// Maximum number of printed failures.
const FAILURES_MAX: usize = 5;

/// Maximum latency in microseconds, an hour; higher ones are clamped.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Counts the results of plays.
pub(super) struct Report {
    connections: u32,
    good: u64,
    failed: u64,
    sent_bytes: u64,
    received_bytes: u64,
    /// In microseconds, with three exact digits; its memory does not grow with the number of samples. `None` only if
    /// its constant bounds were invalid.
    latencies: Option<Histogram<u64>>,
    /// Failures with their counts, in the order of their first occurrence.
    failures: Vec<(String, u64)>,
    interrupted: bool,
    took: Duration,
}

impl Report {
    pub(super) fn new(connections: u32) -> Self {
        Self {
            connections,
            good: 0,
            failed: 0,
            sent_bytes: 0,
            received_bytes: 0,
            latencies: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).ok(),
            failures: Vec::new(),
            interrupted: false,
            took: Duration::ZERO,
        }
    }

    pub(super) fn count(&mut self, name: &str, latencies: &[Duration], played: Result<Played, PlayError>) {
        if let Some(histogram) = &mut self.latencies {
            for latency in latencies {
                histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            }
        }
        match played {
            Ok(played) => {
                self.good += 1;
                self.sent_bytes += played.sent_bytes;
                self.received_bytes += played.received_bytes;
            }
            Err(error) => self.count_failure(format!("{name}: {}", report(&error))),
        }
    }

    /// The task of a connection panicked.
    pub(super) fn count_broken(&mut self, error: &JoinError) {
        self.count_failure(format!("a connection of the replay broke: {error}"));
    }

    fn count_failure(&mut self, text: String) {
        self.failed += 1;
        if let Some((_, times)) = self.failures.iter_mut().find(|(known, _)| *known == text) {
            *times += 1;
        } else if self.failures.len() < FAILURES_MAX {
            self.failures.push((text, 1));
        }
    }

    /// The user stopped the replay.
    pub(super) fn interrupt(&mut self) {
        self.interrupted = true;
    }

    pub(super) fn finish(&mut self, took: Duration) {
        self.took = took;
    }

    /// Whether everything was played and went as recorded.
    pub(super) fn is_good(&self) -> bool {
        self.failed == 0 && !self.interrupted
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (played, took) = (self.good + self.failed, self.took.as_secs_f64());
        // The first conversation may end within the clock's tick.
        let rate = played as f64 / took.max(0.001);
        let stopped = if self.interrupted { ", then interrupted" } else { "" };
        writeln!(f, "conversations  {played} played, {} as recorded, {} failed{stopped}", self.good, self.failed)?;
        writeln!(f, "pace           {} in all, {rate:.1}/s, {} at once at most", short(self.took), self.connections)?;
        writeln!(
            f,
            "bytes          {} to the gateway, {} from it (of those as recorded)",
            self.sent_bytes, self.received_bytes
        )?;
        match self.latencies.as_ref().filter(|latencies| !latencies.is_empty()) {
            None => writeln!(f, "latency        no \"<\" line answered a \">\" line")?,
            Some(latencies) => {
                let columns = ["samples", "min", "mean", "p50", "p90", "p99", "p99.9", "max"];
                let at = |quantile| micros(latencies.value_at_quantile(quantile));
                // The mean of microseconds below an hour fits an integer; its fraction is below the resolution.
                let mean = micros(latencies.mean().round() as u64);
                let (min, max) = (micros(latencies.min()), micros(latencies.max()));
                let values = [latencies.len().to_string(), min, mean, at(0.5), at(0.9), at(0.99), at(0.999), max];
                let row = |cells: &[String]| cells.iter().map(|cell| format!("{cell:>9}")).collect::<String>();
                writeln!(f, "latency      {}", row(&columns.map(str::to_owned)))?;
                writeln!(f, "             {}", row(&values))?;
            }
        }
        if self.failures.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        for (text, times) in &self.failures {
            let times = if *times > 1 { format!(" ({times} times)") } else { String::new() };
            let (first, rest) = text.split_once('\n').map_or((text.as_str(), ""), |(first, rest)| (first, rest));
            writeln!(f, "failed{times}: {first}")?;
            for line in rest.lines() {
                writeln!(f, "{line}")?;
            }
        }
        let reported: u64 = self.failures.iter().map(|(_, times)| times).sum();
        if self.failed > reported {
            writeln!(f, "and {} more failed for other reasons", self.failed - reported)?;
        }
        Ok(())
    }
}

fn micros(micros: u64) -> String {
    short(Duration::from_micros(micros))
}

/// A duration with about three digits.
fn short(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..100_000 => format!("{:.2}ms", duration.as_secs_f64() * 1e3),
        100_000..1_000_000 => format!("{:.0}ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2}s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn failure(port: u16) -> Result<Played, PlayError> {
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], port)).into();
        Err(PlayError::Connect { to, source: io::ErrorKind::ConnectionRefused.into() })
    }

    #[test]
    fn the_table() {
        let mut report = Report::new(4);
        let played = Played { sent_bytes: 10, received_bytes: 7, took: Duration::from_millis(3) };
        for millis in 1..=100 {
            report.count("a", &[Duration::from_millis(millis)], Ok(played));
        }
        report.finish(Duration::from_secs(2));
        assert!(report.is_good());
        let expected = "\
conversations  100 played, 100 as recorded, 0 failed
pace           2.00s in all, 50.0/s, 4 at once at most
bytes          1000 to the gateway, 700 from it (of those as recorded)
latency        samples      min     mean      p50      p90      p99    p99.9      max
                   100   1.00ms  50.50ms  50.01ms  90.05ms  99.01ms    100ms    100ms
";
        assert_eq!(report.to_string(), expected);
    }

    /// Equal failures are printed once with their count; of different ones the first five.
    #[test]
    fn equal_failures_are_reported_once() {
        let mut report = Report::new(1);
        for port in [1, 1, 1, 2, 3, 4, 5, 6, 7] {
            report.count("a", &[], failure(port));
        }
        assert!(!report.is_good());
        let text = report.to_string();
        assert!(text.starts_with("conversations  9 played, 0 as recorded, 9 failed\n"), "{text}");
        assert!(
            text.contains("\nfailed (3 times): a: cannot connect to tcp://127.0.0.1:1: connection refused\n"),
            "{text}"
        );
        assert!(text.contains("\nfailed: a: cannot connect to tcp://127.0.0.1:5: connection refused\n"), "{text}");
        assert!(text.ends_with("\nand 2 more failed for other reasons\n"), "{text}");
    }
}
