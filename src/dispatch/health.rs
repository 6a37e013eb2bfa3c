//! Health of a handler: its circuit breaker, shared by all connections, and the probes while it is open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::breaker::{Breaker, Change};
use super::versions::Versions;
use crate::handler::CallError;
use crate::telemetry::HealthMetrics;

/// Health of one handler.
#[derive(Debug)]
pub(super) struct Health {
    /// A failure has occurred since the last success; while `false`, a success costs one atomic load.
    troubled: AtomicBool,
    open: AtomicBool,
    probing: AtomicBool,
    breaker: Mutex<Breaker>,
    metrics: HealthMetrics,
}

impl Health {
    pub(super) fn new(metrics: HealthMetrics) -> Self {
        metrics.healthy.set(1);
        Self {
            troubled: AtomicBool::new(false),
            open: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            breaker: Mutex::default(),
            metrics,
        }
    }

    /// Whether new connections may use the handler.
    pub(super) fn is_good(&self) -> bool {
        !self.open.load(Ordering::Relaxed)
    }

    /// An event was handled.
    pub(super) fn report_success(&self, handler: &str) {
        if self.troubled.load(Ordering::Relaxed) {
            self.change(handler, None, |breaker| {
                self.troubled.store(false, Ordering::Relaxed);
                breaker.handle_success()
            });
        }
    }

    /// An event was not handled.
    fn failed(&self, handler: &str, error: &CallError) -> Change {
        self.change(handler, Some(error), |breaker| {
            self.troubled.store(true, Ordering::Relaxed);
            let now = Instant::now();
            match error {
                CallError::Unfit(_) => breaker.handle_unfit(now),
                CallError::Unavailable(_) | CallError::Timeout(_) | CallError::Fault(_) => breaker.handle_failure(now),
            }
        })
    }

    /// Applies a report to the breaker. Its effects are published under the lock: connections report from many threads,
    /// and the published state must be the breaker's last one.
    fn change(&self, handler: &str, error: Option<&CallError>, report: impl FnOnce(&mut Breaker) -> Change) -> Change {
        let change = {
            let mut breaker = self.breaker.lock();
            let change = report(&mut breaker);
            match change {
                Change::None => {}
                Change::Tripped => {
                    self.open.store(true, Ordering::Relaxed);
                    self.metrics.healthy.set(0);
                    self.metrics.breaker_opened.inc();
                }
                Change::Recovered => {
                    self.open.store(false, Ordering::Relaxed);
                    self.metrics.healthy.set(1);
                }
            }
            change
        };
        match change {
            Change::None => {}
            Change::Tripped => {
                let error = error.map(tracing::field::display);
                tracing::error!(
                    handler,
                    error,
                    "circuit breaker opened: new connections go to the next handler of their chain, if there is one"
                );
            }
            Change::Recovered => {
                tracing::info!(handler, "circuit breaker closed: the handler gets new connections again")
            }
        }
        change
    }
}

impl Versions {
    /// An event was not handled. Opens the breaker after too many failures, and starts the probes.
    pub(super) fn failed(self: &Arc<Self>, error: &CallError) {
        let health = self.health();
        let change = health.failed(self.name(), error);
        if change == Change::Tripped && !health.probing.swap(true, Ordering::Relaxed) {
            tokio::spawn(probe(Arc::downgrade(self)));
        }
    }
}

/// Probes an unhealthy handler until it is healthy or removed.
async fn probe(versions: Weak<Versions>) {
    loop {
        let Some(probe_at) = versions.upgrade().and_then(|versions| {
            let breaker = versions.health().breaker.lock();
            let probe_at = breaker.poll_probe();
            if probe_at.is_none() {
                versions.health().probing.store(false, Ordering::Relaxed);
            }
            probe_at
        }) else {
            return;
        };
        tokio::time::sleep_until(probe_at.into()).await;
        let Some(versions) = versions.upgrade() else {
            return;
        };
        let active = versions.active();
        let result = active.handler().probe().await;
        let health = versions.health();
        health.change(versions.name(), result.as_ref().err(), |breaker| {
            breaker.handle_probe(Instant::now(), result.is_ok())
        });
        if let Err(error) = &result {
            tracing::debug!(handler = %versions.name(), "probe failed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::telemetry::Telemetry;

    /// Connections report from many threads. In any order, the published state equals the breaker's, and while it is
    /// open the next success is reported to it.
    #[test]
    fn reports_at_the_same_time() {
        const ROUNDS: usize = 50_000;
        const REPORTS: usize = 3;
        let health = Health::new(Telemetry::new().health(&"h".into()));
        let error = CallError::Unfit("no".to_owned());
        let barrier = Barrier::new(2);
        let mismatches = AtomicUsize::new(0);
        let report = |fails_first: bool| {
            for _ in 0..ROUNDS {
                barrier.wait();
                for report in 0..REPORTS {
                    if (report % 2 == 0) == fails_first {
                        health.failed("h", &error);
                    } else {
                        health.report_success("h");
                    }
                }
                if barrier.wait().is_leader() {
                    let is_open = health.breaker.lock().is_open();
                    let is_published =
                        health.is_good() != is_open && health.metrics.healthy.get() == i64::from(!is_open);
                    let is_watched = health.troubled.load(Ordering::Relaxed) || !is_open;
                    mismatches.fetch_add(usize::from(!is_published || !is_watched), Ordering::Relaxed);
                }
                barrier.wait();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| report(true));
            scope.spawn(|| report(false));
        });
        assert_eq!(mismatches.into_inner(), 0);
    }
}
