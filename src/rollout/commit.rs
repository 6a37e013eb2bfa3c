//! The change itself: what was loaded is written down, and the connections follow the new plan.

use std::sync::Arc;
use std::time::Instant;

use super::health_window::HealthWindow;
use super::managed_handler::{Build, ManagedHandler};
use super::manager::{ChangeResult, RolloutManager};
use super::prepare::Prepared;
use super::watch_change::{Watched, migrate_and_watch};
use super::{Error, Initiator, Program, Swap, VersionState};
use crate::dispatch::{OldConnections, Plan, Trial, TrialKind, Version};

/// What becomes of a version that is loaded.
#[derive(Clone, Copy)]
pub(super) enum CommitMode {
    Keep,
    Swap(Swap),
    /// The last one comes back: as `Live`, and not watched, because there is nothing to go back to but what has failed.
    Return,
}

impl RolloutManager {
    /// Makes a loaded version what it is to be. Whoever calls this has the handler's turn.
    pub(super) async fn commit(
        &self,
        handler: &Arc<ManagedHandler>,
        prepared: Prepared,
        fate: CommitMode,
        initiator: Initiator,
    ) -> Result<ChangeResult, Error> {
        let Prepared { record, is_new, program, policy, version } = prepared;
        let number = version.number();
        let plan = handler.versions.plan();
        let before = plan.active.number();
        if matches!(fate, CommitMode::Swap(_) | CommitMode::Return) && before == number {
            return Err(Error::IsActive { handler: Arc::clone(handler.name()), number });
        }
        if matches!((&fate, &program), (CommitMode::Swap(Swap::Shadow), Program::Grpc(_))) {
            return Err(Error::NoShadow);
        }
        if self.0.services.drain.is_signalled() {
            return Err(Error::Stopping);
        }
        let mut index = handler.state.lock().index.clone();
        if is_new {
            index.add(record);
        }
        if matches!(fate, CommitMode::Return | CommitMode::Swap(Swap::Live | Swap::NewConnections)) {
            index.activate(number);
        }
        let mut in_use = handler.in_use();
        in_use.insert(number);
        index.prune(&in_use);
        if let Err(error) = handler.store.write_aside(&index).await {
            match initiator {
                // Devices are failing: that it would not outlive a restart is the smaller evil.
                Initiator::HealthWindow => {
                    tracing::error!(handler = %handler.name(), "a restart will not know of the change: {error}")
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

        let state = match fate {
            CommitMode::Keep => VersionState::Kept,
            CommitMode::Swap(Swap::Canary(_) | Swap::Shadow) => VersionState::Trial,
            CommitMode::Swap(Swap::Live | Swap::NewConnections) | CommitMode::Return => VersionState::Active,
        };
        // What was tried until now is not tried any more, so its connections go back.
        let others = if plan.trial.is_some() { OldConnections::Move } else { plan.others };
        let try_out = |how| {
            let trial = Trial { version: Arc::clone(&version), how };
            Plan { active: Arc::clone(&plan.active), others, trial: Some(trial) }
        };
        let next = match fate {
            CommitMode::Keep => None,
            CommitMode::Return | CommitMode::Swap(Swap::Live) => {
                Some(Plan { active: Arc::clone(&version), others: OldConnections::Move, trial: None })
            }
            CommitMode::Swap(Swap::NewConnections) => {
                Some(Plan { active: Arc::clone(&version), others: OldConnections::Keep, trial: None })
            }
            CommitMode::Swap(Swap::Canary(share)) => Some(try_out(TrialKind::Canary(share))),
            CommitMode::Swap(Swap::Shadow) => Some(try_out(TrialKind::Shadow)),
        };
        if let Some(next) = next {
            drop(plan);
            let watched = match fate {
                CommitMode::Swap(_) => Some((version, state == VersionState::Trial)),
                CommitMode::Keep | CommitMode::Return => None,
            };
            self.follow(handler, next, watched);
        }
        Ok(ChangeResult { handler: handler.name().to_string(), version: number, state, before })
    }

    /// Ends a trial. Whoever calls this has the handler's turn.
    pub(super) fn end_trial(&self, handler: &Arc<ManagedHandler>, version: u32) -> ChangeResult {
        let active = handler.versions.active();
        let before = active.number();
        self.follow(handler, Plan { active, others: OldConnections::Move, trial: None }, None);
        ChangeResult { handler: handler.name().to_string(), version, state: VersionState::Kept, before }
    }

    /// Follows a plan from now on, and sees to what comes of it; what came of the last one gives way.
    fn follow(&self, handler: &Arc<ManagedHandler>, plan: Plan, watched: Option<(Arc<Version>, bool)>) {
        let services = &self.0.services;
        let mut state = handler.state.lock();
        if let Some(last) = state.settling.take() {
            last.abort();
        }
        let watched = watched.map(|(version, is_tried)| {
            let watch = HealthWindow::new(Instant::now(), state.options.rollback, is_tried, version.outcomes());
            Watched { version, watch }
        });
        services.telemetry.activated(handler.name(), plan.active.number());
        handler.versions.follow(plan);
        let settling = migrate_and_watch(
            self.clone(),
            Arc::clone(handler),
            services.migrator.clone(),
            services.drain_timeout,
            watched,
        );
        let drain = services.drain.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = settling => {}
                () = drain.signalled() => {}
            }
        });
        state.settling = Some(task.abort_handle());
    }
}
