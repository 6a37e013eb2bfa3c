//! Where messages of devices, of the gateway and of MQTT clients meet their subscribers.
//!
//! Three maps under locks that are held for one look-up or one change and never across an `await`: the
//! routes, the retained messages, the devices by client id. Publishing is a plain function: it finds the
//! subscribers under a read lock, then puts the message into each one's bounded queue, where a full one
//! sheds it and counts it. So a slow subscriber costs nobody else anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::RwLock;
use rmqtt::types::{ClientId, From, Id, Publish, Retain, TopicName};

use crate::conn::{Message, QoS};
use crate::pubsub::Error;
use crate::topic;

use super::clients::{ClientSubscription, Clients, Outgoing, local_publish};
use super::device::Device;
use super::retained::{Cursor, Limits, RetainOutcome, Retained};
use super::routes::Routes;
use super::{Counters, Options, Stats};

/// The hub.
pub(super) struct Router {
    node: Arc<str>,
    /// The first half of all message ids; drawn at start, so that ids of two lives differ.
    epoch: u64,
    messages: AtomicU64,
    devices_opened: AtomicU64,
    stopped: AtomicBool,
    routes: RwLock<Routes<Key, Target>>,
    retained: RwLock<Retained<RetainedMessage>>,
    devices: DashMap<Arc<str>, Arc<Device>>,
    clients: Clients,
    counters: Counters,
    payload_bytes_max: usize,
    subscriptions_max: usize,
}

/// Tells subscribers apart. Devices and MQTT clients have client ids of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A device, by the serial number of its session.
    Device(u64),
    /// An MQTT client, by its client id: its subscriptions may outlive its connection.
    Client(ClientId),
}

/// A subscriber.
#[derive(Clone)]
pub(super) enum Target {
    /// A device.
    Device(Arc<Device>),
    /// An MQTT client, with how it wants to get what it has subscribed to.
    Client(Arc<ClientSubscription>),
}

/// A message on its way in.
pub(super) struct Publication<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) topic: &'a str,
    pub(super) qos: QoS,
    pub(super) payload: &'a Bytes,
}

/// Where a message comes from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// A device, or the gateway itself: `Message.from`.
    Local(&'a str),
    /// An MQTT client, with the message as rmqtt has it.
    Client(&'a From, &'a Publish),
}

/// A message that is kept for those who subscribe later.
struct RetainedMessage {
    id: String,
    retain: Retain,
}

/// The subscribers of one message.
#[derive(Default)]
struct Recipients {
    filters: usize,
    devices: Vec<Arc<Device>>,
    clients: Vec<Outgoing>,
    /// Those that a share has picked; each share's copy counts for itself.
    shared_devices: Vec<Arc<Device>>,
    shared_clients: Vec<Outgoing>,
}

impl Router {
    pub(super) fn new(options: &Options) -> Result<Self, getrandom::Error> {
        let limits = Limits { messages_max: options.retained_max, bytes_max: options.retained_bytes_max };
        let counters = Counters::default();
        Ok(Self {
            node: options.node.as_str().into(),
            epoch: getrandom::u64()?,
            messages: AtomicU64::new(0),
            devices_opened: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            routes: RwLock::new(Routes::new()),
            retained: RwLock::new(Retained::new(limits)),
            devices: DashMap::new(),
            clients: Clients::new(options.client_queue_max, counters.clone()),
            counters,
            payload_bytes_max: options.packet_bytes_max as usize,
            subscriptions_max: options.subscriptions_max,
        })
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn clients(&self) -> &Clients {
        &self.clients
    }

    pub(super) fn subscriptions_max(&self) -> usize {
        self.subscriptions_max
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            devices: self.devices.len(),
            clients: self.clients.len(),
            subscriptions: self.routes.read().len(),
            retained: self.retained.read().len(),
        }
    }

    /// Takes nothing in any more, and lets go of what it holds.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        *self.routes.write() = Routes::new();
        self.retained.write().clear();
    }

    pub(super) fn check_running(&self) -> Result<(), Error> {
        if self.stopped.load(Ordering::Acquire) { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Whether a device or the gateway may publish this at all.
    pub(super) fn check_publish(&self, topic: &str, payload: &Bytes) -> Result<(), Error> {
        self.check_running()?;
        topic::check_name(topic)?;
        let (bytes, bytes_max) = (payload.len(), self.payload_bytes_max);
        if bytes > bytes_max { Err(Error::PayloadTooLarge { bytes, bytes_max }) } else { Ok(()) }
    }

    pub(super) fn next_serial(&self) -> u64 {
        self.devices_opened.fetch_add(1, Ordering::Relaxed)
    }

    /// Enters a device; gives back the one whose client id it takes over.
    pub(super) fn enter(&self, device: Arc<Device>) -> Result<Option<Arc<Device>>, Error> {
        self.check_running()?;
        Ok(self.devices.insert(device.client_id.clone(), device))
    }

    /// Takes a device out, unless its client id has been taken over.
    pub(super) fn leave(&self, device: &Device) {
        self.devices.remove_if(&device.client_id, |_, known| known.serial == device.serial);
    }

    /// Enters a subscription; one with the same key to the same filter and share is replaced.
    pub(super) fn subscribe(&self, filter: &topic::Filter<'_>, key: Key, target: Target) {
        self.routes.write().add(filter.filter, filter.group, key, target);
    }

    /// Removes a subscription.
    pub(super) fn unsubscribe(&self, filter: &topic::Filter<'_>, key: &Key) {
        self.routes.write().remove(filter.filter, filter.group, key);
    }

    /// Enters an MQTT client's subscription in the place of any other of it to this filter.
    ///
    /// rmqtt knows subscriptions by client id and filter alone: to it, a share of a filter replaces the
    /// filter itself.
    pub(super) fn subscribe_client(&self, filter: &str, subscription: ClientSubscription) {
        let key = Key::Client(subscription.id.client_id.clone());
        let group = subscription.options.shared_group().cloned();
        let mut routes = self.routes.write();
        routes.remove_any(filter, &key, |_| true);
        routes.add(filter, group.as_deref(), key, Target::Client(Arc::new(subscription)));
    }

    /// Removes an MQTT client's subscription; says whether there was one of this very session.
    pub(super) fn unsubscribe_client(&self, filter: &str, id: &Id) -> bool {
        let key = Key::Client(id.client_id.clone());
        let of_this_session =
            |target: &Target| matches!(target, Target::Client(subscription) if subscription.id == *id);
        self.routes.write().remove_any(filter, &key, of_this_session).is_some()
    }

    /// Passes a message on to its subscribers; says to how many.
    pub(super) fn publish(&self, publication: &Publication<'_>) -> usize {
        let found = self.find(publication);
        let devices = found.devices.len() + found.shared_devices.len();
        let clients = found.clients.len() + found.shared_clients.len();
        if devices > 0 {
            let message = self.message(publication);
            for device in found.devices.iter().chain(&found.shared_devices) {
                device.mailbox.deliver(message.clone());
            }
        }
        if clients > 0 {
            let local;
            let (from, publish) = match publication.origin {
                Origin::Client(from, publish) => (from, publish),
                Origin::Local(from) => {
                    local = local_publish(from, publication.topic, publication.qos, publication.payload);
                    (&local.0, &local.1)
                }
            };
            for outgoing in found.clients.into_iter().chain(found.shared_clients) {
                self.clients.send(outgoing, from, publish);
            }
        }
        devices + clients
    }

    fn find(&self, publication: &Publication<'_>) -> Recipients {
        let mut found = Recipients::default();
        // MQTT 5.0 §3.8.3.1, No Local: not back to the very session that it came from.
        let wanted = |subscription: &ClientSubscription| match publication.origin {
            Origin::Client(from, _) => !(subscription.options.no_local() == Some(true) && subscription.id == from.id),
            Origin::Local(_) => true,
        };
        let routes = self.routes.read();
        routes.visit(publication.topic, |subscribers| {
            found.filters += 1;
            for target in subscribers.each() {
                match target {
                    Target::Device(device) => found.devices.push(device.clone()),
                    Target::Client(subscription) if wanted(subscription) => {
                        found.clients.push(Outgoing::new(subscription.clone()));
                    }
                    Target::Client(_) => {}
                }
            }
            for group in subscribers.groups() {
                let online = |target: &Target| match target {
                    Target::Device(_) => true,
                    Target::Client(subscription) => self.clients.is_online(&subscription.id.client_id),
                };
                match group.pick(online) {
                    Some(Target::Device(device)) => found.shared_devices.push(device.clone()),
                    Some(Target::Client(subscription)) => {
                        found.shared_clients.push(Outgoing::new(subscription.clone()));
                    }
                    None => {}
                }
            }
        });
        drop(routes);
        // Only who has several matching filters can have been found twice.
        if found.filters > 1 {
            found.devices.sort_unstable_by_key(|device| device.serial);
            found.devices.dedup_by_key(|device| device.serial);
            Outgoing::merge(&mut found.clients);
        }
        found
    }

    fn message(&self, publication: &Publication<'_>) -> Message {
        let (from, timestamp_ms) = match publication.origin {
            Origin::Local(from) => (from, now_ms()),
            Origin::Client(from, publish) => (&*from.client_id, created_ms(publish)),
        };
        Message {
            node: self.node.clone(),
            id: self.next_message_id(),
            qos: publication.qos,
            from: from.to_owned(),
            topic: publication.topic.to_owned(),
            payload: publication.payload.clone(),
            timestamp_ms,
        }
    }

    fn next_message_id(&self) -> String {
        let number = self.messages.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{number:016x}", self.epoch)
    }

    /// Keeps an MQTT client's message for those who subscribe later; an empty one clears the topic.
    pub(super) fn retain(&self, topic: &str, mut retain: Retain) {
        if retain.publish.payload.is_empty() {
            self.retained.write().remove(topic);
            return;
        }
        let now = Instant::now();
        let properties = retain.publish.properties.as_ref();
        let expires = properties
            .and_then(|properties| properties.message_expiry_interval)
            .and_then(|interval_s| now.checked_add(std::time::Duration::from_secs(interval_s.get().into())));
        let payload_bytes = retain.publish.payload.len();
        // Copies: what came from the wire is a slice of a read buffer that it would keep alive.
        retain.publish.payload = Bytes::copy_from_slice(&retain.publish.payload);
        retain.publish.topic = topic.into();
        let message = RetainedMessage { id: self.next_message_id(), retain };
        let kept = self.retained.write().set(topic, message, payload_bytes, expires, now);
        if kept == RetainOutcome::Full {
            self.counters.retained_refused.inc();
            tracing::debug!(topic, "retained message not kept: the store is full");
        }
    }

    /// Puts the retained messages of a filter into a device's mailbox.
    ///
    /// Each is put in under the lock that a newer one of its topic would need to be kept, which it is
    /// before it is passed on: so the device never gets an old one after a new one.
    pub(super) async fn replay_retained(&self, filter: &str, device: &Device) {
        let mut from = None;
        while !device.has_ended() {
            from = self.retained.read().page(filter, from, Instant::now(), |message, _| {
                device.mailbox.deliver(message.to_message(&self.node));
            });
            if from.is_none() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The next retained messages of a filter, for an MQTT client, and where to go on.
    pub(super) fn retained_page(
        &self,
        filter: &str,
        from: Option<Cursor>,
    ) -> (Vec<(TopicName, Retain)>, Option<Cursor>) {
        let mut found = Vec::new();
        let now = Instant::now();
        let next = self.retained.read().page(filter, from, now, |message, expires| {
            let mut retain = message.retain.clone();
            // MQTT 5.0 §3.3.2.3.3: what is left of it.
            if let (Some(expires), Some(properties)) = (expires, &mut retain.publish.properties) {
                let left_s = expires.saturating_duration_since(now).as_secs().max(1);
                properties.message_expiry_interval = u32::try_from(left_s).ok().and_then(std::num::NonZeroU32::new);
            }
            found.push((retain.publish.topic.clone(), retain));
        });
        (found, next)
    }
}

impl RetainedMessage {
    fn to_message(&self, node: &Arc<str>) -> Message {
        let publish = &self.retain.publish;
        Message {
            node: node.clone(),
            id: self.id.clone(),
            qos: from_wire(publish.qos),
            from: self.retain.from.client_id.to_string(),
            topic: publish.topic.to_string(),
            payload: publish.payload.clone(),
            timestamp_ms: created_ms(publish),
        }
    }
}

/// rmqtt's word for a quality of service, in ours.
pub(super) fn from_wire(qos: rmqtt::types::QoS) -> QoS {
    match qos {
        rmqtt::types::QoS::AtMostOnce => QoS::AtMostOnce,
        rmqtt::types::QoS::AtLeastOnce => QoS::AtLeastOnce,
        rmqtt::types::QoS::ExactlyOnce => QoS::ExactlyOnce,
    }
}

/// When an MQTT client's message was taken in.
fn created_ms(publish: &Publish) -> u64 {
    publish.create_time.and_then(|ms| u64::try_from(ms).ok()).unwrap_or_else(now_ms)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
