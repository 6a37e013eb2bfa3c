//! The accept loop.

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::conn::CloseReason;
use crate::connection::{Connections, Permit};
use crate::drain::Drain;
use crate::listener::{AcceptLimiter, Listener, Pending};

/// The end of a listener whose connections live on.
#[derive(Clone, Debug, Default)]
pub struct ListenerShutdown {
    asked: CancellationToken,
    closed: CancellationToken,
}

impl ListenerShutdown {
    /// Asks for it. Cannot be taken back.
    pub fn ask(&self) {
        self.asked.cancel();
    }

    /// Returns once the socket accepts no more.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

/// Accepts peers until `drain` is signalled, one task for each; gives the tasks that still run then. Once its retirement
/// is asked for, the socket is closed, and what it has accepted lives on.
///
/// A permit is taken before `accept`: when the listener is full, new peers wait in the kernel's backlog, and so they do when
/// they come too fast. A datagram socket has no backlog: there a new peer is shed and counted. When `connections` are
/// others, the next peer gets those.
pub async fn serve(
    listener: Listener,
    mut connections: watch::Receiver<Connections>,
    drain: Drain,
    retirement: ListenerShutdown,
) -> JoinSet<()> {
    // However this ends, nobody waits for the socket any more.
    let _closed = retirement.closed.clone().drop_guard();
    let mut tasks = JoinSet::new();
    let mut listener = Some(listener);
    let mut limiter = AcceptLimiter::default();
    while listener.is_some() || !tasks.is_empty() {
        let current = connections.borrow_and_update().clone();
        tokio::select! {
            // In this order: who comes after a reload must not meet what held before it.
            biased;
            () = drain.signalled() => break,
            () = retirement.asked.cancelled(), if listener.is_some() => {
                listener = None;
                retirement.closed.cancel();
            }
            // Without a sender they stay what they are.
            Ok(()) = connections.changed() => {}
            // A task that has ended keeps its memory until this is told.
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection has panicked");
                }
            }
            (permit, arrived) = next(&mut listener, &current, &mut limiter) => {
                tasks.spawn(open(current, permit, arrived, drain.clone()));
            }
        }
    }
    tasks
}

/// The next peer for whom there is room; never one, without a listener. Can be dropped and called again without losing one.
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
        let arrived = listener.accept().await;
        limiter.count(listener);
        return (permit, arrived);
    }
    loop {
        let arrived = listener.accept().await;
        match connections.try_permit() {
            Some(_) if !limiter.take(listener) => arrived.shed("connection_rate"),
            Some(permit) => return (permit, arrived),
            None => arrived.shed("connections_max"),
        }
    }
}

/// One peer, from its arrival to its end.
async fn open(connections: Connections, permit: Permit, arrived: Pending, drain: Drain) {
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
    drop(accepted.entered);
}
