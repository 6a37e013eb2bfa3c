//! What the gateway is to be: checked settings, made of each module's own options.
//!
//! [`file`] says what the user may write; `check` turns it into a [`Config`] and finds every fault on the
//! way. Nothing below this floor sees a [`Config`]: the gateway takes it apart and hands out the options.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::pubsub::topic::Mountpoint;
use crate::{admin, auth, connection, exproto, handler, listener, pubsub};

/// A whole, valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node, in `Message.node`.
    pub node: Arc<str>,
    /// Compiled components and the embedded broker's store.
    pub data_dir: PathBuf,
    /// How long connections may take to end when the gateway stops.
    pub drain_timeout: Duration,
    /// The `ConnectionAdapter` service; absent when no handler speaks gRPC.
    pub adapter: Option<exproto::service::Options>,
    /// Health and metrics; absent for none.
    pub admin: Option<admin::Options>,
    /// The embedded broker.
    pub broker: pubsub::embedded::Options,
    /// Who may authenticate, publish and subscribe.
    pub auth: auth::Options,
    /// The handlers, by name.
    pub handlers: Vec<Handler>,
    /// The listeners.
    pub listeners: Vec<Listener>,
}

/// A handler of either kind.
#[derive(Clone, Debug)]
pub enum Handler {
    /// A gRPC server that speaks ExProto.
    Grpc(handler::grpc::Options),
    /// A guest.
    Wasm(handler::wasm::Options),
}

impl Handler {
    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Grpc(options) => &options.name,
            Self::Wasm(options) => &options.name,
        }
    }
}

/// A listener and what its connections get.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The socket.
    pub socket: listener::Options,
    /// The connections' bounds.
    pub connection: connection::Options,
    /// Put in front of the devices' topics.
    pub mountpoint: Mountpoint,
    /// Names of its handlers, in order; each is one of [`Config::handlers`].
    pub handlers: Vec<Arc<str>>,
}
