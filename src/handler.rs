//! Protocol handler of a listener: an ExProto gRPC server, or a WASM component in this process (a guest).
//!
//! All connections of a listener share a [`Handler`]; attaching a connection creates an [`Attachment`], which takes the
//! events of that connection one at a time. The handler's operations go through the connection's
//! [`Adapter`](crate::adapter::Adapter).

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
    /// Name in the configuration, in logs and metrics.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Grpc(handler) => handler.name(),
            Self::Wasm(handler) => handler.name(),
        }
    }

    /// Attaches a connection. The first event makes the first call, and creates the instance of a guest.
    pub fn attach(&self, conn: ConnId, info: &Arc<ConnInfo>) -> Attachment {
        match self {
            Self::Grpc(handler) => Attachment::Grpc(handler.attach(conn, info)),
            Self::Wasm(handler) => Attachment::Wasm(handler.attach(conn, info)),
        }
    }

    /// Checks that the handler can be reached (a gRPC server) or started (a guest), without a connection.
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
    /// Calls enter an instance; adapter operations run in the same task, during the call.
    Wasm(wasm::Guest),
}
