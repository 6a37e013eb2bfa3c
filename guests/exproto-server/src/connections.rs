//! The connections that the gateway has told of, each with its handler.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use polygate_guest::connection::Connection;
use polygate_guest::{Adapter, CloseReason, ConnInfo, Handler};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::gateway::Gateway;

/// Events in progress at a time, each on a thread of its own; more wait for their turn. tokio starts up to 512 such threads.
const EVENTS_MAX: usize = 256;

/// All connections.
pub(crate) struct Connections<H> {
    gateway: Gateway,
    max: usize,
    by_conn: Mutex<HashMap<String, Entry<H>>>,
    turns: Arc<Semaphore>,
}

struct Entry<H> {
    seen: Instant,
    slot: Slot<H>,
}

/// A connection's place. Whoever has an event of it waits here, in the order in which they came.
type Slot<H> = Arc<tokio::sync::Mutex<Place<H>>>;

struct Place<H> {
    /// None before its first event, after its last, and after one that panicked.
    connection: Option<Connection<H>>,
    authenticated: bool,
}

impl<H: Handler + Send + 'static> Connections<H> {
    pub(crate) fn new(gateway: Gateway, max: usize) -> Self {
        let turns = Arc::new(Semaphore::new(EVENTS_MAX));
        Self { gateway, max, by_conn: Mutex::new(HashMap::new()), turns }
    }

    /// A connection begins. One that is known by that name begins anew: the gateway falls back, or says it a second time.
    pub(crate) async fn created(&self, conn: String, info: ConnInfo) -> Result<(), Status> {
        let slot = self.enter(&conn);
        self.run(slot, conn, move |_, adapter| Ok(Some(Connection::open(adapter, &info)))).await
    }

    /// Something happens to a connection.
    pub(crate) async fn happens(
        &self,
        conn: String,
        event: impl FnOnce(&mut Connection<H>, &mut dyn Adapter) + Send + 'static,
    ) -> Result<(), Status> {
        let slot = self.find(&conn).ok_or_else(unknown)?;
        self.run(slot, conn, |connection, adapter| {
            let mut connection = connection.ok_or_else(unknown)?;
            event(&mut connection, adapter);
            Ok(Some(connection))
        })
        .await
    }

    /// A connection has ended. One that is not known has nothing to lose.
    pub(crate) async fn closed(&self, conn: String, reason: CloseReason) -> Result<(), Status> {
        let Some(Entry { slot, .. }) = self.locked().remove(&conn) else { return Ok(()) };
        self.run(slot, conn, move |connection, adapter| {
            if let Some(connection) = connection {
                connection.closed(adapter, &reason);
            }
            Ok(None)
        })
        .await
    }

    /// Runs an event when those before it are over, on a thread where it may wait.
    ///
    /// The gateway may give up its call meanwhile: an event that has not begun is then none, and one that has goes on to its end.
    async fn run(
        &self,
        slot: Slot<H>,
        conn: String,
        event: impl FnOnce(Option<Connection<H>>, &mut dyn Adapter) -> Result<Option<Connection<H>>, Status>
        + Send
        + 'static,
    ) -> Result<(), Status> {
        let mut place = slot.lock_owned().await;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| stopping())?;
        let gateway = self.gateway.clone();
        let done = tokio::task::spawn_blocking(move || {
            let Place { connection, authenticated } = &mut *place;
            let before = connection.take();
            *connection = event(before, &mut gateway.of(&conn, authenticated))?;
            drop(turn);
            Ok(())
        });
        match done.await {
            Ok(done) => done,
            // As with a guest that traps, what the connection was is gone; the hook of panics has logged the words.
            Err(ended) if ended.is_panic() => Err(Status::internal("the handler panicked")),
            Err(_) => Err(stopping()),
        }
    }

    /// Makes a place for a connection; when there are too many, the one that was quiet longest loses its own.
    fn enter(&self, conn: &str) -> Slot<H> {
        let slot = Slot::new(tokio::sync::Mutex::new(Place { connection: None, authenticated: false }));
        let mut by_conn = self.locked();
        by_conn.insert(conn.to_owned(), Entry { seen: Instant::now(), slot: Arc::clone(&slot) });
        if by_conn.len() > self.max
            && let Some(quiet) = by_conn.iter().min_by_key(|(_, entry)| entry.seen).map(|(conn, _)| conn.clone())
        {
            tracing::warn!(conn = quiet, "forgotten: more than {} connections, and it was quiet longest", self.max);
            by_conn.remove(&quiet);
        }
        slot
    }

    fn find(&self, conn: &str) -> Option<Slot<H>> {
        let mut by_conn = self.locked();
        let entry = by_conn.get_mut(conn)?;
        entry.seen = Instant::now();
        Some(Arc::clone(&entry.slot))
    }

    /// Nothing panics while it is held, and nothing waits.
    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry<H>>> {
        self.by_conn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping")
}

/// This process knows nothing of the connection: it is younger, or has forgotten it. To the gateway that is a failure of the
/// handler, which it meets by announcing the connection once more and repeating the event. NOT_FOUND would say to some that the
/// whole service is missing.
fn unknown() -> Status {
    Status::failed_precondition("expected a connection that OnSocketCreated has announced to this process")
}
