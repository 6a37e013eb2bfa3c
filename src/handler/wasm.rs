//! Guests: handlers that run inside the gateway as WebAssembly components.
//!
//! The [`Runtime`] owns the engines and ends with the gateway. It loads a component once for each handler;
//! each connection then has an instance of its own, with its own memory, so nothing that one device's bytes
//! do to an instance reaches another. A guest can call the adapter and nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};

use super::CallError;
use crate::adapter::Backend;
use crate::conn::{CloseReason, ConnId, ConnInfo, Event};
use crate::telemetry::{InstanceMetrics, LogLimiter};
use crate::wit::bindings::ConnectionHandlerIndices;
use crate::wit::migration::MigrationIndices;

mod cache;
mod compile_process;
pub mod component;
mod engines;
mod fairness;
mod guest;
mod imports;
mod inspect;
mod instance;
mod limits;
mod log;
mod shared_instances;
mod slot_allocator;
mod wasi;

pub use cache::CacheError;
pub use compile_process::{Bounds, Compiler, bound_this_process};
pub use engines::Capacity;
pub use guest::Guest;
pub use inspect::{Form, Import, Inspection, Memory};
pub use instance::{Snapshot, Usage};
pub use limits::EventBudget;

use component::ComponentError;
use engines::Engines;
use fairness::{BackgroundPools, FailureRate, MemoryRateLimit};
use instance::{Call, GuestState, Instance};
use limits::{InstanceLimit, Ticker};
use shared_instances::InstancePool;

/// The exported interface that makes a component a handler.
const HANDLER_INTERFACE: &str = "polygate:handler/handler@0.1.0";

/// The exported interface that lets a connection go on with another version of its guest.
const MIGRATE_INTERFACE: &str = "polygate:handler/migrate@0.1.0";

/// Linear memory of one instance where nobody says another bound, in bytes.
pub const MEMORY_BYTES_DEFAULT: usize = 16 << 20;

/// CPU time of one event where nobody says another bound.
pub const EVENT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// How a guest's connections are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Every connection has an instance of its own.
    Connection,
    /// This many instances, `1..`, serve all connections; a trap costs the connections of one instance their state.
    Shared(usize),
}

/// What a guest is and what it may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The handler's name in the configuration, in logs and metrics.
    pub name: Arc<str>,
    /// A component, or a core module with component metadata or with the interface's exports.
    pub component: PathBuf,
    /// How its connections are kept apart.
    pub isolation: Isolation,
    /// Linear memory of one instance, in bytes.
    pub memory_bytes_max: usize,
    /// CPU time of one event.
    pub event_timeout: Duration,
    /// What one event may ask of the host.
    pub budget: EventBudget,
    /// What the guest can read with `setting`.
    pub settings: BTreeMap<String, String>,
}

impl Options {
    /// A guest with the bounds of one of which only its file is known.
    pub fn new(name: Arc<str>, component: PathBuf) -> Self {
        Self {
            name,
            component,
            isolation: Isolation::Connection,
            memory_bytes_max: MEMORY_BYTES_DEFAULT,
            event_timeout: EVENT_TIMEOUT_DEFAULT,
            budget: EventBudget::default(),
            settings: BTreeMap::new(),
        }
    }
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
    /// No instance of it can be made.
    #[error("handler {handler:?}: {path:?} does not start: {why}")]
    Start {
        /// The handler.
        handler: Arc<str>,
        /// The file.
        path: PathBuf,
        /// What stops it.
        why: CallError,
    },
    /// The cache of compiled components cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The process that compiles has refused the component, or has come to an end.
    #[error("{0}")]
    Subprocess(String),
}

impl LoadError {
    /// The same of a file that the user knows by another path.
    pub fn about(self, known_as: &Path) -> Self {
        let path = known_as.to_owned();
        match self {
            Self::Read { handler, source, .. } => Self::Read { handler, path, source },
            Self::NotAComponent { handler, source, .. } => Self::NotAComponent { handler, path, source },
            Self::Compile { handler, why, .. } => Self::Compile { handler, path, why },
            Self::NoHandler { handler, exports, .. } => Self::NoHandler { handler, path, exports },
            Self::Link { handler, why, .. } => Self::Link { handler, path, why },
            Self::Start { handler, why, .. } => Self::Start { handler, path, why },
            Self::Cache(_) | Self::Subprocess(_) => self,
        }
    }
}

/// Why the host could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// This machine cannot run guests.
    #[error("cannot start the WebAssembly engine: {0}")]
    Engine(String),
    /// The cache of compiled components cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No thread for the clock of the event timeout.
    #[error("cannot start the thread that bounds guests' time")]
    Ticker(#[source] std::io::Error),
    /// No threads for events that take long.
    #[error("cannot start the threads for long events of guests")]
    BackgroundPools(#[source] std::io::Error),
}

/// The engines that run all guests.
#[derive(Clone)]
pub struct Runtime {
    engines: Engines,
    cache: cache::Cache,
    ticker: Arc<Ticker>,
    long_events: Arc<BackgroundPools>,
    metering: Metering,
}

/// Whether instances count what they execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metering {
    None,
    Fuel,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts the engines; compiled components are kept in `cache_dir`, which only the gateway may write to.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`].
    pub fn start(cache_dir: PathBuf) -> Result<Self, RuntimeError> {
        Self::with(Engines::start()?, cache_dir, Metering::None)
    }

    /// As [`Runtime::start`], with instances that count what they execute ([`Usage::fuel`]), which costs them a part of
    /// their speed: for measuring.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`].
    pub fn start_metered(cache_dir: PathBuf) -> Result<Self, RuntimeError> {
        Self::with(Engines::start_metered()?, cache_dir, Metering::Fuel)
    }

    fn with(engines: Engines, cache_dir: PathBuf, metering: Metering) -> Result<Self, RuntimeError> {
        let ticker = Arc::new(Ticker::start(engines.all()).map_err(RuntimeError::Ticker)?);
        let long_events = Arc::new(BackgroundPools::start().map_err(RuntimeError::BackgroundPools)?);
        let cache = cache::Cache::open(cache_dir)?;
        Ok(Self { engines, cache, ticker, long_events, metering })
    }

    /// Starts what it takes to compile components into the cache, and to look at them. It has hardly any room for instances;
    /// `has_small` says whether the host that runs what is compiled has a small engine.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`].
    pub fn start_compiler(cache_dir: PathBuf, has_small: bool) -> Result<Self, RuntimeError> {
        Self::with(Engines::to_compile(has_small)?, cache_dir, Metering::None)
    }

    /// The same host, which takes compiled components from the cache and compiles none.
    #[must_use]
    pub fn without_compiler(mut self) -> Self {
        self.cache.keep_from_compiling();
        self
    }

    /// How many instances may live at once.
    pub fn capacity(&self) -> Capacity {
        self.engines.capacity()
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
        let class = self.engines.class_of(&encoded, options.memory_bytes_max);
        let component = self.cache.compiled(&class.engine, &encoded).map_err(|error| match error {
            cache::CompileError::Compile(error) => {
                LoadError::Compile { handler: Arc::clone(&handler), path: path.clone(), why: format!("{error:#}") }
            }
            cache::CompileError::Cache(error) => LoadError::Cache(error),
            cache::CompileError::Missing => {
                let why = "no usable compiled component is in the cache".to_owned();
                LoadError::Compile { handler: Arc::clone(&handler), path: path.clone(), why }
            }
        })?;
        let exports = exports(&class.engine, &component, &handler, &path)?;
        let migrates = exports.iter().any(|name| name == MIGRATE_INTERFACE);
        let link = || {
            let pre = class.linker.instantiate_pre(&component)?;
            let handler_exports = ConnectionHandlerIndices::new(&pre)?;
            let migration_exports = if migrates { Some(MigrationIndices::new(&pre)?) } else { None };
            Ok((pre, handler_exports, migration_exports))
        };
        let (pre, handler_exports, migration_exports) =
            link().map_err(|error: wasmtime::Error| LoadError::Link { handler, path, why: format!("{error:#}") })?;
        let slots = match options.isolation {
            Isolation::Connection => None,
            Isolation::Shared(count) => Some(InstancePool::new(count)),
        };
        let instances_max = class.instance_limit.instances_max();
        tracing::info!(handler = %options.name, engine = %class.name, instances_max, "guest loaded");
        Ok(Handler(Arc::new(Shared {
            options,
            engine: class.engine.clone(),
            pre,
            handler_exports,
            migration_exports,
            slots,
            log: log::of_a_handler(),
            failures: FailureRate::new(),
            memory_rate: Arc::new(MemoryRateLimit::new()),
            metrics,
            engine_name: class.name,
            instance_limit: class.instance_limit.clone(),
            long_events: Arc::clone(&self.long_events),
            metering: self.metering,
            _ticker: Arc::clone(&self.ticker),
        })))
    }
}

/// What a component exports, if that makes it a handler.
fn exports(engine: &Engine, component: &Component, handler: &Arc<str>, path: &Path) -> Result<Vec<String>, LoadError> {
    let ty = component.component_type();
    let names: Vec<String> = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    if names.iter().any(|name| name == HANDLER_INTERFACE) {
        return Ok(names);
    }
    Err(LoadError::NoHandler {
        handler: Arc::clone(handler),
        path: path.to_owned(),
        exports: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
    })
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
    pre: InstancePre<GuestState>,
    handler_exports: ConnectionHandlerIndices,
    /// For a guest that carries its connections' state over a swap.
    migration_exports: Option<MigrationIndices>,
    /// For a guest whose instances serve many connections.
    slots: Option<InstancePool>,
    /// What all its instances may say.
    log: LogLimiter,
    /// How often its instances fail.
    failures: FailureRate,
    /// What memory they may take while they do.
    memory_rate: Arc<MemoryRateLimit>,
    metrics: InstanceMetrics,
    engine_name: &'static str,
    instance_limit: InstanceLimit,
    metering: Metering,
    /// Where events go on that take long.
    long_events: Arc<BackgroundPools>,
    /// The clock runs as long as there is a guest whose time it bounds, also without its host.
    _ticker: Arc<Ticker>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Handler {
    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.0.options.name
    }

    /// The engine that it runs on: `small` or `large`.
    pub fn engine(&self) -> &'static str {
        self.0.engine_name
    }

    /// Whether it can carry a connection's state over to another version.
    pub fn migrates(&self) -> bool {
        self.0.migration_exports.is_some()
    }

    /// A connection's place for an instance; the instance itself is made for the first event.
    pub fn attach(&self, conn: ConnId, info: &Arc<ConnInfo>) -> Guest {
        match &self.0.slots {
            None => {
                let mut instance = Instance::new(Arc::clone(&self.0), conn);
                if self.0.failures.are_many() {
                    instance.quarantine();
                }
                Guest::own(instance)
            }
            Some(slots) => Guest::shared(slots.take(Arc::clone(&self.0), conn, Arc::clone(info))),
        }
    }

    /// Makes the first instance and drops it: what keeps a guest from starting at all is found before devices come, and
    /// what wasmtime makes once for all instances, a descriptor among it, is there when descriptors have run out.
    ///
    /// # Errors
    ///
    /// [`LoadError::Start`].
    pub async fn try_out(&self) -> Result<(), LoadError> {
        let conn = ConnId::from_u64(0);
        let tried = Instance::new(Arc::clone(&self.0), conn).try_out(conn).await;
        let Options { name, component, .. } = &self.0.options;
        tried.map_err(|why| LoadError::Start { handler: Arc::clone(name), path: component.clone(), why })
    }

    /// Makes an instance and drops it: whether there is room for one, and whether it starts.
    ///
    /// # Errors
    ///
    /// As [`Guest::call`].
    pub async fn probe(&self) -> Result<(), CallError> {
        // A guest that was never told of a connection has nothing to do at its end.
        let conn = ConnId::from_u64(0);
        let backend = Backend::dry_run(conn);
        let ended = Event::SocketClosed(CloseReason::Draining);
        let (_, result) = Instance::new(Arc::clone(&self.0), conn).call(backend, Call::Event(&ended)).await;
        result.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    fn load(bytes: &[u8]) -> Result<Handler, LoadError> {
        load_with(bytes, 1 << 20)
    }

    fn load_with(bytes: &[u8], memory_bytes_max: usize) -> Result<Handler, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("guest.wasm");
        std::fs::write(&file, bytes).unwrap();
        let host = Runtime::start(dir.path().join("cache")).unwrap();
        let options = Options {
            name: "guest".into(),
            component: file,
            isolation: Isolation::Connection,
            memory_bytes_max,
            budget: EventBudget::default(),
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

    /// A guest of which no instance can be made is found when it is loaded, not when a device comes; one of which there
    /// can leaves nothing behind.
    #[tokio::test]
    async fn a_guest_that_cannot_start_is_refused() {
        let echo = std::fs::read("guests/dist/echo.wasm").unwrap();
        let guest = load(&echo).unwrap();
        guest.try_out().await.unwrap();
        assert_eq!((guest.0.metrics.live.get(), guest.0.metrics.memory_bytes.get()), (0, 0));
        let refused = load_with(&echo, 1).unwrap().try_out().await.unwrap_err().to_string();
        assert!(refused.contains("does not start") && refused.contains("exceeds memory limits"), "{refused}");
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
