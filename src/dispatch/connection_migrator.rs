//! Connection migrator: asks connections to check their handler's versions, few at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::{Placement, Versions};
use crate::conn::registry::Registry;

/// Maximum number of concurrent migrations per worker thread. A migration takes some hundred microseconds of CPU; all
/// connections at once would delay each other, and their devices, by the sum of it.
const MIGRATIONS_PER_WORKER: usize = 2;

/// Pause after each batch of migrations, for other work: migrations take about a tenth of each thread, and ten thousand
/// connections on two threads have migrated within five seconds.
const PAUSE: Duration = Duration::from_millis(1);

/// How long to wait for a running migration; a connection in a long call checks its version when the call returns, and
/// is not waited for.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Migrates connections between versions.
#[derive(Clone, Debug)]
pub struct ConnectionMigrator {
    registry: Registry,
}

impl ConnectionMigrator {
    /// Migrates connections of this registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Asks every misplaced connection of the handler to check its version. Returns when all have done so, except those
    /// that are in a call for longer than a second.
    pub async fn reconcile(&self, versions: &Versions) {
        let concurrency = MIGRATIONS_PER_WORKER * Handle::current().metrics().num_workers();
        let permits = Arc::new(Semaphore::new(concurrency));
        for version in versions.loaded() {
            if versions.placement(&version) == Placement::Keep {
                continue;
            }
            let members = version.members();
            // Held only by its connections from here on, so that the last one that leaves frees it.
            drop(version);
            for (index, conn) in members.into_iter().enumerate() {
                if index % concurrency == concurrency - 1 {
                    tokio::time::sleep(PAUSE).await;
                }
                let permit = loop {
                    match tokio::time::timeout(WAIT_MAX, Arc::clone(&permits).acquire_owned()).await {
                        Ok(Ok(permit)) => break permit,
                        // The semaphore is never closed.
                        Ok(Err(_)) => return,
                        Err(_) => permits.add_permits(1),
                    }
                };
                if let Some(mailbox) = self.registry.get(conn) {
                    mailbox.reconcile_version(permit).await;
                }
            }
        }
        let all = tokio::time::timeout(WAIT_MAX, permits.acquire_many(concurrency as u32)).await;
        if all.is_err() {
            tracing::debug!(handler = %versions.name(), "some connections will check their version when their call returns");
        }
    }
}
