//! Before a change: a version is loaded beside what runs, and looked at.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::index::{Origin, Record, What};
use super::line::{self, Build, Line};
use super::rollouts::{Candidate, Rollouts};
use super::{Asker, Error, LoadError, Options, Program};
use crate::dispatch::{Policy, Version};
use crate::handler::Handler;

/// A version that is loaded and not yet used.
pub(super) struct Prepared {
    pub(super) record: Record,
    pub(super) is_new: bool,
    pub(super) program: Program,
    pub(super) policy: Policy,
    pub(super) version: Arc<Version>,
}

impl Rollouts {
    /// Loads what somebody has brought.
    pub(super) async fn prepare_candidate(
        &self,
        line: &Line,
        candidate: Candidate,
        asker: Asker,
    ) -> Result<Prepared, Error> {
        let conversations = match candidate {
            Candidate::Component(_) => line.state.lock().options.conversations.clone(),
            Candidate::Unchecked(_) => {
                let handler = line.name();
                tracing::warn!(%handler, by = %asker, "the new version is unchecked: no conversation is played");
                Vec::new()
            }
            Candidate::Server(_) => Vec::new(),
        };
        let (what, known_as) = match candidate {
            Candidate::Component(bytes) | Candidate::Unchecked(bytes) => {
                if !bytes.starts_with(b"\0asm") {
                    return Err(Error::NotWasm { bytes: bytes.len() });
                }
                let store = line.store.clone();
                let kept = tokio::task::spawn_blocking(move || store.put(&bytes)).await.map_err(LoadError::Panicked)?;
                let sha256 = kept.map_err(|source| line.store.failed(source))?;
                (What::Wasm { sha256 }, "the upload")
            }
            Candidate::Server(url) => (What::Grpc { urls: vec![url.to_string()] }, ""),
        };
        let known_as = Path::new(known_as);
        let prepared = async {
            let prepared = self.prepare_new(line, what, Origin::Upload, known_as, None, asker).await?;
            self.0.loader.rehearse(&prepared.program, known_as, &conversations).await?;
            Ok(prepared)
        };
        let prepared = prepared.await;
        if prepared.is_err() {
            line.forget_components().await;
        }
        prepared
    }

    /// Loads what the configuration names, if that is not what is active.
    pub(super) async fn prepare_configured(
        &self,
        line: &Line,
        options: &Options,
        asker: Asker,
    ) -> Result<(What, Option<Prepared>), Error> {
        let (program, store) = (options.program.clone(), line.store.clone());
        let configured = tokio::task::spawn_blocking(move || line::configured(&program, &store));
        let what = configured.await.map_err(LoadError::Panicked)??;
        let (change, active, active_what, last_configured) = {
            let state = line.state.lock();
            let active = state.index.record(state.index.active).cloned();
            let build = state.builds.get(&state.index.active).map(|build| (build.program.clone(), build.policy));
            (build, active, what.clone(), state.index.configured.clone())
        };
        // As long as the configuration names the same, it is the operator's active version that gets the new options.
        let (origin, next) = match active {
            Some(record) if what == last_configured => (record.origin, record.what),
            Some(_) | None => (Origin::Configuration, active_what),
        };
        let program = line::program(&options.program, &next, &line.store);
        if what == last_configured && change == Some((program, options.policy)) {
            return Ok((what, None));
        }
        let known_as = match (&options.program, origin) {
            (Program::Wasm(options), Origin::Configuration) => options.component.clone(),
            (Program::Wasm(_), Origin::Upload) => PathBuf::from("the upload"),
            (Program::Grpc(_), _) => PathBuf::new(),
        };
        let prepared = self.prepare_new(line, next, origin, &known_as, Some(options), asker).await?;
        self.0.loader.rehearse(&prepared.program, &known_as, &options.conversations).await?;
        Ok((what, Some(prepared)))
    }

    async fn prepare_new(
        &self,
        line: &Line,
        what: What,
        origin: Origin,
        known_as: &Path,
        options: Option<&Options>,
        asker: Asker,
    ) -> Result<Prepared, Error> {
        let (options, number) = {
            let state = line.state.lock();
            (options.unwrap_or(&state.options).clone(), state.index.next)
        };
        let record = Record { number, origin, by: asker.to_string(), at_s: now_s(), what };
        let program = line::program(&options.program, &record.what, &line.store);
        let policy = options.policy;
        let version = self.load(line, number, &program, policy, known_as, &options).await?;
        Ok(Prepared { record, is_new: true, program, policy, version })
    }

    /// One of the last versions, which still holds memory or is loaded again.
    pub(super) async fn prepare_kept(&self, line: &Line, number: u32) -> Result<Prepared, Error> {
        let record = line.record(number)?;
        let (options, build) = {
            let state = line.state.lock();
            (state.options.clone(), state.builds.get(&number).cloned())
        };
        let (program, policy, version) = match build {
            Some(Build { program, policy, version }) => (program, policy, version.upgrade()),
            // It is from before the last start: its options are those of the configuration.
            None => (line::program(&options.program, &record.what, &line.store), options.policy, None),
        };
        let version = match version {
            Some(version) => version,
            None => {
                let known_as = format!("version {number}");
                self.load(line, number, &program, policy, Path::new(&known_as), &options).await?
            }
        };
        Ok(Prepared { record, is_new: false, program, policy, version })
    }

    /// Loads a program and looks whether it works.
    async fn load(
        &self,
        line: &Line,
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
        let handler = self.0.loader.load(program.clone(), known_as, options.compile).await?;
        if let Handler::Grpc(server) = &handler {
            let unwell = |source| Error::Unwell { handler: Arc::clone(line.name()), source };
            server.probe().await.map_err(unwell)?;
        }
        Ok(Version::new(number, handler, policy, services.telemetry.version(line.name(), number)))
    }
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
