//! Watch step of a rollout: migrates connections to the new plan and watches the health of the new version.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::health_window::{HealthWindow, Verdict};
use super::managed_handler::ManagedHandler;
use super::manager::RolloutManager;
use crate::dispatch::{ConnectionMigrator, OldConnections, Plan, Version};

/// A version and its health window.
pub(super) struct Watched {
    pub(super) version: Arc<Version>,
    pub(super) watch: HealthWindow,
}

/// Returns when all connections have migrated and the health window has passed, or at a rollback. Aborted by the next
/// change, which starts its own.
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
                    // In a task of its own, because the change aborts this one.
                    tokio::spawn(manager.roll_back_failing(Arc::clone(&handler), number, events, failures));
                    return;
                }
            }
        }
    }
}

/// Migrates the connections; those that could not migrate are closed after the drain timeout.
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
        tracing::info!(handler = %handler.name(), connections, "drain timeout passed; closing the connections of old versions");
    }
    let plan = handler.versions.plan();
    handler.versions.follow(Plan { others: OldConnections::End, ..(*plan).clone() });
    migrator.reconcile(&handler.versions).await;
}

/// Waits for failures and for the end of the window.
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
