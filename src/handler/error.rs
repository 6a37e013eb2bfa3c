//! Failure of a call to a handler; its kind decides how the connection recovers (`dispatch/recovery.rs`).

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The handler could not be reached, or the call was cut off by its transport, or no instance could be made.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// No answer within the handler's timeout.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The handler ran and failed.
    #[error("{0}")]
    Fault(String),
    /// The handler does not speak this interface.
    #[error("unfit: {0}")]
    Unfit(String),
}

impl CallError {
    /// The kind's name in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Timeout(_) => "timeout",
            Self::Fault(_) => "fault",
            Self::Unfit(_) => "unfit",
        }
    }
}
