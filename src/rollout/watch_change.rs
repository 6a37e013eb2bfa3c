//! What follows a change: connections go where they belong, and the new version is watched.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::health_window::{HealthWindow, Verdict};
use super::managed_handler::ManagedHandler;
use super::manager::RolloutManager;
use crate::dispatch::{ConnectionMigrator, OldConnections, Plan, Version};

/// A version that is watched.
pub(super) struct Watched {
    pub(super) version: Arc<Version>,
    pub(super) watch: HealthWindow,
}

/// Ends when all connections are where they belong and the new version has lasted its time, or with the version's rollback.
/// Aborted by the next change, which has its own.
pub(super) async fn migrate_and_watch(
    manager: RolloutManager,
    handler: Arc<ManagedHandler>,
    migrator: ConnectionMigrator,
    drain_timeout: Duration,
    watched: Option<Watched>,
) {
    let number = watched.as_ref().map(|watched| watched.version.number());
    let mut moving = pin!(move_all(&handler, &migrator, drain_timeout));
    let mut watching = pin!(watch(watched));
    let (mut moved, mut is_over) = (false, false);
    while !(moved && is_over) {
        tokio::select! {
            () = &mut moving, if !moved => moved = true,
            verdict = &mut watching, if !is_over => {
                is_over = true;
                if let (Verdict::RollBack { events, failures }, Some(number)) = (verdict, number) {
                    // Not in this task, which the change aborts.
                    tokio::spawn(manager.roll_back_failing(Arc::clone(&handler), number, events, failures));
                    return;
                }
            }
        }
    }
}

/// Asks the connections over; those that could not go are ended when the drain timeout is over.
async fn move_all(handler: &ManagedHandler, migrator: &ConnectionMigrator, drain_timeout: Duration) {
    migrator.reconcile(&handler.versions).await;
    if handler.versions.plan().others != OldConnections::Move {
        return;
    }
    tokio::time::sleep(drain_timeout).await;
    let pinned = |handler: &ManagedHandler| {
        handler.versions.loaded().iter().map(|version| handler.versions.misplaced(version)).sum::<usize>()
    };
    let connections = pinned(handler);
    if connections > 0 {
        tracing::info!(handler = %handler.name(), connections, "the drain timeout is over; connections of old versions end");
    }
    let plan = handler.versions.plan();
    handler.versions.follow(Plan { others: OldConnections::End, ..(*plan).clone() });
    migrator.reconcile(&handler.versions).await;
}

/// Woken by failures and by the end of the window.
async fn watch(watched: Option<Watched>) -> Verdict {
    let Some(Watched { version, watch }) = watched else {
        return Verdict::Over;
    };
    let over = async {
        match watch.poll_timeout() {
            Some(ends) => tokio::time::sleep_until(ends.into()).await,
            None => std::future::pending().await,
        }
    };
    let mut over = pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return Verdict::Over,
            () = version.failure() => {}
        }
        match watch.handle_outcomes(Instant::now(), version.outcomes()) {
            Verdict::GoOn => {}
            verdict @ (Verdict::Over | Verdict::RollBack { .. }) => return verdict,
        }
    }
}
