//! Why a version was not loaded, or a change was not made.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::conversations::ConversationsError;
use super::managed_handler::WAITING_MAX;
use crate::handler::{CallError, grpc, wasm};

/// Why a version could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine for guests did not start.
    #[error(transparent)]
    Runtime(#[from] wasm::RuntimeError),
    /// The guest is refused.
    #[error(transparent)]
    Guest(#[from] wasm::LoadError),
    /// The certificates of a gRPC handler cannot be used.
    #[error(transparent)]
    Tls(#[from] grpc::TlsError),
    /// It does something else than its handler's conversations say.
    #[error("handler {handler:?}: {path:?} has not gone through its conversations")]
    Conversations {
        /// The handler.
        handler: Arc<str>,
        /// Its file.
        path: PathBuf,
        /// What it did.
        source: ConversationsError,
    },
    /// Loading it panicked.
    #[error("loading a handler panicked")]
    Panicked(#[from] tokio::task::JoinError),
    /// What is kept of the versions cannot be read or written.
    #[error("cannot keep the versions of a handler in {dir:?}")]
    Store {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Why a change was not made. Everything is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such handler.
    #[error("no handler is named {name:?}; expected one of {}", known.join(", "))]
    NoSuchHandler {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// There is no such version.
    #[error("handler {handler:?} has no version {number}; expected one of {}", listed(known))]
    NoSuchVersion {
        /// The handler.
        handler: Arc<str>,
        /// The number.
        number: u32,
        /// The numbers that there are.
        known: Vec<u32>,
    },
    /// There is nothing to go back to.
    #[error("handler {handler:?} has no version that was active before; expected one to go back to")]
    NoPrevious {
        /// The handler.
        handler: Arc<str>,
    },
    /// Nothing is tried.
    #[error("handler {handler:?} tries no version; expected a canary or a shadow under way")]
    NoTrial {
        /// The handler.
        handler: Arc<str>,
    },
    /// There is nothing to do.
    #[error("version {number} of handler {handler:?} is active already; expected another one")]
    IsActive {
        /// The handler.
        handler: Arc<str>,
        /// The version.
        number: u32,
    },
    /// Too much is asked for at a time.
    #[error("handler {handler:?} has {WAITING_MAX} changes waiting already; expected at most that many")]
    Busy {
        /// The handler.
        handler: Arc<str>,
    },
    /// What was given is no component.
    #[error("expected a component or a core module in binary form, found {bytes} bytes of something else")]
    NotWasm {
        /// How much was given.
        bytes: usize,
    },
    /// A gRPC server could not call back.
    #[error(
        "a gRPC handler needs the adapter, which this gateway does not serve; expected an [adapter] table in its configuration"
    )]
    NoAdapter,
    /// A server's calls come from outside, so they would have effects.
    #[error("a gRPC handler cannot be a shadow, because its calls have effects; expected a guest")]
    NoShadow,
    /// It was not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The server cannot be reached.
    #[error("handler {handler:?}: the new version cannot be reached")]
    Unwell {
        /// The handler.
        handler: Arc<str>,
        /// Why.
        source: CallError,
    },
    /// The gateway stops.
    #[error("the gateway stops; expected a running one")]
    Stopping,
}

fn listed(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
