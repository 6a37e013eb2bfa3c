//! One handler's handler of versions: what runs, what is kept, and whose turn it is to change it.

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

/// Changes of one handler that may wait for the one under way. Each can hold an uploaded component.
pub(super) const WAITING_MAX: usize = 4;

/// Largest component, in bytes: those of interpreted languages have some tens of MiB.
pub(crate) const COMPONENT_BYTES_MAX: u64 = 64 << 20;

/// One handler over time.
#[derive(Debug)]
pub(super) struct ManagedHandler {
    pub(super) versions: Arc<Versions>,
    pub(super) store: Store,
    pub(super) state: Mutex<State>,
    begin_change: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
}

/// What changes with its versions.
#[derive(Debug)]
pub(super) struct State {
    /// What the configuration says now.
    pub(super) options: Options,
    pub(super) index: Index,
    /// The versions that this process has loaded at some time.
    pub(super) builds: BTreeMap<u32, Build>,
    /// The task that moves connections to where they belong and watches the new version.
    pub(super) settling: Option<AbortHandle>,
}

/// What a version was loaded from, and the version, as long as somebody needs it.
#[derive(Clone, Debug)]
pub(super) struct Build {
    pub(super) program: Program,
    pub(super) policy: Policy,
    pub(super) version: Weak<Version>,
}

/// The right to change a handler.
#[derive(Debug)]
pub(super) struct ChangeGuard<'a>(#[expect(dead_code, reason = "held, never read")] tokio::sync::MutexGuard<'a, ()>);

/// One of those that wait; leaves with them also when it is dropped.
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

    /// Waits for the change under way, behind those that wait already.
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

    /// Whether a change is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.begin_change.try_lock().is_err()
    }

    /// The record of a version.
    pub(super) fn record(&self, number: u32) -> Result<Record, Error> {
        let state = self.state.lock();
        state.index.record(number).cloned().ok_or_else(|| Error::NoSuchVersion {
            handler: Arc::clone(self.name()),
            number,
            known: state.index.versions.iter().map(|record| record.number).collect(),
        })
    }

    /// The versions that hold memory.
    pub(super) fn in_use(&self) -> BTreeSet<u32> {
        self.versions.loaded().iter().map(|version| version.number()).collect()
    }

    /// Removes the components that no version needs.
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

/// What a version is, loaded with the options of the configuration: they belong to the handler, not to the version.
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

/// What the configuration names; a component is read and kept, so that it is what was looked at, whatever happens to
/// its file. Reads and writes files, so it belongs on a blocking thread.
pub(super) fn configured(program: &Program, store: &Store) -> Result<Artifact, LoadError> {
    match program {
        Program::Grpc(options) => Ok(Artifact::Grpc { urls: options.urls.iter().map(ToString::to_string).collect() }),
        Program::Wasm(options) => {
            let failed =
                |source| wasm::LoadError::new(&options.name, &options.component, wasm::LoadErrorKind::Read(source));
            let component = read(&options.component).map_err(failed)?;
            let kept = store.put(&component);
            let sha256 = kept.map_err(|source| store.failed(source))?;
            Ok(Artifact::Wasm { sha256 })
        }
    }
}

fn read(component: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(component)?.len() > COMPONENT_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {COMPONENT_BYTES_MAX} bytes")));
    }
    std::fs::read(component)
}
