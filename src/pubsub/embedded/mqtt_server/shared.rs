//! rmqtt's view of all sessions: its own sessions, and the hub where messages are passed on.

use std::sync::Arc;

use async_trait::async_trait;
use rmqtt::Result;
use rmqtt::session::Session;
use rmqtt::shared::{DefaultShared, Entry, RetainLoadCallback, Shared};
use rmqtt::types::{
    ForwardedCount, ForwardedRecipients, From, Id, MsgID, NodeId, Publish, Reason, SessionStatus, SubRelations,
    SubRelationsMap, SubsSearchParams, SubsSearchResult, To, TopicFilter,
};

use crate::pubsub::embedded::clients::{ClientSubscription, Outgoing};
use crate::pubsub::embedded::router::{Origin, Publication, Router, from_wire};

use super::entry::LibraryEntry;

/// Messages that did not reach somebody, in rmqtt's words. The hub counts what it sheds itself.
type Undelivered = Vec<(To, From, Publish, Reason)>;

/// rmqtt's sessions, with deliveries led through the hub.
pub(super) struct LibraryShared {
    sessions: DefaultShared,
    router: Arc<Router>,
}

impl LibraryShared {
    pub(super) fn new(sessions: DefaultShared, router: Arc<Router>) -> Self {
        Self { sessions, router }
    }

    fn publish(&self, from: &From, publish: &Publish) -> usize {
        self.router.publish(&Publication {
            origin: Origin::Client(from, publish),
            topic: &publish.topic,
            qos: from_wire(publish.qos),
            payload: &publish.payload,
        })
    }
}

#[async_trait]
impl Shared for LibraryShared {
    fn entry(&self, id: Id) -> Box<dyn Entry> {
        Box::new(LibraryEntry::new(self.sessions.entry(id), self.router.clone()))
    }

    fn exist(&self, client_id: &str) -> bool {
        self.sessions.exist(client_id)
    }

    async fn forwards(
        &self,
        _msg_id: Option<MsgID>,
        from: From,
        publish: Publish,
    ) -> std::result::Result<ForwardedCount, (ForwardedCount, Undelivered)> {
        Ok(self.publish(&from, &publish))
    }

    async fn forwards_and_get_shareds(
        &self,
        from: From,
        publish: Publish,
    ) -> std::result::Result<(SubRelationsMap, ForwardedRecipients), (ForwardedRecipients, Undelivered)> {
        // Shares are served with the rest, so none is left to the caller.
        self.publish(&from, &publish);
        Ok((SubRelationsMap::default(), ForwardedRecipients::new()))
    }

    async fn forwards_to(
        &self,
        from: From,
        publish: &Publish,
        relations: SubRelations,
        _msg_id: Option<MsgID>,
    ) -> std::result::Result<ForwardedRecipients, (ForwardedRecipients, Undelivered)> {
        for (_, client_id, options, _, _) in relations {
            let id = Id::from(from.node_id, client_id);
            let subscription = Arc::new(ClientSubscription { id, options });
            self.router.clients().send(Outgoing::new(subscription), &from, publish);
        }
        Ok(ForwardedRecipients::new())
    }

    fn iter(&self) -> Box<dyn Iterator<Item = Box<dyn Entry>> + Sync + Send + '_> {
        let entries = self.sessions.iter();
        Box::new(entries.map(|entry| Box::new(LibraryEntry::new(entry, self.router.clone())) as Box<dyn Entry>))
    }

    fn random_session(&self) -> Option<Session> {
        self.sessions.random_session()
    }

    async fn session_status(&self, client_id: &str) -> Option<SessionStatus> {
        self.sessions.session_status(client_id).await
    }

    async fn client_states_count(&self) -> usize {
        self.sessions.client_states_count().await
    }

    fn sessions_count(&self) -> usize {
        self.sessions.sessions_count()
    }

    async fn query_subscriptions(&self, query: &SubsSearchParams) -> Vec<SubsSearchResult> {
        self.sessions.query_subscriptions(query).await
    }

    async fn subscriptions_count(&self) -> usize {
        self.sessions.subscriptions_count().await
    }

    /// Page by page: the callback waits until the client has places for what it is given, so a client
    /// that subscribes to everything and does not read costs one page.
    async fn retain_load_with(
        &self,
        topic_filter: &TopicFilter,
        callback: Arc<dyn RetainLoadCallback>,
    ) -> Result<Vec<(NodeId, MsgID)>> {
        let mut from = None;
        loop {
            let (page, next) = self.router.retained_page(topic_filter, from);
            if !page.is_empty() {
                callback.on_retains(page).await?;
            }
            match next {
                Some(_) => from = next,
                None => return Ok(Vec::new()),
            }
            tokio::task::yield_now().await;
        }
    }
}
