//! rmqtt's router, its retain store and its shares, answered by the hub.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rmqtt::Result;
use rmqtt::retain::RetainStorage;
use rmqtt::subscribe::SharedSubscription;
use rmqtt::types::{
    AllRelationsMap, HashMap, Id, NodeId, Retain, Route, SubRelationsMap, SubsSearchParams, SubsSearchResult,
    SubscriptionOptions, TopicFilter, TopicName,
};
use rmqtt::utils::Counter;

use crate::pubsub::embedded::clients::ClientSubscription;
use crate::pubsub::embedded::router::Router;

/// Enters and removes subscriptions of MQTT clients.
///
/// rmqtt asks a router for more than that: to match topics, and to answer for its admin and cluster
/// plug-ins. [`LibraryShared`](super::HubShared) matches by itself and no plug-in is linked, so the
/// answers to those questions are empty.
pub(super) struct LibraryRouter {
    router: Arc<Router>,
    relations: AllRelationsMap,
}

impl LibraryRouter {
    pub(super) fn new(router: Arc<Router>) -> Self {
        Self { router, relations: AllRelationsMap::default() }
    }
}

#[async_trait]
impl rmqtt::router::Router for LibraryRouter {
    async fn add(&self, topic_filter: &str, id: Id, options: SubscriptionOptions) -> Result<()> {
        self.router.subscribe_client(topic_filter, ClientSubscription { id, options });
        Ok(())
    }

    async fn remove(&self, topic_filter: &str, id: Id) -> Result<bool> {
        Ok(self.router.unsubscribe_client(topic_filter, &id))
    }

    async fn matches(&self, _id: Id, _topic: &TopicName) -> Result<SubRelationsMap> {
        Ok(SubRelationsMap::default())
    }

    async fn is_online(&self, _node_id: NodeId, client_id: &str) -> bool {
        self.router.clients().is_online(&client_id.into())
    }

    async fn gets(&self, _limit: usize) -> Vec<Route> {
        Vec::new()
    }

    async fn get(&self, _topic: &str) -> Result<Vec<Route>> {
        Ok(Vec::new())
    }

    async fn query_subscriptions(&self, _query: &SubsSearchParams) -> Vec<SubsSearchResult> {
        Vec::new()
    }

    async fn topics_tree(&self) -> usize {
        self.router.stats().subscriptions
    }

    fn topics(&self) -> Counter {
        Counter::new()
    }

    fn routes(&self) -> Counter {
        Counter::new()
    }

    fn merge_topics(&self, _topics: &HashMap<NodeId, Counter>) -> Counter {
        Counter::new()
    }

    fn merge_routes(&self, _routes: &HashMap<NodeId, Counter>) -> Counter {
        Counter::new()
    }

    async fn list_topics(&self, _top: usize) -> Vec<String> {
        Vec::new()
    }

    async fn list_relations(&self, _top: usize) -> Vec<serde_json::Value> {
        Vec::new()
    }

    fn relations(&self) -> &AllRelationsMap {
        &self.relations
    }
}

/// Keeps retained messages in the hub.
pub(super) struct LibraryRetained(Arc<Router>);

impl LibraryRetained {
    pub(super) fn new(router: Arc<Router>) -> Self {
        Self(router)
    }
}

#[async_trait]
impl RetainStorage for LibraryRetained {
    fn enable(&self) -> bool {
        true
    }

    /// The interval is left aside: where the publisher gave none, rmqtt puts in the listener's.
    async fn set(&self, topic: &TopicName, retain: Retain, _expiry_interval: Option<Duration>) -> Result<()> {
        self.0.retain(topic, retain);
        Ok(())
    }

    async fn get(&self, topic_filter: &TopicFilter) -> Result<Vec<(TopicName, Retain)>> {
        let mut all = Vec::new();
        let mut from = None;
        loop {
            let (page, next) = self.0.retained_page(topic_filter, from);
            all.extend(page);
            match next {
                Some(_) => from = next,
                None => return Ok(all),
            }
        }
    }

    async fn count(&self) -> isize {
        isize::try_from(self.0.stats().retained).unwrap_or(isize::MAX)
    }

    async fn max(&self) -> isize {
        self.count().await
    }
}

/// Says that there are shared subscriptions; the hub picks the member.
pub(super) struct LibraryShares;

#[async_trait]
impl SharedSubscription for LibraryShares {
    fn is_supported(&self) -> bool {
        true
    }
}
