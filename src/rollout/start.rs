//! Start of a handler with the version that was active when the gateway last ran.

use std::path::PathBuf;
use std::sync::Arc;

use super::index::{Artifact, Index, Origin, Record};
use super::managed_handler::{self, Build, ManagedHandler, State};
use super::prepare::now_s;
use super::store::Store;
use super::{Initiator, LoadError, Loader, Options, Program, Services};
use crate::dispatch::{Version, Versions};
use crate::error::report;

pub(super) async fn open_handler(
    options: Options,
    loader: &Loader,
    services: &Services,
) -> Result<Arc<ManagedHandler>, LoadError> {
    let name = Arc::clone(options.name());
    let dir = services.versions_dir.join(&*name);
    let (program, handler) = (options.program.clone(), Arc::clone(&name));
    let reading = tokio::task::spawn_blocking(move || {
        let failed = |source| LoadError::Store { dir: dir.clone(), source };
        let store = Store::open(dir.clone());
        let index = store.read(&handler).map_err(failed)?;
        let what = managed_handler::configured(&program, |component, file| Ok(store.put_or_use(component, file)))?;
        Ok::<_, LoadError>((store, index, what))
    });
    let (store, index, what) = reading.await??;
    let stored = index.clone();

    // The version that the operator has activated since, if the configuration still names the same artifact.
    let last = index.as_ref().filter(|index| index.configured == what);
    let mut started = None;
    if let Some(index) = last
        && let Some(record) = index.record(index.active)
        && record.what != what
    {
        let program = managed_handler::program(&options.program, &record.what, &store);
        let known_as = PathBuf::from(format!("version {}", record.number));
        if !services.has_adapter && matches!(program, Program::Grpc(_)) {
            tracing::error!(handler = %name, version = record.number, "the last active version is a gRPC handler, and there is no [adapter]; starting with the configured version");
        } else {
            match loader.load(program.clone(), &known_as, options.compile).await {
                Ok(handler) => started = Some((index.clone(), record.number, program, handler)),
                Err(error) => {
                    let why = report(&error);
                    tracing::error!(handler = %name, version = record.number, "cannot load the last active version; starting with the configured version: {why}");
                }
            }
        }
    }
    let (index, number, program, handler) = match started {
        Some(started) => started,
        None => {
            let program = managed_handler::program(&options.program, &what, &store);
            let known_as = match &options.program {
                Program::Wasm(options) => options.component.clone(),
                Program::Grpc(_) => PathBuf::new(),
            };
            let handler = loader.load(program.clone(), &known_as, options.compile).await?;
            loader.replay(&program, &known_as, &options.conversations).await?;
            let index = with_configured(index, what);
            let number = index.active;
            (index, number, program, handler)
        }
    };
    let policy = options.policy;
    let version = Version::new(number, handler, policy, services.telemetry.version(&name, number));
    let build = Build { program, policy, version: Arc::downgrade(&version) };
    services.telemetry.activated(&name, number);
    let versions = Versions::new(version, services.telemetry.health(&name));
    if stored.as_ref() != Some(&index)
        && let Err(error) = store.write_aside(&index).await
    {
        let why = report(&error);
        tracing::warn!(handler = %name, version = number, "cannot store the handler's versions; a restart will not know this one: {why}");
    }
    tracing::info!(handler = %name, version = number, "handler ready");
    let state = State { options, index, builds: [(number, build)].into(), migration: None };
    let handler = ManagedHandler::new(versions, store, state);
    handler.forget_components().await;
    Ok(handler)
}

/// The index after a start with the configured artifact.
fn with_configured(index: Option<Index>, what: Artifact) -> Index {
    let record = |number| {
        let by = Initiator::Start.to_string();
        Record { number, origin: Origin::Configuration, by, at_s: now_s(), what: what.clone() }
    };
    let Some(mut index) = index else {
        return Index::new(record(1));
    };
    let is_active = index.record(index.active).is_some_and(|active| active.what == what);
    if !is_active {
        let number = index.next;
        index.add(record(number));
        index.activate(number);
    }
    index.configured = what;
    index.prune(&[index.active].into());
    index
}
