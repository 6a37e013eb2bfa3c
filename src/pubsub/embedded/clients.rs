//! The MQTT clients, and the bound on what waits for each of them.
//!
//! rmqtt hands a message to a client's task through a channel without a bound, and a client that does
//! not read would let it grow for ever. So each message carries a permit in its payload, which comes
//! back when the last copy of the payload is dropped, wherever it waited: in the channel, in the
//! session's queue, or unacknowledged. Without a permit the message is shed and counted.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dashmap::DashMap;
use rmqtt::codec::v5::PublishProperties;
use rmqtt::types::{
    ClientId, CodecPublish, From, Id, Message as ToSession, Publish, QoS as WireQoS, SubscriptionOptions, Tx,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::conn::QoS;

use super::Counters;

/// Places beside the queue's: for what lies in the channel before the client's task takes it out, and
/// for what is sent and not acknowledged. With them the session's own queue fills first, which knows
/// which messages to give up.
const PLACES_BESIDE_QUEUE: usize = 1_024;

/// Retained messages on their way to one client; the next ones wait until these have been sent.
const RETAINED_PLACES: usize = 64;

/// A message takes one place for each started piece of this size.
const PLACE_BYTES: usize = 16 * 1024;

/// The number under which rmqtt knows this node; there is one.
pub(super) const NODE: rmqtt::types::NodeId = 1;

/// The MQTT clients with a session, by client id.
pub(super) struct Clients {
    by_id: DashMap<ClientId, Arc<Client>>,
    places: usize,
    counters: Counters,
}

/// One MQTT client's session.
struct Client {
    id: Id,
    tx: Tx,
    /// The largest packet that it takes (MQTT 5.0 §3.1.2.11.4).
    packet_bytes_max: Option<NonZeroU32>,
    online: AtomicBool,
    places: Arc<Semaphore>,
    retained_places: Arc<Semaphore>,
}

/// One subscription of an MQTT client.
pub(super) struct ClientSubscription {
    /// The session that made it.
    pub(super) id: Id,
    pub(super) options: SubscriptionOptions,
}

/// How a message goes out to one MQTT client.
pub(super) struct Outgoing {
    subscription: Arc<ClientSubscription>,
    qos: WireQoS,
    retain_as_published: bool,
    subscription_ids: Vec<NonZeroU32>,
}

impl Outgoing {
    pub(super) fn new(subscription: Arc<ClientSubscription>) -> Self {
        let options = &subscription.options;
        Self {
            qos: options.qos(),
            retain_as_published: options.retain_as_published().unwrap_or(false),
            subscription_ids: options.subscription_identifier().into_iter().collect(),
            subscription,
        }
    }

    /// Leaves one message for each client, with the highest QoS and all identifiers of its subscriptions
    /// (MQTT 5.0 §3.3.4).
    pub(super) fn merge(all: &mut Vec<Self>) {
        all.sort_by(|one, other| one.client_id().cmp(other.client_id()));
        all.dedup_by(|later, kept| {
            let same = later.client_id() == kept.client_id();
            if same {
                kept.qos = kept.qos.max(later.qos);
                kept.retain_as_published |= later.retain_as_published;
                kept.subscription_ids.append(&mut later.subscription_ids);
            }
            same
        });
    }

    fn client_id(&self) -> &ClientId {
        &self.subscription.id.client_id
    }
}

impl Clients {
    pub(super) fn new(queue_max: usize, counters: Counters) -> Self {
        let places = queue_max.saturating_add(PLACES_BESIDE_QUEUE).min(Semaphore::MAX_PERMITS);
        Self { by_id: DashMap::new(), places, counters }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The sessions there are.
    pub(super) fn ids(&self) -> Vec<Id> {
        self.by_id.iter().map(|client| client.id.clone()).collect()
    }

    /// Enters the session of a client that has connected.
    pub(super) fn enter(&self, id: Id, tx: Tx, packet_bytes_max: Option<NonZeroU32>) {
        let client = Client {
            tx,
            packet_bytes_max,
            online: AtomicBool::new(true),
            places: Arc::new(Semaphore::new(self.places)),
            retained_places: Arc::new(Semaphore::new(RETAINED_PLACES)),
            id,
        };
        self.by_id.insert(client.id.client_id.clone(), Arc::new(client));
    }

    /// Takes out the session of a client id, whichever it is.
    pub(super) fn leave(&self, client_id: &ClientId) {
        self.end(self.by_id.remove(client_id));
    }

    /// Takes out one session, unless another has taken its place.
    pub(super) fn leave_session(&self, id: &Id) {
        self.end(self.by_id.remove_if(&id.client_id, |_, client| client.id == *id));
    }

    fn end(&self, removed: Option<(ClientId, Arc<Client>)>) {
        if let Some((_, client)) = removed {
            // Nobody waits for places in a queue that nobody empties.
            client.retained_places.close();
        }
    }

    /// Notes that a session's connection is gone; the session may wait for the next one.
    pub(super) fn went_offline(&self, id: &Id) {
        if let Some(client) = self.by_id.get(&id.client_id)
            && client.id == *id
        {
            client.online.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a client is connected.
    pub(super) fn is_online(&self, client_id: &ClientId) -> bool {
        self.by_id.get(client_id).is_some_and(|client| client.online.load(Ordering::Relaxed))
    }

    fn get(&self, client_id: &ClientId) -> Option<Arc<Client>> {
        self.by_id.get(client_id).map(|client| client.value().clone())
    }

    /// Sends a message to a client, or sheds it when too much waits for it already.
    pub(super) fn send(&self, outgoing: Outgoing, from: &From, publish: &Publish) {
        // Without an entry the session has ended, and its subscriptions are ending with it.
        let Some(client) = self.get(outgoing.client_id()) else { return };
        let wanted = places(&publish.payload, self.places);
        let Ok(permit) = client.places.clone().try_acquire_many_owned(wanted) else {
            self.counters.client_dropped.inc();
            let client_id = outgoing.client_id();
            tracing::debug!(%client_id, topic = %publish.topic, "message shed: the queue is full");
            return;
        };
        let mut publish = publish.clone();
        publish.dup = false;
        publish.packet_id = None;
        publish.retain &= outgoing.retain_as_published;
        publish.qos = publish.qos.less_value(outgoing.qos);
        if !outgoing.subscription_ids.is_empty() {
            publish.properties.get_or_insert_default().subscription_ids = outgoing.subscription_ids;
        }
        self.forward(&client, from.clone(), publish, permit);
    }

    /// Sends a retained message to a client when it has a place for it.
    pub(super) async fn send_retained(&self, client_id: &ClientId, from: From, publish: Publish) {
        let Some(client) = self.get(client_id) else { return };
        let wanted = places(&publish.payload, RETAINED_PLACES);
        if let Ok(permit) = client.retained_places.clone().acquire_many_owned(wanted).await {
            self.forward(&client, from, publish, permit);
        }
    }

    fn forward(&self, client: &Client, from: From, mut publish: Publish, permit: OwnedSemaphorePermit) {
        // MQTT 5.0 §3.1.2.11.4: such a message is discarded; rmqtt would end the connection over it.
        if client.packet_bytes_max.is_some_and(|bytes_max| packet_bytes(&publish) > bytes_max.get() as usize) {
            self.counters.client_oversize.inc();
            let client_id = &client.id.client_id;
            tracing::debug!(%client_id, topic = %publish.topic, "message larger than the client takes");
            return;
        }
        publish.payload = Bytes::from_owner(Waiting { payload: publish.payload.clone(), _permit: permit });
        if client.tx.unbounded_send(ToSession::Forward(from, publish)).is_err() {
            tracing::trace!(client_id = %client.id.client_id, "message for a session that has ended");
        }
    }
}

/// The size of a message's MQTT 5.0 packet, a few bytes too large at most: lengths that vary in size are
/// taken for their largest.
fn packet_bytes(publish: &Publish) -> usize {
    // Fixed header 5, topic length 2, packet id 2, length of properties 4.
    let frame = 13 + publish.topic.len() + publish.payload.len();
    let Some(properties) = &publish.properties else { return frame };
    // Payload format 2, expiry 5, alias 3; the others have an identifier and a length of 3 together.
    let text = |text: &Option<rmqtt::types::TopicName>| text.as_ref().map_or(0, |text| text.len() + 3);
    let user: usize = properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + 5).sum();
    frame
        + 10
        + text(&properties.content_type)
        + text(&properties.response_topic)
        + properties.correlation_data.as_ref().map_or(0, |data| data.len() + 3)
        + properties.subscription_ids.len() * 5
        + user
}

/// A payload that holds its place until nobody needs it any more.
struct Waiting {
    payload: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

/// The places that a message takes; the largest takes all that there are.
fn places(payload: &Bytes, places_max: usize) -> u32 {
    let places = payload.len().div_ceil(PLACE_BYTES).clamp(1, places_max);
    u32::try_from(places).unwrap_or(u32::MAX)
}

/// What a device or the gateway publishes, in rmqtt's words.
pub(super) fn local_publish(from: &str, topic: &str, qos: QoS, payload: &Bytes) -> (From, Publish) {
    let publish = CodecPublish {
        dup: false,
        retain: false,
        qos: match qos {
            QoS::AtMostOnce => WireQoS::AtMostOnce,
            QoS::AtLeastOnce => WireQoS::AtLeastOnce,
            QoS::ExactlyOnce => WireQoS::ExactlyOnce,
        },
        topic: topic.into(),
        packet_id: None,
        payload: payload.clone(),
        properties: Some(PublishProperties::default()),
    };
    (From::from_custom(Id::from(NODE, from.into())), publish.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use prometheus_client::metrics::counter::Counter;

    #[allow(clippy::disallowed_methods, reason = "rmqtt's sessions have such a channel, and the bound is proved on it")]
    fn client(places: usize) -> (Clients, rmqtt::types::Rx, Arc<ClientSubscription>, Counter) {
        let counters = Counters::default();
        let dropped = counters.client_dropped.clone();
        let clients = Clients { by_id: DashMap::new(), places, counters };
        let (tx, rx) = futures::channel::mpsc::unbounded();
        let id = Id::from(NODE, "c".into());
        clients.enter(id.clone(), Tx::new(tx), None);
        (clients, rx, Arc::new(ClientSubscription { id, options: SubscriptionOptions::default() }), dropped)
    }

    /// A client that does not read is sent no more than its places, and more when it has read.
    #[tokio::test]
    async fn a_message_holds_its_place_until_it_is_dropped() {
        let (clients, mut rx, subscription, dropped) = client(3);
        let send = |bytes: usize| {
            let (from, publish) = local_publish("d", "t", QoS::AtMostOnce, &Bytes::from(vec![0; bytes]));
            clients.send(Outgoing::new(subscription.clone()), &from, &publish);
        };
        for _ in 0..5 {
            send(1);
        }
        assert_eq!(dropped.get(), 2);

        let first = rx.next().await.unwrap();
        send(1);
        assert_eq!(dropped.get(), 3, "the message that was taken out is still held");
        drop(first);
        send(1);
        assert_eq!(dropped.get(), 3);

        while let Ok(message) = rx.try_recv() {
            drop(message);
        }
        send(2 * PLACE_BYTES + 1);
        send(1);
        assert_eq!(dropped.get(), 4, "a large message takes the places of three");
    }

    /// Retained messages wait for places, and the wait ends with the session.
    #[tokio::test]
    async fn retained_messages_wait_and_do_not_wait_for_ever() {
        let (clients, _rx, subscription, _) = client(1);
        let client_id = subscription.id.client_id.clone();
        let (from, publish) = local_publish("d", "t", QoS::AtMostOnce, &Bytes::from(vec![0; 100 * PLACE_BYTES]));
        clients.send_retained(&client_id, from.clone(), publish.clone()).await;

        let mut second = std::pin::pin!(clients.send_retained(&client_id, from, publish));
        assert!(futures::poll!(&mut second).is_pending());
        clients.leave(&client_id);
        second.await;
    }

    #[test]
    fn one_message_for_each_client_with_the_highest_qos() {
        let outgoing = |client_id: &str, qos, identifier| Outgoing {
            subscription: Arc::new(ClientSubscription {
                id: Id::from(NODE, client_id.into()),
                options: SubscriptionOptions::default(),
            }),
            qos,
            retain_as_published: false,
            subscription_ids: NonZeroU32::new(identifier).into_iter().collect(),
        };
        let mut all = vec![
            outgoing("b", WireQoS::AtMostOnce, 1),
            outgoing("a", WireQoS::AtMostOnce, 0),
            outgoing("b", WireQoS::AtLeastOnce, 2),
        ];
        Outgoing::merge(&mut all);
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].qos, all[1].subscription_ids.len()), (WireQoS::AtLeastOnce, 2));
    }
}
