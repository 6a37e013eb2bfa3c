//! Routes messages of devices, of the gateway and of MQTT clients to their subscribers.
//!
//! Three maps under locks that are held for one look-up or one change and never across an `await`: the
//! routes, the retained messages, the devices by client id. Publishing is a plain function: it finds the
//! recipients under a read lock, then puts the message into each one's bounded queue, where a full one
//! drops it and counts it. So a slow subscriber costs the others nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::{RwLock, RwLockReadGuard};

use crate::auth::Auth;
use crate::conn::Message;
use crate::mqtt::Reason;
use crate::mqtt::packet::{SubscriptionOptions, Will};
use crate::pubsub::Error;
use crate::topic;

use super::clients::{Aftermath, Client, ClientSubscription, Clients, Detached, Entered, Limits, Recipient};
use super::device::Device;
use super::journal::{Image, Journal};
use super::message::{Origin, Publication, StoredMessage};
use super::retained::{Cursor, Limits as RetainedLimits, RetainOutcome, Retained};
use super::routes::{Routes, TooCostly};
use super::{Counters, Options, Stats};

/// The router.
pub(super) struct Router {
    node: Arc<str>,
    /// The first half of all message ids; drawn at start, so that ids of two lives differ.
    epoch: u64,
    messages: AtomicU64,
    devices_opened: AtomicU64,
    stopped: AtomicBool,
    routes: RwLock<Routes<Key, Target>>,
    retained: RwLock<Retained<Arc<StoredMessage>>>,
    devices: DashMap<Arc<str>, Arc<Device>>,
    clients: Clients,
    auth: Auth,
    counters: Counters,
    payload_bytes_max: usize,
    subscriptions_max: usize,
    journal: Option<Arc<Journal>>,
}

impl Drop for Router {
    fn drop(&mut self) {
        if let Some(journal) = &self.journal {
            journal.stop();
        }
    }
}

/// Distinguishes subscribers. Devices and MQTT clients have client ids of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A device, by the serial number of its session.
    Device(u64),
    /// An MQTT client, by the serial number of its session, which may outlive its connection.
    Client(u64),
}

/// A subscriber.
#[derive(Clone)]
pub(super) enum Target {
    /// A device.
    Device(Arc<Device>),
    /// An MQTT client, with how it wants to get what it has subscribed to.
    Client(Arc<ClientSubscription>),
}

/// The subscribers of one message.
#[derive(Default)]
struct Recipients {
    filters: usize,
    devices: Vec<Arc<Device>>,
    clients: Vec<Recipient>,
    /// Those that a share has picked; each share's copy counts for itself.
    shared_devices: Vec<Arc<Device>>,
    shared_clients: Vec<Recipient>,
}

impl Router {
    pub(super) fn new(
        options: &Options,
        auth: Auth,
        counters: Counters,
        journal: Option<Arc<Journal>>,
    ) -> Result<Self, getrandom::Error> {
        let limits = RetainedLimits { messages_max: options.retained_max, bytes_max: options.retained_bytes_max };
        Ok(Self {
            node: options.node.as_str().into(),
            epoch: getrandom::u64()?,
            messages: AtomicU64::new(0),
            devices_opened: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            routes: RwLock::new(Routes::new()),
            retained: RwLock::new(Retained::new(limits)),
            devices: DashMap::new(),
            clients: Clients::new(Limits::new(options, counters.clone(), journal.clone())),
            auth,
            counters,
            payload_bytes_max: options.packet_bytes_max as usize,
            subscriptions_max: options.subscriptions_max,
            journal,
        })
    }

    /// Takes in the state that the journal has kept.
    pub(super) fn restore(&self, image: &mut Image, now: Instant) {
        self.messages.store(image.last_message + 1, Ordering::Relaxed);
        let mut retained = self.retained.write();
        for message in image.retained() {
            if message.expires.is_none_or(|expires| now < expires) {
                let (bytes, expires) = (message.bytes(), message.expires);
                if retained.set(&message.topic, message.clone(), bytes, expires, now) == RetainOutcome::Full {
                    self.counters.retained_refused.inc();
                }
            }
        }
        drop(retained);
        let mut routes = self.routes.write();
        for (filter, serial, target) in self.clients.restore(image, now) {
            if let Ok(filter) = topic::parse_filter(&filter) {
                routes.restore(filter.filter, filter.group, Key::Client(serial), target);
            }
        }
    }

    /// Holds commits of the journal off while a change of several parts is going on. Changes are not nested.
    pub(super) fn begin_change(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.journal.as_deref().map(Journal::begin)
    }

    pub(super) fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.as_ref()
    }

    /// The retained message of a topic.
    pub(super) fn retained_message(&self, topic: &str) -> Option<Arc<StoredMessage>> {
        self.retained.read().get(topic).cloned()
    }

    pub(super) fn all_retained(&self) -> Vec<Arc<StoredMessage>> {
        self.retained.read().all().cloned().collect()
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
            queued_bytes: self.clients.queued_bytes(),
            subscription_bytes: self.clients.subscription_bytes(),
        }
    }

    /// Takes nothing in any more, and lets go of what it holds.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        for client in self.clients.clear() {
            client.end();
        }
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
    ///
    /// # Errors
    ///
    /// [`TooCostly`]; see [`Routes::add`].
    pub(super) fn subscribe(
        &self,
        filter: &topic::Filter<'_>,
        key: Key,
        target: Target,
        has_few_wildcards: bool,
    ) -> Result<(), TooCostly> {
        let added = self.routes.write().add(filter.filter, filter.group, key, target, has_few_wildcards);
        if added.is_err() {
            self.counters.costly_filters_refused.inc();
        }
        added.map(drop)
    }

    /// Removes a subscription.
    pub(super) fn unsubscribe(&self, filter: &topic::Filter<'_>, key: Key) {
        self.routes.write().remove(filter.filter, filter.group, &key);
    }

    /// Enters a subscription of an MQTT client, in the place of one to the same filter, and has its retained messages
    /// sent.
    ///
    /// # Errors
    ///
    /// The outer one: the connection has lost the session. The inner one is the reason code of the SUBACK.
    pub(super) fn subscribe_client(
        &self,
        client: &Arc<Client>,
        connection: u64,
        asked: &str,
        options: SubscriptionOptions,
        id: Option<u32>,
    ) -> Result<Result<Entered, Reason>, Detached> {
        let Ok(filter) = topic::parse_filter(asked) else { return Ok(Err(Reason::TOPIC_FILTER_INVALID)) };
        let subscription = ClientSubscription { client: client.clone(), options, id };
        let entered = client.subscribe(connection, asked, subscription, |subscription, has_few_wildcards| {
            let target = Target::Client(subscription);
            self.subscribe(&filter, Key::Client(client.serial), target, has_few_wildcards)
        })?;
        // MQTT 5.0 section 4.8.2: a share gets no retained messages.
        if let (Ok(entered), None) = (entered, filter.group) {
            client.replay_retained(connection, filter.filter, asked, entered);
        }
        Ok(entered)
    }

    /// Removes a subscription of an MQTT client.
    pub(super) fn unsubscribe_client(
        &self,
        client: &Arc<Client>,
        connection: u64,
        asked: &str,
    ) -> Result<Reason, Detached> {
        let Ok(filter) = topic::parse_filter(asked) else { return Ok(Reason::TOPIC_FILTER_INVALID) };
        let existed =
            client.unsubscribe(connection, asked, || self.unsubscribe(&filter, Key::Client(client.serial)))?;
        Ok(if existed { Reason::SUCCESS } else { Reason::NO_SUBSCRIPTION_EXISTED })
    }

    /// Does what a change of a session has left to do, as a part of it; see [`Router::begin_change`].
    pub(super) fn settle(&self, aftermath: Aftermath) {
        if let Some(client) = aftermath.ended {
            for filter in client.end() {
                if let Ok(filter) = topic::parse_filter(&filter) {
                    self.unsubscribe(&filter, Key::Client(client.serial));
                }
            }
        }
        if let Some((client, will)) = aftermath.will {
            self.publish_will(&client, &will);
        }
    }

    /// The rules may have changed since the client connected.
    fn publish_will(&self, client: &Arc<Client>, will: &Will) {
        if !self.auth.allows_publish(&client.id, &client.username(), &will.topic) {
            self.counters.publishes_denied.inc();
            tracing::debug!(client_id = %client.id, topic = will.topic, "will not published: a rule denies it now");
            return;
        }
        self.publish_in_change(&Publication {
            origin: Origin::Client(&client.id, client.serial),
            topic: &will.topic,
            qos: will.qos,
            retain: will.retain,
            payload: &will.payload,
            properties: Some(&will.properties),
        });
    }

    /// Passes a message on to its subscribers, and keeps it if that is asked for; says how many subscribers it has.
    pub(super) fn publish(&self, publication: &Publication<'_>) -> usize {
        let _change = self.begin_change();
        self.publish_in_change(publication)
    }

    /// The same as a part of a change that [`Router::begin_change`] has begun.
    pub(super) fn publish_in_change(&self, publication: &Publication<'_>) -> usize {
        let now = Instant::now();
        let number = self.messages.fetch_add(1, Ordering::Relaxed);
        let created_ms = now_ms();
        let store = || Arc::new(StoredMessage::new(publication, number, created_ms, now));
        let mut stored = None;
        if publication.retain {
            // Before it is passed on: who subscribes meanwhile gets it once at least.
            if publication.payload.is_empty() {
                self.retained.write().remove(publication.topic);
            } else {
                let message = stored.get_or_insert_with(store);
                self.retain(message, now);
            }
            if let Some(journal) = &self.journal {
                journal.topic_changed(publication.topic);
            }
        }
        let found = self.find(publication);
        let devices = found.devices.len() + found.shared_devices.len();
        let clients = found.clients.len() + found.shared_clients.len();
        if devices > 0 {
            let message = Message {
                node: self.node.clone(),
                id: self.message_id(number),
                qos: publication.qos,
                from: publication.origin.client_id().to_owned(),
                topic: publication.topic.to_owned(),
                payload: publication.payload.clone(),
                timestamp_ms: created_ms,
            };
            for device in found.devices.iter().chain(&found.shared_devices) {
                device.mailbox.deliver(message.clone());
            }
        }
        if clients > 0 {
            let message = stored.get_or_insert_with(store);
            for recipient in found.clients.into_iter().chain(found.shared_clients) {
                recipient.deliver(message, publication.retain);
            }
        }
        devices + clients
    }

    fn find(&self, publication: &Publication<'_>) -> Recipients {
        let mut found = Recipients::default();
        // MQTT 5.0 section 3.8.3.1, No Local: not back to the very session that it came from.
        let wanted = |subscription: &ClientSubscription| match publication.origin {
            Origin::Client(_, serial) => !(subscription.options.no_local && subscription.client.serial == serial),
            Origin::Local(_) => true,
        };
        let routes = self.routes.read();
        routes.visit(publication.topic, |subscribers| {
            found.filters += 1;
            for target in subscribers.each() {
                match target {
                    Target::Device(device) => found.devices.push(device.clone()),
                    Target::Client(subscription) if wanted(subscription) => {
                        found.clients.push(Recipient::new(subscription.clone()));
                    }
                    Target::Client(_) => {}
                }
            }
            for group in subscribers.groups() {
                let online = |target: &Target| match target {
                    Target::Device(_) => true,
                    Target::Client(subscription) => subscription.client.is_online(),
                };
                match group.pick(online) {
                    Some(Target::Device(device)) => found.shared_devices.push(device.clone()),
                    Some(Target::Client(subscription)) => {
                        found.shared_clients.push(Recipient::new(subscription.clone()));
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
            Recipient::merge(&mut found.clients);
        }
        found
    }

    fn message_id(&self, number: u64) -> String {
        format!("{:016x}{number:016x}", self.epoch)
    }

    /// Keeps a message for those who subscribe later.
    fn retain(&self, message: &Arc<StoredMessage>, now: Instant) {
        let kept = self.retained.write().set(&message.topic, message.clone(), message.bytes(), message.expires, now);
        if kept == RetainOutcome::Full {
            self.counters.retained_refused.inc();
            tracing::debug!(topic = ?message.topic, "retained message not kept: the store is full");
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
                device.mailbox.deliver(self.to_message(message));
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
        now: Instant,
        found: &mut Vec<Arc<StoredMessage>>,
    ) -> Option<Cursor> {
        self.retained.read().page(filter, from, now, |message, _| found.push(message.clone()))
    }

    fn to_message(&self, stored: &StoredMessage) -> Message {
        Message {
            node: self.node.clone(),
            id: self.message_id(stored.number),
            qos: stored.qos,
            from: stored.from.to_string(),
            topic: stored.topic.to_string(),
            payload: stored.payload.clone(),
            timestamp_ms: stored.created_ms,
        }
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
