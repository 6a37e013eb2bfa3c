//! The accept loop.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::conn::CloseReason;
use crate::connection::{Connections, Permit};
use crate::drain::Drain;
use crate::listener::{Arrived, Listener};

/// Accepts peers until `drain` is signalled, one task for each; gives the tasks that still run then. Once `retire` is
/// signalled the socket is closed, and what it has accepted lives on.
///
/// A permit is taken before `accept`: when the listener is full, new peers wait in the kernel's backlog. A datagram
/// socket has no backlog: there a new peer is shed and counted.
pub async fn serve(
    listener: Listener,
    connections: Arc<ArcSwap<Connections>>,
    drain: Drain,
    retire: CancellationToken,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        tokio::select! {
            (permit, arrived) = next(&mut listener, &connections) => {
                let connections = Connections::clone(&connections.load());
                tasks.spawn(open(connections, permit, arrived, drain.clone()));
            }
            // A task that has ended keeps its memory until this is told.
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection has panicked");
                }
            }
            () = drain.signalled() => return tasks,
            () = retire.cancelled(), if listener.is_some() => listener = None,
        }
        if listener.is_none() && tasks.is_empty() {
            return tasks;
        }
    }
}

/// The next peer for whom there is room; never one, without a listener.
async fn next(listener: &mut Option<Listener>, connections: &ArcSwap<Connections>) -> (Permit, Arrived) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    if listener.has_backlog() {
        let connections = connections.load_full();
        let permit = connections.permit().await;
        return (permit, listener.accept().await);
    }
    loop {
        let arrived = listener.accept().await;
        match connections.load().try_permit() {
            Some(permit) => return (permit, arrived),
            None => arrived.shed("connections_max"),
        }
    }
}

/// One peer, from its arrival to its end.
async fn open(connections: Connections, permit: Permit, arrived: Arrived, drain: Drain) {
    let accepted = tokio::select! {
        biased;
        accepted = arrived.establish() => accepted,
        () = drain.signalled() => return,
    };
    let Some(accepted) = accepted else { return };
    let mut connection = connections.open(accepted.info, permit);
    if drain.is_signalled() {
        // Those that are asked to end may have been looked for before this one could be found.
        connection.end(CloseReason::Draining);
    }
    connection.run(accepted.socket).await;
}
