//! Errors of rollouts: a version was not loaded, or a change was not made.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::conversations::ConversationsError;
use super::managed_handler::WAITING_MAX;
use crate::handler::{CallError, grpc, wasm};

/// A version could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine for guests did not start.
    #[error(transparent)]
    Runtime(#[from] wasm::RuntimeError),
    /// The guest was rejected.
    #[error(transparent)]
    Guest(#[from] wasm::LoadError),
    /// The certificates of a gRPC handler are not usable.
    #[error(transparent)]
    Tls(#[from] grpc::TlsError),
    /// It does not pass its handler's conversations.
    #[error("handler {handler:?}: {path:?} failed its conversations")]
    Conversations { handler: Arc<str>, path: PathBuf, source: ConversationsError },
    /// Loading it panicked.
    #[error("loading a handler panicked")]
    Panicked(#[from] tokio::task::JoinError),
    /// The version store cannot be read or written.
    #[error("cannot use the version store {dir:?} of a handler")]
    Store { dir: PathBuf, source: io::Error },
}

/// A change was not made; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no handler is named {name:?}; expected one of {}", known.join(", "))]
    NoSuchHandler { name: String, known: Vec<String> },
    #[error("handler {handler:?} has no version {number}; expected one of {}", listed(known))]
    NoSuchVersion { handler: Arc<str>, number: u32, known: Vec<u32> },
    #[error("handler {handler:?} has no version that was active before; expected one to go back to")]
    NoPrevious { handler: Arc<str> },
    #[error("handler {handler:?} has no version on trial; expected a canary or a shadow in progress")]
    NoTrial { handler: Arc<str> },
    #[error("version {number} of handler {handler:?} is active already; expected another one")]
    IsActive { handler: Arc<str>, number: u32 },
    /// Too many changes are queued.
    #[error("handler {handler:?} already has {WAITING_MAX} queued changes; expected at most that many")]
    Busy { handler: Arc<str> },
    #[error("expected a component or a core module in binary form, found {bytes} bytes of something else")]
    NotWasm { bytes: usize },
    /// A gRPC handler needs the adapter service.
    #[error(
        "a gRPC handler needs the adapter, which this gateway does not serve; expected an [adapter] table in its configuration"
    )]
    NoAdapter,
    /// Calls of a gRPC server come from outside, so they would have effects.
    #[error("a gRPC handler cannot be a shadow, because its calls have effects; expected a guest")]
    NoShadow,
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("handler {handler:?}: the new version cannot be reached")]
    Unwell { handler: Arc<str>, source: CallError },
    #[error("the gateway is stopping; expected a running one")]
    Stopping,
}

fn listed(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
