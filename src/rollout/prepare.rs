//! Prepare step of a rollout: loads and checks a version beside the running ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::index::{Artifact, Origin, Record};
use super::managed_handler::{self, Build, ManagedHandler};
use super::manager::{Candidate, RolloutManager};
use super::{Error, Initiator, LoadError, Options, Program};
use crate::dispatch::{Policy, Version};
use crate::handler::Handler;

/// A loaded version, not yet in use.
pub(super) struct Prepared {
    pub(super) record: Record,
    pub(super) is_new: bool,
    pub(super) program: Program,
    pub(super) policy: Policy,
    pub(super) version: Arc<Version>,
}

impl RolloutManager {
    /// Loads an uploaded candidate.
    pub(super) async fn prepare_candidate(
        &self,
        handler: &ManagedHandler,
        candidate: Candidate,
        initiator: Initiator,
    ) -> Result<Prepared, Error> {
        let conversations = match candidate {
            Candidate::Component(_) => handler.state.lock().options.conversations.clone(),
            Candidate::Unchecked(_) => {
                let handler = handler.name();
                tracing::warn!(%handler, by = %initiator, "new version without checks: conversations are not replayed");
                Vec::new()
            }
            Candidate::Server(_) => Vec::new(),
        };
        let (what, known_as) = match candidate {
            Candidate::Component(bytes) | Candidate::Unchecked(bytes) => {
                if !bytes.starts_with(b"\0asm") {
                    return Err(Error::NotWasm { bytes: bytes.len() });
                }
                let store = handler.store.clone();
                let kept = tokio::task::spawn_blocking(move || store.put(&bytes)).await.map_err(LoadError::Panicked)?;
                let sha256 = kept.map_err(|source| handler.store.failed(source))?;
                (Artifact::Wasm { sha256 }, "the upload")
            }
            Candidate::Server(url) => (Artifact::Grpc { urls: vec![url.to_string()] }, ""),
        };
        let known_as = Path::new(known_as);
        let prepared = async {
            let prepared = self.prepare_new(handler, what, Origin::Upload, known_as, None, initiator).await?;
            self.0.loader.replay(&prepared.program, known_as, &conversations).await?;
            Ok(prepared)
        };
        let prepared = prepared.await;
        if prepared.is_err() {
            handler.forget_components().await;
        }
        prepared
    }

    /// Loads the configured artifact, if it differs from the active one.
    pub(super) async fn prepare_configured(
        &self,
        handler: &ManagedHandler,
        options: &Options,
        initiator: Initiator,
    ) -> Result<(Artifact, Option<Prepared>), Error> {
        let (program, store) = (options.program.clone(), handler.store.clone());
        let configured = tokio::task::spawn_blocking(move || {
            managed_handler::configured(&program, |component, _| {
                store.put(component).map_err(|source| store.failed(source))
            })
        });
        let what = configured.await.map_err(LoadError::Panicked)??;
        let (change, active, active_what, last_configured) = {
            let state = handler.state.lock();
            let active = state.index.record(state.index.active).cloned();
            let build = state.builds.get(&state.index.active).map(|build| (build.program.clone(), build.policy));
            (build, active, what.clone(), state.index.configured.clone())
        };
        // While the configuration names the same artifact, the version that the operator has activated gets the new
        // options.
        let (origin, next) = match active {
            Some(record) if what == last_configured => (record.origin, record.what),
            Some(_) | None => (Origin::Configuration, active_what),
        };
        let program = managed_handler::program(&options.program, &next, &handler.store);
        if what == last_configured && change == Some((program, options.policy)) {
            return Ok((what, None));
        }
        let known_as = match (&options.program, origin) {
            (Program::Wasm(options), Origin::Configuration) => options.component.clone(),
            (Program::Wasm(_), Origin::Upload) => PathBuf::from("the upload"),
            (Program::Grpc(_), _) => PathBuf::new(),
        };
        let prepared = self.prepare_new(handler, next, origin, &known_as, Some(options), initiator).await?;
        self.0.loader.replay(&prepared.program, &known_as, &options.conversations).await?;
        Ok((what, Some(prepared)))
    }

    async fn prepare_new(
        &self,
        handler: &ManagedHandler,
        what: Artifact,
        origin: Origin,
        known_as: &Path,
        options: Option<&Options>,
        initiator: Initiator,
    ) -> Result<Prepared, Error> {
        let (options, number) = {
            let state = handler.state.lock();
            (options.unwrap_or(&state.options).clone(), state.index.next)
        };
        let record = Record { number, origin, by: initiator.to_string(), at_s: now_s(), what };
        let program = managed_handler::program(&options.program, &record.what, &handler.store);
        let policy = options.policy;
        let version = self.load(handler, number, &program, policy, known_as, &options).await?;
        Ok(Prepared { record, is_new: true, program, policy, version })
    }

    /// A kept version: the one in memory, or loaded again.
    pub(super) async fn prepare_kept(&self, handler: &ManagedHandler, number: u32) -> Result<Prepared, Error> {
        let record = handler.record(number)?;
        let (options, build) = {
            let state = handler.state.lock();
            (state.options.clone(), state.builds.get(&number).cloned())
        };
        let (program, policy, version) = match build {
            Some(Build { program, policy, version }) => (program, policy, version.upgrade()),
            // Loaded before the last start: its options are those of the configuration.
            None => (managed_handler::program(&options.program, &record.what, &handler.store), options.policy, None),
        };
        let version = match version {
            Some(version) => version,
            None => {
                let known_as = format!("version {number}");
                self.load(handler, number, &program, policy, Path::new(&known_as), &options).await?
            }
        };
        Ok(Prepared { record, is_new: false, program, policy, version })
    }

    /// Loads a program and checks that it works.
    async fn load(
        &self,
        handler: &ManagedHandler,
        number: u32,
        program: &Program,
        policy: Policy,
        known_as: &Path,
        options: &Options,
    ) -> Result<Arc<Version>, Error> {
        let services = &self.0.services;
        if services.drain.is_signalled() {
            return Err(Error::Stopping);
        }
        if matches!(program, Program::Grpc(_)) && !services.has_adapter {
            return Err(Error::NoAdapter);
        }
        let loaded = self.0.loader.load(program.clone(), known_as, options.compile).await?;
        if let Handler::Grpc(server) = &loaded {
            let unwell = |source| Error::Unwell { handler: Arc::clone(handler.name()), source };
            server.probe().await.map_err(unwell)?;
        }
        Ok(Version::new(number, loaded, policy, services.telemetry.version(handler.name(), number)))
    }
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
