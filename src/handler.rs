//! The program behind a listener: a gRPC server that speaks ExProto, or a guest.
//!
//! A [`Handler`] is shared by all connections of a listener; attaching a connection gives an [`Attachment`],
//! which takes that connection's events one at a time. What the handler asks for meanwhile goes through the
//! connection's [`Adapter`](crate::adapter::Adapter).

use std::sync::Arc;
use std::time::Duration;

use crate::conn::{ConnId, ConnInfo};

pub mod grpc;
pub mod wasm;

/// A handler of either kind; cheap to clone.
#[derive(Clone, Debug)]
pub enum Handler {
    /// A gRPC server that speaks ExProto.
    Grpc(grpc::Handler),
    /// A guest: a WebAssembly component in this process.
    Wasm(wasm::Handler),
}

impl Handler {
    /// Its name in the configuration, in logs and metrics.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Grpc(handler) => handler.name(),
            Self::Wasm(handler) => handler.name(),
        }
    }

    /// Binds a connection to this handler. Nothing is sent or started before the first event.
    pub fn attach(&self, conn: ConnId, info: &Arc<ConnInfo>) -> Attachment {
        match self {
            Self::Grpc(handler) => Attachment::Grpc(handler.attach(conn, info)),
            Self::Wasm(handler) => Attachment::Wasm(handler.attach(conn, info)),
        }
    }

    /// Whether the handler can be reached (a gRPC server) or started (a guest). No connection is part of it.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn probe(&self) -> Result<(), CallError> {
        match self {
            Self::Grpc(handler) => handler.probe().await,
            Self::Wasm(handler) => handler.probe().await,
        }
    }
}

/// One connection's side of a handler.
#[derive(Debug)]
pub enum Attachment {
    /// Calls go over the network; adapter operations come back through the mailbox.
    Grpc(grpc::GrpcClient),
    /// Calls go into an instance; adapter operations are made in the same task, during the call.
    Wasm(wasm::Guest),
}

/// Why an event was not handled. The kinds decide what happens next.
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
