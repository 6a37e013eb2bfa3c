//! Handler of a connection: its position in the listener's chain, its version, the attachment to it, and a shadow version beside it.
//!
//! Fallback and migration replace the content of the slot, always between two events. The adapter owns the id and the
//! permissions that the handler has.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::shadow::Shadow;
use crate::conn::{ConnId, ConnInfo};
use crate::dispatch::{Chain, Link, Membership, Placement, Recovery, Version};
use crate::handler::Attachment;

#[derive(Debug)]
pub(super) struct HandlerSlot {
    position: usize,
    membership: Membership,
    pub(super) attachment: Attachment,
    pub(super) shadow: Option<Box<Shadow>>,
    /// The handler's versions have changed: check them before the next event. The permit bounds how many connections
    /// migrate at a time.
    pub(super) reconcile: Option<OwnedSemaphorePermit>,
}

impl HandlerSlot {
    /// The first healthy handler of the chain, for a new connection.
    pub(super) fn choose(chain: &Chain, conn: ConnId, info: &Arc<ConnInfo>) -> Self {
        let position = chain.choose();
        let versions = &chain.link(position).versions;
        let membership = versions.enter(conn);
        Self {
            position,
            attachment: membership.version().handler().attach(conn, info),
            membership,
            shadow: Shadow::of(versions, conn, info),
            reconcile: None,
        }
    }

    pub(super) fn link<'c>(&self, chain: &'c Chain) -> &'c Link {
        chain.link(self.position)
    }

    pub(super) fn version(&self) -> &Arc<Version> {
        self.membership.version()
    }

    /// What the handler's versions say about the version in use.
    pub(super) fn placement(&self, chain: &Chain) -> Placement {
        self.link(chain).versions.placement(self.version())
    }

    /// Whether another version is to serve the connection.
    pub(super) fn is_replaced(&self, chain: &Chain) -> bool {
        self.placement(chain) != Placement::Keep
    }

    /// Recovery of the next event that fails.
    pub(super) fn recovery(&self, chain: &Chain) -> Recovery {
        Recovery::new(self.version().policy(), chain.after(self.position).is_some())
    }

    /// Whether a shadow is attached whose version is no longer on trial.
    pub(super) fn has_stale_shadow(&self, chain: &Chain) -> bool {
        self.shadow.as_ref().is_some_and(|shadow| !shadow.is_wanted(&self.link(chain).versions))
    }

    /// Most messages in one event.
    pub(super) fn messages_max(&self) -> usize {
        match &self.attachment {
            Attachment::Grpc(server) => server.messages_per_call(),
            Attachment::Wasm(_) => usize::MAX,
        }
    }

    /// Attaches anew to the version in use: a guest in a fresh instance.
    pub(super) fn reattach(&mut self, handler_conn: ConnId, info: &Arc<ConnInfo>) {
        self.attachment = self.version().handler().attach(handler_conn, info);
    }

    /// Selects the active version; [`HandlerSlot::reattach`] must follow.
    pub(super) fn select_active(&mut self, chain: &Chain, conn: ConnId) {
        self.membership = self.link(chain).versions.active().enter(conn);
    }

    /// Selects the next handler of the chain; [`HandlerSlot::reattach`] must follow. `false`, and nothing changes, where
    /// the chain ends.
    pub(super) fn select_next(&mut self, chain: &Chain, conn: ConnId) -> bool {
        let Some(position) = chain.after(self.position) else {
            return false;
        };
        self.position = position;
        self.membership = self.link(chain).versions.enter(conn);
        true
    }

    /// Replaces version and attachment together; returns the old attachment, which must get `OnSocketClosed` or leave.
    pub(super) fn replace(&mut self, membership: Membership, attachment: Attachment) -> Attachment {
        self.membership = membership;
        std::mem::replace(&mut self.attachment, attachment)
    }
}
