//! WebAssembly runtime: the engines, the cache of compiled components, and the loading of guests.

use std::path::PathBuf;
use std::sync::Arc;

use wasmtime::Engine;
use wasmtime::component::Component;

use super::component::{HANDLER_INTERFACE, MIGRATE_INTERFACE};
use super::engines::{Capacity, Engines};
use super::error::{LoadError, LoadErrorKind, RuntimeError};
use super::fairness::{BackgroundPools, FailureRate, MemoryRateLimit};
use super::loaded_guest::LoadedGuest;
use super::options::{Isolation, Options};
use super::shared_instances::InstancePool;
use super::store::{GuestConfig, Metering};
use super::ticker::Ticker;
use super::wasm_handler::Handler;
use super::{cache, component, log};
use crate::telemetry::InstanceMetrics;
use crate::wit::bindings::ConnectionHandlerIndices;
use crate::wit::migration::MigrationIndices;

/// Engines, compiled-component cache, ticker and background pools of all guests; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    engines: Engines,
    cache: cache::Cache,
    ticker: Arc<Ticker>,
    background: Arc<BackgroundPools>,
    metering: Metering,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts the engines; compiled components are cached in `cache_dir`, which must be writable by the gateway's user
    /// alone.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`].
    pub fn start(cache_dir: PathBuf) -> Result<Self, RuntimeError> {
        Self::with(Engines::start()?, cache::Cache::open(cache_dir)?, Metering::None)
    }

    /// As [`Runtime::start`], with fuel metering of instances ([`Usage::fuel`](super::Usage::fuel)), which slows them
    /// down: for benchmarks.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`].
    pub fn start_metered(cache_dir: PathBuf) -> Result<Self, RuntimeError> {
        Self::with(Engines::start_metered()?, cache::Cache::open(cache_dir)?, Metering::Fuel)
    }

    fn with(engines: Engines, cache: cache::Cache, metering: Metering) -> Result<Self, RuntimeError> {
        let ticker = Arc::new(Ticker::start(engines.all()).map_err(RuntimeError::Ticker)?);
        let background = Arc::new(BackgroundPools::start().map_err(RuntimeError::BackgroundPools)?);
        Ok(Self { engines, cache, ticker, background, metering })
    }

    /// Starts engines that compile components in memory and inspect them, with capacity for very few instances.
    /// `has_small`: whether the runtime that will load the compiled components has a small engine.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`].
    pub fn start_compiler(has_small: bool) -> Result<Self, RuntimeError> {
        Self::with(Engines::to_compile(has_small)?, cache::Cache::in_memory(), Metering::None)
    }

    /// The same runtime, which loads compiled components from the cache only and never compiles.
    #[must_use]
    pub fn without_compiler(mut self) -> Self {
        self.cache.disable_compiler();
        self
    }

    /// Maximum numbers of live instances.
    pub fn capacity(&self) -> Capacity {
        self.engines.capacity()
    }

    /// Whether the compiled code of a guest is cached. Blocking, as [`Runtime::load`].
    ///
    /// # Errors
    ///
    /// [`LoadError`] of the component's file.
    pub(super) fn has(&self, options: &Options) -> Result<bool, LoadError> {
        let encoded = encoded(options)?;
        Ok(self.cache.has(&self.engines.class_of(&encoded, options.memory_bytes_max).engine, &encoded))
    }

    /// Caches code that the compiler process has made of a guest. Blocking, as [`Runtime::load`].
    ///
    /// # Errors
    ///
    /// [`LoadError`], if the code is not that of this engine.
    pub(super) fn put(&self, options: &Options, code: &[u8]) -> Result<(), LoadError> {
        let encoded = encoded(options)?;
        let class = self.engines.class_of(&encoded, options.memory_bytes_max);
        let put = self.cache.put(&class.engine, &encoded, code);
        put.map_err(|error| LoadError::new(&options.name, &options.component, error.into()))
    }

    /// Compiles a guest and checks that it is a handler; returns its code for [`Runtime::put`]. Blocking, as
    /// [`Runtime::load`].
    ///
    /// # Errors
    ///
    /// [`LoadError`], with the handler's name and file.
    pub fn compile(&self, options: Options, metrics: InstanceMetrics) -> Result<Vec<u8>, LoadError> {
        self.load(options.clone(), metrics)?;
        let encoded = encoded(&options)?;
        let class = self.engines.class_of(&encoded, options.memory_bytes_max);
        let compiled = self.cache.compiled(&class.engine, &encoded);
        let code = compiled.and_then(|component| component.serialize().map_err(cache::CompileError::Compile));
        code.map_err(|error| LoadError::new(&options.name, &options.component, error.into()))
    }

    /// Loads a guest: reads its file, converts a core module to a component, compiles it or loads the compiled
    /// component from the cache, and checks that it is a handler. Takes from a millisecond (cached) to many seconds
    /// (first load of a large guest) of CPU time, so it belongs on a blocking thread.
    ///
    /// # Errors
    ///
    /// [`LoadError`], with the handler's name and file.
    pub fn load(&self, options: Options, metrics: InstanceMetrics) -> Result<Handler, LoadError> {
        let (handler, path) = (Arc::clone(&options.name), options.component.clone());
        let failed = |kind| LoadError::new(&handler, &path, kind);
        let encoded = encoded(&options)?;
        let class = self.engines.class_of(&encoded, options.memory_bytes_max);
        let component = self.cache.compiled(&class.engine, &encoded).map_err(|error| failed(error.into()))?;
        let exports = exports(&class.engine, &component).map_err(failed)?;
        let migrates = exports.iter().any(|name| name == MIGRATE_INTERFACE);
        let link = || {
            let pre = class.linker.instantiate_pre(&component)?;
            let handler_exports = ConnectionHandlerIndices::new(&pre)?;
            let migration_exports = if migrates { Some(MigrationIndices::new(&pre)?) } else { None };
            Ok((pre, handler_exports, migration_exports))
        };
        let (pre, handler_exports, migration_exports) =
            link().map_err(|error: wasmtime::Error| failed(LoadErrorKind::Link(format!("{error:#}"))))?;
        let pool = match options.isolation {
            Isolation::Connection => None,
            Isolation::Shared(count) => Some(Arc::new(InstancePool::new(count))),
        };
        let instances_max = class.instance_limit.instances_max();
        tracing::info!(handler = %options.name, engine = %class.name, instances_max, "guest loaded");
        let guest = Arc::new(LoadedGuest {
            config: Arc::new(GuestConfig { options, metrics, failures: FailureRate::new(), metering: self.metering }),
            engine: class.engine.clone(),
            pre,
            handler_exports,
            migration_exports,
            log: log::handler_limiter(),
            memory_rate: Arc::new(MemoryRateLimit::new()),
            engine_name: class.name,
            instance_limit: class.instance_limit.clone(),
            background: Arc::clone(&self.background),
            _ticker: Arc::clone(&self.ticker),
        });
        Ok(Handler { guest, pool })
    }
}

/// A guest's file as a component.
fn encoded(options: &Options) -> Result<Vec<u8>, LoadError> {
    let failed = |kind| LoadError::new(&options.name, &options.component, kind);
    let file = std::fs::read(&options.component).map_err(|source| failed(LoadErrorKind::Read(source)))?;
    component::from_file(file).map_err(|source| failed(LoadErrorKind::NotAComponent(source)))
}

impl From<cache::CompileError> for LoadErrorKind {
    fn from(error: cache::CompileError) -> Self {
        match error {
            cache::CompileError::Compile(error) => Self::Compile(format!("{error:#}")),
            cache::CompileError::Missing => Self::Compile("no usable compiled component in the cache".to_owned()),
        }
    }
}

/// Names of a component's exports, if the handler interface is among them.
fn exports(engine: &Engine, component: &Component) -> Result<Vec<String>, LoadErrorKind> {
    let ty = component.component_type();
    let names: Vec<String> = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    if names.iter().any(|name| name == HANDLER_INTERFACE) {
        return Ok(names);
    }
    let exports = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    Err(LoadErrorKind::NoHandler { exports })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::handler::wasm::EventBudget;
    use crate::telemetry::Telemetry;

    fn load(bytes: &[u8]) -> Result<Handler, LoadError> {
        load_with(bytes, 1 << 20)
    }

    fn load_with(bytes: &[u8], memory_bytes_max: usize) -> Result<Handler, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("guest.wasm");
        std::fs::write(&file, bytes).unwrap();
        let runtime = Runtime::start(dir.path().join("cache")).unwrap();
        let options = Options {
            name: "guest".into(),
            component: file,
            isolation: Isolation::Connection,
            memory_bytes_max,
            budget: EventBudget::default(),
            event_timeout: Duration::from_secs(1),
            settings: BTreeMap::new(),
        };
        runtime.load(options, Telemetry::new().instances(&"guest".into()))
    }

    /// A core module for a world of the guest interface, as compilers produce it, with component metadata.
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

    /// The runtime converts core modules to components, with or without the `migrate` interface.
    #[test]
    fn core_modules_are_converted() {
        for world in ["connection-handler", "migrating-connection-handler"] {
            assert_eq!(&**load(&core_module(world)).unwrap().name(), "guest");
        }
    }

    /// A guest that cannot be instantiated is refused at the trial instantiation, not at the first connection; a
    /// successful trial leaves no instance and no memory.
    #[tokio::test]
    async fn a_guest_that_cannot_start_is_refused() {
        let echo = std::fs::read("guests/dist/echo.wasm").unwrap();
        let guest = load(&echo).unwrap();
        guest.try_out().await.unwrap();
        assert_eq!((guest.guest.config.metrics.live.get(), guest.guest.config.metrics.memory_bytes.get()), (0, 0));
        let refused = load_with(&echo, 1).unwrap().try_out().await.unwrap_err().to_string();
        assert!(refused.contains("does not start") && refused.contains("exceeds memory limits"), "{refused}");
    }

    /// Files that are not guests are refused with the reason.
    #[test]
    fn other_files_are_refused() {
        let text = |bytes: &[u8]| load(bytes).unwrap_err().to_string();
        assert!(text(b"not wasm").contains("could not be compiled"), "{}", text(b"not wasm"));
        let empty_module = load(b"\0asm\x01\0\0\0").unwrap_err();
        let cause = std::error::Error::source(&empty_module).unwrap().to_string();
        assert!(cause.contains("it exports nothing"), "{cause}");
        let empty_component = b"\0asm\x0d\0\x01\0";
        assert!(text(empty_component).contains("it exports nothing"), "{}", text(empty_component));
    }
}
