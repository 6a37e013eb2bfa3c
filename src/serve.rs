//! The accept loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::conn::CloseReason;
use crate::connection::{Connections, Permit};
use crate::drain::Drain;
use crate::listener::{Arrived, Listener};
use crate::rate::{Bucket, Rate};

/// How soon after a reload another connection rate is followed, at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Accepts peers until `drain` is signalled, one task for each; gives the tasks that still run then. Once `retire` is
/// signalled the socket is closed, and what it has accepted lives on.
///
/// A permit is taken before `accept`: when the listener is full, new peers wait in the kernel's backlog, and so they do when they
/// come too fast. A datagram socket has no backlog: there a new peer is shed and counted.
pub async fn serve(
    listener: Listener,
    connections: Arc<ArcSwap<Connections>>,
    drain: Drain,
    retire: CancellationToken,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let mut listener = Some(listener);
    let mut pace = Pace(Bucket::full(Instant::now()));
    loop {
        tokio::select! {
            (permit, arrived) = next(&mut listener, &connections, &mut pace) => {
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
async fn next(
    listener: &mut Option<Listener>,
    connections: &ArcSwap<Connections>,
    pace: &mut Pace,
) -> (Permit, Arrived) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    if listener.has_backlog() {
        let connections = connections.load_full();
        let permit = connections.permit().await;
        pace.wait(listener).await;
        let arrived = listener.accept().await;
        pace.count(listener);
        return (permit, arrived);
    }
    loop {
        let arrived = listener.accept().await;
        match connections.load().try_permit() {
            Some(_) if !pace.take(listener) => arrived.shed("connection_rate"),
            Some(permit) => return (permit, arrived),
            None => arrived.shed("connections_max"),
        }
    }
}

/// How fast a listener's peers are accepted.
struct Pace(Bucket);

impl Pace {
    /// Waits until one more may be accepted.
    async fn wait(&mut self, listener: &Listener) {
        while let Some(rate) = self.rate(listener) {
            let ready = self.0.ready_at(&rate);
            if ready <= Instant::now() {
                return;
            }
            // After a reload another rate may hold before this one's time has come.
            let look_again = Instant::now() + LOOK_AGAIN;
            tokio::time::sleep_until(ready.min(look_again).into()).await;
        }
    }

    /// The rate that holds now. One at a time is accepted, so there are no debts but those of another rate.
    fn rate(&mut self, listener: &Listener) -> Option<Rate> {
        let rate = listener.admission().connection_rate;
        if let Some(rate) = &rate {
            self.0.forgive(rate, Instant::now());
        }
        rate
    }

    /// One was accepted.
    fn count(&mut self, listener: &Listener) {
        if let Some(rate) = self.rate(listener) {
            self.0.charge(&rate, Instant::now(), 1);
        }
    }

    /// Whether one more may be accepted, which counts then.
    fn take(&mut self, listener: &Listener) -> bool {
        self.rate(listener).is_none_or(|rate| self.0.take(&rate, Instant::now(), 1).is_ok())
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
    drop(accepted.entered);
}
