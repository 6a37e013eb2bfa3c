//! State of one handler's rollouts: running versions, index, store, and the lock that serializes changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::index::{Artifact, Index, Record};
use super::store::Store;
use super::{Error, LoadError, Options, Program};
use crate::dispatch::{Policy, Version, Versions};
use crate::handler::{grpc, wasm};

/// Maximum number of changes queued behind the running one. Each can hold an uploaded component.
pub(super) const WAITING_MAX: usize = 4;

/// Largest component, in bytes: those of interpreted languages have some tens of MiB.
pub(crate) const COMPONENT_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct ManagedHandler {
    pub(super) versions: Arc<Versions>,
    pub(super) store: Store,
    pub(super) state: Mutex<State>,
    begin_change: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
}

/// Mutable state.
#[derive(Debug)]
pub(super) struct State {
    /// Current configuration.
    pub(super) options: Options,
    pub(super) index: Index,
    /// Builds that this process has loaded.
    pub(super) builds: BTreeMap<u32, Build>,
    /// The task that migrates connections and watches the new version.
    pub(super) migration: Option<AbortHandle>,
}

/// Program and policy of a loaded version; the version itself while in use.
#[derive(Clone, Debug)]
pub(super) struct Build {
    pub(super) program: Program,
    pub(super) policy: Policy,
    pub(super) version: Weak<Version>,
}

/// Lock guard of a change of one handler.
#[derive(Debug)]
pub(super) struct ChangeGuard<'a>(#[expect(dead_code, reason = "held, never read")] tokio::sync::MutexGuard<'a, ()>);

/// Counts a queued change; uncounted on drop.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ManagedHandler {
    pub(super) fn new(versions: Arc<Versions>, store: Store, state: State) -> Arc<Self> {
        let (begin_change, waiting) = (tokio::sync::Mutex::default(), AtomicUsize::new(0));
        Arc::new(Self { versions, store, state: Mutex::new(state), begin_change, waiting })
    }

    pub(super) fn name(&self) -> &Arc<str> {
        self.versions.name()
    }

    /// Waits for the running change, behind those queued before.
    pub(super) async fn begin_change(&self) -> Result<ChangeGuard<'_>, Error> {
        if let Ok(begin_change) = self.begin_change.try_lock() {
            return Ok(ChangeGuard(begin_change));
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= WAITING_MAX {
            return Err(Error::Busy { handler: Arc::clone(self.name()) });
        }
        Ok(ChangeGuard(self.begin_change.lock().await))
    }

    /// Whether a change is running.
    pub(super) fn is_busy(&self) -> bool {
        self.begin_change.try_lock().is_err()
    }

    pub(super) fn record(&self, number: u32) -> Result<Record, Error> {
        let state = self.state.lock();
        state.index.record(number).cloned().ok_or_else(|| Error::NoSuchVersion {
            handler: Arc::clone(self.name()),
            number,
            known: state.index.versions.iter().map(|record| record.number).collect(),
        })
    }

    /// Versions in memory.
    pub(super) fn in_use(&self) -> BTreeSet<u32> {
        self.versions.loaded().iter().map(|version| version.number()).collect()
    }

    /// Removes components that no version needs.
    pub(super) async fn forget_components(&self) {
        let (store, index) = (self.store.clone(), self.state.lock().index.clone());
        let pruning = tokio::task::spawn_blocking(move || {
            let mut kept = index.digests();
            kept.extend(index.configured.digest());
            store.prune(&kept);
        });
        if let Err(error) = pruning.await {
            tracing::error!(handler = %self.name(), %error, "removing components panicked");
        }
    }
}

/// The program of an artifact with the configured options, which belong to the handler, not to the version.
pub(super) fn program(configured: &Program, what: &Artifact, store: &Store) -> Program {
    let name = Arc::clone(configured.name());
    match (what, configured) {
        (Artifact::Wasm { sha256 }, Program::Wasm(options)) => {
            Program::Wasm(wasm::Options { component: store.component(sha256), ..options.clone() })
        }
        (Artifact::Wasm { sha256 }, Program::Grpc(_)) => {
            Program::Wasm(wasm::Options::new(name, store.component(sha256)))
        }
        (Artifact::Grpc { urls }, Program::Grpc(options)) => Program::Grpc(grpc::Options {
            urls: urls.iter().filter_map(|url| grpc::url(url)).collect(),
            ..options.clone()
        }),
        (Artifact::Grpc { urls }, Program::Wasm(_)) => {
            let urls: Vec<_> = urls.iter().filter_map(|url| grpc::url(url)).collect();
            Program::Grpc(grpc::Options::new(name, urls))
        }
    }
}

/// The configured artifact. A component is read and stored once by `put`, which returns its digest, so later changes of
/// its file do not matter. Blocking: reads and writes files.
pub(super) fn configured(
    program: &Program,
    put: impl FnOnce(&[u8], &Path) -> Result<String, LoadError>,
) -> Result<Artifact, LoadError> {
    match program {
        Program::Grpc(options) => Ok(Artifact::Grpc { urls: options.urls.iter().map(ToString::to_string).collect() }),
        Program::Wasm(options) => {
            let failed =
                |source| wasm::LoadError::new(&options.name, &options.component, wasm::LoadErrorKind::Read(source));
            let component = read(&options.component).map_err(failed)?;
            Ok(Artifact::Wasm { sha256: put(&component, &options.component)? })
        }
    }
}

fn read(component: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(component)?.len() > COMPONENT_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {COMPONENT_BYTES_MAX} bytes")));
    }
    std::fs::read(component)
}
