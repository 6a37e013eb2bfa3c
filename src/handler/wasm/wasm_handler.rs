//! Handler of a loaded guest: attaches connections to its instances.

use std::sync::Arc;

use super::error::{LoadError, LoadErrorKind};
use super::guest::Guest;
use super::instance::{Call, Instance};
use super::loaded_guest::LoadedGuest;
use super::options::Options;
use super::shared_instances::InstancePool;
use crate::adapter::Backend;
use crate::conn::{CloseReason, ConnId, ConnInfo, Event};
use crate::handler::CallError;

/// A loaded guest, shared by all its connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handler {
    pub(super) guest: Arc<LoadedGuest>,
    /// Present with `isolation = { shared = N }`.
    pub(super) pool: Option<Arc<InstancePool>>,
}

impl Handler {
    pub fn name(&self) -> &Arc<str> {
        &self.guest.config.options.name
    }

    /// Name of the guest's engine: `small` or `large`.
    pub fn engine(&self) -> &'static str {
        self.guest.engine_name
    }

    /// Whether the guest exports the migrate interface.
    pub fn migrates(&self) -> bool {
        self.guest.migration_exports.is_some()
    }

    /// Attaches a connection; its instance is created at the first event.
    pub fn attach(&self, conn: ConnId, info: &Arc<ConnInfo>) -> Guest {
        match &self.pool {
            None => {
                let mut instance = Instance::new(Arc::clone(&self.guest), conn);
                if self.guest.config.failures.are_many() {
                    instance.quarantine();
                }
                Guest::own(instance)
            }
            Some(pool) => Guest::shared(pool.take(Arc::clone(&self.guest), conn, Arc::clone(info))),
        }
    }

    /// Instantiates the guest and drops the instance: finds a guest that cannot start before the first connection, and
    /// makes wasmtime create its one-time resources, such as a file descriptor, before descriptors may run out.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub async fn try_out(&self) -> Result<(), LoadError> {
        let conn = ConnId::from_u64(0);
        let result = Instance::new(Arc::clone(&self.guest), conn).try_out(conn).await;
        let Options { name, component, .. } = &self.guest.config.options;
        result.map_err(|reason| LoadError::new(name, component, LoadErrorKind::Start(reason)))
    }

    /// Instantiates the guest and drops the instance: checks that the instance limit allows one and that it starts.
    ///
    /// # Errors
    ///
    /// As [`Guest::call`].
    pub async fn probe(&self) -> Result<(), CallError> {
        // `on-socket-closed` without `on-socket-created` has no effect in a guest.
        let conn = ConnId::from_u64(0);
        let backend = Backend::dry_run(conn);
        let closed = Event::SocketClosed(CloseReason::Draining);
        let (_, result) = Instance::new(Arc::clone(&self.guest), conn).call(backend, Call::Event(&closed)).await;
        result.map(|_| ())
    }
}
