//! The MQTT clients of the embedded broker: their sessions, connected or not.
//!
//! A session is an entry in the table of clients. Everything that its connection and its publishers change lies under
//! one lock, held for one change and never across an `await`; so a takeover is one step, and what was queued for the
//! old connection is there for the new one. The session ends with its connection or when its expiry has passed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::byte_budget::ByteBudget;
use crate::conn::QoS;
use crate::mqtt::Reason;
use crate::mqtt::inbound::Inbound;
use crate::mqtt::outbound::{Bounds, Outbound, Outline, Send, Stored};
use crate::mqtt::packet::{RetainHandling, SubscriptionOptions, Will};

use super::journal::{Image, Journal, SessionImage};
use super::message::StoredMessage;
use super::retained::Cursor;
use super::router::Target;
use super::routes::{FEW_WILDCARD_FILTERS, TooCostly};
use super::{Counters, Options};

/// What one subscription costs beside its filter, in bytes, about: its entries in the session and in the index.
const SUBSCRIPTION_OVERHEAD_BYTES: usize = 256;

/// Queued messages from which on no page of retained messages is read: the next page follows when they are sent.
const RETAINED_QUEUED_MAX: usize = 64;

/// What a queued retained message is charged with, in bytes: its payload is that of the store, which has a bound of its
/// own. Otherwise a few subscribers that read nothing would use up the budget of all queues.
const RETAINED_QUEUED_BYTES: usize = 128;

/// What all sessions share.
pub(super) struct Limits {
    pub(super) clients_max: usize,
    pub(super) sessions_per_user_max: usize,
    pub(super) subscriptions_max: usize,
    pub(super) subscription_bytes_max: usize,
    pub(super) bounds: Bounds,
    /// Queued messages of all sessions.
    queued: ByteBudget,
    /// Subscriptions of all sessions.
    subscribed: ByteBudget,
    counters: Counters,
    journal: Option<Arc<Journal>>,
}

impl Limits {
    pub(super) fn new(options: &Options, counters: Counters, journal: Option<Arc<Journal>>) -> Self {
        Self {
            clients_max: options.clients_max,
            sessions_per_user_max: options.sessions_per_user_max,
            subscriptions_max: options.subscriptions_max,
            subscription_bytes_max: options.subscription_bytes_max,
            bounds: Bounds {
                messages_max: options.client_queue_max + usize::from(options.inflight_max),
                bytes_max: options.client_queue_bytes_max,
                inflight_max: options.inflight_max,
            },
            queued: ByteBudget::new(options.queued_bytes_max),
            subscribed: ByteBudget::new(options.all_subscription_bytes_max),
            counters,
            journal,
        }
    }
}

/// A session.
pub(super) struct Client {
    pub(super) id: Arc<str>,
    /// Distinguishes sessions that have one client id.
    pub(super) serial: u64,
    /// Wakes the task of the connection: there is something to send, or the connection is to end.
    pub(super) wake: Notify,
    /// Whether it has a connection, for those who only want to know.
    online: AtomicBool,
    limits: Arc<Limits>,
    state: Mutex<State>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("id", &self.id).field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// What changes of a session.
struct State {
    outbound: Outbound<Delivery>,
    inbound: Inbound,
    /// By filter as it was asked for; `None` when the session has ended.
    subscriptions: Option<BTreeMap<Box<str>, Arc<ClientSubscription>>>,
    subscription_bytes: usize,
    /// How many of the filters have a `+`.
    wildcard_filters: usize,
    /// Retained messages that are still to be sent.
    replays: VecDeque<Replay>,
    /// The connection that has the session; they are numbered from 1.
    connection: u64,
    is_connected: bool,
    username: Box<str>,
    expiry: Duration,
    will: Option<Box<Will>>,
    will_due: Option<Instant>,
    expires: Option<Instant>,
    /// When the session is looked at next; see [`Deadlines`].
    deadline: Option<Instant>,
    journaled: Journaled,
}

/// What the journal has of a session.
#[derive(Default)]
struct Journaled {
    /// Whether it knows the session.
    is_known: bool,
    /// Whether the session is in its list of changed ones.
    is_listed: bool,
    /// It has the messages of QoS 1 and 2 below this number.
    seq: u64,
    /// Filters that were subscribed to or unsubscribed from since.
    filters: Filters,
}

/// Filters that have changed.
enum Filters {
    /// Those of the session, by name; a short list.
    Some(Vec<Box<str>>),
    /// More than [`CHANGED_FILTERS_MAX`].
    Many,
}

impl Default for Filters {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

/// Changed filters that are listed one by one; with more, all are written anew.
const CHANGED_FILTERS_MAX: usize = 256;

impl Filters {
    fn add(&mut self, filter: &str) {
        match self {
            Self::Some(filters) if filters.len() < CHANGED_FILTERS_MAX => filters.push(filter.into()),
            Self::Some(_) => *self = Self::Many,
            Self::Many => {}
        }
    }
}

/// A subscription of an MQTT client.
#[derive(Debug)]
pub(super) struct ClientSubscription {
    pub(super) client: Arc<Client>,
    pub(super) options: SubscriptionOptions,
    pub(super) id: Option<u32>,
}

/// A filter of which the retained messages are being sent.
struct Replay {
    subscription: Arc<ClientSubscription>,
    filter: Box<str>,
    from: Option<Cursor>,
}

/// A message for one client.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) message: Arc<StoredMessage>,
    pub(super) retain: bool,
    pub(super) subscription_ids: Option<Box<[u32]>>,
}

/// A message's way to one client, while its recipients are being found.
pub(super) struct Recipient {
    pub(super) subscription: Arc<ClientSubscription>,
    qos: QoS,
    retain_as_published: bool,
    subscription_ids: Vec<u32>,
}

impl Recipient {
    pub(super) fn new(subscription: Arc<ClientSubscription>) -> Self {
        Self {
            qos: subscription.options.qos,
            retain_as_published: subscription.options.retain_as_published,
            subscription_ids: subscription.id.into_iter().collect(),
            subscription,
        }
    }

    /// One copy for each client, with the highest QoS and all subscription identifiers (MQTT 5.0 section 3.3.4).
    pub(super) fn merge(recipients: &mut Vec<Self>) {
        recipients.sort_by_key(|recipient| recipient.subscription.client.serial);
        recipients.dedup_by(|later, first| {
            let same = later.subscription.client.serial == first.subscription.client.serial;
            if same {
                first.qos = first.qos.max(later.qos);
                first.retain_as_published |= later.retain_as_published;
                first.subscription_ids.append(&mut later.subscription_ids);
            }
            same
        });
    }

    /// Queues the message.
    pub(super) fn deliver(self, message: &Arc<StoredMessage>, retain: bool) {
        let ids = self.subscription_ids;
        let delivery = Delivery {
            message: message.clone(),
            retain: retain && self.retain_as_published,
            subscription_ids: (!ids.is_empty()).then(|| ids.into_boxed_slice()),
        };
        self.subscription.client.deliver(delivery, message.qos.min(self.qos));
    }
}

/// The connection has lost its session to another one, or the session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Detached;

/// How a connection has ended, for its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WillAction {
    Publish,
    Discard,
}

/// What is to be done after a change of a session: its lock is free by then.
#[derive(Debug, Default)]
pub(super) struct Aftermath {
    /// A session that has ended.
    pub(super) ended: Option<Arc<Client>>,
    /// A will to publish.
    pub(super) will: Option<(Arc<Client>, Box<Will>)>,
}

/// What a new subscription has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    New,
    Replaced,
}

impl Client {
    /// The user name, empty for an anonymous client.
    pub(super) fn username(&self) -> Box<str> {
        self.state.lock().username.clone()
    }

    fn new(id: Arc<str>, serial: u64, username: &str, limits: &Arc<Limits>) -> Arc<Self> {
        Arc::new(Self {
            id,
            serial,
            wake: Notify::new(),
            online: AtomicBool::new(true),
            limits: limits.clone(),
            state: Mutex::new(State {
                outbound: Outbound::new(limits.bounds),
                inbound: Inbound::default(),
                subscriptions: Some(BTreeMap::new()),
                subscription_bytes: 0,
                wildcard_filters: 0,
                replays: VecDeque::new(),
                connection: 0,
                is_connected: false,
                username: username.into(),
                expiry: Duration::ZERO,
                will: None,
                will_due: None,
                expires: None,
                deadline: None,
                journaled: Journaled::default(),
            }),
        })
    }

    /// Whether it has a connection.
    pub(super) fn is_online(&self) -> bool {
        self.online.load(Ordering::Relaxed)
    }

    /// Queues a message, or drops it and counts it.
    fn deliver(self: &Arc<Self>, delivery: Delivery, qos: QoS) {
        let dropped = &self.limits.counters.dropped;
        let mut state = self.state.lock();
        if state.subscriptions.is_none() {
            // The session has ended, and its subscriptions are ending with it.
            return;
        }
        if qos == QoS::AtMostOnce && !state.is_connected {
            dropped.offline.inc();
            return;
        }
        let bytes = delivery.message.bytes();
        if !self.limits.queued.admits(state.outbound.bytes(), bytes) {
            dropped.broker_full.inc();
            return;
        }
        let expires = delivery.message.expires;
        let before = state.outbound.bytes();
        let pushed = state.outbound.push(delivery, qos, bytes, expires);
        self.limits.queued.update(before, state.outbound.bytes());
        let wakes = pushed.queued && state.is_connected;
        if qos != QoS::AtMostOnce {
            self.changed(&mut state);
        }
        drop(state);
        if pushed.dropped > 0 {
            dropped.queue_full.inc_by(pushed.dropped as u64);
            tracing::debug!(client_id = ?self.id, "message dropped: the client's queue is full");
        }
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Runs `change` on the session's halves, if `connection` still has it.
    pub(super) fn with<R>(
        self: &Arc<Self>,
        connection: u64,
        change: impl FnOnce(&mut Outbound<Delivery>, &mut Inbound) -> R,
    ) -> Result<R, Detached> {
        let mut state = self.state.lock();
        state.check(connection)?;
        let before = state.outbound.bytes();
        let State { outbound, inbound, .. } = &mut *state;
        let result = change(outbound, inbound);
        self.limits.queued.update(before, state.outbound.bytes());
        self.changed(&mut state);
        Ok(result)
    }

    /// Hands what is to be sent to `send`, until it says that it is full.
    ///
    /// `page` reads the retained messages of a filter.
    pub(super) fn poll_send(
        self: &Arc<Self>,
        connection: u64,
        now: Instant,
        mut send: impl FnMut(Send<Delivery>, &mut Outbound<Delivery>) -> Room,
        mut page: impl FnMut(&str, Option<Cursor>, &mut Vec<Arc<StoredMessage>>) -> Option<Cursor>,
    ) -> Result<(), Detached> {
        let mut state = self.state.lock();
        state.check(connection)?;
        let before = state.outbound.bytes();
        let (mut expired, mut sent) = (0, false);
        loop {
            let outbound = &mut state.outbound;
            let mut room = Room::Left;
            while room == Room::Left
                && let Some(next) = outbound.poll_send(now, &mut expired)
            {
                sent |= matches!(next, Send::Publish { packet_id: Some(_), .. });
                room = send(next, outbound);
            }
            if room == Room::Full || !state.replay(&mut page) {
                break;
            }
        }
        self.limits.queued.update(before, state.outbound.bytes());
        if sent || expired > 0 {
            self.changed(&mut state);
        }
        drop(state);
        if expired > 0 {
            self.limits.counters.dropped.expired.inc_by(expired);
        }
        Ok(())
    }

    /// Enters a subscription, while `enter` puts it into the index, given whether the client has few filters with `+`.
    ///
    /// # Errors
    ///
    /// The reason code of the SUBACK.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        connection: u64,
        filter: &str,
        subscription: ClientSubscription,
        enter: impl FnOnce(Arc<ClientSubscription>, bool) -> Result<(), TooCostly>,
    ) -> Result<Result<Entered, Reason>, Detached> {
        let mut state = self.state.lock();
        state.check(connection)?;
        let bytes = filter.len() + SUBSCRIPTION_OVERHEAD_BYTES;
        let State { subscriptions, subscription_bytes, wildcard_filters, .. } = &mut *state;
        let Some(subscriptions) = subscriptions else { return Err(Detached) };
        let known = subscriptions.contains_key(filter);
        if !known
            && (subscriptions.len() >= self.limits.subscriptions_max
                || *subscription_bytes + bytes > self.limits.subscription_bytes_max
                || !self.limits.subscribed.admits(*subscription_bytes, bytes))
        {
            return Ok(Err(Reason::QUOTA_EXCEEDED));
        }
        let subscription = Arc::new(subscription);
        if enter(subscription.clone(), *wildcard_filters < FEW_WILDCARD_FILTERS).is_err() {
            return Ok(Err(Reason::QUOTA_EXCEEDED));
        }
        subscriptions.insert(filter.into(), subscription);
        if !known {
            *subscription_bytes += bytes;
            *wildcard_filters += usize::from(filter.contains('+'));
            self.limits.subscribed.update(0, bytes);
        }
        self.filter_changed(&mut state, filter);
        Ok(Ok(if known { Entered::Replaced } else { Entered::New }))
    }

    /// Has the retained messages of a filter sent, if the subscription's options ask for them.
    pub(super) fn replay_retained(&self, connection: u64, filter: &str, asked: &str, entered: Entered) {
        let mut state = self.state.lock();
        if state.check(connection).is_err() {
            return;
        }
        let Some(subscription) = state.subscriptions.as_ref().and_then(|all| all.get(asked).cloned()) else { return };
        let is_wanted = match subscription.options.retain_handling {
            RetainHandling::Send => true,
            RetainHandling::SendIfNew => entered == Entered::New,
            RetainHandling::DoNotSend => false,
        };
        if is_wanted {
            state.replays.retain(|replay| *replay.filter != *filter);
            state.replays.push_back(Replay { subscription, filter: filter.into(), from: None });
        }
    }

    /// Takes a subscription out, while `remove` takes it out of the index; says whether there was one.
    pub(super) fn unsubscribe(
        self: &Arc<Self>,
        connection: u64,
        filter: &str,
        remove: impl FnOnce(),
    ) -> Result<bool, Detached> {
        let mut state = self.state.lock();
        state.check(connection)?;
        let Some(subscriptions) = &mut state.subscriptions else { return Err(Detached) };
        let Some(removed) = subscriptions.remove(filter) else { return Ok(false) };
        let bytes = filter.len() + SUBSCRIPTION_OVERHEAD_BYTES;
        state.subscription_bytes -= bytes;
        state.wildcard_filters -= usize::from(filter.contains('+'));
        self.limits.subscribed.update(bytes, 0);
        state.replays.retain(|replay| !Arc::ptr_eq(&replay.subscription, &removed));
        self.filter_changed(&mut state, filter);
        remove();
        Ok(true)
    }

    /// Ends the session: gives the filters of its subscriptions, which are to be taken out of the index, once.
    pub(super) fn end(&self) -> Vec<Box<str>> {
        let mut state = self.state.lock();
        let Some(subscriptions) = state.subscriptions.take() else { return Vec::new() };
        self.limits.subscribed.update(state.subscription_bytes, 0);
        self.limits.queued.update(state.outbound.bytes(), 0);
        state.outbound = Outbound::new(self.limits.bounds);
        state.replays = VecDeque::new();
        self.online.store(false, Ordering::Relaxed);
        if let Some(journal) = self.limits.journal.as_deref()
            && state.journaled.is_known
        {
            journal.session_ended(self.serial);
        }
        subscriptions.into_keys().collect()
    }

    /// Lists the session for the journal, if it has to outlive its connection.
    fn changed(self: &Arc<Self>, state: &mut State) {
        let Some(journal) = self.limits.journal.as_deref() else { return };
        let is_kept = !state.expiry.is_zero() || state.journaled.is_known;
        if is_kept && !state.journaled.is_listed && state.subscriptions.is_some() {
            state.journaled.is_listed = journal.session_changed(self);
        }
    }

    fn filter_changed(self: &Arc<Self>, state: &mut State, filter: &str) {
        if self.limits.journal.is_none() || !state.journaled.is_known {
            // A session that the journal does not know is written with all of its filters.
            state.journaled.filters = Filters::Many;
        } else {
            state.journaled.filters.add(filter);
        }
        self.changed(state);
    }

    /// What the journal has to write of the session: what has changed, or all of it. `None` when it is not to be kept.
    pub(super) fn take_change(&self, extent: Extent) -> Option<SessionChange> {
        let mut state = self.state.lock();
        state.journaled.is_listed = false;
        if extent == Extent::All {
            state.journaled = Journaled::default();
        }
        let subscriptions = state.subscriptions.as_ref()?;
        if state.expiry.is_zero() && !state.journaled.is_known {
            return None;
        }
        let shape = |subscription: &Arc<ClientSubscription>| (subscription.options, subscription.id);
        let (filters, all_filters) = match &state.journaled.filters {
            Filters::Some(filters) if state.journaled.is_known => {
                let changed = filters.iter().map(|filter| (filter.clone(), subscriptions.get(filter).map(shape)));
                (changed.collect(), false)
            }
            Filters::Some(_) | Filters::Many => {
                let all =
                    subscriptions.iter().map(|(filter, subscription)| (filter.clone(), Some(shape(subscription))));
                (all.collect(), true)
            }
        };
        let outline = state.outbound.outline();
        let change = SessionChange {
            serial: self.serial,
            id: self.id.clone(),
            username: state.username.clone(),
            expiry: state.expiry,
            expires: state.expires,
            will: state.will.clone(),
            will_due: state.will_due,
            filters,
            replaces_filters: all_filters && state.journaled.is_known,
            queued: state.outbound.stored_from(state.journaled.seq).collect(),
            unreleased: state.inbound.unreleased().collect(),
            outline,
        };
        state.journaled = Journaled { is_known: true, seq: change.outline.next_seq(), ..Journaled::default() };
        Some(change)
    }

    /// Makes a session of what was kept of it, without a connection.
    fn restore(id: Arc<str>, serial: u64, image: SessionImage, limits: &Arc<Limits>) -> Arc<Self> {
        let client = Self::new(id, serial, &image.username, limits);
        client.online.store(false, Ordering::Relaxed);
        let mut state = client.state.lock();
        let SessionImage { outline, queued, unreleased, expiry, expires, will, will_due, .. } = image;
        state.outbound = Outbound::restore(limits.bounds, &outline, |seq| {
            let queued = queued.get(&seq)?;
            let delivery = Delivery {
                message: queued.message.clone(),
                retain: queued.retain,
                subscription_ids: queued.subscription_ids.clone(),
            };
            let expires = delivery.message.expires;
            Some((Stored { seq, message: delivery, qos: queued.qos, bytes: queued.bytes }, expires))
        });
        limits.queued.update(0, state.outbound.bytes());
        state.inbound = Inbound::restore(unreleased);
        (state.expiry, state.expires, state.will, state.will_due) = (expiry, expires, will, will_due);
        state.journaled = Journaled { is_known: true, seq: outline.next_seq(), ..Journaled::default() };
        drop(state);
        client
    }

    /// Enters a subscription that was kept. It was admitted when it was made.
    fn restore_subscription(self: &Arc<Self>, filter: &str, options: SubscriptionOptions, id: Option<u32>) -> Target {
        let subscription = Arc::new(ClientSubscription { client: self.clone(), options, id });
        let mut state = self.state.lock();
        let bytes = filter.len() + SUBSCRIPTION_OVERHEAD_BYTES;
        state.subscription_bytes += bytes;
        state.wildcard_filters += usize::from(filter.contains('+'));
        self.limits.subscribed.update(0, bytes);
        if let Some(subscriptions) = &mut state.subscriptions {
            subscriptions.insert(filter.into(), subscription.clone());
        }
        Target::Client(subscription)
    }
}

/// How much of a session is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Changes,
    All,
}

/// The options and the identifier of a subscription.
type Subscribed = (SubscriptionOptions, Option<u32>);

/// What the journal writes of a session.
#[derive(Debug)]
pub(super) struct SessionChange {
    pub(super) serial: u64,
    pub(super) id: Arc<str>,
    pub(super) username: Box<str>,
    pub(super) expiry: Duration,
    pub(super) expires: Option<Instant>,
    pub(super) will: Option<Box<Will>>,
    pub(super) will_due: Option<Instant>,
    /// Filters with what they have become; `None`: unsubscribed.
    pub(super) filters: Vec<(Box<str>, Option<Subscribed>)>,
    /// Whether those are all filters, and others that the journal has are gone.
    pub(super) replaces_filters: bool,
    /// Messages that it does not have.
    pub(super) queued: Vec<Stored<Delivery>>,
    pub(super) outline: Outline,
    pub(super) unreleased: Vec<u16>,
}

impl State {
    /// Whether the connection still has the session.
    fn check(&self, connection: u64) -> Result<(), Detached> {
        if self.connection != connection || self.subscriptions.is_none() {
            return Err(Detached);
        }
        Ok(())
    }

    /// Queues the next retained messages; says whether there is something new to send.
    fn replay(
        &mut self,
        page: &mut impl FnMut(&str, Option<Cursor>, &mut Vec<Arc<StoredMessage>>) -> Option<Cursor>,
    ) -> bool {
        let mut found = Vec::new();
        while self.outbound.len() < RETAINED_QUEUED_MAX
            && let Some(replay) = self.replays.front_mut()
        {
            replay.from = page(&replay.filter, replay.from.take(), &mut found);
            let ended = replay.from.is_none();
            let subscription = replay.subscription.clone();
            if ended {
                self.replays.pop_front();
            }
            if found.is_empty() {
                continue;
            }
            for message in found {
                let qos = message.qos.min(subscription.options.qos);
                let expires = message.expires;
                let subscription_ids = subscription.id.map(|id| [id].into());
                let delivery = Delivery { message, retain: true, subscription_ids };
                self.outbound.push_always(delivery, qos, RETAINED_QUEUED_BYTES, expires);
            }
            return true;
        }
        false
    }
}

/// Whether more can be sent at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Left,
    Full,
}

/// How a client connects.
pub(super) struct Attach<'a> {
    pub(super) client_id: &'a str,
    pub(super) username: &'a str,
    pub(super) clean_start: bool,
    pub(super) receive_max: u16,
    pub(super) expiry: Duration,
    pub(super) will: Option<Box<Will>>,
}

/// A connection that has got a session.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) client: Arc<Client>,
    pub(super) connection: u64,
    pub(super) session_present: bool,
}

/// The table of sessions.
pub(super) struct Clients {
    table: Mutex<Table>,
    deadlines: Deadlines,
    limits: Arc<Limits>,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<Arc<str>, Arc<Client>>,
    /// How many sessions each user has; the anonymous have none here.
    by_user: HashMap<Box<str>, usize>,
    serial: u64,
    connection: u64,
}

impl Table {
    fn add(&mut self, client: &Arc<Client>, username: &str) {
        self.by_id.insert(client.id.clone(), client.clone());
        if !username.is_empty() {
            *self.by_user.entry(username.into()).or_insert(0) += 1;
        }
    }

    fn remove(&mut self, client: &Client, username: &str) -> bool {
        if self.by_id.get(&client.id).is_none_or(|known| known.serial != client.serial) {
            return false;
        }
        self.by_id.remove(&client.id);
        if let Some(sessions) = self.by_user.get_mut(username) {
            *sessions -= 1;
            if *sessions == 0 {
                self.by_user.remove(username);
            }
        }
        true
    }
}

impl Clients {
    pub(super) fn new(limits: Limits) -> Self {
        Self { table: Mutex::default(), deadlines: Deadlines::default(), limits: Arc::new(limits) }
    }

    /// The sessions there are, connected or not.
    pub(super) fn len(&self) -> usize {
        self.table.lock().by_id.len()
    }

    /// Bytes of all messages that are queued.
    pub(super) fn queued_bytes(&self) -> usize {
        self.limits.queued.used()
    }

    /// Bytes of all subscriptions of MQTT clients.
    pub(super) fn subscription_bytes(&self) -> usize {
        self.limits.subscribed.used()
    }

    /// Gives a connection its session, a new one or the one that waits for it, and ends the connection that had it.
    ///
    /// The error is the reason code of the CONNACK.
    pub(super) fn attach(&self, attach: Attach<'_>, now: Instant) -> (Result<Attached, Reason>, Aftermath) {
        let mut table = self.table.lock();
        let known = table.by_id.get(attach.client_id).cloned();
        table.connection += 1;
        let connection = table.connection;
        let mut aftermath = Aftermath::default();
        if let Some(client) = &known {
            let mut state = client.state.lock();
            let is_live = state.subscriptions.is_some() && state.expires.is_none_or(|expires| now < expires);
            let resumes = is_live && !attach.clean_start && *state.username == *attach.username;
            if let Some(will) = state.will.take()
                // MQTT 5.0 section 3.1.2.5: the old connection is closed by its takeover and not by a DISCONNECT; with a
                // delay, the session that goes on withdraws the will.
                && (!resumes || (state.is_connected && will.delay_s == 0))
            {
                aftermath.will = Some((client.clone(), will));
            }
            self.deadlines.set(client, &mut state.deadline, None);
            client.wake.notify_one();
            if resumes {
                let before = state.outbound.bytes();
                if state.is_connected {
                    let dropped = state.outbound.disconnected();
                    self.limits.counters.dropped.offline.inc_by(dropped as u64);
                }
                self.limits.queued.update(before, state.outbound.bytes());
                state.connect(connection, attach);
                client.online.store(true, Ordering::Relaxed);
                client.changed(&mut state);
                drop(state);
                let attached = Attached { client: client.clone(), connection, session_present: true };
                return (Ok(attached), aftermath);
            }
            let username = state.username.clone();
            drop(state);
            table.remove(client, &username);
            aftermath.ended = Some(client.clone());
        }
        let of_user = table.by_user.get(attach.username).copied().unwrap_or(0);
        if table.by_id.len() >= self.limits.clients_max || of_user >= self.limits.sessions_per_user_max {
            // What was replaced is gone all the same: its client has asked for a new session.
            return (Err(Reason::QUOTA_EXCEEDED), aftermath);
        }
        table.serial += 1;
        let client = Client::new(attach.client_id.into(), table.serial, attach.username, &self.limits);
        table.add(&client, attach.username);
        let mut state = client.state.lock();
        state.connect(connection, attach);
        client.changed(&mut state);
        drop(state);
        (Ok(Attached { client, connection, session_present: false }), aftermath)
    }

    /// A connection has ended. Does nothing when another one has its session.
    pub(super) fn detach(
        &self,
        client: &Arc<Client>,
        connection: u64,
        will: WillAction,
        expiry: Option<Duration>,
        now: Instant,
    ) -> Aftermath {
        let mut aftermath = Aftermath::default();
        let mut table = self.table.lock();
        let mut state = client.state.lock();
        if state.connection != connection || state.subscriptions.is_none() {
            return aftermath;
        }
        state.is_connected = false;
        client.online.store(false, Ordering::Relaxed);
        let before = state.outbound.bytes();
        let dropped = state.outbound.disconnected();
        self.limits.counters.dropped.offline.inc_by(dropped as u64);
        self.limits.queued.update(before, state.outbound.bytes());
        state.expiry = expiry.unwrap_or(state.expiry);
        if will == WillAction::Discard {
            state.will = None;
        }
        let ends = state.expiry.is_zero();
        let delay = state.will.as_ref().map(|will| Duration::from_secs(will.delay_s.into()));
        if ends || delay.is_some_and(|delay| delay.is_zero()) {
            aftermath.will = state.will.take().map(|will| (client.clone(), will));
        }
        if ends {
            let username = state.username.clone();
            drop(state);
            table.remove(client, &username);
            aftermath.ended = Some(client.clone());
            return aftermath;
        }
        state.expires = now.checked_add(state.expiry);
        state.will_due = state.will.as_ref().and(delay).and_then(|delay| now.checked_add(delay));
        let next = state.next_deadline();
        self.deadlines.set(client, &mut state.deadline, next);
        client.changed(&mut state);
        aftermath
    }

    /// Makes the sessions that were kept, and gives what is to be entered into the index.
    ///
    /// A session that had a connection has lost it now: its expiry and the delay of its will begin.
    pub(super) fn restore(&self, image: &mut Image, now: Instant) -> Vec<(Box<str>, u64, Target)> {
        let mut found = Vec::new();
        let mut table = self.table.lock();
        table.serial = image.last_serial;
        for (serial, mut session) in std::mem::take(&mut image.sessions) {
            if session.expires.is_none() {
                session.expires = now.checked_add(session.expiry);
                let delay = session.will.as_ref().map(|will| Duration::from_secs(will.delay_s.into()));
                session.will_due = delay.and_then(|delay| now.checked_add(delay));
            }
            let subscriptions = std::mem::take(&mut session.subscriptions);
            let username = session.username.clone();
            let client = Client::restore(Arc::from(&*session.id), serial, session, &self.limits);
            for (filter, (options, id)) in subscriptions {
                let target = client.restore_subscription(&filter, options, id);
                found.push((filter, serial, target));
            }
            table.add(&client, &username);
            let mut state = client.state.lock();
            let next = state.next_deadline();
            self.deadlines.set(&client, &mut state.deadline, next);
        }
        found
    }

    /// All sessions.
    pub(super) fn all(&self) -> Vec<Arc<Client>> {
        self.table.lock().by_id.values().cloned().collect()
    }

    /// Ends the sessions whose expiry has passed, and takes the wills whose delay has.
    pub(super) fn handle_timeout(&self, now: Instant) -> Vec<Aftermath> {
        let mut aftermaths = Vec::new();
        while let Some(client) = self.deadlines.pop(now) {
            let mut table = self.table.lock();
            let mut state = client.state.lock();
            state.deadline = None;
            if state.is_connected || state.subscriptions.is_none() {
                continue;
            }
            let mut aftermath = Aftermath::default();
            let has_expired = state.expires.is_some_and(|expires| expires <= now);
            if has_expired || state.will_due.is_some_and(|due| due <= now) {
                state.will_due = None;
                aftermath.will = state.will.take().map(|will| (client.clone(), will));
            }
            if has_expired {
                let username = state.username.clone();
                drop(state);
                table.remove(&client, &username);
                aftermath.ended = Some(client);
            } else {
                let next = state.next_deadline();
                self.deadlines.set(&client, &mut state.deadline, next);
                client.changed(&mut state);
            }
            aftermaths.push(aftermath);
        }
        aftermaths
    }

    /// Returns when [`Clients::handle_timeout`] has something to do, at the earliest when it is called again.
    pub(super) async fn timeout(&self) {
        loop {
            let changed = self.deadlines.changed.notified();
            match self.deadlines.first() {
                None => changed.await,
                Some(deadline) if deadline <= Instant::now() => return,
                Some(deadline) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(deadline.into()) => return,
                        () = changed => {}
                    }
                }
            }
        }
    }

    /// Takes all sessions out.
    pub(super) fn clear(&self) -> Vec<Arc<Client>> {
        let mut table = self.table.lock();
        table.by_user.clear();
        let all: Vec<_> = table.by_id.drain().map(|(_, client)| client).collect();
        drop(table);
        self.deadlines.clear();
        all
    }
}

impl State {
    fn connect(&mut self, connection: u64, attach: Attach<'_>) {
        self.connection = connection;
        self.is_connected = true;
        self.expiry = attach.expiry;
        self.will = attach.will;
        self.will_due = None;
        self.expires = None;
        self.outbound.connected(attach.receive_max);
        self.inbound.connected();
    }

    fn next_deadline(&self) -> Option<Instant> {
        match (self.expires, self.will_due) {
            (Some(expires), Some(due)) => Some(expires.min(due)),
            (expires, due) => expires.or(due),
        }
    }
}

/// When which session without a connection is looked at; at most one entry for each.
#[derive(Default)]
struct Deadlines {
    queue: Mutex<BTreeMap<(Instant, u64), Arc<Client>>>,
    changed: Notify,
}

impl Deadlines {
    /// Moves a session's entry; `known` is where it is.
    fn set(&self, client: &Arc<Client>, known: &mut Option<Instant>, next: Option<Instant>) {
        let mut queue = self.queue.lock();
        if let Some(known) = known.take() {
            queue.remove(&(known, client.serial));
        }
        if let Some(next) = next {
            let is_first = queue.first_key_value().is_none_or(|((first, _), _)| next < *first);
            queue.insert((next, client.serial), client.clone());
            if is_first {
                self.changed.notify_one();
            }
        }
        *known = next;
    }

    fn first(&self) -> Option<Instant> {
        self.queue.lock().first_key_value().map(|((deadline, _), _)| *deadline)
    }

    fn pop(&self, now: Instant) -> Option<Arc<Client>> {
        let mut queue = self.queue.lock();
        let entry = queue.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    fn clear(&self) {
        self.queue.lock().clear();
    }
}
