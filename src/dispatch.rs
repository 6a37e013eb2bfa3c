//! Dispatcher: the handler chain of a listener, the versions of each handler, circuit breaker, failure recovery,
//! migration.
//!
//! A [`Chain`] is a listener's handlers in order. [`Versions`] is one handler over time: its loaded builds, the active
//! one, and its health ([`health`]). [`Recovery`] decides what follows a failed event; the connection executes it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::rate::Rate;
use crate::telemetry::{HandlerMetrics, LogLimiter, Telemetry, lines_in};

mod breaker;
mod connection_migrator;
mod health;
mod recovery;
mod versions;

pub use connection_migrator::ConnectionMigrator;
pub(crate) use recovery::{Next, OnFailure, Policy, Recovery};
pub(crate) use versions::{Membership, Placement, Trial, TrialKind};
pub use versions::{OldConnections, Plan, Version, Versions};

/// Rate limit of warnings about a handler's failures, per listener: a hundred devices with one failure each get
/// through, and of a hundred thousand, ten lines a second are enough. All are counted.
static FAILURES: LazyLock<Rate> = LazyLock::new(|| lines_in(100, Duration::from_secs(10)));

/// A listener's handlers in order: the first healthy one serves, the ones behind it are its fallback.
#[derive(Clone, Debug)]
pub struct Chain(Arc<[Link]>);

/// One handler of a chain.
#[derive(Clone, Debug)]
pub struct Link {
    pub versions: Arc<Versions>,
    /// Its metrics under this listener.
    pub metrics: HandlerMetrics,
    /// Log limiter of its failures under this listener.
    pub failures: LogLimiter,
}

/// A listener has no handlers.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener:?} has no handler; expected at least one")]
pub struct EmptyChain {
    listener: Arc<str>,
}

impl Chain {
    /// The handlers of a listener, in the order of its configuration.
    ///
    /// # Errors
    ///
    /// [`EmptyChain`] without handlers.
    pub fn new(
        listener: &Arc<str>,
        handlers: impl IntoIterator<Item = Arc<Versions>>,
        telemetry: &Telemetry,
    ) -> Result<Self, EmptyChain> {
        let links: Arc<[Link]> = handlers
            .into_iter()
            .map(|versions| Link {
                metrics: telemetry.handler(listener, versions.name()),
                versions,
                failures: LogLimiter::new(&FAILURES),
            })
            .collect();
        if links.is_empty() {
            return Err(EmptyChain { listener: Arc::clone(listener) });
        }
        Ok(Self(links))
    }

    /// Position of the handler for a new connection: the first healthy one, or the first if none is healthy.
    pub fn choose(&self) -> usize {
        self.0.iter().position(|link| link.versions.is_healthy()).unwrap_or_default()
    }

    /// The handler at a position returned by `choose` or `after`.
    pub fn link(&self, position: usize) -> &Link {
        // `new` refuses an empty chain, and positions come from this chain.
        &self.0[position.min(self.0.len() - 1)]
    }

    /// Position of the handler that takes over from the one at `position`: the first healthy one behind it, or the one
    /// behind it if none is healthy.
    pub fn after(&self, position: usize) -> Option<usize> {
        let behind = position + 1..self.0.len();
        behind.clone().find(|next| self.0[*next].versions.is_healthy()).or(behind.into_iter().next())
    }

    /// The names of the handlers, in order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|link| link.versions.name())
    }
}
