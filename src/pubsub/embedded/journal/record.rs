//! Records of the journal, and the state that they add up to.
//!
//! Pure. A record sets something to a value, so the state is that of the last records, and a batch of records is applied
//! as a whole or not at all. Times are in milliseconds since the Unix epoch, since no other clock outlives the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::conn::QoS;
use crate::mqtt::outbound::Outline;
use crate::mqtt::packet::{MessageProperties, RetainHandling, SubscriptionOptions, Will};
use crate::pubsub::embedded::message::StoredMessage;

/// A change of the broker's state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Record<'a> {
    /// A message that later records of the batch name by its number.
    #[serde(borrow)]
    Message(MessageRecord<'a>),
    /// The message is the retained one of its topic.
    Retained { number: u64 },
    /// The topic has no retained message.
    NotRetained { topic: &'a str },
    /// A session exists.
    #[serde(borrow)]
    Session(SessionRecord<'a>),
    /// It does not exist any more.
    SessionEnded { serial: u64 },
    /// It has a subscription.
    Subscribed { serial: u64, filter: &'a str, options: u8, id: Option<u32> },
    /// It has not.
    Unsubscribed { serial: u64, filter: &'a str },
    /// It has none.
    AllUnsubscribed { serial: u64 },
    /// A message of QoS 1 or 2 was queued for it.
    Queued { serial: u64, seq: u64, number: u64, qos: u8, retain: bool, subscription_ids: Vec<u32>, bytes: u64 },
    /// Which queued messages are left, and which are in flight.
    Outline { serial: u64, outline: Outline },
    /// The packet identifiers of messages of QoS 2 from the client that it has not released.
    Unreleased { serial: u64, packet_ids: Vec<u16> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MessageRecord<'a> {
    number: u64,
    from: &'a str,
    topic: &'a str,
    qos: u8,
    payload: &'a [u8],
    #[serde(borrow)]
    properties: Option<PropertiesRecord<'a>>,
    expires_ms: Option<u64>,
    created_ms: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct PropertiesRecord<'a> {
    payload_is_utf8: Option<bool>,
    expiry_ms: Option<u64>,
    content_type: Option<&'a str>,
    response_topic: Option<&'a str>,
    correlation_data: Option<&'a [u8]>,
    #[serde(borrow)]
    user_properties: Vec<(&'a str, &'a str)>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SessionRecord<'a> {
    pub(super) serial: u64,
    pub(super) id: &'a str,
    pub(super) username: &'a str,
    pub(super) expiry_ms: u64,
    /// When it ends; `None` while it has a connection.
    pub(super) expires_ms: Option<u64>,
    #[serde(borrow)]
    pub(super) will: Option<WillRecord<'a>>,
    /// When the will is published; `None` while the session has a connection.
    pub(super) will_due_ms: Option<u64>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct WillRecord<'a> {
    topic: &'a str,
    payload: &'a [u8],
    qos: u8,
    retain: bool,
    delay_s: u32,
    #[serde(borrow)]
    properties: PropertiesRecord<'a>,
}

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(in crate::pubsub::embedded) struct Clock {
    pub(in crate::pubsub::embedded) now: Instant,
    pub(in crate::pubsub::embedded) now_ms: u64,
}

impl Clock {
    pub(super) fn to_ms(self, at: Instant) -> u64 {
        let later = at.saturating_duration_since(self.now);
        let earlier = self.now.saturating_duration_since(at);
        self.now_ms.saturating_add(millis(later)).saturating_sub(millis(earlier))
    }

    /// A moment that has passed is the present one.
    pub(super) fn to_instant(self, ms: u64) -> Instant {
        let later = Duration::from_millis(ms.saturating_sub(self.now_ms));
        self.now.checked_add(later).unwrap_or(self.now)
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl<'a> MessageRecord<'a> {
    pub(super) fn new(message: &'a StoredMessage, clock: Clock) -> Self {
        Self {
            number: message.number,
            from: &message.from,
            topic: &message.topic,
            qos: message.qos as u8,
            payload: &message.payload,
            properties: message.properties.as_deref().map(PropertiesRecord::new),
            expires_ms: message.expires.map(|expires| clock.to_ms(expires)),
            created_ms: message.created_ms,
        }
    }

    fn restore(&self, clock: Clock) -> Option<StoredMessage> {
        Some(StoredMessage {
            number: self.number,
            from: self.from.into(),
            topic: self.topic.into(),
            qos: QoS::try_from(u32::from(self.qos)).ok()?,
            payload: Bytes::copy_from_slice(self.payload),
            properties: self.properties.as_ref().map(|properties| Box::new(properties.restore())),
            expires: self.expires_ms.map(|ms| clock.to_instant(ms)),
            created_ms: self.created_ms,
        })
    }
}

impl<'a> PropertiesRecord<'a> {
    fn new(properties: &'a MessageProperties) -> Self {
        Self {
            payload_is_utf8: properties.payload_is_utf8,
            expiry_ms: properties.expiry.map(millis),
            content_type: properties.content_type.as_deref(),
            response_topic: properties.response_topic.as_deref(),
            correlation_data: properties.correlation_data.as_deref(),
            user_properties: properties.user_properties.iter().map(|(name, value)| (&**name, &**value)).collect(),
        }
    }

    fn restore(&self) -> MessageProperties {
        MessageProperties {
            payload_is_utf8: self.payload_is_utf8,
            expiry: self.expiry_ms.map(Duration::from_millis),
            content_type: self.content_type.map(Into::into),
            response_topic: self.response_topic.map(Into::into),
            correlation_data: self.correlation_data.map(Bytes::copy_from_slice),
            user_properties: self
                .user_properties
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        }
    }
}

impl<'a> WillRecord<'a> {
    pub(super) fn new(will: &'a Will) -> Self {
        Self {
            topic: &will.topic,
            payload: &will.payload,
            qos: will.qos as u8,
            retain: will.retain,
            delay_s: will.delay_s,
            properties: PropertiesRecord::new(&will.properties),
        }
    }

    fn restore(&self) -> Option<Will> {
        Some(Will {
            topic: self.topic.into(),
            payload: Bytes::copy_from_slice(self.payload),
            qos: QoS::try_from(u32::from(self.qos)).ok()?,
            retain: self.retain,
            delay_s: self.delay_s,
            properties: self.properties.restore(),
        })
    }
}

/// The options of a subscription in the bits that SUBSCRIBE has for them (MQTT 5.0 section 3.8.3.1).
pub(super) fn options_byte(options: SubscriptionOptions) -> u8 {
    let handling = match options.retain_handling {
        RetainHandling::Send => 0,
        RetainHandling::SendIfNew => 1,
        RetainHandling::DoNotSend => 2,
    };
    options.qos as u8 | u8::from(options.no_local) << 2 | u8::from(options.retain_as_published) << 3 | handling << 4
}

fn options_of(byte: u8) -> Option<SubscriptionOptions> {
    Some(SubscriptionOptions {
        qos: QoS::try_from(u32::from(byte & 3)).ok()?,
        no_local: byte & 4 != 0,
        retain_as_published: byte & 8 != 0,
        retain_handling: match byte >> 4 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => return None,
        },
    })
}

/// The state that records add up to.
#[derive(Debug, Default)]
pub(in crate::pubsub::embedded) struct Image {
    messages: HashMap<u64, Arc<StoredMessage>>,
    retained: HashMap<Box<str>, u64>,
    pub(in crate::pubsub::embedded) sessions: BTreeMap<u64, SessionImage>,
    /// The highest number of a message and serial number of a session that were used.
    pub(in crate::pubsub::embedded) last_message: u64,
    pub(in crate::pubsub::embedded) last_serial: u64,
}

/// A session of the state.
#[derive(Debug, Default)]
pub(in crate::pubsub::embedded) struct SessionImage {
    pub(in crate::pubsub::embedded) id: Box<str>,
    pub(in crate::pubsub::embedded) username: Box<str>,
    pub(in crate::pubsub::embedded) expiry: Duration,
    /// `None`: it had a connection.
    pub(in crate::pubsub::embedded) expires: Option<Instant>,
    pub(in crate::pubsub::embedded) will: Option<Box<Will>>,
    pub(in crate::pubsub::embedded) will_due: Option<Instant>,
    pub(in crate::pubsub::embedded) subscriptions: BTreeMap<Box<str>, (SubscriptionOptions, Option<u32>)>,
    pub(in crate::pubsub::embedded) queued: BTreeMap<u64, QueuedImage>,
    pub(in crate::pubsub::embedded) outline: Outline,
    pub(in crate::pubsub::embedded) unreleased: Vec<u16>,
}

/// A queued message of a session.
#[derive(Debug)]
pub(in crate::pubsub::embedded) struct QueuedImage {
    pub(in crate::pubsub::embedded) message: Arc<StoredMessage>,
    pub(in crate::pubsub::embedded) qos: QoS,
    pub(in crate::pubsub::embedded) retain: bool,
    pub(in crate::pubsub::embedded) subscription_ids: Option<Box<[u32]>>,
    pub(in crate::pubsub::embedded) bytes: usize,
}

/// A record names what is not there, or has a value that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inconsistent;

impl Image {
    /// The retained messages.
    pub(in crate::pubsub::embedded) fn retained(&self) -> impl Iterator<Item = &Arc<StoredMessage>> {
        self.retained.values().filter_map(|number| self.messages.get(number))
    }

    /// Applies the records of a frame.
    pub(super) fn apply_all(&mut self, mut bytes: &[u8], clock: Clock) -> Result<(), Inconsistent> {
        while !bytes.is_empty() {
            let (record, rest) = postcard::take_from_bytes(bytes).map_err(|_| Inconsistent)?;
            self.apply(record, clock).ok_or(Inconsistent)?;
            bytes = rest;
        }
        Ok(())
    }

    fn apply(&mut self, record: Record<'_>, clock: Clock) -> Option<()> {
        match record {
            Record::Message(message) => {
                self.last_message = self.last_message.max(message.number);
                self.messages.insert(message.number, Arc::new(message.restore(clock)?));
            }
            Record::Retained { number } => {
                let topic = self.messages.get(&number)?.topic.clone();
                self.retained.insert(topic, number);
            }
            Record::NotRetained { topic } => {
                self.retained.remove(topic);
            }
            Record::Session(session) => {
                self.last_serial = self.last_serial.max(session.serial);
                let known = self.sessions.entry(session.serial).or_default();
                known.id = session.id.into();
                known.username = session.username.into();
                known.expiry = Duration::from_millis(session.expiry_ms);
                known.expires = session.expires_ms.map(|ms| clock.to_instant(ms));
                known.will = match &session.will {
                    Some(will) => Some(Box::new(will.restore()?)),
                    None => None,
                };
                known.will_due = session.will_due_ms.map(|ms| clock.to_instant(ms));
            }
            Record::SessionEnded { serial } => {
                self.sessions.remove(&serial);
            }
            Record::Subscribed { serial, filter, options, id } => {
                let subscription = (options_of(options)?, id);
                self.sessions.get_mut(&serial)?.subscriptions.insert(filter.into(), subscription);
            }
            Record::Unsubscribed { serial, filter } => {
                self.sessions.get_mut(&serial)?.subscriptions.remove(filter);
            }
            Record::AllUnsubscribed { serial } => self.sessions.get_mut(&serial)?.subscriptions.clear(),
            Record::Queued { serial, seq, number, qos, retain, subscription_ids, bytes } => {
                let queued = QueuedImage {
                    message: self.messages.get(&number)?.clone(),
                    qos: QoS::try_from(u32::from(qos)).ok()?,
                    retain,
                    subscription_ids: (!subscription_ids.is_empty()).then(|| subscription_ids.into()),
                    bytes: usize::try_from(bytes).ok()?,
                };
                self.sessions.get_mut(&serial)?.queued.insert(seq, queued);
            }
            Record::Outline { serial, outline } => {
                let session = self.sessions.get_mut(&serial)?;
                session.queued.retain(|seq, _| outline.holds(*seq));
                session.outline = outline;
            }
            Record::Unreleased { serial, packet_ids } => {
                self.sessions.get_mut(&serial)?.unreleased = packet_ids;
            }
        }
        Some(())
    }
}
