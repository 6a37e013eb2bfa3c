//! Loader of handler programs, off the data path: compiles, instantiates, replays conversations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::OnceCell;
use tracing::subscriber::NoSubscriber;

use super::conversations::{self, Played};
use super::{LoadError, Program};
use crate::handler::wasm::{self, Bounds, Capacity, Compiler, Isolation, Runtime};
use crate::handler::{Handler, grpc};
use crate::telemetry::Telemetry;

/// Loads handlers of both kinds.
#[derive(Debug)]
pub struct Loader {
    compiler: Compiler,
    cache_dir: PathBuf,
    /// Started with the first guest: a gateway without guests needs no engine.
    host: OnceCell<Runtime>,
    telemetry: Telemetry,
}

impl Loader {
    /// Caches compiled components in `cache_dir`.
    pub fn new(compiler: Compiler, cache_dir: PathBuf, telemetry: Telemetry) -> Self {
        Self { compiler, cache_dir, host: OnceCell::new(), telemetry }
    }

    /// Loads a program; makes a trial instance of a guest. Compilation may take seconds; nothing else waits for it.
    /// Errors name the file as `known_as`.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub(super) async fn load(&self, program: Program, known_as: &Path, bounds: Bounds) -> Result<Handler, LoadError> {
        match program {
            Program::Grpc(options) => Ok(Handler::Grpc(grpc::Handler::new(options)?)),
            Program::Wasm(options) => {
                let host = self.host.get_or_try_init(|| self.start()).await?.clone();
                self.compiler.prepare(&host, &options, known_as, bounds).await?;
                let metrics = self.telemetry.instances(&options.name);
                let loading = tokio::task::spawn_blocking(move || host.load(options, metrics));
                let guest = loading.await?.map_err(|error| error.about(known_as))?;
                guest.try_out().await.map_err(|error| error.about(known_as))?;
                Ok(Handler::Wasm(guest))
            }
        }
    }

    /// Replays the handler's conversations against a guest, off the data path and separate from the instances of devices.
    /// No effect for a gRPC handler.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub(super) async fn replay(
        &self,
        program: &Program,
        known_as: &Path,
        conversations: &[PathBuf],
    ) -> Result<(), LoadError> {
        let (Program::Wasm(options), false) = (program, conversations.is_empty()) else {
            return Ok(());
        };
        let host = self.host.get_or_try_init(|| self.start()).await?.clone();
        let handler = Arc::clone(&options.name);
        // One device at a time, in its own instance; counted in a throwaway registry.
        let options = wasm::Options { isolation: Isolation::Connection, ..options.clone() };
        let metrics = Telemetry::new().instances(&handler);
        let paths = conversations.to_vec();
        let playing = tokio::task::spawn_blocking(move || {
            let loaded = tracing::subscriber::with_default(NoSubscriber::new(), || host.load(options, metrics));
            loaded.map(|guest| conversations::play(&guest, &paths))
        });
        let played = playing.await?.map_err(|error| error.about(known_as))?;
        let Played { conversations, plays, left_out } = played.map_err(|source| LoadError::Conversations {
            handler: Arc::clone(&handler),
            path: known_as.to_owned(),
            source,
        })?;
        tracing::info!(%handler, path = ?known_as, conversations, plays, left_out, "all conversations passed");
        Ok(())
    }

    async fn start(&self) -> Result<Runtime, LoadError> {
        let host = Runtime::start(self.cache_dir.clone())?;
        let Capacity { small, large } = host.capacity();
        tracing::info!(small_instances_max = small, large_instances_max = large, "engines for guests ready");
        Ok(match self.compiler {
            Compiler::InProcess => host,
            Compiler::Subprocess(_) => host.without_compiler(),
        })
    }
}
