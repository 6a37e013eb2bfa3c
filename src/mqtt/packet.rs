//! The packets of MQTT 3.1.1 and 5.0 in one form; what only 5.0 has is absent in 3.1.1.

use std::time::Duration;

use bytes::Bytes;

use super::{Reason, Version};
use crate::conn::QoS;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(Box<ConnAck>),
    Publish(Publish),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe),
    SubAck(SubAck),
    Unsubscribe(Unsubscribe),
    UnsubAck(UnsubAck),
    PingReq,
    PingResp,
    Disconnect(Disconnect),
    Auth(Reason),
}

impl Packet {
    /// Its name in MQTT's words.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "CONNECT",
            Self::ConnAck(_) => "CONNACK",
            Self::Publish(_) => "PUBLISH",
            Self::PubAck(_) => "PUBACK",
            Self::PubRec(_) => "PUBREC",
            Self::PubRel(_) => "PUBREL",
            Self::PubComp(_) => "PUBCOMP",
            Self::Subscribe(_) => "SUBSCRIBE",
            Self::SubAck(_) => "SUBACK",
            Self::Unsubscribe(_) => "UNSUBSCRIBE",
            Self::UnsubAck(_) => "UNSUBACK",
            Self::PingReq => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect(_) => "DISCONNECT",
            Self::Auth(_) => "AUTH",
        }
    }
}

/// The properties of a message that a broker passes on unchanged (MQTT 5.0 section 3.3.2.3), but for the expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageProperties {
    /// Payload Format Indicator: whether the payload is declared to be UTF-8.
    pub payload_is_utf8: Option<bool>,
    /// Message Expiry Interval.
    pub expiry: Option<Duration>,
    /// Content Type.
    pub content_type: Option<Box<str>>,
    /// Response Topic.
    pub response_topic: Option<Box<str>>,
    /// Correlation Data.
    pub correlation_data: Option<Bytes>,
    /// User Properties, in order.
    pub user_properties: Vec<(Box<str>, Box<str>)>,
}

impl MessageProperties {
    /// The memory that the values take, in bytes.
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let user: usize = self.user_properties.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        text(&self.content_type)
            + text(&self.response_topic)
            + self.correlation_data.as_ref().map_or(0, Bytes::len)
            + user
    }
}

/// CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The version of the connection.
    pub version: Version,
    /// Clean Start; of MQTT 3.1.1, Clean Session.
    pub clean_start: bool,
    /// Keep Alive, in seconds; 0 turns it off.
    pub keepalive_s: u16,
    /// Client Identifier; may be empty.
    pub client_id: Box<str>,
    /// User Name.
    pub username: Option<Box<str>>,
    /// Password.
    pub password: Option<Bytes>,
    /// The will.
    pub will: Option<Box<Will>>,
    /// Session Expiry Interval, in seconds; `u32::MAX` means for ever.
    pub session_expiry_s: Option<u32>,
    /// Receive Maximum, `1..`.
    pub receive_max: Option<u16>,
    /// Maximum Packet Size, in bytes, `1..`.
    pub packet_bytes_max: Option<u32>,
    /// Topic Alias Maximum.
    pub topic_alias_max: u16,
    /// Request Response Information.
    pub request_response_information: bool,
    /// Request Problem Information.
    pub request_problem_information: bool,
    /// Authentication Method.
    pub authentication_method: Option<Box<str>>,
}

impl Connect {
    /// A CONNECT with a clean start and nothing optional.
    pub fn new(version: Version, client_id: &str) -> Self {
        Self {
            version,
            clean_start: true,
            keepalive_s: 0,
            client_id: client_id.into(),
            username: None,
            password: None,
            will: None,
            session_expiry_s: None,
            receive_max: None,
            packet_bytes_max: None,
            topic_alias_max: 0,
            request_response_information: false,
            request_problem_information: true,
            authentication_method: None,
        }
    }
}

/// A will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    pub topic: Box<str>,
    pub payload: Bytes,
    pub qos: QoS,
    pub retain: bool,
    /// Will Delay Interval, in seconds.
    pub delay_s: u32,
    pub properties: MessageProperties,
}

/// CONNACK. The defaults are those of MQTT 5.0 for absent properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    pub session_present: bool,
    pub reason: Reason,
    pub session_expiry_s: Option<u32>,
    pub receive_max: Option<u16>,
    /// `None`: all.
    pub qos_max: Option<QoS>,
    pub retain_available: bool,
    pub packet_bytes_max: Option<u32>,
    pub assigned_client_id: Option<Box<str>>,
    pub topic_alias_max: u16,
    pub reason_string: Option<Box<str>>,
    pub wildcard_subscriptions: bool,
    pub subscription_ids: bool,
    pub shared_subscriptions: bool,
    pub keepalive_s: Option<u16>,
    pub response_information: Option<Box<str>>,
    pub server_reference: Option<Box<str>>,
}

impl ConnAck {
    /// A CONNACK with nothing but a reason.
    pub fn new(reason: Reason) -> Self {
        Self {
            session_present: false,
            reason,
            session_expiry_s: None,
            receive_max: None,
            qos_max: None,
            retain_available: true,
            packet_bytes_max: None,
            assigned_client_id: None,
            topic_alias_max: 0,
            reason_string: None,
            wildcard_subscriptions: true,
            subscription_ids: true,
            shared_subscriptions: true,
            keepalive_s: None,
            response_information: None,
            server_reference: None,
        }
    }
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// DUP.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// Packet Identifier; there is one exactly when the QoS is not 0.
    pub packet_id: Option<u16>,
    /// Topic Name; empty when an alias stands for it.
    pub topic: Box<str>,
    /// Topic Alias, `1..`.
    pub topic_alias: Option<u16>,
    /// Subscription Identifiers; a server sends them.
    pub subscription_ids: Vec<u32>,
    /// What is passed on unchanged.
    pub properties: Option<Box<MessageProperties>>,
    /// The payload.
    pub payload: Bytes,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub packet_id: u16,
    pub reason: Reason,
    pub reason_string: Option<Box<str>>,
}

impl Ack {
    /// An acknowledgement without a reason string.
    pub const fn new(packet_id: u16, reason: Reason) -> Self {
        Self { packet_id, reason, reason_string: None }
    }
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub packet_id: u16,
    pub subscription_id: Option<u32>,
    pub filters: Vec<SubscribeFilter>,
}

/// One filter of a SUBSCRIBE with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeFilter {
    pub filter: Box<str>,
    pub options: SubscriptionOptions,
}

/// The options of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: RetainHandling,
}

impl SubscriptionOptions {
    /// What MQTT 3.1.1 has of them.
    pub const fn new(qos: QoS) -> Self {
        Self { qos, no_local: false, retain_as_published: false, retain_handling: RetainHandling::Send }
    }
}

/// When a subscription gets retained messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainHandling {
    /// Each time it is made.
    Send,
    /// When it did not exist.
    SendIfNew,
    /// Never.
    DoNotSend,
}

/// SUBACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubAck {
    pub packet_id: u16,
    pub reasons: Vec<Reason>,
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    pub packet_id: u16,
    pub filters: Vec<Box<str>>,
}

/// UNSUBACK; without reasons in MQTT 3.1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsubAck {
    pub packet_id: u16,
    pub reasons: Vec<Reason>,
}

/// DISCONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    pub reason: Reason,
    pub session_expiry_s: Option<u32>,
    pub reason_string: Option<Box<str>>,
    pub server_reference: Option<Box<str>>,
}

impl Disconnect {
    /// A DISCONNECT with nothing but a reason.
    pub const fn new(reason: Reason) -> Self {
        Self { reason, session_expiry_s: None, reason_string: None, server_reference: None }
    }
}
