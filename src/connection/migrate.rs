//! How a connection goes on with another version of its handler, between two events.

use std::sync::Arc;
use std::time::Duration;

use super::Connection;
use crate::conn::{CloseReason, Event};
use crate::dispatch::{Membership, Placement};
use crate::handler::{Attachment, CallError, Handler, wasm};
use crate::listener::Socket;

/// How long a server that loses the connection to another version may take to hear of it; the device waits meanwhile.
const DETACH_TIMEOUT: Duration = Duration::from_millis(500);

impl Connection {
    /// Looks at the versions of the handler, and does what they ask for.
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
                        tracing::debug!(conn = %self.conn(), handler = %versions.name(), from, version, "moved to another version");
                    }
                    Err(error) => {
                        versions.pinned();
                        tracing::info!(
                            conn = %self.conn(),
                            handler = %versions.name(),
                            from,
                            version,
                            "the connection stays with its version: {error}"
                        );
                    }
                }
            }
        }
    }

    /// Goes over to another version; on an error the connection stays where it was.
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
                    tracing::debug!(conn = %self.conn(), "the server was not told that another one has taken over: {error}");
                }
            }
        }
        Ok(())
    }

    /// Gives the connection a fresh instance of the same version, with its state, before the old one has no memory left:
    /// many interpreters and some guests give back less than they take. A guest without `migrate`, or one that does not take
    /// its state back, goes on until it fails, and then starts anew.
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
                tracing::debug!(conn = %self.conn(), handler = %handler.name(), "a fresh instance goes on: the last had little memory left");
            }
            Err(error) => {
                tracing::warn!(conn = %self.conn(), handler = %handler.name(), "an instance with little memory left could not be replaced: {error}");
                if let Attachment::Wasm(guest) = &mut self.handler.attachment {
                    guest.keep();
                }
            }
        }
        self.follow_adapter();
    }

    /// Carries the connection's state from its guest to the next version of it.
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
                // The old instance is lost with its state, so there is nothing to stay with.
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

    /// Tells a handler that has no state of this connection that it exists. ExProto has no way to carry state over, so
    /// where a server is on either side, the new one gets what it gets after a fall back.
    async fn reattach(&mut self, socket: &mut Socket, handler: &Handler) -> Result<Attachment, CallError> {
        let last = self.registration.handler_conn();
        self.forget_remote();
        let conn = self.registration.handler_conn();
        self.adapter.set_handler_conn(conn);
        let mut attachment = handler.attach(conn, &self.info);
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
            // The last server was told nothing; it goes on under the id that it knows.
            self.registration.rename(last);
            self.adapter.set_handler_conn(last);
        }
        result.map(|()| attachment)
    }
}
