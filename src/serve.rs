//! The accept loop.

use tokio::task::JoinSet;

use crate::connection::Connections;
use crate::drain::Drain;
use crate::listener::{Listener, Socket};

/// Accepts peers until `drain` is signalled, one task for each; gives the tasks that still run then.
///
/// A permit is taken before `accept`: when the listener is full, new peers wait in the kernel's backlog.
pub async fn serve(mut listener: Listener, connections: Connections, drain: Drain) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    loop {
        let next = async { (connections.permit().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            // A task that has ended keeps its memory until this is told.
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection has panicked");
                }
                continue;
            }
            () = drain.signalled() => return tasks,
        };
        let connection = connections.open(accepted.info, permit);
        match accepted.socket {
            Socket::Tcp(stream) => tasks.spawn(connection.run(stream)),
        };
    }
}
