//! How a connection goes on with another version of its handler, between two events.

use std::sync::Arc;
use std::time::Duration;

use super::Connection;
use crate::conn::{CloseReason, Event};
use crate::dispatch::{Membership, Placement};
use crate::handler::wasm::Desk;
use crate::handler::{Attached, CallError, Handler, wasm};
use crate::listener::Socket;

/// How long a server that loses the connection to another version may take to hear of it; the device waits meanwhile.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

impl Connection {
    /// Looks at the versions of the handler, and does what they ask for.
    pub(super) async fn review(&mut self, socket: &mut Socket) {
        if self.shadow.as_ref().is_some_and(|shadow| !shadow.is_wanted(&self.link().versions)) {
            self.end_shadow().await;
        }
        match self.link().versions.placement(self.membership.version()) {
            Placement::Stay => {}
            Placement::End => self.state.close(CloseReason::Draining),
            Placement::Move(to) => {
                self.end_shadow().await;
                let to = to.enter(self.conn());
                let from = self.membership.version().number();
                let version = to.version().number();
                let moved = self.move_to(socket, to).await;
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
    async fn move_to(&mut self, socket: &mut Socket, to: Membership) -> Result<(), CallError> {
        let version = Arc::clone(to.version());
        let moved = match (&self.attached, self.membership.version().handler(), version.handler()) {
            (Attached::Wasm(_), Handler::Wasm(old), Handler::Wasm(new)) => {
                if !(old.migrates() && new.migrates()) {
                    let why = "a version that does not export polygate:handler/migrate cannot hand its state over";
                    return Err(CallError::Unfit(why.to_owned()));
                }
                self.carry(new).await
            }
            _ => self.introduce(socket, version.handler()).await,
        };
        self.follow_timer();
        version.count(moved.is_ok());
        let left = std::mem::replace(&mut self.attached, moved?);
        self.membership = to;
        match left {
            Attached::Wasm(guest) => guest.leave().await,
            Attached::Grpc(remote) => {
                let farewell = remote.call(&Event::SocketClosed(CloseReason::Draining));
                if let Err(error) = self.while_calling(socket, farewell, FAREWELL_MAX).await {
                    tracing::debug!(conn = %self.conn(), "the server was not told that another one has taken over: {error}");
                }
            }
        }
        Ok(())
    }

    /// Gives the connection a fresh instance of the same version, with its state, before the old one has no memory left:
    /// many interpreters and some guests give back less than they take. A guest without `migrate`, or one that does not take
    /// its state back, goes on until it fails, and then starts anew.
    pub(super) async fn replace_worn(&mut self) {
        let Attached::Wasm(guest) = &self.attached else {
            return;
        };
        if !guest.is_worn() {
            return;
        }
        let version = Arc::clone(self.membership.version());
        let Handler::Wasm(handler) = version.handler() else {
            return;
        };
        if !handler.migrates() {
            return;
        }
        match self.carry(handler).await {
            Ok(fresh) => {
                self.attached = fresh;
                self.link().metrics.recovered("replace");
                tracing::debug!(conn = %self.conn(), handler = %handler.name(), "a fresh instance goes on: the last had little memory left");
            }
            Err(error) => {
                tracing::warn!(conn = %self.conn(), handler = %handler.name(), "an instance with little memory left could not be replaced: {error}");
                if let Attached::Wasm(guest) = &mut self.attached {
                    guest.stays();
                }
            }
        }
        self.follow_timer();
    }

    /// Carries the connection's state from its guest to the next version of it.
    async fn carry(&mut self, handler: &wasm::Handler) -> Result<Attached, CallError> {
        let Attached::Wasm(old) = &mut self.attached else {
            return Err(CallError::Unfit("the handler is not a guest".to_owned()));
        };
        let mut new = handler.attach(self.entered.handler_conn(), &self.info);
        self.adapter.expect_again();
        let mark = self.adapter.mark();
        let (desk, snapshot) = old.snapshot(Desk::Live(self.adapter.lend())).await;
        let (desk, result) = match snapshot {
            Ok(state) => new.restore(desk, &self.info, state.as_ref()).await,
            Err(error) => {
                // The old instance is lost with its state, so there is nothing to stay with.
                tracing::warn!(conn = %self.conn(), handler = %handler.name(), "the guest lost its state in a snapshot: {error}");
                new.call(desk, &Event::SocketCreated(Arc::clone(&self.info))).await
            }
        };
        self.take_back(desk);
        if result.is_err() {
            self.adapter.roll_back(mark);
        }
        result.map(|()| Attached::Wasm(new))
    }

    /// Tells a handler that has no state of this connection that it exists. ExProto has no way to carry state over, so
    /// where a server is on either side, the new one gets what it gets after a fall back.
    async fn introduce(&mut self, socket: &mut Socket, handler: &Handler) -> Result<Attached, CallError> {
        let last = self.entered.handler_conn();
        self.forget_remote();
        let conn = self.entered.handler_conn();
        self.adapter.reintroduce(conn);
        let mut attached = handler.attach(conn, &self.info);
        let created = Event::SocketCreated(Arc::clone(&self.info));
        let result = match &mut attached {
            Attached::Grpc(remote) => {
                let (call, timeout) = (remote.call(&created), remote.call_timeout());
                self.while_calling(socket, call, timeout).await
            }
            Attached::Wasm(guest) => {
                let mark = self.adapter.mark();
                let (desk, result) = guest.call(Desk::Live(self.adapter.lend()), &created).await;
                self.take_back(desk);
                if result.is_err() {
                    self.adapter.roll_back(mark);
                }
                result
            }
        };
        if result.is_err() {
            // The last server was told nothing; it goes on under the id that it knows.
            self.entered.rename(last);
            self.adapter.reintroduce(last);
        }
        result.map(|()| attached)
    }
}
