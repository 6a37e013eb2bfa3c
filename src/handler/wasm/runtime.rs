//! WebAssembly runtime: the engines, the cache of compiled components, and loading a guest.

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

/// The engines that run all guests.
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
        let background = Arc::new(BackgroundPools::start().map_err(RuntimeError::BackgroundPools)?);
        let cache = cache::Cache::open(cache_dir)?;
        Ok(Self { engines, cache, ticker, background, metering })
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
        let failed = |kind| LoadError::new(&handler, &path, kind);
        let file = std::fs::read(&path).map_err(|source| failed(LoadErrorKind::Read(source)))?;
        let encoded = component::from_file(file).map_err(|source| failed(LoadErrorKind::NotAComponent(source)))?;
        let class = self.engines.class_of(&encoded, options.memory_bytes_max);
        let component = self.cache.compiled(&class.engine, &encoded).map_err(|error| {
            failed(match error {
                cache::CompileError::Compile(error) => LoadErrorKind::Compile(format!("{error:#}")),
                cache::CompileError::Cache(error) => LoadErrorKind::Cache(error),
                cache::CompileError::Missing => {
                    LoadErrorKind::Compile("no usable compiled component is in the cache".to_owned())
                }
            })
        })?;
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
            log: log::of_a_handler(),
            memory_rate: Arc::new(MemoryRateLimit::new()),
            engine_name: class.name,
            instance_limit: class.instance_limit.clone(),
            background: Arc::clone(&self.background),
            _ticker: Arc::clone(&self.ticker),
        });
        Ok(Handler { guest, pool })
    }
}

/// The names of a component's exports, if they make it a handler.
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
        assert_eq!((guest.guest.config.metrics.live.get(), guest.guest.config.metrics.memory_bytes.get()), (0, 0));
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
