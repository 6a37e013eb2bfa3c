//! Instances that serve many connections: isolation `{ shared = N }`.
//!
//! A connection has its seat at one of them for as long as it stays with this version of the handler. One event at a
//! time is in an instance; the others wait their turn, in order. An instance that fails is thrown away with
//! what it knew; each of its connections is introduced to the next one before its next event.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::instance::{Answer, Call, Instance};
use super::loaded_guest::LoadedGuest;
use crate::adapter::Backend;
use crate::conn::{CloseReason, ConnId, ConnInfo, Event};
use crate::handler::CallError;

/// The places for instances of one loaded guest.
#[derive(Debug)]
pub(super) struct InstancePool(Box<[Arc<Slot>]>);

/// The place of one instance.
#[derive(Debug)]
struct Slot {
    /// Whose turn it is; in order of asking.
    turn: Semaphore,
    /// Taken out for the length of a call: a call that is dropped in its middle leaves nothing behind to be entered.
    served: Mutex<Option<Occupant>>,
}

/// An instance and the connections that it knows.
#[derive(Debug)]
struct Occupant {
    instance: Instance,
    knows: HashSet<ConnId>,
}

impl InstancePool {
    /// Places for `count` instances; none is made before its first event.
    pub(super) fn new(count: usize) -> Self {
        let slot = || Arc::new(Slot { turn: Semaphore::new(1), served: Mutex::new(None) });
        Self((0..count.max(1)).map(|_| slot()).collect())
    }

    /// A connection's place; connections are spread evenly.
    pub(super) fn take(&self, guest: Arc<LoadedGuest>, conn: ConnId, info: Arc<ConnInfo>) -> PooledGuest {
        let index = usize::try_from(conn.to_u64()).unwrap_or_default() % self.0.len();
        PooledGuest { guest, slot: Arc::clone(&self.0[index]), conn, info }
    }
}

/// One connection's side of a shared instance.
#[derive(Debug)]
pub(super) struct PooledGuest {
    guest: Arc<LoadedGuest>,
    slot: Arc<Slot>,
    conn: ConnId,
    info: Arc<ConnInfo>,
}

impl PooledGuest {
    /// Waits for its turn, and enters the instance; a new one, if the last has failed.
    ///
    /// # Errors
    ///
    /// As [`Instance::call`].
    pub(super) async fn call(&self, mut backend: Backend, call: Call<'_>) -> (Backend, Result<Answer, CallError>) {
        // The semaphore is never closed.
        let _turn = self.slot.turn.acquire().await.ok();
        let served = self.slot.served.lock().take().filter(|served| !served.instance.has_failed());
        let mut served = served.unwrap_or_else(|| Occupant {
            instance: Instance::new(Arc::clone(&self.guest), self.conn),
            knows: HashSet::new(),
        });
        served.instance.set_conn(self.conn);
        let introduces = matches!(call, Call::Event(Event::SocketCreated(_)) | Call::Restore(..));
        let mut result = Ok(Answer::Done);
        if !served.knows.contains(&self.conn) && !introduces {
            if matches!(call, Call::Snapshot | Call::Event(Event::SocketClosed(_))) {
                // The instance that knew it is gone, and what there was to say with it.
                self.slot.served.lock().replace(served);
                return (backend, Ok(Answer::Snapshot(None)));
            }
            backend.allow_reauthentication();
            let created = Event::SocketCreated(Arc::clone(&self.info));
            (backend, result) = served.instance.call(backend, Call::Event(&created)).await;
        }
        if result.is_ok() {
            (backend, result) = served.instance.call(backend, call).await;
        }
        if result.is_ok() {
            if matches!(call, Call::Event(Event::SocketClosed(_))) {
                served.knows.remove(&self.conn);
            } else {
                served.knows.insert(self.conn);
            }
            self.slot.served.lock().replace(served);
        }
        (backend, result)
    }

    /// Tells the instance that the connection has gone elsewhere, so that it can forget it.
    pub(super) async fn leave(&self) {
        let backend = Backend::dry_run(self.conn);
        let closed = Event::SocketClosed(CloseReason::Draining);
        if let (_, Err(error)) = self.call(backend, Call::Event(&closed)).await {
            tracing::debug!(conn = %self.conn, "the instance that the connection has left failed: {error}");
        }
    }
}
