//! Asks connections to review their handler's versions, few at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::{Placement, Versions};
use crate::conn::registry::Registry;

/// Connections that may be on their way from one version to another at once, for each thread that serves them. A move
/// takes some hundred microseconds of CPU; all connections at once would keep each other waiting for the sum of it, and the
/// devices with them.
const MOVES_PER_WORKER: usize = 2;

/// After so many moves the others get their turn: what moves take is some tenth of each thread, and ten thousand
/// connections on two threads have moved within five seconds.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the next connection waits for those on their way; one that is in a long call reviews when it returns, and is
/// not waited for.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Moves connections between versions.
#[derive(Clone, Debug)]
pub struct ConnectionMigrator {
    table: Registry,
}

impl ConnectionMigrator {
    /// Reaches the connections of this table.
    pub fn new(table: Registry) -> Self {
        Self { table }
    }

    /// Asks every connection of the handler's versions that is not where it belongs to look for itself, and returns when
    /// all have, or when those that have not are in a call for longer than a second.
    pub async fn reconcile(&self, versions: &Versions) {
        let moves_at_once = MOVES_PER_WORKER * Handle::current().metrics().num_workers();
        let turns = Arc::new(Semaphore::new(moves_at_once));
        for version in versions.loaded() {
            if versions.placement(&version) == Placement::Keep {
                continue;
            }
            let members = version.members();
            // Held only by its connections from here on: the last one that leaves takes it along.
            drop(version);
            for (index, conn) in members.into_iter().enumerate() {
                if index % moves_at_once == moves_at_once - 1 {
                    tokio::time::sleep(PAUSE).await;
                }
                let turn = loop {
                    match tokio::time::timeout(WAIT_MAX, Arc::clone(&turns).acquire_owned()).await {
                        Ok(Ok(turn)) => break turn,
                        // The semaphore is never closed.
                        Ok(Err(_)) => return,
                        Err(_) => turns.add_permits(1),
                    }
                };
                if let Some(mailbox) = self.table.get(conn) {
                    mailbox.reconcile_version(turn).await;
                }
            }
        }
        let all = tokio::time::timeout(WAIT_MAX, turns.acquire_many(moves_at_once as u32)).await;
        if all.is_err() {
            tracing::debug!(handler = %versions.name(), "some connections will review when their call returns");
        }
    }
}
