//! rmqtt's handle of one session: tells the hub when the session comes and goes.

use std::sync::Arc;

use async_trait::async_trait;
use rmqtt::Result;
use rmqtt::session::Session;
use rmqtt::shared::Entry;
use rmqtt::types::{
    From, Id, IsAdmin, OfflineSession, Publish, Reason, SubsSearchResult, Subscribe, SubscribeReturn, Tx, Unsubscribe,
};

use crate::pubsub::embedded::router::Router;

/// rmqtt's own entry, with the hub beside it.
pub(super) struct LibraryEntry {
    entry: Box<dyn Entry>,
    router: Arc<Router>,
}

impl LibraryEntry {
    pub(super) fn new(entry: Box<dyn Entry>, router: Arc<Router>) -> Self {
        Self { entry, router }
    }
}

#[async_trait]
impl Entry for LibraryEntry {
    async fn try_lock(&self) -> Result<Box<dyn Entry>> {
        let locked = self.entry.try_lock().await?;
        Ok(Box::new(Self::new(locked, self.router.clone())))
    }

    fn id(&self) -> Id {
        self.entry.id()
    }

    fn id_same(&self) -> Option<bool> {
        self.entry.id_same()
    }

    async fn set(&mut self, session: Session, tx: Tx) -> Result<()> {
        let packet_bytes_max = session.connect_info().await?.max_packet_size();
        self.entry.set(session, tx.clone()).await?;
        self.router.clients().enter(self.entry.id(), tx, packet_bytes_max);
        Ok(())
    }

    async fn remove(&mut self) -> Result<Option<(Session, Tx)>> {
        self.router.clients().leave(&self.entry.id().client_id);
        self.entry.remove().await
    }

    async fn remove_with(&mut self, id: &Id) -> Result<Option<(Session, Tx)>> {
        self.router.clients().leave_session(id);
        self.entry.remove_with(id).await
    }

    async fn kick(
        &mut self,
        clean_start: bool,
        clear_subscriptions: bool,
        is_admin: IsAdmin,
    ) -> Result<OfflineSession> {
        let kicked = self.entry.kick(clean_start, clear_subscriptions, is_admin).await?;
        self.router.clients().leave(&self.entry.id().client_id);
        Ok(kicked)
    }

    async fn online(&self) -> bool {
        self.entry.online().await
    }

    async fn is_connected(&self) -> bool {
        self.entry.is_connected().await
    }

    fn session(&self) -> Option<Session> {
        self.entry.session()
    }

    fn exist(&self) -> bool {
        self.entry.exist()
    }

    fn tx(&self) -> Option<Tx> {
        self.entry.tx()
    }

    async fn subscribe(&self, subscribe: &Subscribe) -> Result<SubscribeReturn> {
        self.entry.subscribe(subscribe).await
    }

    async fn unsubscribe(&self, unsubscribe: &Unsubscribe) -> Result<bool> {
        self.entry.unsubscribe(unsubscribe).await
    }

    /// rmqtt sends retained messages this way, one after the other: they wait for places.
    async fn publish(&self, from: From, publish: Publish) -> std::result::Result<(), (From, Publish, Reason)> {
        self.router.clients().send_retained(&self.entry.id().client_id, from, publish).await;
        Ok(())
    }

    async fn subscriptions(&self) -> Option<Vec<SubsSearchResult>> {
        self.entry.subscriptions().await
    }
}
