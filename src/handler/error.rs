//! Error of a call to a handler; its kind decides how the connection recovers (`dispatch/recovery.rs`).

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The handler could not be reached, its transport broke during the call, or no instance could be created.
    #[error("unavailable: {0}")]
    Unavailable(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The handler ran and failed.
    #[error("{0}")]
    Fault(String),
    /// The handler does not implement this interface.
    #[error("unfit: {0}")]
    Unfit(String),
}

impl CallError {
    /// Value of the metrics' label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Timeout(_) => "timeout",
            Self::Fault(_) => "fault",
            Self::Unfit(_) => "unfit",
        }
    }
}
