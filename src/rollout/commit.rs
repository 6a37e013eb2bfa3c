//! Commit step of a rollout: writes the index and publishes the new plan.

use std::sync::Arc;
use std::time::Instant;

use super::health_window::HealthWindow;
use super::managed_handler::{Build, ManagedHandler};
use super::manager::{ChangeResult, RolloutManager};
use super::prepare::Prepared;
use super::watch_change::{Watched, migrate_and_watch};
use super::{Error, Initiator, Program, Swap, VersionState};
use crate::dispatch::{OldConnections, Plan, Trial, TrialKind, Version};

/// Commit mode of a loaded version.
#[derive(Clone, Copy)]
pub(super) enum CommitMode {
    Keep,
    Swap(Swap),
    /// Rollback: as `Live`, but not watched, because the version to go back to has failed.
    Return,
}

impl RolloutManager {
    /// Commits a loaded version. The caller holds the handler's [`ChangeGuard`](super::managed_handler::ChangeGuard).
    pub(super) async fn commit(
        &self,
        handler: &Arc<ManagedHandler>,
        prepared: Prepared,
        mode: CommitMode,
        initiator: Initiator,
    ) -> Result<ChangeResult, Error> {
        let Prepared { record, is_new, program, policy, version } = prepared;
        let number = version.number();
        let plan = handler.versions.plan();
        let before = plan.active.number();
        if matches!(mode, CommitMode::Swap(_) | CommitMode::Return) && before == number {
            return Err(Error::IsActive { handler: Arc::clone(handler.name()), number });
        }
        if matches!((&mode, &program), (CommitMode::Swap(Swap::Shadow), Program::Grpc(_))) {
            return Err(Error::NoShadow);
        }
        if self.0.services.drain.is_signalled() {
            return Err(Error::Stopping);
        }
        let mut index = handler.state.lock().index.clone();
        if is_new {
            index.add(record);
        }
        if matches!(mode, CommitMode::Return | CommitMode::Swap(Swap::Live | Swap::NewConnections)) {
            index.activate(number);
        }
        let mut in_use = handler.in_use();
        in_use.insert(number);
        index.prune(&in_use);
        if let Err(error) = handler.store.write_aside(&index).await {
            match initiator {
                // Devices are failing: a change that does not outlive a restart is the smaller evil.
                Initiator::HealthWindow => {
                    tracing::error!(handler = %handler.name(), "cannot store the change; a restart will not know it: {error}")
                }
                Initiator::Start | Initiator::Reload | Initiator::Admin(_) => return Err(error.into()),
            }
        }
        {
            let mut state = handler.state.lock();
            state.builds.insert(number, Build { program, policy, version: Arc::downgrade(&version) });
            state.builds.retain(|number, _| index.record(*number).is_some());
            state.index = index;
        }
        handler.forget_components().await;

        let state = match mode {
            CommitMode::Keep => VersionState::Kept,
            CommitMode::Swap(Swap::Canary(_) | Swap::Shadow) => VersionState::Trial,
            CommitMode::Swap(Swap::Live | Swap::NewConnections) | CommitMode::Return => VersionState::Active,
        };
        // A trial in progress ends, so its connections migrate back.
        let others = if plan.trial.is_some() { OldConnections::Move } else { plan.others };
        let try_out = |how| {
            let trial = Trial { version: Arc::clone(&version), how };
            Plan { active: Arc::clone(&plan.active), others, trial: Some(trial) }
        };
        let next = match mode {
            CommitMode::Keep => None,
            CommitMode::Return | CommitMode::Swap(Swap::Live) => {
                Some(Plan { active: Arc::clone(&version), others: OldConnections::Move, trial: None })
            }
            CommitMode::Swap(Swap::NewConnections) => {
                Some(Plan { active: Arc::clone(&version), others: OldConnections::Keep, trial: None })
            }
            CommitMode::Swap(Swap::Canary(percent)) => Some(try_out(TrialKind::Canary(percent))),
            CommitMode::Swap(Swap::Shadow) => Some(try_out(TrialKind::Shadow)),
        };
        if let Some(next) = next {
            drop(plan);
            let watched = match mode {
                CommitMode::Swap(_) => Some((version, state == VersionState::Trial)),
                CommitMode::Keep | CommitMode::Return => None,
            };
            self.follow(handler, next, watched);
        }
        Ok(ChangeResult { handler: handler.name().to_string(), version: number, state, before })
    }

    /// Ends a trial. The caller holds the handler's [`ChangeGuard`](super::managed_handler::ChangeGuard).
    pub(super) fn end_trial(&self, handler: &Arc<ManagedHandler>, version: u32) -> ChangeResult {
        let active = handler.versions.active();
        let before = active.number();
        self.follow(handler, Plan { active, others: OldConnections::Move, trial: None }, None);
        ChangeResult { handler: handler.name().to_string(), version, state: VersionState::Kept, before }
    }

    /// Publishes a plan and starts the task that migrates connections and watches the new version; aborts the task of
    /// the last change.
    fn follow(&self, handler: &Arc<ManagedHandler>, plan: Plan, watched: Option<(Arc<Version>, bool)>) {
        let services = &self.0.services;
        let mut state = handler.state.lock();
        if let Some(last) = state.migration.take() {
            last.abort();
        }
        let watched = watched.map(|(version, is_tried)| {
            let watch = HealthWindow::new(Instant::now(), state.options.rollback, is_tried, version.outcomes());
            Watched { version, watch }
        });
        services.telemetry.activated(handler.name(), plan.active.number());
        handler.versions.follow(plan);
        let migration = migrate_and_watch(
            self.clone(),
            Arc::clone(handler),
            services.migrator.clone(),
            services.drain_timeout,
            watched,
        );
        let drain = services.drain.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = migration => {}
                () = drain.signalled() => {}
            }
        });
        state.migration = Some(task.abort_handle());
    }
}
