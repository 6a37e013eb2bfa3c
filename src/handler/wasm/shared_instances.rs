//! Instance pool: a fixed number of instances that serve all connections of a guest (`isolation = { shared = N }`).
//!
//! A connection keeps its slot as long as it stays with this version of the handler. An instance handles one event at a
//! time; further events wait in order (FIFO). A failed instance is dropped with the state of its connections; each of
//! them gets `on-socket-created` on the next instance before its next event.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::instance::{Answer, Call, Instance};
use super::loaded_guest::LoadedGuest;
use crate::adapter::Backend;
use crate::conn::{CloseReason, ConnId, ConnInfo, Event};
use crate::handler::CallError;

#[derive(Debug)]
pub(super) struct InstancePool(Box<[Arc<Slot>]>);

#[derive(Debug)]
struct Slot {
    /// One permit, which a call holds; tokio's semaphore is fair (FIFO).
    permits: Semaphore,
    /// Empty during a call: a call that is dropped before its end drops the instance as well.
    occupant: Mutex<Option<Occupant>>,
}

/// An instance and the connections that it has got `on-socket-created` or `restore` for.
#[derive(Debug)]
struct Occupant {
    instance: Instance,
    connections: HashSet<ConnId>,
}

impl InstancePool {
    /// `count` slots; an instance is created at its first event.
    pub(super) fn new(count: usize) -> Self {
        let slot = || Arc::new(Slot { permits: Semaphore::new(1), occupant: Mutex::new(None) });
        Self((0..count.max(1)).map(|_| slot()).collect())
    }

    /// Assigns a connection to a slot by its id, which is pseudo-random and stays: a device whose events fail meets the
    /// same slot again, and harms no other.
    pub(super) fn take(&self, guest: Arc<LoadedGuest>, conn: ConnId, info: Arc<ConnInfo>) -> PooledGuest {
        let index = usize::try_from(conn.to_u64()).unwrap_or_default() % self.0.len();
        PooledGuest { guest, slot: Arc::clone(&self.0[index]), conn, info }
    }
}

/// A connection's handle of a shared instance.
#[derive(Debug)]
pub(super) struct PooledGuest {
    guest: Arc<LoadedGuest>,
    slot: Arc<Slot>,
    conn: ConnId,
    info: Arc<ConnInfo>,
}

impl PooledGuest {
    /// Waits for the slot's permit and calls the instance, or a new one if the last has failed.
    ///
    /// # Errors
    ///
    /// As [`Instance::call`].
    pub(super) async fn call(&self, mut backend: Backend, call: Call<'_>) -> (Backend, Result<Answer, CallError>) {
        // The semaphore is never closed.
        let _permit = self.slot.permits.acquire().await.ok();
        let occupant = self.slot.occupant.lock().take().filter(|occupant| !occupant.instance.has_failed());
        let mut occupant = occupant.unwrap_or_else(|| Occupant {
            instance: Instance::new(Arc::clone(&self.guest), self.conn),
            connections: HashSet::new(),
        });
        occupant.instance.set_conn(self.conn);
        let is_first_call = matches!(call, Call::Event(Event::SocketCreated(_)) | Call::Restore(..));
        let mut result = Ok(Answer::Done);
        if !occupant.connections.contains(&self.conn) && !is_first_call {
            if matches!(call, Call::Snapshot | Call::Event(Event::SocketClosed(_))) {
                // The failed instance has lost the connection's state: there is nothing to save or to close.
                self.slot.occupant.lock().replace(occupant);
                return (backend, Ok(Answer::Snapshot(None)));
            }
            backend.allow_reauthentication();
            let created = Event::SocketCreated(Arc::clone(&self.info));
            (backend, result) = occupant.instance.call(backend, Call::Event(&created)).await;
        }
        if result.is_ok() {
            (backend, result) = occupant.instance.call(backend, call).await;
        }
        if result.is_ok() {
            if matches!(call, Call::Event(Event::SocketClosed(_))) {
                occupant.connections.remove(&self.conn);
            } else {
                occupant.connections.insert(self.conn);
            }
            self.slot.occupant.lock().replace(occupant);
        }
        (backend, result)
    }

    /// Calls `on-socket-closed`, so that the instance drops the connection's state.
    pub(super) async fn leave(&self) {
        let backend = Backend::dry_run(self.conn);
        let closed = Event::SocketClosed(CloseReason::Draining);
        if let (_, Err(error)) = self.call(backend, Call::Event(&closed)).await {
            tracing::debug!(conn = %self.conn, "shared instance failed in on_socket_closed: {error}");
        }
    }
}
