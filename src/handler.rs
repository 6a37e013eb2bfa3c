//! The program behind a listener: a gRPC server that speaks ExProto, or a guest.
//!
//! A [`Handler`] is shared by all connections of a listener; attaching a connection gives an [`Attachment`],
//! which takes that connection's events one at a time. What the handler asks for meanwhile goes through the
//! connection's [`Adapter`](crate::adapter::Adapter).

use std::sync::Arc;

use crate::conn::{ConnId, ConnInfo};

mod error;
pub(crate) mod grpc;
pub(crate) mod wasm;

pub(crate) use error::CallError;

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
