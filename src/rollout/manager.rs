//! Rollout manager: all handlers, and every change of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

use super::commit::CommitMode;
use super::managed_handler::ManagedHandler;
use super::start;
use super::{Error, HandlerStatus, Initiator, LoadError, Loader, Options, Program, Swap, VersionState, VersionStatus};
use crate::dispatch::{ConnectionMigrator, Version, Versions};
use crate::drain::Drain;
use crate::error::report;
use crate::telemetry::Telemetry;

/// Dependencies of the rollout manager.
#[derive(Debug)]
pub struct Services {
    /// Directory of the version stores, one subdirectory per handler.
    pub versions_dir: PathBuf,
    /// How long connections that cannot migrate may keep an old version.
    pub drain_timeout: Duration,
    /// Whether the adapter service runs, so that gRPC handlers can call back.
    pub has_adapter: bool,
    pub migrator: ConnectionMigrator,
    pub telemetry: Telemetry,
    /// Once signalled, no change is made.
    pub drain: Drain,
}

/// The handlers of a gateway; cheap to clone.
#[derive(Clone, Debug)]
pub struct RolloutManager(pub(super) Arc<Shared>);

/// Shared by all clones of [`RolloutManager`].
#[derive(Debug)]
pub(super) struct Shared {
    /// In the order of the configuration; handlers added by a reload come last.
    handlers: ArcSwap<Vec<Arc<ManagedHandler>>>,
    pub(super) loader: Loader,
    pub(super) services: Services,
}

/// Uploaded candidate for a new version.
#[derive(Clone, Debug)]
pub enum Candidate {
    Component(Bytes),
    /// A component whose conversations are not replayed, at the operator's request.
    Unchecked(Bytes),
    Server(Uri),
}

/// A change of one handler that an operator requests.
enum Change {
    Swap { candidate: Candidate, swap: Option<Swap>, activates: bool },
    Activate { number: u32, swap: Option<Swap> },
    RollBack,
    Promote,
    Abandon,
}

impl Change {
    /// Name in the log.
    fn name(&self) -> &'static str {
        match self {
            Self::Swap { .. } => "swap",
            Self::Activate { .. } => "activate",
            Self::RollBack => "rollback",
            Self::Promote => "promote",
            Self::Abandon => "abandon",
        }
    }
}

/// Result of a change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangeResult {
    pub handler: String,
    /// The version that was activated, put on trial, kept or abandoned.
    pub version: u32,
    /// Its state now.
    pub state: VersionState,
    /// The version that was active before.
    pub before: u32,
}

impl RolloutManager {
    /// Loads the version of each handler that was active when the gateway last ran; if the configuration names another
    /// artifact since, that one.
    ///
    /// # Errors
    ///
    /// [`LoadError`] of a configured artifact. If a version activated since cannot be loaded, that is logged, and the
    /// configured one is used.
    pub async fn open(options: Vec<Options>, loader: Loader, services: Services) -> Result<Self, LoadError> {
        let mut handlers = Vec::with_capacity(options.len());
        for options in options {
            handlers.push(start::open_handler(options, &loader, &services).await?);
        }
        Ok(Self(Arc::new(Shared { handlers: ArcSwap::from_pointee(handlers), loader, services })))
    }

    /// The versions of a handler, for the connections.
    pub fn versions(&self, handler: &str) -> Option<Arc<Versions>> {
        self.handler(handler).ok().map(|handler| Arc::clone(&handler.versions))
    }

    /// The names of the handlers.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.0.handlers.load().iter().map(|handler| Arc::clone(handler.name())).collect()
    }

    /// Status of all handlers.
    pub fn list(&self) -> Vec<HandlerStatus> {
        self.0.handlers.load().iter().map(|handler| HandlerStatus::of(handler)).collect()
    }

    /// Status of the versions of one handler, newest first.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchHandler`].
    pub fn list_versions(&self, handler: &str) -> Result<Vec<VersionStatus>, Error> {
        Ok(VersionStatus::all_of(self.handler(handler)?.as_ref()))
    }

    /// Loads and checks a new version, and activates or tries it as `swap` says, by default as configured; if not
    /// `activates`, it is only kept. A running change of this handler comes first; the migration or trial that it
    /// started is replaced by this one.
    ///
    /// # Errors
    ///
    /// [`Error`]; then nothing has changed.
    pub async fn swap(
        &self,
        handler: &str,
        candidate: Candidate,
        swap: Option<Swap>,
        activates: bool,
        initiator: Initiator,
    ) -> Result<ChangeResult, Error> {
        self.change(handler, Change::Swap { candidate, swap, activates }, initiator).await
    }

    /// Activates a kept version, loading it again if necessary.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn activate(
        &self,
        handler: &str,
        number: u32,
        swap: Option<Swap>,
        initiator: Initiator,
    ) -> Result<ChangeResult, Error> {
        self.change(handler, Change::Activate { number, swap }, initiator).await
    }

    /// Activates the previous version; a trial in progress is abandoned.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn roll_back(&self, handler: &str, initiator: Initiator) -> Result<ChangeResult, Error> {
        self.change(handler, Change::RollBack, initiator).await
    }

    /// Activates the version on trial.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn promote(&self, handler: &str, initiator: Initiator) -> Result<ChangeResult, Error> {
        self.change(handler, Change::Promote, initiator).await
    }

    /// Ends a trial; the connections of a canary migrate back to the active version.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn abandon(&self, handler: &str, initiator: Initiator) -> Result<ChangeResult, Error> {
        self.change(handler, Change::Abandon, initiator).await
    }

    /// Makes a change in a task of its own: a caller that is dropped, such as the request of a client that hangs up,
    /// does not stop it between the index and the plan.
    async fn change(&self, handler: &str, change: Change, initiator: Initiator) -> Result<ChangeResult, Error> {
        let (manager, handler) = (self.clone(), self.handler(handler)?);
        let changing = tokio::spawn(async move {
            let operation = change.name();
            let result = manager.apply(&handler, change, initiator).await;
            manager.log_change(&handler, initiator, operation, result)
        });
        changing.await.map_err(LoadError::Panicked)?
    }

    async fn apply(
        &self,
        handler: &Arc<ManagedHandler>,
        change: Change,
        initiator: Initiator,
    ) -> Result<ChangeResult, Error> {
        let _guard = handler.begin_change().await?;
        let (prepared, mode) = match change {
            Change::Swap { candidate, swap, activates } => {
                let prepared = self.prepare_candidate(handler, candidate, initiator).await?;
                let swap = swap.unwrap_or(handler.state.lock().options.swap);
                (prepared, if activates { CommitMode::Swap(swap) } else { CommitMode::Keep })
            }
            Change::Activate { number, swap } => {
                (self.prepare_kept(handler, number).await?, CommitMode::Swap(swap.unwrap_or(Swap::Live)))
            }
            Change::RollBack => {
                let previous = handler.state.lock().index.previous;
                let number = previous.ok_or_else(|| Error::NoPrevious { handler: Arc::clone(handler.name()) })?;
                (self.prepare_kept(handler, number).await?, CommitMode::Return)
            }
            Change::Promote => {
                let number = trial_of(handler)?.number();
                (self.prepare_kept(handler, number).await?, CommitMode::Swap(Swap::Live))
            }
            Change::Abandon => return Ok(self.end_trial(handler, trial_of(handler)?.number())),
        };
        self.commit(handler, prepared, mode, initiator).await
    }

    /// Applies a reloaded configuration, in a task of its own: a handler whose program or policy it changes gets a new version, and a new
    /// handler is loaded. Returns the changes.
    ///
    /// Removed handlers stay until [`retain`](Self::retain): listeners may still send them connections. One reload at a
    /// time.
    ///
    /// # Errors
    ///
    /// All errors. If a version cannot be loaded, no handler is changed.
    pub async fn reload(&self, options: Vec<Options>, initiator: Initiator) -> Result<Vec<ChangeResult>, Vec<Error>> {
        let manager = self.clone();
        let reloading = tokio::spawn(async move { manager.apply_all(options, initiator).await });
        reloading.await.unwrap_or_else(|error| Err(vec![LoadError::Panicked(error).into()]))
    }

    async fn apply_all(&self, options: Vec<Options>, initiator: Initiator) -> Result<Vec<ChangeResult>, Vec<Error>> {
        let mut options: BTreeMap<Arc<str>, Options> =
            options.into_iter().map(|options| (Arc::clone(options.name()), options)).collect();
        // Locked in the order of names, so that two callers with several locks cannot deadlock.
        let known = self.0.handlers.load_full();
        let mut handlers: Vec<&Arc<ManagedHandler>> = known.iter().collect();
        handlers.sort_by_key(|handler| Arc::clone(handler.name()));
        let mut guards = Vec::new();
        let mut changes = Vec::new();
        let mut errors = Vec::new();
        for handler in handlers {
            let Some(options) = options.remove(handler.name()) else {
                continue;
            };
            match handler.begin_change().await {
                Ok(guard) => guards.push(guard),
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            }
            match self.prepare_configured(handler, &options, initiator).await {
                Ok((what, prepared)) => changes.push((handler, options, what, prepared)),
                Err(error) => errors.push(error),
            }
        }
        let mut added = Vec::new();
        for options in options.into_values() {
            match self.open_new(options).await {
                Ok(handler) => added.push(handler),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut done = Vec::new();
        for (handler, options, what, prepared) in changes {
            let (last, last_what) = {
                let mut state = handler.state.lock();
                let last = std::mem::replace(&mut state.options, options.clone());
                (last, std::mem::replace(&mut state.index.configured, what))
            };
            let Some(prepared) = prepared else {
                continue;
            };
            let result = self.commit(handler, prepared, CommitMode::Swap(options.swap), initiator).await;
            match self.log_change(handler, initiator, "swap", result) {
                Ok(change) => done.push(change),
                Err(error) => {
                    let mut state = handler.state.lock();
                    state.options = last;
                    state.index.configured = last_what;
                    errors.push(error);
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        if !added.is_empty() {
            self.0.handlers.store(Arc::new(known.iter().cloned().chain(added).collect()));
        }
        Ok(done)
    }

    /// Removes the handlers that are not among `names`. Their memory is freed when their last connections close.
    pub fn retain(&self, names: &[Arc<str>]) {
        let (kept, gone): (Vec<_>, Vec<_>) =
            self.0.handlers.load().iter().cloned().partition(|handler| names.contains(handler.name()));
        for handler in &gone {
            if let Some(migration) = handler.state.lock().migration.take() {
                migration.abort();
            }
            tracing::info!(handler = %handler.name(), "handler removed");
        }
        if !gone.is_empty() {
            self.0.handlers.store(Arc::new(kept));
        }
    }

    /// Loads a handler that a reload has added.
    async fn open_new(&self, options: Options) -> Result<Arc<ManagedHandler>, Error> {
        let services = &self.0.services;
        if !services.has_adapter && matches!(options.program, Program::Grpc(_)) {
            return Err(Error::NoAdapter);
        }
        Ok(start::open_handler(options, &self.0.loader, services).await?)
    }

    /// Automatic rollback of a failing version, unless another change has replaced it meanwhile.
    pub(super) async fn roll_back_failing(self, handler: Arc<ManagedHandler>, number: u32, events: u64, failures: u64) {
        let result = async {
            let _guard = handler.begin_change().await?;
            let plan = handler.versions.plan();
            let is_tried = plan.trial.as_ref().is_some_and(|trial| trial.version.number() == number);
            let previous = handler.state.lock().index.previous;
            match previous {
                _ if is_tried => Ok(Some(self.end_trial(&handler, number))),
                Some(previous) if plan.active.number() == number => {
                    let prepared = self.prepare_kept(&handler, previous).await?;
                    self.commit(&handler, prepared, CommitMode::Return, Initiator::HealthWindow).await.map(Some)
                }
                Some(_) | None => Ok(None),
            }
        };
        let managed = &handler;
        let handler = managed.name();
        tracing::error!(%handler, version = number, events, failures, "the new version exceeds the rollback threshold; rolling back");
        match result.await {
            Ok(None) => tracing::info!(%handler, version = number, "the failing version is no longer in use"),
            Ok(Some(done)) => {
                self.0.services.telemetry.swapped(handler, "rolled_back");
                drop(self.log_change(managed, Initiator::HealthWindow, "rollback", Ok(done)));
            }
            Err(error) => drop(self.log_change(managed, Initiator::HealthWindow, "rollback", Err(error))),
        }
    }

    fn handler(&self, handler: &str) -> Result<Arc<ManagedHandler>, Error> {
        let handlers = self.0.handlers.load();
        handlers.iter().find(|managed| **managed.name() == *handler).cloned().ok_or_else(|| Error::NoSuchHandler {
            name: handler.chars().take(80).collect(),
            known: self.names().iter().map(ToString::to_string).collect(),
        })
    }

    /// Logs a change with its initiator, and counts it.
    fn log_change(
        &self,
        handler: &ManagedHandler,
        initiator: Initiator,
        operation: &str,
        result: Result<ChangeResult, Error>,
    ) -> Result<ChangeResult, Error> {
        let handler = handler.name();
        match &result {
            Ok(done) => {
                let ChangeResult { version, state, before, .. } = done;
                self.0.services.telemetry.swapped(handler, state.name());
                tracing::info!(%handler, operation, by = %initiator, version, state = state.name(), before, "handler changed");
            }
            Err(error) => {
                self.0.services.telemetry.swapped(handler, "refused");
                let why = report(error);
                tracing::warn!(%handler, operation, by = %initiator, "handler change refused: {why}");
            }
        }
        result
    }
}

fn trial_of(handler: &ManagedHandler) -> Result<Arc<Version>, Error> {
    let plan = handler.versions.plan();
    let trial = plan.trial.as_ref().map(|trial| Arc::clone(&trial.version));
    trial.ok_or_else(|| Error::NoTrial { handler: Arc::clone(handler.name()) })
}
