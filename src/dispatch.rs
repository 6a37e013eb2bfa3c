//! Listener to handlers: which one a connection gets, which version of it, and what follows when it fails.
//!
//! A [`Chain`] is a listener's handlers in order. [`Versions`] is one of them over time: the builds of it that are loaded,
//! the one that is active, and whether it works ([`Breaker`]). What happens to an event that failed is decided
//! in [`Recovery`]; the connection does it.

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

/// Failures of a handler that are told as warnings, for each listener: a hundred devices that each have a fault get through,
/// and of a hundred thousand it is enough to see ten a second. All are counted.
static FAILURES: LazyLock<Rate> = LazyLock::new(|| lines_in(100, Duration::from_secs(10)));

/// A listener's handlers in order: the first that is healthy serves, those behind it are its fallback.
#[derive(Clone, Debug)]
pub struct Chain(Arc<[Link]>);

/// One handler of a chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// The handler.
    pub versions: Arc<Versions>,
    /// Its counters behind this listener.
    pub metrics: HandlerMetrics,
    /// Its failures there that may be told.
    pub failures: LogLimiter,
}

/// A chain without handlers was asked for.
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
    /// [`EmptyChain`], without any.
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

    /// The position of the handler for a new connection: the first that is healthy, or the first at all.
    pub fn choose(&self) -> usize {
        self.0.iter().position(|link| link.versions.is_healthy()).unwrap_or_default()
    }

    /// The handler at a position, as `choose` and `after` give it.
    pub fn link(&self, position: usize) -> &Link {
        // `new` refuses an empty chain, and positions come from this chain.
        &self.0[position.min(self.0.len() - 1)]
    }

    /// The position of the handler that takes over from the one at `position`: the first healthy one behind it, or
    /// the first behind it at all.
    pub fn after(&self, position: usize) -> Option<usize> {
        let behind = position + 1..self.0.len();
        behind.clone().find(|next| self.0[*next].versions.is_healthy()).or(behind.into_iter().next())
    }

    /// The names of the handlers, in order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|link| link.versions.name())
    }
}
