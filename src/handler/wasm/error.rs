//! Errors of loading a guest and of starting the WebAssembly runtime.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::CacheError;
use super::component::{ComponentError, HANDLER_INTERFACE};
use crate::handler::CallError;

/// Why a guest could not be loaded, with the handler and its file.
#[derive(Debug)]
pub struct LoadError {
    handler: Arc<str>,
    path: PathBuf,
    kind: LoadErrorKind,
}

#[derive(Debug)]
pub(crate) enum LoadErrorKind {
    Read(io::Error),
    /// A core module that cannot be converted to a component.
    NotAComponent(ComponentError),
    Compile(String),
    /// The component exports no handler of a supported interface version.
    NoHandler {
        exports: String,
    },
    /// The component imports a function that the gateway does not provide.
    Link(String),
    /// Instantiation failed.
    Start(CallError),
    /// The compiler process exceeded a limit or crashed.
    CompilerProcess(String),
    /// The report of the compiler process, which names handler and file itself.
    Reported(String),
}

impl LoadError {
    pub(crate) fn new(handler: &Arc<str>, path: &Path, kind: LoadErrorKind) -> Self {
        Self { handler: Arc::clone(handler), path: path.to_owned(), kind }
    }

    /// The same error with the path that the operator configured.
    pub(crate) fn about(self, known_as: &Path) -> Self {
        Self { path: known_as.to_owned(), ..self }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handler, path, kind } = self;
        match kind {
            LoadErrorKind::Read(_) => write!(f, "handler {handler:?}: cannot read component {path:?}"),
            LoadErrorKind::NotAComponent(_) => write!(f, "handler {handler:?}: cannot convert {path:?} to a component"),
            LoadErrorKind::Compile(reason) => {
                write!(f, "handler {handler:?}: {path:?} could not be compiled: {reason}")
            }
            LoadErrorKind::NoHandler { exports } => {
                write!(f, "handler {handler:?}: {path:?} does not export {HANDLER_INTERFACE}; it exports {exports}")
            }
            LoadErrorKind::Link(reason) => write!(f, "handler {handler:?}: {path:?} cannot be linked: {reason}"),
            LoadErrorKind::Start(reason) => write!(f, "handler {handler:?}: {path:?} does not start: {reason}"),
            LoadErrorKind::CompilerProcess(reason) => write!(f, "handler {handler:?}: {path:?} {reason}"),
            LoadErrorKind::Reported(report) => f.write_str(report),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            LoadErrorKind::Read(error) => Some(error),
            LoadErrorKind::NotAComponent(error) => Some(error),
            LoadErrorKind::Compile(_)
            | LoadErrorKind::NoHandler { .. }
            | LoadErrorKind::Link(_)
            | LoadErrorKind::Start(_)
            | LoadErrorKind::CompilerProcess(_)
            | LoadErrorKind::Reported(_) => None,
        }
    }
}

/// Why the WebAssembly runtime could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot start the WebAssembly engine: {0}")]
    Engine(String),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("cannot start the epoch ticker thread")]
    Ticker(#[source] io::Error),
    #[error("cannot start the background thread pools for long events")]
    BackgroundPools(#[source] io::Error),
}
