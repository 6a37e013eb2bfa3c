//! One connection's side of a guest.

use super::instance::{Answer, Call, Instance, Snapshot, Usage};
use super::log::reported;
use super::shared_instances::PooledGuest;
use crate::adapter::Backend;
use crate::conn::{ConnInfo, Event};
use crate::handler::CallError;

/// One connection's instance, or its place at one that it shares.
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

    pub(super) fn shared(member: PooledGuest) -> Self {
        Self(Kind::Shared(member))
    }

    /// The last instance of this connection has failed, and this one gets the same event: it runs among the long ones.
    pub fn quarantine(&mut self) {
        match &mut self.0 {
            Kind::Own(instance) => instance.quarantine(),
            // Others wait for it already.
            Kind::Shared(_) => {}
        }
    }

    #[cfg(test)]
    pub(super) fn is_quarantined(&self) -> bool {
        matches!(&self.0, Kind::Own(instance) if instance.is_quarantined())
    }

    /// Calls the export for an event and waits until it returns. What the guest asks for meanwhile is answered at
    /// the desk, which comes back with the answer.
    ///
    /// Dropping the future fails the instance and loses the desk.
    ///
    /// # Errors
    ///
    /// [`CallError::Unavailable`]: no instance could be made, or this one has failed before. [`CallError::Timeout`]:
    /// the event's CPU time was used up. [`CallError::Fault`]: the guest trapped; the text says how.
    pub async fn call(&mut self, backend: Backend, event: &Event) -> (Backend, Result<(), CallError>) {
        let (backend, result) = self.enter(backend, Call::Event(event)).await;
        (backend, result.map(|_| ()))
    }

    /// Asks the guest for what its next version needs to go on with this connection; `None` when there is nothing.
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

    /// Gives the guest what its last version wrote, instead of `on-socket-created`.
    ///
    /// # Errors
    ///
    /// As [`Guest::snapshot`]; [`CallError::Fault`] also with the guest's own words, when it refuses the state.
    pub async fn restore(
        &mut self,
        backend: Backend,
        info: &ConnInfo,
        state: Option<&Snapshot>,
    ) -> (Backend, Result<(), CallError>) {
        let (backend, result) = self.enter(backend, Call::Restore(info, state)).await;
        let restored = result.and_then(|answer| match answer {
            Answer::Restored(Err(why)) => {
                Err(CallError::Fault(format!("the guest refuses the state: {}", reported(&why))))
            }
            Answer::Restored(Ok(())) | Answer::Done | Answer::Snapshot(_) => Ok(()),
        });
        (backend, restored)
    }

    async fn enter(&mut self, backend: Backend, call: Call<'_>) -> (Backend, Result<Answer, CallError>) {
        match &mut self.0 {
            Kind::Own(instance) => instance.call(backend, call).await,
            Kind::Shared(member) => member.call(backend, call).await,
        }
    }

    /// Whether its own instance has failed, so that no call reaches it any more. A shared one is made anew.
    pub fn has_failed(&self) -> bool {
        matches!(&self.0, Kind::Own(instance) if instance.has_failed())
    }

    /// What its instance has used so far; nothing is known of a shared one.
    pub fn usage(&self) -> Usage {
        match &self.0 {
            Kind::Own(instance) => instance.usage(),
            Kind::Shared(_) => Usage::default(),
        }
    }

    /// Where the guest was when it failed, a function a line, innermost first; with names where its file has them.
    pub fn backtrace(&self) -> Option<String> {
        match &self.0 {
            Kind::Own(instance) => instance.backtrace(),
            Kind::Shared(_) => None,
        }
    }

    /// Whether this connection's instance has little memory left, and a fresh one would have more. An instance that is shared is
    /// not replaced: the others have their state in it too.
    pub fn needs_recycle(&self) -> bool {
        match &self.0 {
            Kind::Own(instance) => instance.needs_recycle(),
            Kind::Shared(_) => false,
        }
    }

    /// No fresh instance could take over: this one goes on until it fails, and is not worn before.
    pub fn keep(&mut self) {
        if let Kind::Own(instance) = &mut self.0 {
            instance.keep();
        }
    }

    /// The connection has gone elsewhere: a shared instance is told, an own one ends.
    pub async fn leave(self) {
        match self.0 {
            Kind::Own(_) => {}
            Kind::Shared(member) => member.leave().await,
        }
    }
}
