//! All handlers and their changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

use super::index::{Index, Origin, Record, What};
use super::line::{self, Build, Line, State};
use super::settling::{Watched, settle};
use super::store::Store;
use super::watch::Watch;
use super::{
    Asker, Error, HandlerStatus, LoadError, Loader, Options, Program, Swap, TrialStatus, VersionState, VersionStatus,
};
use crate::dispatch::{Mover, Others, Plan, Policy, Trial, TrialKind, Version, Versions};
use crate::drain::Drain;
use crate::handler::{Handler, chain};
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
    pub mover: Mover,
    /// Counts.
    pub telemetry: Telemetry,
    /// Nothing is changed any more from its beginning on.
    pub drain: Drain,
}

/// The handlers of a gateway; cheap to clone.
#[derive(Clone, Debug)]
pub struct Rollouts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// In the order of the configuration.
    lines: Vec<Arc<Line>>,
    loader: Loader,
    services: Services,
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
pub struct Done {
    /// The handler.
    pub handler: String,
    /// The version that was activated, tried, kept or abandoned.
    pub version: u32,
    /// Where that version is now.
    pub state: VersionState,
    /// The version that was active before.
    pub before: u32,
}

/// A version that is loaded and not yet used.
struct Prepared {
    record: Record,
    is_new: bool,
    program: Program,
    policy: Policy,
    version: Arc<Version>,
}

/// What becomes of a version that is loaded.
#[derive(Clone, Copy)]
enum Fate {
    Keep,
    Swap(Swap),
    /// The last one comes back: as `Live`, and not watched, because there is nothing to go back to but what has failed.
    Return,
}

impl Rollouts {
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
            lines.push(open_line(options, &loader, &services).await?);
        }
        Ok(Self(Arc::new(Shared { lines, loader, services })))
    }

    /// The versions of a handler, for the connections.
    pub fn versions(&self, handler: &str) -> Option<Arc<Versions>> {
        self.line(handler).ok().map(|line| Arc::clone(&line.versions))
    }

    /// The names of the handlers.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.lines.iter().map(|line| line.name())
    }

    /// What the operator is told of all handlers.
    pub fn list(&self) -> Vec<HandlerStatus> {
        self.0.lines.iter().map(|line| handler_status(line)).collect()
    }

    /// What the operator is told of the versions of one, newest first.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchHandler`].
    pub fn list_versions(&self, handler: &str) -> Result<Vec<VersionStatus>, Error> {
        Ok(version_statuses(self.line(handler)?))
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
        asker: Asker,
    ) -> Result<Done, Error> {
        let line = self.line(handler)?;
        let result = async {
            let _turn = line.turn().await?;
            let prepared = self.prepare_candidate(line, candidate, asker).await?;
            let swap = swap.unwrap_or(line.state.lock().options.swap);
            self.commit(line, prepared, if activates { Fate::Swap(swap) } else { Fate::Keep }, asker).await
        };
        self.tell(line, asker, "swap", result.await)
    }

    /// Makes one of the last versions active, loading it again if need be.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn activate(&self, handler: &str, number: u32, swap: Option<Swap>, asker: Asker) -> Result<Done, Error> {
        let line = self.line(handler)?;
        let result = async {
            let _turn = line.turn().await?;
            let prepared = self.prepare_kept(line, number).await?;
            self.commit(line, prepared, Fate::Swap(swap.unwrap_or(Swap::Live)), asker).await
        };
        self.tell(line, asker, "activate", result.await)
    }

    /// Makes the version active that was active before; a trial under way is abandoned by it.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn roll_back(&self, handler: &str, asker: Asker) -> Result<Done, Error> {
        let line = self.line(handler)?;
        let result = async {
            let _turn = line.turn().await?;
            let previous = line.state.lock().index.previous;
            let number = previous.ok_or_else(|| Error::NoPrevious { handler: Arc::clone(line.name()) })?;
            let prepared = self.prepare_kept(line, number).await?;
            self.commit(line, prepared, Fate::Return, asker).await
        };
        self.tell(line, asker, "rollback", result.await)
    }

    /// Makes the version active that is tried.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn promote(&self, handler: &str, asker: Asker) -> Result<Done, Error> {
        let line = self.line(handler)?;
        let result = async {
            let _turn = line.turn().await?;
            let number = tried(line)?.number();
            let prepared = self.prepare_kept(line, number).await?;
            self.commit(line, prepared, Fate::Swap(Swap::Live), asker).await
        };
        self.tell(line, asker, "promote", result.await)
    }

    /// Ends a trial; the connections of a canary go back to the active version.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn abandon(&self, handler: &str, asker: Asker) -> Result<Done, Error> {
        let line = self.line(handler)?;
        let result = async {
            let _turn = line.turn().await?;
            let version = tried(line)?.number();
            Ok(self.end_trial(line, version))
        };
        self.tell(line, asker, "abandon", result.await)
    }

    /// Follows a configuration that was read again: a handler whose program or policy it changes gets a new version. Gives
    /// what was changed.
    ///
    /// Handlers that are new or missing in it are not looked at.
    ///
    /// # Errors
    ///
    /// All that is wrong. If a version cannot be loaded, no handler is changed.
    pub async fn reload(&self, options: Vec<Options>, asker: Asker) -> Result<Vec<Done>, Vec<Error>> {
        let mut options: BTreeMap<Arc<str>, Options> =
            options.into_iter().map(|options| (Arc::clone(options.name()), options)).collect();
        // In the order of their names, so that two who want several turns cannot wait for each other.
        let mut lines: Vec<&Arc<Line>> = self.0.lines.iter().collect();
        lines.sort_by_key(|line| Arc::clone(line.name()));
        let mut turns = Vec::new();
        let mut changes = Vec::new();
        let mut errors = Vec::new();
        for line in lines {
            let Some(options) = options.remove(line.name()) else {
                continue;
            };
            match line.turn().await {
                Ok(turn) => turns.push(turn),
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            }
            match self.prepare_configured(line, &options, asker).await {
                Ok((what, prepared)) => changes.push((line, options, what, prepared)),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut done = Vec::new();
        for (line, options, what, prepared) in changes {
            let (last, last_what) = {
                let mut state = line.state.lock();
                let last = std::mem::replace(&mut state.options, options.clone());
                (last, std::mem::replace(&mut state.index.configured, what))
            };
            let Some(prepared) = prepared else {
                continue;
            };
            let result = self.commit(line, prepared, Fate::Swap(options.swap), asker).await;
            match self.tell(line, asker, "swap", result) {
                Ok(change) => done.push(change),
                Err(error) => {
                    let mut state = line.state.lock();
                    state.options = last;
                    state.index.configured = last_what;
                    errors.push(error);
                }
            }
        }
        if errors.is_empty() { Ok(done) } else { Err(errors) }
    }

    /// Too much of a version has failed: the last one comes back, unless something else has happened meanwhile.
    pub(super) async fn take_back(self, line: Arc<Line>, number: u32, events: u64, failures: u64) {
        let result = async {
            let _turn = line.turn().await?;
            let plan = line.versions.plan();
            let is_tried = plan.trial.as_ref().is_some_and(|trial| trial.version.number() == number);
            let previous = line.state.lock().index.previous;
            match previous {
                _ if is_tried => Ok(Some(self.end_trial(&line, number))),
                Some(previous) if plan.active.number() == number => {
                    let prepared = self.prepare_kept(&line, previous).await?;
                    self.commit(&line, prepared, Fate::Return, Asker::Watch).await.map(Some)
                }
                Some(_) | None => Ok(None),
            }
        };
        let handler = line.name();
        tracing::error!(%handler, version = number, events, failures, "too much of the new version fails; taking it back");
        match result.await {
            Ok(None) => tracing::info!(%handler, version = number, "the version is not in use any more"),
            Ok(Some(done)) => {
                self.0.services.telemetry.swapped(handler, "rolled_back");
                drop(self.tell(&line, Asker::Watch, "rollback", Ok(done)));
            }
            Err(error) => drop(self.tell(&line, Asker::Watch, "rollback", Err(error))),
        }
    }

    fn line(&self, handler: &str) -> Result<&Arc<Line>, Error> {
        self.0.lines.iter().find(|line| **line.name() == *handler).ok_or_else(|| Error::NoSuchHandler {
            name: handler.chars().take(80).collect(),
            known: self.names().map(ToString::to_string).collect(),
        })
    }

    /// Loads what somebody has brought.
    async fn prepare_candidate(&self, line: &Line, candidate: Candidate, asker: Asker) -> Result<Prepared, Error> {
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
                let sha256 = kept.map_err(|source| store_error(&line.store, source))?;
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
            forget_components(line).await;
        }
        prepared
    }

    /// Loads what the configuration names, if that is not what is active.
    async fn prepare_configured(
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
    async fn prepare_kept(&self, line: &Line, number: u32) -> Result<Prepared, Error> {
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

    /// Makes a loaded version what it is to be. Whoever calls this has the line's turn.
    async fn commit(&self, line: &Arc<Line>, prepared: Prepared, fate: Fate, asker: Asker) -> Result<Done, Error> {
        let Prepared { record, is_new, program, policy, version } = prepared;
        let number = version.number();
        let plan = line.versions.plan();
        let before = plan.active.number();
        if matches!(fate, Fate::Swap(_) | Fate::Return) && before == number {
            return Err(Error::IsActive { handler: Arc::clone(line.name()), number });
        }
        if matches!((&fate, &program), (Fate::Swap(Swap::Shadow), Program::Grpc(_))) {
            return Err(Error::NoShadow);
        }
        if self.0.services.drain.is_signalled() {
            return Err(Error::Stopping);
        }
        let mut index = line.state.lock().index.clone();
        if is_new {
            index.add(record);
        }
        if matches!(fate, Fate::Return | Fate::Swap(Swap::Live | Swap::NewConnections)) {
            index.activate(number);
        }
        let mut in_use = line.in_use();
        in_use.insert(number);
        index.prune(&in_use);
        if let Err(error) = write(&line.store, &index).await {
            match asker {
                // Devices are failing: that it would not outlive a restart is the smaller evil.
                Asker::Watch => {
                    tracing::error!(handler = %line.name(), "a restart will not know of the change: {error}")
                }
                Asker::Start | Asker::Reload | Asker::Admin(_) => return Err(error.into()),
            }
        }
        {
            let mut state = line.state.lock();
            state.builds.insert(number, Build { program, policy, version: Arc::downgrade(&version) });
            state.builds.retain(|number, _| index.record(*number).is_some());
            state.index = index;
        }
        forget_components(line).await;

        let state = match fate {
            Fate::Keep => VersionState::Kept,
            Fate::Swap(Swap::Canary(_) | Swap::Shadow) => VersionState::Trial,
            Fate::Swap(Swap::Live | Swap::NewConnections) | Fate::Return => VersionState::Active,
        };
        // What was tried until now is not tried any more, so its connections go back.
        let others = if plan.trial.is_some() { Others::Move } else { plan.others };
        let try_out = |how| {
            let trial = Trial { version: Arc::clone(&version), how };
            Plan { active: Arc::clone(&plan.active), others, trial: Some(trial) }
        };
        let next = match fate {
            Fate::Keep => None,
            Fate::Return | Fate::Swap(Swap::Live) => {
                Some(Plan { active: Arc::clone(&version), others: Others::Move, trial: None })
            }
            Fate::Swap(Swap::NewConnections) => {
                Some(Plan { active: Arc::clone(&version), others: Others::Stay, trial: None })
            }
            Fate::Swap(Swap::Canary(share)) => Some(try_out(TrialKind::Canary(share))),
            Fate::Swap(Swap::Shadow) => Some(try_out(TrialKind::Shadow)),
        };
        if let Some(next) = next {
            drop(plan);
            let watched = match fate {
                Fate::Swap(_) => Some((version, state == VersionState::Trial)),
                Fate::Keep | Fate::Return => None,
            };
            self.follow(line, next, watched);
        }
        Ok(Done { handler: line.name().to_string(), version: number, state, before })
    }

    /// Ends a trial. Whoever calls this has the line's turn.
    fn end_trial(&self, line: &Arc<Line>, version: u32) -> Done {
        let active = line.versions.active();
        let before = active.number();
        self.follow(line, Plan { active, others: Others::Move, trial: None }, None);
        Done { handler: line.name().to_string(), version, state: VersionState::Kept, before }
    }

    /// Follows a plan from now on, and sees to what comes of it; what came of the last one gives way.
    fn follow(&self, line: &Arc<Line>, plan: Plan, watched: Option<(Arc<Version>, bool)>) {
        let services = &self.0.services;
        let mut state = line.state.lock();
        if let Some(last) = state.settling.take() {
            last.abort();
        }
        let watched = watched.map(|(version, is_tried)| {
            let watch = Watch::new(Instant::now(), state.options.rollback, is_tried, version.outcomes());
            Watched { version, watch }
        });
        services.telemetry.activated(line.name(), plan.active.number());
        line.versions.follow(plan);
        let settling = settle(self.clone(), Arc::clone(line), services.mover.clone(), services.drain_timeout, watched);
        let drain = services.drain.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = settling => {}
                () = drain.signalled() => {}
            }
        });
        state.settling = Some(task.abort_handle());
    }

    /// Every change is in the log with who asked for it, and is counted.
    fn tell(&self, line: &Line, asker: Asker, operation: &str, result: Result<Done, Error>) -> Result<Done, Error> {
        let handler = line.name();
        match &result {
            Ok(done) => {
                let Done { version, state, before, .. } = done;
                self.0.services.telemetry.swapped(handler, state.name());
                tracing::info!(%handler, operation, by = %asker, version, state = state.name(), before, "handler changed");
            }
            Err(error) => {
                self.0.services.telemetry.swapped(handler, "refused");
                let why = chain(error);
                tracing::warn!(%handler, operation, by = %asker, "the handler stays as it is: {why}");
            }
        }
        result
    }
}

/// One handler at the start.
async fn open_line(options: Options, loader: &Loader, services: &Services) -> Result<Arc<Line>, LoadError> {
    let name = Arc::clone(options.name());
    let dir = services.versions_dir.join(&*name);
    let (program, handler) = (options.program.clone(), Arc::clone(&name));
    let looking = tokio::task::spawn_blocking(move || {
        let failed = |source| LoadError::Store { dir: dir.clone(), source };
        let store = Store::open(dir.clone()).map_err(failed)?;
        let index = store.read(&handler).map_err(failed)?;
        let what = line::configured(&program, &store)?;
        Ok::<_, LoadError>((store, index, what))
    });
    let (store, index, what) = looking.await??;

    // What the operator has made active since, if the configuration still names what it did then.
    let last = index.as_ref().filter(|index| index.configured == what);
    let mut started = None;
    if let Some(index) = last
        && let Some(record) = index.record(index.active)
        && record.what != what
    {
        let program = line::program(&options.program, &record.what, &store);
        let known_as = PathBuf::from(format!("version {}", record.number));
        if !services.has_adapter && matches!(program, Program::Grpc(_)) {
            tracing::error!(handler = %name, version = record.number, "the last active version is a gRPC handler, and there is no [adapter]; starting with what the configuration names");
        } else {
            match loader.load(program.clone(), &known_as, options.compile).await {
                Ok(handler) => started = Some((index.clone(), record.number, program, handler)),
                Err(error) => {
                    let why = chain(&error);
                    tracing::error!(handler = %name, version = record.number, "cannot load the last active version; starting with what the configuration names: {why}");
                }
            }
        }
    }
    let (index, number, program, handler) = match started {
        Some(started) => started,
        None => {
            let program = line::program(&options.program, &what, &store);
            let known_as = match &options.program {
                Program::Wasm(options) => options.component.clone(),
                Program::Grpc(_) => PathBuf::new(),
            };
            let handler = loader.load(program.clone(), &known_as, options.compile).await?;
            loader.rehearse(&program, &known_as, &options.conversations).await?;
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
    write(&store, &index).await?;
    tracing::info!(handler = %name, version = number, "handler ready");
    let state = State { options, index, builds: [(number, build)].into(), settling: None };
    let line = Line::new(versions, store, state);
    forget_components(&line).await;
    Ok(line)
}

/// The index after a start with what the configuration names.
fn with_configured(index: Option<Index>, what: What) -> Index {
    let record = |number| {
        let by = Asker::Start.to_string();
        Record { number, origin: Origin::Configuration, by, at_s: now_s(), what: what.clone() }
    };
    let Some(mut index) = index else {
        return Index::new(record(1));
    };
    let active_is_it = index.record(index.active).is_some_and(|active| active.what == what);
    if !active_is_it {
        let number = index.next;
        index.add(record(number));
        index.activate(number);
    }
    index.configured = what;
    index.prune(&[index.active].into());
    index
}

fn tried(line: &Line) -> Result<Arc<Version>, Error> {
    let plan = line.versions.plan();
    let trial = plan.trial.as_ref().map(|trial| Arc::clone(&trial.version));
    trial.ok_or_else(|| Error::NoTrial { handler: Arc::clone(line.name()) })
}

fn store_error(store: &Store, source: std::io::Error) -> LoadError {
    LoadError::Store { dir: store.dir().to_owned(), source }
}

async fn write(store: &Store, index: &Index) -> Result<(), LoadError> {
    let (writes, index) = (store.clone(), index.clone());
    let written = tokio::task::spawn_blocking(move || writes.write(&index)).await?;
    written.map_err(|source| store_error(store, source))
}

/// Removes the components that no version needs.
async fn forget_components(line: &Line) {
    let (store, index) = (line.store.clone(), line.state.lock().index.clone());
    let pruning = tokio::task::spawn_blocking(move || {
        let mut kept = index.digests();
        kept.extend(index.configured.digest());
        store.prune(&kept);
    });
    if let Err(error) = pruning.await {
        tracing::error!(handler = %line.name(), %error, "removing components panicked");
    }
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn handler_status(line: &Line) -> HandlerStatus {
    let plan = line.versions.plan();
    let loaded = line.versions.loaded();
    let index = line.state.lock().index.clone();
    let kind = match plan.active.handler() {
        Handler::Grpc(_) => "grpc",
        Handler::Wasm(_) => "wasm",
    };
    let trial = plan.trial.as_ref().map(|trial| {
        let how = match trial.how {
            TrialKind::Canary(share) => Swap::Canary(share),
            TrialKind::Shadow => Swap::Shadow,
        };
        TrialStatus { version: trial.version.number(), how: how.to_string() }
    });
    HandlerStatus {
        name: line.name().to_string(),
        kind: kind.to_owned(),
        active: plan.active.number(),
        previous: index.previous,
        trial,
        healthy: line.versions.is_healthy(),
        busy: line.is_busy(),
        loaded: loaded.len(),
        connections: loaded.iter().map(|version| version.connections()).sum(),
    }
}

fn version_statuses(line: &Line) -> Vec<VersionStatus> {
    let plan = line.versions.plan();
    let loaded: BTreeMap<u32, Arc<Version>> =
        line.versions.loaded().into_iter().map(|version| (version.number(), version)).collect();
    let state_of = |number: u32| {
        let is_tried = plan.trial.as_ref().is_some_and(|trial| trial.version.number() == number);
        match (number == plan.active.number(), is_tried, loaded.contains_key(&number)) {
            (true, _, _) => VersionState::Active,
            (false, true, _) => VersionState::Trial,
            (false, false, true) => VersionState::Leaving,
            (false, false, false) => VersionState::Kept,
        }
    };
    let records = line.state.lock().index.versions.clone();
    let status = |record: Record| {
        let version = loaded.get(&record.number);
        let (events, failures) = version.map_or((0, 0), |version| version.outcomes());
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(record.at_s)).unwrap_or(UNIX_EPOCH);
        VersionStatus {
            number: record.number,
            state: state_of(record.number),
            origin: record.origin,
            by: record.by,
            at: humantime::format_rfc3339_seconds(at).to_string(),
            what: record.what,
            connections: version.map_or(0, |version| version.connections()),
            events,
            failures,
        }
    };
    records.into_iter().rev().map(status).collect()
}
