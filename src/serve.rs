//! Accept loop of one listener: permit, accept, one task per connection; the accept rate limit.

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::conn::CloseReason;
use crate::connection::{Connections, Permit};
use crate::drain::Drain;
use crate::listener::{AcceptLimiter, Listener, Pending};

/// Shutdown of one listener; its connections stay open.
#[derive(Clone, Debug, Default)]
pub struct ListenerShutdown {
    requested: CancellationToken,
    closed: CancellationToken,
}

impl ListenerShutdown {
    /// Requests the shutdown. Irreversible.
    pub fn ask(&self) {
        self.requested.cancel();
    }

    /// Waits until the socket is closed.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

/// Accepts connections until `drain` is signalled, one task for each; returns the tasks still running then. After
/// `shutdown` is requested the socket is closed, and accepted connections stay open.
///
/// A permit is taken before `accept`: at the connection limit or the accept rate limit, new connections wait in the
/// kernel's backlog. A datagram socket has no backlog: there a new flow is rejected and counted. A change of
/// `connections` applies to new connections.
pub async fn serve(
    listener: Listener,
    mut connections: watch::Receiver<Connections>,
    drain: Drain,
    shutdown: ListenerShutdown,
) -> JoinSet<()> {
    // Whatever ends this loop, the waiters of the shutdown are released.
    let _closed = shutdown.closed.clone().drop_guard();
    let mut tasks = JoinSet::new();
    let mut listener = Some(listener);
    let mut limiter = AcceptLimiter::default();
    while listener.is_some() || !tasks.is_empty() {
        let current = connections.borrow_and_update().clone();
        tokio::select! {
            // In this order: a connection accepted after a reload must get the new options.
            biased;
            () = drain.signalled() => break,
            () = shutdown.requested.cancelled(), if listener.is_some() => {
                listener = None;
                shutdown.closed.cancel();
            }
            // Without a sender they do not change.
            Ok(()) = connections.changed() => {}
            // A finished task keeps its memory until it is joined.
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection has panicked");
                }
            }
            (permit, pending) = next(&mut listener, &current, &mut limiter) => {
                tasks.spawn(open(current, permit, pending, drain.clone()));
            }
        }
    }
    tasks
}

/// The next connection within the limits; pending for ever without a listener. Cancel-safe: no peer is lost.
async fn next(
    listener: &mut Option<Listener>,
    connections: &Connections,
    limiter: &mut AcceptLimiter,
) -> (Permit, Pending) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    if listener.has_backlog() {
        let permit = connections.permit().await;
        limiter.wait(listener).await;
        let pending = listener.accept().await;
        limiter.count(listener);
        return (permit, pending);
    }
    loop {
        let pending = listener.accept().await;
        match connections.try_permit() {
            Some(_) if !limiter.take(listener) => pending.shed("connection_rate"),
            Some(permit) => return (permit, pending),
            None => pending.shed("connections_max"),
        }
    }
}

/// Serves one peer, from its handshake to the close of its connection.
async fn open(connections: Connections, permit: Permit, pending: Pending, drain: Drain) {
    let accepted = tokio::select! {
        biased;
        accepted = pending.establish() => accepted,
        () = drain.signalled() => return,
    };
    let Some(accepted) = accepted else { return };
    let mut connection = connections.open(accepted.info, accepted.place, permit);
    if drain.is_signalled() {
        // The drain may have listed the open connections before this one was registered.
        connection.end(CloseReason::Draining);
    }
    connection.run(accepted.socket).await;
    drop(accepted.entered);
}
