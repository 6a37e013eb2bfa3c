//! Which handler a listener's connections get.

use std::sync::Arc;

use crate::handler::Handler;
use crate::telemetry::{HandlerMetrics, Telemetry};

/// A listener's handlers in order: the first serves, the others are its fallback.
#[derive(Clone, Debug)]
pub struct Chain(Arc<[Link]>);

/// One handler of a chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// The handler.
    pub handler: Handler,
    /// Its counters behind this listener.
    pub metrics: HandlerMetrics,
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
        handlers: impl IntoIterator<Item = Handler>,
        telemetry: &Telemetry,
    ) -> Result<Self, EmptyChain> {
        let links: Arc<[Link]> = handlers
            .into_iter()
            .map(|handler| Link { metrics: telemetry.handler(listener, handler.name()), handler })
            .collect();
        if links.is_empty() {
            return Err(EmptyChain { listener: Arc::clone(listener) });
        }
        Ok(Self(links))
    }

    /// The handler for a new connection.
    pub fn first(&self) -> &Link {
        // `new` refuses an empty chain.
        &self.0[0]
    }
}
