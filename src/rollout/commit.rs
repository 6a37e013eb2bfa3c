//! The change itself: what was loaded is written down, and the connections follow the new plan.

use std::sync::Arc;
use std::time::Instant;

use super::line::{Build, Line};
use super::prepare::Prepared;
use super::rollouts::{Done, Rollouts};
use super::settling::{Watched, settle};
use super::watch::Watch;
use super::{Asker, Error, Program, Swap, VersionState};
use crate::dispatch::{Others, Plan, Trial, TrialKind, Version};

/// What becomes of a version that is loaded.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    Keep,
    Swap(Swap),
    /// The last one comes back: as `Live`, and not watched, because there is nothing to go back to but what has failed.
    Return,
}

impl Rollouts {
    /// Makes a loaded version what it is to be. Whoever calls this has the line's turn.
    pub(super) async fn commit(
        &self,
        line: &Arc<Line>,
        prepared: Prepared,
        fate: Fate,
        asker: Asker,
    ) -> Result<Done, Error> {
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
        if let Err(error) = line.store.write_aside(&index).await {
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
        line.forget_components().await;

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
    pub(super) fn end_trial(&self, line: &Arc<Line>, version: u32) -> Done {
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
}
