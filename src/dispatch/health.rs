//! Whether a handler is fit for new connections: its breaker, and the probes while it is open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::breaker::{Breaker, Change};
use super::versions::Versions;
use crate::handler::CallError;
use crate::telemetry::HealthMetrics;

/// What is known of a handler's health.
#[derive(Debug)]
pub(super) struct Health {
    /// There was a failure since the last success; as long as there was none, a success costs one look.
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

    /// Whether new connections may be given to the handler.
    pub(super) fn is_good(&self) -> bool {
        !self.open.load(Ordering::Relaxed)
    }

    /// An event was handled.
    pub(super) fn handled(&self, handler: &str) {
        if self.troubled.load(Ordering::Relaxed) {
            let change = self.breaker.lock().handle_success();
            self.troubled.store(false, Ordering::Relaxed);
            self.tell(handler, change, None);
        }
    }

    fn tell(&self, handler: &str, change: Change, error: Option<&CallError>) {
        match change {
            Change::None => {}
            Change::Tripped => {
                self.open.store(true, Ordering::Relaxed);
                self.metrics.healthy.set(0);
                self.metrics.trips.inc();
                let error = error.map(tracing::field::display);
                tracing::error!(handler, error, "the handler keeps failing; new connections go to the next one");
            }
            Change::Recovered => {
                self.open.store(false, Ordering::Relaxed);
                self.metrics.healthy.set(1);
                tracing::info!(handler, "the handler gets new connections again");
            }
        }
    }
}

impl Versions {
    /// An event was not handled. Trips the breaker when there are too many of these, and starts the probes.
    pub(super) fn failed(self: &Arc<Self>, error: &CallError) {
        let health = self.health();
        let change = {
            let mut breaker = health.breaker.lock();
            health.troubled.store(true, Ordering::Relaxed);
            let now = Instant::now();
            match error {
                CallError::Unfit(_) => breaker.handle_unfit(now),
                CallError::Unavailable(_) | CallError::Timeout(_) | CallError::Fault(_) => breaker.handle_failure(now),
            }
        };
        health.tell(self.name(), change, Some(error));
        if change == Change::Tripped && !health.probing.swap(true, Ordering::Relaxed) {
            tokio::spawn(probe(Arc::downgrade(self)));
        }
    }
}

/// Looks at an unhealthy handler again and again, until it is well or gone.
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
        let change = health.breaker.lock().handle_probe(Instant::now(), result.is_ok());
        if let Err(error) = &result {
            tracing::debug!(handler = %versions.name(), "the handler is still unwell: {error}");
        }
        health.tell(versions.name(), change, result.as_ref().err());
    }
}
