//! A handler that is a guest: attaches connections to its instances.

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
    /// Of a guest with `isolation = { shared = N }`.
    pub(super) pool: Option<Arc<InstancePool>>,
}

impl Handler {
    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.guest.config.options.name
    }

    /// The engine that it runs on: `small` or `large`.
    pub fn engine(&self) -> &'static str {
        self.guest.engine_name
    }

    /// Whether it can carry a connection's state over to another version.
    pub fn migrates(&self) -> bool {
        self.guest.migration_exports.is_some()
    }

    /// A connection's place for an instance; the instance itself is made for the first event.
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

    /// Makes the first instance and drops it: what keeps a guest from starting at all is found before devices come, and
    /// what wasmtime makes once for all instances, a descriptor among it, is there when descriptors have run out.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub async fn try_out(&self) -> Result<(), LoadError> {
        let conn = ConnId::from_u64(0);
        let tried = Instance::new(Arc::clone(&self.guest), conn).try_out(conn).await;
        let Options { name, component, .. } = &self.guest.config.options;
        tried.map_err(|why| LoadError::new(name, component, LoadErrorKind::Start(why)))
    }

    /// Makes an instance and drops it: whether there is room for one, and whether it starts.
    ///
    /// # Errors
    ///
    /// As [`Guest::call`].
    pub async fn probe(&self) -> Result<(), CallError> {
        // A guest that was never told of a connection has nothing to do at its end.
        let conn = ConnId::from_u64(0);
        let backend = Backend::dry_run(conn);
        let ended = Event::SocketClosed(CloseReason::Draining);
        let (_, result) = Instance::new(Arc::clone(&self.guest), conn).call(backend, Call::Event(&ended)).await;
        result.map(|_| ())
    }
}
