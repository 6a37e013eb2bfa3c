//! The accept loop.

use crate::connection::Connections;
use crate::drain::Drain;
use crate::listener::{Listener, Socket};

/// Accepts peers until `drain` is signalled, one task for each.
///
/// A permit is taken before `accept`: when the listener is full, new peers wait in the kernel's backlog.
pub async fn serve(mut listener: Listener, connections: Connections, drain: Drain) {
    loop {
        let next = async { (connections.permit().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = drain.signalled() => break,
        };
        let connection = connections.open(accepted.info, permit);
        match accepted.socket {
            Socket::Tcp(stream) => drain.spawn(connection.run(stream)),
        }
    }
}
