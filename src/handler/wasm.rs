//! Guests: handlers that run inside the gateway as WebAssembly components.
//!
//! The [`Host`] owns the engine and ends with the gateway. It loads a component once for each handler;
//! each connection then has an instance of its own, with its own memory, so nothing that one device's bytes
//! do to an instance reaches another. A guest can call the adapter and nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine};

use crate::adapter::Adapter;
use crate::telemetry::InstanceMetrics;
use crate::wit::bindings::{ConnectionHandler, ConnectionHandlerPre};

mod cache;
mod component;
mod guest;
mod host;
mod limits;
mod log;
mod wasi;

pub use cache::CacheError;
pub use component::ComponentError;
pub use guest::Guest;

use guest::GuestState;
use limits::{Ceiling, Ticker};

/// The exported interface that makes a component a handler.
const HANDLER_INTERFACE: &str = "polygate:handler/handler@0.1.0";

/// What a guest is and what it may use.
#[derive(Clone, Debug)]
pub struct Options {
    /// The handler's name in the configuration, in logs and metrics.
    pub name: Arc<str>,
    /// A component, or a core module with component metadata or with the interface's exports.
    pub component: PathBuf,
    /// Linear memory of one instance, in bytes.
    pub memory_bytes_max: usize,
    /// CPU time of one event.
    pub event_timeout: Duration,
    /// What the guest can read with `setting`.
    pub settings: BTreeMap<String, String>,
}

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("handler {handler:?}: cannot read component {path:?}")]
    Read {
        /// The handler.
        handler: Arc<str>,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is a core module that cannot be made a component.
    #[error("handler {handler:?}: cannot make a component of {path:?}")]
    NotAComponent {
        /// The handler.
        handler: Arc<str>,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ComponentError,
    },
    /// The component could not be compiled.
    #[error("handler {handler:?}: {path:?} could not be compiled: {why}")]
    Compile {
        /// The handler.
        handler: Arc<str>,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The component is no handler of this interface version.
    #[error("handler {handler:?}: {path:?} does not export {HANDLER_INTERFACE}; it exports {exports}")]
    NoHandler {
        /// The handler.
        handler: Arc<str>,
        /// The file.
        path: PathBuf,
        /// What it exports instead.
        exports: String,
    },
    /// The component imports what is not offered.
    #[error("handler {handler:?}: {path:?} cannot be linked: {why}")]
    Link {
        /// The handler.
        handler: Arc<str>,
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// The cache of compiled components cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Why the host could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// This machine cannot run guests.
    #[error("cannot start the WebAssembly engine: {0}")]
    Engine(String),
    /// The cache of compiled components cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No thread for the clock of the event timeout.
    #[error("cannot start the thread that bounds guests' time")]
    Ticker(#[source] std::io::Error),
}

/// The engine that runs all guests.
#[derive(Clone)]
pub struct Host {
    engine: Engine,
    linker: Arc<Linker<GuestState>>,
    cache: cache::Cache,
    ceiling: Ceiling,
    ticker: Arc<Ticker>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Host {
    /// Starts the engine; compiled components are kept in `cache_dir`, which only the gateway may write to.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub fn start(cache_dir: PathBuf) -> Result<Self, HostError> {
        let mut config = Config::new();
        // Async interfaces of the component model are not part of the guest interface, and only being ready for
        // them doubles the cost of a call.
        config.concurrency_support(false);
        config.epoch_interruption(true);
        let engine = Engine::new(&config).map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let mut linker = Linker::new(&engine);
        ConnectionHandler::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
            .and_then(|()| wasmtime_wasi::p2::add_to_linker_async(&mut linker))
            .map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let ticker = Ticker::start(&engine).map_err(HostError::Ticker)?;
        let cache = cache::Cache::open(cache_dir)?;
        Ok(Self {
            engine,
            linker: Arc::new(linker),
            cache,
            ceiling: Ceiling::of_this_system(),
            ticker: Arc::new(ticker),
        })
    }

    /// How many instances may live at once: what the system's limit on memory mappings allows.
    pub fn instances_max(&self) -> usize {
        self.ceiling.instances_max()
    }

    /// Loads a guest: reads its file, makes a component of a core module, compiles it or takes the compiled
    /// one from the cache, and checks that it is a handler. Takes from a millisecond (cached) to many seconds
    /// (a large guest's first time) of CPU, so it belongs on a blocking thread.
    ///
    /// # Errors
    ///
    /// [`LoadError`], which names the handler and its file.
    pub fn load(&self, options: Options, metrics: InstanceMetrics) -> Result<Handler, LoadError> {
        let (handler, path) = (Arc::clone(&options.name), options.component.clone());
        let file = std::fs::read(&path).map_err(|source| LoadError::Read {
            handler: Arc::clone(&handler),
            path: path.clone(),
            source,
        })?;
        let encoded = component::from_file(file).map_err(|source| LoadError::NotAComponent {
            handler: Arc::clone(&handler),
            path: path.clone(),
            source,
        })?;
        let component = self.cache.compiled(&self.engine, &encoded).map_err(|error| match error {
            cache::CompileError::Compile(error) => {
                LoadError::Compile { handler: Arc::clone(&handler), path: path.clone(), why: format!("{error:#}") }
            }
            cache::CompileError::Cache(error) => LoadError::Cache(error),
        })?;
        self.check_exports(&component, &handler, &path)?;
        let pre = self
            .linker
            .instantiate_pre(&component)
            .and_then(ConnectionHandlerPre::new)
            .map_err(|error| LoadError::Link { handler, path, why: format!("{error:#}") })?;
        Ok(Handler(Arc::new(Shared {
            options,
            engine: self.engine.clone(),
            pre,
            metrics,
            ceiling: self.ceiling.clone(),
            _ticker: Arc::clone(&self.ticker),
        })))
    }

    fn check_exports(
        &self,
        component: &Component,
        handler: &Arc<str>,
        path: &std::path::Path,
    ) -> Result<(), LoadError> {
        let ty = component.component_type();
        let names: Vec<String> = ty.exports(&self.engine).map(|(name, _)| name.to_owned()).collect();
        if names.iter().any(|name| name == HANDLER_INTERFACE) {
            return Ok(());
        }
        Err(LoadError::NoHandler {
            handler: Arc::clone(handler),
            path: path.to_owned(),
            exports: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
        })
    }
}

/// A loaded guest, shared by all its connections; cheap to clone.
#[derive(Clone)]
pub struct Handler(Arc<Shared>);

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handler").field(&self.0.options).finish()
    }
}

/// What every instance of a guest is made from.
struct Shared {
    options: Options,
    engine: Engine,
    pre: ConnectionHandlerPre<GuestState>,
    metrics: InstanceMetrics,
    ceiling: Ceiling,
    /// The clock runs as long as there is a guest whose time it bounds, also without its host.
    _ticker: Arc<Ticker>,
}

impl Handler {
    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.0.options.name
    }

    /// A connection's place for an instance; the instance itself is made for the first event.
    pub fn attach(&self, adapter: Box<Adapter>) -> Guest {
        Guest::new(Arc::clone(&self.0), adapter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    fn load(bytes: &[u8]) -> Result<Handler, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("guest.wasm");
        std::fs::write(&file, bytes).unwrap();
        let host = Host::start(dir.path().join("cache")).unwrap();
        let options = Options {
            name: "guest".into(),
            component: file,
            memory_bytes_max: 1 << 20,
            event_timeout: Duration::from_secs(1),
            settings: BTreeMap::new(),
        };
        host.load(options, Telemetry::new().instances(&"guest".into()))
    }

    /// A core module for this world of the guest interface, as a compiler makes it, with its component metadata.
    fn core_module(world: &str) -> Vec<u8> {
        let mut resolve = wit_parser::Resolve::default();
        let (package, _) = resolve.push_dir("wit").unwrap();
        let world = resolve.select_world(&[package], Some(world)).unwrap();
        let mangling = wit_parser::ManglingAndAbi::Legacy(wit_parser::LiftLowerAbi::Sync);
        let mut module = wit_component::dummy_module(&resolve, world, mangling);
        let encoding = wit_component::StringEncoding::UTF8;
        wit_component::embed_component_metadata(&mut module, &resolve, world, encoding, false).unwrap();
        module
    }

    /// What a compiler makes is taken as it is: the host makes a component of it, with or without `migrate`.
    #[test]
    fn a_core_module_is_made_a_component() {
        for world in ["connection-handler", "migrating-connection-handler"] {
            assert_eq!(&**load(&core_module(world)).unwrap().name(), "guest");
        }
    }

    /// A file that is no guest is refused with the reason, whatever it is.
    #[test]
    fn what_is_no_guest_is_refused() {
        let text = |bytes: &[u8]| load(bytes).unwrap_err().to_string();
        assert!(text(b"not wasm").contains("could not be compiled"), "{}", text(b"not wasm"));
        let empty_module = load(b"\0asm\x01\0\0\0").unwrap_err();
        let cause = std::error::Error::source(&empty_module).unwrap().to_string();
        assert!(cause.contains("it exports nothing"), "{cause}");
        let empty_component = b"\0asm\x0d\0\x01\0";
        assert!(text(empty_component).contains("it exports nothing"), "{}", text(empty_component));
    }
}
