//! The stop signal.
//!
//! Two moments: from [`Drain::begin`] on nothing new is accepted; from [`Drain::end`] on no connection is
//! left that needs the services behind it.

use tokio_util::sync::CancellationToken;

/// Shared by everything that accepts or serves until the gateway stops.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    ended: CancellationToken,
}

impl Drain {
    /// Not yet signalled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that the gateway stops accepting. Cannot be taken back.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Returns once [`Drain::begin`] was called.
    pub async fn signalled(&self) {
        self.begun.cancelled().await;
    }

    /// Whether [`Drain::begin`] was called.
    pub fn is_signalled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Says that no connection is left. Cannot be taken back.
    pub fn end(&self) {
        self.ended.cancel();
    }

    /// Returns once [`Drain::end`] was called.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}
