//! Migration of a connection to another version of its handler, and to a fresh instance of the same version
//! (recycling). Always between two events.

use std::sync::Arc;
use std::time::Duration;

use super::Connection;
use crate::conn::{CloseReason, Event};
use crate::dispatch::{Membership, Placement};
use crate::handler::{Attachment, CallError, Handler, wasm};
use crate::listener::Socket;

/// How long the old server may take for `OnSocketClosed` during a migration; the device waits meanwhile.
const DETACH_TIMEOUT: Duration = Duration::from_millis(500);

impl Connection {
    /// Applies the handler's current versions to this connection: keep, migrate or close.
    pub(super) async fn reconcile_version(&mut self, socket: &mut Socket) {
        if self.handler.has_stale_shadow(&self.shared.chain) {
            self.end_shadow().await;
        }
        match self.handler.placement(&self.shared.chain) {
            Placement::Keep => {}
            Placement::End => self.state.close(CloseReason::Draining),
            Placement::Move(to) => {
                self.end_shadow().await;
                let to = to.enter(self.conn());
                let from = self.handler.version().number();
                let version = to.version().number();
                let moved = self.migrate_to(socket, to).await;
                let versions = &self.link().versions;
                match moved {
                    Ok(()) => {
                        versions.moved();
                        tracing::debug!(conn = %self.conn(), handler = %versions.name(), from, version, "migrated to another version");
                    }
                    Err(error) => {
                        versions.pinned();
                        tracing::info!(
                            conn = %self.conn(),
                            handler = %versions.name(),
                            from,
                            version,
                            "not migrated, the connection keeps its version: {error}"
                        );
                    }
                }
            }
        }
    }

    /// Migrates to another version. On an error the connection keeps its version.
    async fn migrate_to(&mut self, socket: &mut Socket, to: Membership) -> Result<(), CallError> {
        let version = Arc::clone(to.version());
        let moved = match (&self.handler.attachment, self.handler.version().handler(), version.handler()) {
            (Attachment::Wasm(_), Handler::Wasm(old), Handler::Wasm(new)) => {
                if !(old.migrates() && new.migrates()) {
                    let why = "a version that does not export polygate:handler/migrate cannot hand its state over";
                    return Err(CallError::Unfit(why.to_owned()));
                }
                self.migrate_guest(new).await
            }
            _ => self.reattach(socket, version.handler()).await,
        };
        self.follow_adapter();
        version.count(moved.is_ok());
        let left = self.handler.replace(to, moved?);
        match left {
            Attachment::Wasm(guest) => guest.leave().await,
            Attachment::Grpc(remote) => {
                let detach = remote.call(&Event::SocketClosed(CloseReason::Draining));
                if let Err(error) = self.while_calling(socket, detach, DETACH_TIMEOUT).await {
                    tracing::debug!(conn = %self.conn(), "the old server did not get OnSocketClosed after the migration: {error}");
                }
            }
        }
        Ok(())
    }

    /// Replaces an instance that is nearly out of memory by a fresh one of the same version, with its state: many
    /// interpreters and some guests free less than they allocate. A guest without `migrate`, or one that fails to
    /// restore its state, runs on until it fails, and then starts anew.
    pub(super) async fn recycle_instance(&mut self) {
        let Attachment::Wasm(guest) = &self.handler.attachment else {
            return;
        };
        if !guest.needs_recycle() {
            return;
        }
        let version = Arc::clone(self.handler.version());
        let Handler::Wasm(handler) = version.handler() else {
            return;
        };
        if !handler.migrates() {
            return;
        }
        match self.migrate_guest(handler).await {
            Ok(fresh) => {
                self.handler.attachment = fresh;
                self.link().metrics.recovered("replace");
                tracing::debug!(conn = %self.conn(), handler = %handler.name(), "instance recycled: the old one had little memory left");
            }
            Err(error) => {
                tracing::warn!(conn = %self.conn(), handler = %handler.name(), "cannot recycle an instance with little memory left: {error}");
                if let Attachment::Wasm(guest) = &mut self.handler.attachment {
                    guest.keep();
                }
            }
        }
        self.follow_adapter();
    }

    /// Carries the guest's state over with `snapshot` and `restore`.
    async fn migrate_guest(&mut self, handler: &wasm::Handler) -> Result<Attachment, CallError> {
        let Attachment::Wasm(old) = &mut self.handler.attachment else {
            return Err(CallError::Unfit("the handler is not a guest".to_owned()));
        };
        let mut new = handler.attach(self.registration.handler_conn(), &self.info);
        self.adapter.allow_reauthentication();
        let savepoint = self.adapter.savepoint();
        let (backend, snapshot) = old.snapshot(self.adapter.take()).await;
        let (backend, result) = match snapshot {
            Ok(state) => new.restore(backend, &self.info, state.as_ref()).await,
            Err(error) => {
                // The old instance is lost with its state, so there is none to keep.
                tracing::warn!(conn = %self.conn(), handler = %handler.name(), "the guest lost its state in a snapshot: {error}");
                new.call(backend, &Event::SocketCreated(Arc::clone(&self.info))).await
            }
        };
        self.adapter.restore(backend);
        if result.is_err() {
            self.adapter.roll_back(savepoint);
        }
        result.map(|()| Attachment::Wasm(new))
    }

    /// Attaches a handler that has no state of this connection, with `OnSocketCreated` as after a fallback. ExProto has
    /// no way to carry state over, so this is the path where a gRPC server is on either side.
    async fn reattach(&mut self, socket: &mut Socket, handler: &Handler) -> Result<Attachment, CallError> {
        let last = self.registration.handler_conn();
        self.forget_remote();
        let conn = self.registration.handler_conn();
        self.adapter.set_handler_conn(conn);
        let mut attachment = handler.attach(conn, &self.info);
        let was_remote = matches!(self.handler.attachment, Attachment::Grpc(_));
        self.registration.set_remote(matches!(attachment, Attachment::Grpc(_)));
        let created = Event::SocketCreated(Arc::clone(&self.info));
        let result = match &mut attachment {
            Attachment::Grpc(remote) => {
                let (call, timeout) = (remote.call(&created), remote.call_timeout());
                self.while_calling(socket, call, timeout).await
            }
            Attachment::Wasm(guest) => {
                let savepoint = self.adapter.savepoint();
                let (backend, result) = guest.call(self.adapter.take(), &created).await;
                self.adapter.restore(backend);
                if result.is_err() {
                    self.adapter.roll_back(savepoint);
                }
                result
            }
        };
        if result.is_err() {
            // The old server noticed nothing; it keeps the id that it knows.
            self.registration.rename(last);
            self.registration.set_remote(was_remote);
            self.adapter.set_handler_conn(last);
        }
        result.map(|()| attachment)
    }
}
