//! A message inside the embedded broker.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::conn::QoS;
use crate::mqtt::packet::MessageProperties;

/// What a queued or retained message costs beside topic, payload and properties, in bytes, about.
const OVERHEAD_BYTES: usize = 256;

/// A message on its way in.
pub(super) struct Publication<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) topic: &'a str,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) payload: &'a Bytes,
    pub(super) properties: Option<&'a MessageProperties>,
}

/// Where a message comes from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// A device, or the gateway itself: `Message.from`.
    Local(&'a str),
    /// An MQTT client, with the serial number of its session.
    Client(&'a Arc<str>, u64),
}

impl Origin<'_> {
    /// The publisher's client id.
    pub(super) fn client_id(&self) -> &str {
        match self {
            Self::Local(from) => from,
            Self::Client(id, _) => id,
        }
    }
}

/// A message that is queued or retained.
#[derive(Debug)]
pub(super) struct StoredMessage {
    /// Its number since the broker's start.
    pub(super) number: u64,
    pub(super) from: Box<str>,
    pub(super) topic: Box<str>,
    pub(super) qos: QoS,
    pub(super) payload: Bytes,
    pub(super) properties: Option<Box<MessageProperties>>,
    pub(super) expires: Option<Instant>,
    /// When it was taken in, in milliseconds since the Unix epoch.
    pub(super) created_ms: u64,
}

impl StoredMessage {
    /// Copies what came from the wire, so that no read buffer stays in memory with it.
    pub(super) fn new(publication: &Publication<'_>, number: u64, created_ms: u64, now: Instant) -> Self {
        let expiry = publication.properties.and_then(|properties| properties.expiry);
        Self {
            number,
            from: publication.origin.client_id().into(),
            topic: publication.topic.into(),
            qos: publication.qos,
            payload: publication.payload.clone(),
            properties: publication.properties.map(|properties| Box::new(properties.clone())),
            expires: expiry.and_then(|expiry| now.checked_add(expiry)),
            created_ms,
        }
    }

    /// The memory that it takes, in bytes, about.
    pub(super) fn bytes(&self) -> usize {
        let properties = self.properties.as_ref().map_or(0, |properties| properties.bytes());
        self.topic.len() + self.payload.len() + self.from.len() + properties + OVERHEAD_BYTES
    }
}
