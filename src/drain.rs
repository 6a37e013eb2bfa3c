//! Drain: the stop signal of a graceful shutdown.
//!
//! Two moments: after [`Drain::begin`] nothing new is accepted; after [`Drain::end`] no connection is left that needs
//! the services behind it.

use tokio_util::sync::CancellationToken;

/// Shared by every task that accepts or serves until the gateway stops.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    ended: CancellationToken,
}

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    /// Signals that the gateway stops accepting. Irreversible.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Waits for [`Drain::begin`].
    pub async fn signalled(&self) {
        self.begun.cancelled().await;
    }

    /// Whether [`Drain::begin`] was called.
    pub fn is_signalled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Signals that no connection is left. Irreversible.
    pub fn end(&self) {
        self.ended.cancel();
    }

    /// Waits for [`Drain::end`].
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}
