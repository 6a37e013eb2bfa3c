//! The accept loop.

use tokio::task::JoinSet;

use crate::conn::CloseReason;
use crate::connection::{Connections, Permit};
use crate::drain::Drain;
use crate::listener::{Arrived, Listener};

/// Accepts peers until `drain` is signalled, one task for each; gives the tasks that still run then.
///
/// A permit is taken before `accept`: when the listener is full, new peers wait in the kernel's backlog. A datagram
/// socket has no backlog: there a new peer is shed and counted.
pub async fn serve(mut listener: Listener, connections: Connections, drain: Drain) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    loop {
        let (permit, arrived) = tokio::select! {
            next = next(&mut listener, &connections) => next,
            // A task that has ended keeps its memory until this is told.
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection has panicked");
                }
                continue;
            }
            () = drain.signalled() => return tasks,
        };
        tasks.spawn(open(connections.clone(), permit, arrived, drain.clone()));
    }
}

/// The next peer for whom there is room.
async fn next(listener: &mut Listener, connections: &Connections) -> (Permit, Arrived) {
    if listener.has_backlog() {
        let permit = connections.permit().await;
        return (permit, listener.accept().await);
    }
    loop {
        let arrived = listener.accept().await;
        match connections.try_permit() {
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
