//! One connection's side of a guest.

use super::instance::{Answer, Call, Instance, Snapshot, Usage};
use super::log::reported;
use super::shared_instances::PooledGuest;
use crate::adapter::Backend;
use crate::conn::{ConnInfo, Event};
use crate::handler::CallError;

/// The instance of one connection, or a slot in the instance pool.
#[derive(Debug)]
pub struct Guest(Kind);

#[derive(Debug)]
enum Kind {
    Own(Instance),
    Shared(PooledGuest),
}

impl Guest {
    pub(super) fn own(instance: Instance) -> Self {
        Self(Kind::Own(instance))
    }

    pub(super) fn shared(pooled: PooledGuest) -> Self {
        Self(Kind::Shared(pooled))
    }

    /// Runs the calls of this instance at idle priority until one succeeds: it replaces a failed instance, and gets the
    /// event that failed.
    pub fn quarantine(&mut self) {
        match &mut self.0 {
            Kind::Own(instance) => instance.quarantine(),
            // Other connections wait for this instance, so it runs at normal priority.
            Kind::Shared(_) => {}
        }
    }

    #[cfg(test)]
    pub(super) fn is_quarantined(&self) -> bool {
        matches!(&self.0, Kind::Own(instance) if instance.is_quarantined())
    }

    /// Calls the export of an event and waits for its return. The backend serves the guest's adapter operations during
    /// the call and is returned with the result.
    ///
    /// Dropping the future fails the instance and drops the backend.
    ///
    /// # Errors
    ///
    /// [`CallError::Unavailable`]: no instance could be created, or this one has already failed.
    /// [`CallError::Timeout`]: the event exceeded its CPU time. [`CallError::Fault`]: the guest trapped; the text has
    /// the trap.
    pub async fn call(&mut self, backend: Backend, event: &Event) -> (Backend, Result<(), CallError>) {
        let (backend, result) = self.enter(backend, Call::Event(event)).await;
        (backend, result.map(|_| ()))
    }

    /// Calls the guest's `snapshot` for the state of this connection, for its next version; `None` without a state.
    ///
    /// # Errors
    ///
    /// As [`Guest::call`], and [`CallError::Unfit`] for a guest without `migrate`.
    pub async fn snapshot(&mut self, backend: Backend) -> (Backend, Result<Option<Snapshot>, CallError>) {
        let (backend, result) = self.enter(backend, Call::Snapshot).await;
        let snapshot = result.map(|answer| match answer {
            Answer::Snapshot(snapshot) => snapshot,
            Answer::Done | Answer::Restored(_) => None,
        });
        (backend, snapshot)
    }

    /// Calls the guest's `restore` with the snapshot of its last version, instead of `on-socket-created`.
    ///
    /// # Errors
    ///
    /// As [`Guest::snapshot`]; [`CallError::Fault`] also when the guest refuses the state, with its reason.
    pub async fn restore(
        &mut self,
        backend: Backend,
        info: &ConnInfo,
        state: Option<&Snapshot>,
    ) -> (Backend, Result<(), CallError>) {
        let (backend, result) = self.enter(backend, Call::Restore(info, state)).await;
        let restored = result.and_then(|answer| match answer {
            Answer::Restored(Err(reason)) => {
                Err(CallError::Fault(format!("the guest refuses the state: {}", reported(&reason))))
            }
            Answer::Restored(Ok(())) | Answer::Done | Answer::Snapshot(_) => Ok(()),
        });
        (backend, restored)
    }

    async fn enter(&mut self, backend: Backend, call: Call<'_>) -> (Backend, Result<Answer, CallError>) {
        match &mut self.0 {
            Kind::Own(instance) => instance.call(backend, call).await,
            Kind::Shared(pooled) => pooled.call(backend, call).await,
        }
    }

    /// Whether the connection's own instance has failed and accepts no further call. A failed shared instance is
    /// replaced.
    pub fn has_failed(&self) -> bool {
        matches!(&self.0, Kind::Own(instance) if instance.has_failed())
    }

    /// Resources used by the connection's own instance; zero for a shared instance.
    pub fn usage(&self) -> Usage {
        match &self.0 {
            Kind::Own(instance) => instance.usage(),
            Kind::Shared(_) => Usage::default(),
        }
    }

    /// Backtrace of the failure, one function a line, innermost first; with function names if the file has a name
    /// section.
    pub fn backtrace(&self) -> Option<String> {
        match &self.0 {
            Kind::Own(instance) => instance.backtrace(),
            Kind::Shared(_) => None,
        }
    }

    /// Whether the connection's own instance should be replaced because it has little memory left. A shared instance is
    /// not replaced: it has the state of other connections too.
    pub fn needs_recycle(&self) -> bool {
        match &self.0 {
            Kind::Own(instance) => instance.needs_recycle(),
            Kind::Shared(_) => false,
        }
    }

    /// Keeps the instance after a failed replacement: [`needs_recycle`](Self::needs_recycle) is false until its memory
    /// has doubled again.
    pub fn keep(&mut self) {
        if let Kind::Own(instance) = &mut self.0 {
            instance.keep();
        }
    }

    /// Detaches the connection: a shared instance gets `on-socket-closed`, an own instance is dropped.
    pub async fn leave(self) {
        match self.0 {
            Kind::Own(_) => {}
            Kind::Shared(pooled) => pooled.leave().await,
        }
    }
}
