//! All handlers and their changes.

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

/// What changes of handlers need of the gateway.
#[derive(Debug)]
pub struct Services {
    /// Where the versions are kept, a directory for each handler.
    pub versions_dir: PathBuf,
    /// How long connections that cannot go over to a new version may stay with the old one.
    pub drain_timeout: Duration,
    /// Whether gRPC handlers can call back.
    pub has_adapter: bool,
    /// Asks connections over.
    pub migrator: ConnectionMigrator,
    /// Counts.
    pub telemetry: Telemetry,
    /// Nothing is changed any more from its beginning on.
    pub drain: Drain,
}

/// The handlers of a gateway; cheap to clone.
#[derive(Clone, Debug)]
pub struct RolloutManager(pub(super) Arc<Shared>);

/// What all clones of [`RolloutManager`] have.
#[derive(Debug)]
pub(super) struct Shared {
    /// In the order of the configuration; those that a reload has added come last.
    lines: ArcSwap<Vec<Arc<ManagedHandler>>>,
    pub(super) loader: Loader,
    pub(super) services: Services,
}

/// What a version is to be made of.
#[derive(Clone, Debug)]
pub enum Candidate {
    /// A component.
    Component(Bytes),
    /// A component whose conversations are not played: the operator knows better.
    Unchecked(Bytes),
    /// A gRPC server.
    Server(Uri),
}

/// A change that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangeResult {
    /// The handler.
    pub handler: String,
    /// The version that was activated, tried, kept or abandoned.
    pub version: u32,
    /// Where that version is now.
    pub state: VersionState,
    /// The version that was active before.
    pub before: u32,
}

impl RolloutManager {
    /// Loads the version of each handler that was active when the gateway last ran; where the configuration names
    /// something else since, that.
    ///
    /// # Errors
    ///
    /// [`LoadError`], of what the configuration names. A version that was made active since and cannot be loaded any more
    /// is told, and the configuration's takes its place.
    pub async fn open(options: Vec<Options>, loader: Loader, services: Services) -> Result<Self, LoadError> {
        let mut lines = Vec::with_capacity(options.len());
        for options in options {
            lines.push(start::open_line(options, &loader, &services).await?);
        }
        Ok(Self(Arc::new(Shared { lines: ArcSwap::from_pointee(lines), loader, services })))
    }

    /// The versions of a handler, for the connections.
    pub fn versions(&self, handler: &str) -> Option<Arc<Versions>> {
        self.handler(handler).ok().map(|handler| Arc::clone(&handler.versions))
    }

    /// The names of the handlers.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.0.lines.load().iter().map(|handler| Arc::clone(handler.name())).collect()
    }

    /// What the operator is told of all handlers.
    pub fn list(&self) -> Vec<HandlerStatus> {
        self.0.lines.load().iter().map(|handler| HandlerStatus::of(handler)).collect()
    }

    /// What the operator is told of the versions of one, newest first.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchHandler`].
    pub fn list_versions(&self, handler: &str) -> Result<Vec<VersionStatus>, Error> {
        Ok(VersionStatus::all_of(self.handler(handler)?.as_ref()))
    }

    /// Loads a new version, looks whether it works, and activates or tries it as `swap` says, or as the configuration
    /// does without; without `activates` it is only kept. A change of this handler that is under way comes first; what
    /// that change has set in motion, such as a canary, gives way to this one.
    ///
    /// # Errors
    ///
    /// [`Error`]; then everything is as it was.
    pub async fn swap(
        &self,
        handler: &str,
        candidate: Candidate,
        swap: Option<Swap>,
        activates: bool,
        initiator: Initiator,
    ) -> Result<ChangeResult, Error> {
        let handler = &self.handler(handler)?;
        let result = async {
            let _guard = handler.begin_change().await?;
            let prepared = self.prepare_candidate(handler, candidate, initiator).await?;
            let swap = swap.unwrap_or(handler.state.lock().options.swap);
            self.commit(handler, prepared, if activates { CommitMode::Swap(swap) } else { CommitMode::Keep }, initiator)
                .await
        };
        self.log_change(handler, initiator, "swap", result.await)
    }

    /// Makes one of the last versions active, loading it again if need be.
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
        let handler = &self.handler(handler)?;
        let result = async {
            let _guard = handler.begin_change().await?;
            let prepared = self.prepare_kept(handler, number).await?;
            self.commit(handler, prepared, CommitMode::Swap(swap.unwrap_or(Swap::Live)), initiator).await
        };
        self.log_change(handler, initiator, "activate", result.await)
    }

    /// Makes the version active that was active before; a trial under way is abandoned by it.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn roll_back(&self, handler: &str, initiator: Initiator) -> Result<ChangeResult, Error> {
        let handler = &self.handler(handler)?;
        let result = async {
            let _guard = handler.begin_change().await?;
            let previous = handler.state.lock().index.previous;
            let number = previous.ok_or_else(|| Error::NoPrevious { handler: Arc::clone(handler.name()) })?;
            let prepared = self.prepare_kept(handler, number).await?;
            self.commit(handler, prepared, CommitMode::Return, initiator).await
        };
        self.log_change(handler, initiator, "rollback", result.await)
    }

    /// Makes the version active that is tried.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn promote(&self, handler: &str, initiator: Initiator) -> Result<ChangeResult, Error> {
        let handler = &self.handler(handler)?;
        let result = async {
            let _guard = handler.begin_change().await?;
            let number = tried(handler)?.number();
            let prepared = self.prepare_kept(handler, number).await?;
            self.commit(handler, prepared, CommitMode::Swap(Swap::Live), initiator).await
        };
        self.log_change(handler, initiator, "promote", result.await)
    }

    /// Ends a trial; the connections of a canary go back to the active version.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn abandon(&self, handler: &str, initiator: Initiator) -> Result<ChangeResult, Error> {
        let handler = &self.handler(handler)?;
        let result = async {
            let _guard = handler.begin_change().await?;
            let version = tried(handler)?.number();
            Ok(self.end_trial(handler, version))
        };
        self.log_change(handler, initiator, "abandon", result.await)
    }

    /// Follows a configuration that was read again: a handler whose program or policy it changes gets a new version, and one
    /// that is new in it is loaded. Gives what was changed.
    ///
    /// Handlers that are missing in it stay until [`retain`](Self::retain): listeners may still send them connections. One
    /// reload at a time.
    ///
    /// # Errors
    ///
    /// All that is wrong. If a version cannot be loaded, no handler is changed.
    pub async fn reload(&self, options: Vec<Options>, initiator: Initiator) -> Result<Vec<ChangeResult>, Vec<Error>> {
        let mut options: BTreeMap<Arc<str>, Options> =
            options.into_iter().map(|options| (Arc::clone(options.name()), options)).collect();
        // In the order of their names, so that two who want several turns cannot wait for each other.
        let known = self.0.lines.load_full();
        let mut lines: Vec<&Arc<ManagedHandler>> = known.iter().collect();
        lines.sort_by_key(|handler| Arc::clone(handler.name()));
        let mut turns = Vec::new();
        let mut changes = Vec::new();
        let mut errors = Vec::new();
        for handler in lines {
            let Some(options) = options.remove(handler.name()) else {
                continue;
            };
            match handler.begin_change().await {
                Ok(turn) => turns.push(turn),
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
            self.0.lines.store(Arc::new(known.iter().cloned().chain(added).collect()));
        }
        Ok(done)
    }

    /// Lets go of the handlers that are not among these. What their last connections use of them is freed when they end.
    pub fn retain(&self, names: &[Arc<str>]) {
        let (kept, gone): (Vec<_>, Vec<_>) =
            self.0.lines.load().iter().cloned().partition(|handler| names.contains(handler.name()));
        for handler in &gone {
            if let Some(settling) = handler.state.lock().settling.take() {
                settling.abort();
            }
            tracing::info!(handler = %handler.name(), "handler removed");
        }
        if !gone.is_empty() {
            self.0.lines.store(Arc::new(kept));
        }
    }

    /// Loads a handler that was not there before.
    async fn open_new(&self, options: Options) -> Result<Arc<ManagedHandler>, Error> {
        let services = &self.0.services;
        if !services.has_adapter && matches!(options.program, Program::Grpc(_)) {
            return Err(Error::NoAdapter);
        }
        Ok(start::open_line(options, &self.0.loader, services).await?)
    }

    /// Too much of a version has failed: the last one comes back, unless something else has happened meanwhile.
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
        tracing::error!(%handler, version = number, events, failures, "too much of the new version fails; taking it back");
        match result.await {
            Ok(None) => tracing::info!(%handler, version = number, "the version is not in use any more"),
            Ok(Some(done)) => {
                self.0.services.telemetry.swapped(handler, "rolled_back");
                drop(self.log_change(managed, Initiator::HealthWindow, "rollback", Ok(done)));
            }
            Err(error) => drop(self.log_change(managed, Initiator::HealthWindow, "rollback", Err(error))),
        }
    }

    fn handler(&self, handler: &str) -> Result<Arc<ManagedHandler>, Error> {
        let lines = self.0.lines.load();
        lines.iter().find(|managed| **managed.name() == *handler).cloned().ok_or_else(|| Error::NoSuchHandler {
            name: handler.chars().take(80).collect(),
            known: self.names().iter().map(ToString::to_string).collect(),
        })
    }

    /// Every change is in the log with who asked for it, and is counted.
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
                tracing::warn!(%handler, operation, by = %initiator, "the handler stays as it is: {why}");
            }
        }
        result
    }
}

fn tried(handler: &ManagedHandler) -> Result<Arc<Version>, Error> {
    let plan = handler.versions.plan();
    let trial = plan.trial.as_ref().map(|trial| Arc::clone(&trial.version));
    trial.ok_or_else(|| Error::NoTrial { handler: Arc::clone(handler.name()) })
}
