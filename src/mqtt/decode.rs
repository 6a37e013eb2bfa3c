//! From bytes to packets.
//!
//! A [`Decoder`] holds what has arrived of one packet and no more. It is strict: what MQTT declares malformed or a
//! protocol error ends the stream, with the reason code that belongs to it.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the crate's enums have the properties and errors of all packets, of which each packet has a few"
)]

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use mqtt_protocol_core::mqtt::packet::{
    MqttBinary, Properties, PropertiesParse, Property, Qos, SubEntry, SubOpts, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::MqttError;

use super::packet::{
    Ack, ConnAck, Connect, Disconnect, MessageProperties, Packet, Publish, RetainHandling, SubAck, Subscribe,
    SubscribeFilter, SubscriptionOptions, UnsubAck, Unsubscribe, Will,
};
use super::{Reason, Version};
use crate::conn::QoS;

/// Why the bytes are not a packet that may come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct DecodeError {
    /// What the peer of an MQTT 5.0 connection gets to know.
    pub reason: Reason,
    /// What is wrong.
    pub what: &'static str,
}

impl DecodeError {
    const fn malformed(what: &'static str) -> Self {
        Self { reason: Reason::MALFORMED_PACKET, what }
    }

    const fn protocol(what: &'static str) -> Self {
        Self { reason: Reason::PROTOCOL_ERROR, what }
    }

    /// The crate's error for a packet of the named type.
    fn from_crate(error: MqttError, what: &'static str) -> Self {
        match error {
            MqttError::ProtocolError => Self::protocol(what),
            MqttError::UnsupportedProtocolVersion => Self { reason: Reason::UNSUPPORTED_PROTOCOL_VERSION, what },
            _ => Self::malformed(what),
        }
    }
}

/// Cuts a stream into packets.
#[derive(Debug)]
pub struct Decoder {
    /// Unknown until a CONNECT has said it.
    version: Option<Version>,
    packet_bytes_max: u32,
    buffer: BytesMut,
}

impl Decoder {
    /// For a server: the first packet must be a CONNECT, and it says the version.
    pub fn server(packet_bytes_max: u32) -> Self {
        Self { version: None, packet_bytes_max, buffer: BytesMut::new() }
    }

    /// For a client, which chooses the version.
    pub fn client(version: Version, packet_bytes_max: u32) -> Self {
        Self { version: Some(version), packet_bytes_max, buffer: BytesMut::new() }
    }

    /// The version; a server knows it as soon as a CONNECT has named it, even when the rest of it is wrong.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Appends bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next packet off; `None` when it has not arrived in full.
    ///
    /// # Errors
    ///
    /// The stream cannot be followed any further.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, DecodeError> {
        let Some((first, header_bytes, body_bytes)) = self.header()? else {
            self.release();
            return Ok(None);
        };
        if self.buffer.len() < header_bytes + body_bytes {
            return Ok(None);
        }
        let body = &self.buffer[header_bytes..header_bytes + body_bytes];
        let packet = match self.version {
            Some(version) => decode(version, first, body)?,
            None => {
                let (version, connect) = first_packet(first, body);
                self.version = version;
                connect?
            }
        };
        self.buffer.advance(header_bytes + body_bytes);
        Ok(Some(packet))
    }

    /// Gives an empty buffer's memory back: an idle connection holds none.
    fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The first byte, the size of the fixed header and the size of what follows it.
    fn header(&self) -> Result<Option<(u8, usize, usize)>, DecodeError> {
        let Some((&first, length)) = self.buffer.split_first() else { return Ok(None) };
        if self.version.is_none() && first >> 4 != 1 {
            return Err(DecodeError::protocol("the first packet is not a CONNECT"));
        }
        let mut body_bytes = 0;
        for place in 0..4 {
            let Some(&byte) = length.get(place) else { return Ok(None) };
            body_bytes |= usize::from(byte & 0x7F) << (7 * place);
            if byte & 0x80 == 0 {
                let header_bytes = 2 + place;
                if header_bytes + body_bytes > self.packet_bytes_max as usize {
                    let what = "the packet is larger than allowed";
                    return Err(DecodeError { reason: Reason::PACKET_TOO_LARGE, what });
                }
                return Ok(Some((first, header_bytes, body_bytes)));
            }
        }
        Err(DecodeError::malformed("the remaining length has more than four bytes"))
    }
}

/// A server's first packet, and the version that it names.
fn first_packet(first: u8, body: &[u8]) -> (Option<Version>, Result<Packet, DecodeError>) {
    let unsupported = DecodeError {
        reason: Reason::UNSUPPORTED_PROTOCOL_VERSION,
        what: "the protocol version is neither 3.1.1 nor 5.0",
    };
    let version = match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Version::V311,
        [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Version::V5,
        // MQTT 5.0 section 3.1.2.2 and 3.1.1 section 3.1.2.2: answered in the form of the version that was asked for,
        // as far as it is known.
        [0, 4, b'M', b'Q', b'T', b'T', 6..=u8::MAX, ..] => return (Some(Version::V5), Err(unsupported)),
        [0, 4, b'M', b'Q', b'T', b'T', _, ..] | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
            return (Some(Version::V311), Err(unsupported));
        }
        _ => return (None, Err(DecodeError::protocol("the protocol name is not MQTT"))),
    };
    (Some(version), decode(version, first, body))
}

/// A packet of the given first byte and body.
fn decode(version: Version, first: u8, body: &[u8]) -> Result<Packet, DecodeError> {
    let flags = first & 0x0F;
    let expected = match first >> 4 {
        3 => flags,
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags != expected {
        return Err(DecodeError::malformed("reserved flags of the fixed header are set"));
    }
    match (first >> 4, version) {
        (1, _) => connect(version, body).map(|connect| Packet::Connect(Box::new(connect))),
        (2, Version::V311) => connack_v311(body),
        (2, Version::V5) => connack_v5(body),
        (3, _) => publish(version, flags, body).map(Packet::Publish),
        (4, _) => ack(version, body, "PUBACK", v3_1_1::Puback::parse, v5_0::Puback::parse, puback).map(Packet::PubAck),
        (5, _) => ack(version, body, "PUBREC", v3_1_1::Pubrec::parse, v5_0::Pubrec::parse, pubrec).map(Packet::PubRec),
        (6, _) => ack(version, body, "PUBREL", v3_1_1::Pubrel::parse, v5_0::Pubrel::parse, pubrel).map(Packet::PubRel),
        (7, _) => {
            ack(version, body, "PUBCOMP", v3_1_1::Pubcomp::parse, v5_0::Pubcomp::parse, pubcomp).map(Packet::PubComp)
        }
        (8, _) => subscribe(version, body).map(Packet::Subscribe),
        (9, _) => suback(version, body).map(Packet::SubAck),
        (10, _) => unsubscribe(version, body).map(Packet::Unsubscribe),
        (11, _) => unsuback(version, body).map(Packet::UnsubAck),
        (12, _) => empty(body, Packet::PingReq),
        (13, _) => empty(body, Packet::PingResp),
        (14, Version::V311) => empty(body, Packet::Disconnect(Disconnect::new(Reason::SUCCESS))),
        (14, Version::V5) => disconnect(body).map(Packet::Disconnect),
        (15, Version::V5) => auth(body),
        _ => Err(DecodeError::malformed("the packet type is reserved")),
    }
}

fn empty(body: &[u8], packet: Packet) -> Result<Packet, DecodeError> {
    if body.is_empty() { Ok(packet) } else { Err(DecodeError::malformed("a packet without a body has one")) }
}

/// Parses a body and demands that nothing is left over.
fn whole<T>(
    body: &[u8],
    what: &'static str,
    parse: impl FnOnce(&[u8]) -> Result<(T, usize), MqttError>,
) -> Result<T, DecodeError> {
    let (packet, consumed) = parse(body).map_err(|error| DecodeError::from_crate(error, what))?;
    if consumed == body.len() { Ok(packet) } else { Err(DecodeError::malformed(what)) }
}

/// A string; MQTT 5.0 section 1.5.4 forbids U+0000 in it.
fn text(text: &str) -> Result<Box<str>, DecodeError> {
    if text.contains('\0') { Err(DecodeError::malformed("a string contains U+0000")) } else { Ok(text.into()) }
}

fn packet_id(packet_id: u16) -> Result<u16, DecodeError> {
    if packet_id == 0 { Err(DecodeError::protocol("the packet identifier is 0")) } else { Ok(packet_id) }
}

fn qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn connect(version: Version, body: &[u8]) -> Result<Connect, DecodeError> {
    const WHAT: &str = "CONNECT";
    // Behind the protocol name and level.
    let Some(&flags) = body.get(7) else { return Err(DecodeError::malformed(WHAT)) };
    if flags & 0x01 != 0 {
        return Err(DecodeError::malformed("the reserved flag of CONNECT is set"));
    }
    let will_flags = flags & 0b0011_1000;
    if flags & 0x04 == 0 && will_flags != 0 {
        return Err(DecodeError::malformed("CONNECT has flags of a will and no will"));
    }
    if will_flags & 0b0001_1000 == 0b0001_1000 {
        return Err(DecodeError::malformed("the QoS of the will is 3"));
    }
    match version {
        Version::V311 => connect_v311(flags, body),
        Version::V5 => connect_v5(flags, body),
    }
}

fn connect_v311(flags: u8, body: &[u8]) -> Result<Connect, DecodeError> {
    if flags & 0xC0 == 0x40 {
        return Err(DecodeError::malformed("CONNECT has a password and no user name"));
    }
    let connect = whole(body, "CONNECT", v3_1_1::Connect::parse)?;
    let will = match (connect.will_topic(), connect.will_payload()) {
        (Some(topic), Some(payload)) => Some(Box::new(Will {
            topic: text(topic)?,
            payload: Bytes::copy_from_slice(payload),
            qos: qos(connect.will_qos()),
            retain: connect.will_retain(),
            delay_s: 0,
            properties: MessageProperties::default(),
        })),
        _ => None,
    };
    Ok(Connect {
        clean_start: connect.clean_session(),
        keepalive_s: connect.keep_alive(),
        username: connect.user_name().map(text).transpose()?,
        password: connect.password().map(Bytes::copy_from_slice),
        will,
        ..Connect::new(Version::V311, &text(connect.client_id())?)
    })
}

fn connect_v5(flags: u8, body: &[u8]) -> Result<Connect, DecodeError> {
    // MQTT 5.0 section 3.1.2.9 allows a password without a user name, and the crate's parser does not: it is shown
    // the packet without the password.
    let lone_password = flags & 0xC0 == 0x40;
    let shown = if lone_password {
        let mut copy = body.to_vec();
        copy[7] &= !0x40;
        Cow::Owned(copy)
    } else {
        Cow::Borrowed(body)
    };
    let (connect, consumed) =
        v5_0::Connect::parse(&shown).map_err(|error| DecodeError::from_crate(error, "CONNECT"))?;
    let rest = &body[consumed..];
    let password = if lone_password {
        let (password, size) =
            MqttBinary::decode(rest).map_err(|_| DecodeError::malformed("the password of CONNECT"))?;
        if size != rest.len() {
            return Err(DecodeError::malformed("CONNECT"));
        }
        Some(Bytes::copy_from_slice(password.as_slice()))
    } else if rest.is_empty() {
        connect.password().map(Bytes::copy_from_slice)
    } else {
        return Err(DecodeError::malformed("CONNECT"));
    };

    let mut parsed = Connect {
        clean_start: connect.clean_start(),
        keepalive_s: connect.keep_alive(),
        username: connect.user_name().map(text).transpose()?,
        password,
        ..Connect::new(Version::V5, &text(connect.client_id())?)
    };
    for property in connect.props() {
        match property {
            Property::SessionExpiryInterval(value) => parsed.session_expiry_s = Some(value.val()),
            Property::ReceiveMaximum(value) => parsed.receive_max = Some(value.val()),
            Property::MaximumPacketSize(value) => parsed.packet_bytes_max = Some(value.val()),
            Property::TopicAliasMaximum(value) => parsed.topic_alias_max = value.val(),
            Property::RequestResponseInformation(value) => parsed.request_response_information = value.val() == 1,
            Property::RequestProblemInformation(value) => parsed.request_problem_information = value.val() == 1,
            Property::AuthenticationMethod(value) => parsed.authentication_method = Some(text(value.val())?),
            Property::UserProperty(value) => {
                text(value.key())?;
                text(value.val())?;
            }
            _ => {}
        }
    }
    if let (Some(topic), Some(payload)) = (connect.will_topic(), connect.will_payload()) {
        let delay_s = connect.will_props().iter().find_map(|property| match property {
            Property::WillDelayInterval(value) => Some(value.val()),
            _ => None,
        });
        parsed.will = Some(Box::new(Will {
            topic: text(topic)?,
            payload: Bytes::copy_from_slice(payload),
            qos: qos(connect.will_qos()),
            retain: connect.will_retain(),
            delay_s: delay_s.unwrap_or(0),
            properties: message_properties(connect.will_props())?,
        }));
    }
    Ok(parsed)
}

fn message_properties(properties: &Properties) -> Result<MessageProperties, DecodeError> {
    let mut found = MessageProperties::default();
    for property in properties {
        match property {
            Property::PayloadFormatIndicator(value) => found.payload_is_utf8 = Some(value.val() == 1),
            Property::MessageExpiryInterval(value) => found.expiry = Some(Duration::from_secs(value.val().into())),
            Property::ContentType(value) => found.content_type = Some(text(value.val())?),
            Property::ResponseTopic(value) => {
                let topic = text(value.val())?;
                if topic.contains(['+', '#']) {
                    return Err(DecodeError::protocol("the response topic has a wildcard"));
                }
                found.response_topic = Some(topic);
            }
            Property::CorrelationData(value) => {
                found.correlation_data = Some(Bytes::copy_from_slice(value.val()));
            }
            Property::UserProperty(value) => {
                found.user_properties.push((text(value.key())?, text(value.val())?));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn publish(version: Version, flags: u8, body: &[u8]) -> Result<Publish, DecodeError> {
    const WHAT: &str = "PUBLISH";
    if flags & 0b0110 == 0 && flags & 0b1000 != 0 {
        return Err(DecodeError::malformed("PUBLISH with QoS 0 has the DUP flag"));
    }
    let shared: Arc<[u8]> = body.into();
    let mut publish = match version {
        Version::V311 => {
            let (publish, _) =
                v3_1_1::Publish::parse(flags, shared).map_err(|error| DecodeError::from_crate(error, WHAT))?;
            Publish {
                dup: publish.dup(),
                qos: qos(publish.qos()),
                retain: publish.retain(),
                packet_id: publish.packet_id(),
                topic: text(publish.topic_name())?,
                topic_alias: None,
                subscription_ids: Vec::new(),
                properties: None,
                payload: Bytes::copy_from_slice(publish.payload().as_slice()),
            }
        }
        Version::V5 => {
            // The crate takes a PUBLISH that ends before its properties for one without any.
            let topic_bytes = body.get(..2).map_or(0, |length| usize::from(u16::from_be_bytes([length[0], length[1]])));
            if body.len() <= 2 + topic_bytes + if flags & 0b0110 == 0 { 0 } else { 2 } {
                return Err(DecodeError::malformed("PUBLISH ends before its properties"));
            }
            let (publish, _) =
                v5_0::Publish::parse(flags, shared).map_err(|error| DecodeError::from_crate(error, WHAT))?;
            let mut parsed = Publish {
                dup: publish.dup(),
                qos: qos(publish.qos()),
                retain: publish.retain(),
                packet_id: publish.packet_id(),
                topic: text(publish.topic_name())?,
                topic_alias: None,
                subscription_ids: Vec::new(),
                properties: None,
                payload: Bytes::copy_from_slice(publish.payload().as_slice()),
            };
            if !publish.props().is_empty() {
                let properties = message_properties(publish.props())?;
                if properties != MessageProperties::default() {
                    parsed.properties = Some(Box::new(properties));
                }
                for property in publish.props() {
                    match property {
                        Property::TopicAlias(alias) => parsed.topic_alias = Some(alias.val()),
                        Property::SubscriptionIdentifier(id) => parsed.subscription_ids.push(id.val()),
                        _ => {}
                    }
                }
            }
            parsed
        }
    };
    publish.packet_id = publish.packet_id.map(packet_id).transpose()?;
    if publish.topic.is_empty() && publish.topic_alias.is_none() {
        return Err(DecodeError::protocol("PUBLISH has neither a topic name nor a topic alias"));
    }
    if publish.topic.contains(['+', '#']) {
        let what = "the topic name of PUBLISH has a wildcard";
        return Err(DecodeError { reason: Reason::TOPIC_NAME_INVALID, what });
    }
    Ok(publish)
}

/// The fields of one of the four acknowledgements.
type AckParts = (u16, Option<u8>, Option<Box<str>>);

macro_rules! ack_parts {
    ($name:ident, $packet:ty) => {
        fn $name(ack: &$packet) -> Result<AckParts, DecodeError> {
            Ok((ack.packet_id(), ack.reason_code().map(|code| code as u8), reason_string(ack.props().as_ref())?))
        }
    };
}

ack_parts!(puback, v5_0::Puback);
ack_parts!(pubrec, v5_0::Pubrec);
ack_parts!(pubrel, v5_0::Pubrel);
ack_parts!(pubcomp, v5_0::Pubcomp);

fn reason_string(properties: Option<&Properties>) -> Result<Option<Box<str>>, DecodeError> {
    let found = properties.and_then(|properties| {
        properties.iter().find_map(|property| match property {
            Property::ReasonString(reason) => Some(reason.val()),
            _ => None,
        })
    });
    found.map(text).transpose()
}

fn ack<A, B>(
    version: Version,
    body: &[u8],
    what: &'static str,
    parse_v311: impl FnOnce(&[u8]) -> Result<(A, usize), MqttError>,
    parse_v5: impl FnOnce(&[u8]) -> Result<(B, usize), MqttError>,
    parts: impl FnOnce(&B) -> Result<AckParts, DecodeError>,
) -> Result<Ack, DecodeError> {
    let zero = matches!(body, [0, 0, ..]);
    if zero {
        return Err(DecodeError::protocol("the packet identifier is 0"));
    }
    match (version, body) {
        (Version::V311, &[high, low]) => {
            whole(body, what, parse_v311)?;
            Ok(Ack::new(u16::from_be_bytes([high, low]), Reason::SUCCESS))
        }
        (Version::V311, _) => Err(DecodeError::malformed(what)),
        (Version::V5, _) => {
            let (packet_id, code, reason_string) = parts(&whole(body, what, parse_v5)?)?;
            Ok(Ack { packet_id, reason: Reason(code.unwrap_or(0)), reason_string })
        }
    }
}

fn options(options: &SubOpts) -> SubscriptionOptions {
    use mqtt_protocol_core::mqtt::packet::RetainHandling as Wire;

    SubscriptionOptions {
        qos: qos(options.qos()),
        no_local: options.nl(),
        retain_as_published: options.rap(),
        retain_handling: match options.rh() {
            Wire::SendRetained => RetainHandling::Send,
            Wire::SendRetainedIfNotExists => RetainHandling::SendIfNew,
            Wire::DoNotSendRetained => RetainHandling::DoNotSend,
        },
    }
}

fn subscribe(version: Version, body: &[u8]) -> Result<Subscribe, DecodeError> {
    const WHAT: &str = "SUBSCRIBE";
    match version {
        Version::V311 => {
            let subscribe = whole(body, WHAT, v3_1_1::Subscribe::parse)?;
            let mut filters = Vec::with_capacity(subscribe.entries().len());
            for entry in subscribe.entries() {
                let options = options(entry.sub_opts());
                if options != SubscriptionOptions::new(options.qos) {
                    return Err(DecodeError::malformed("reserved bits of a subscription's QoS are set"));
                }
                filters.push(SubscribeFilter { filter: text(entry.topic_filter())?, options });
            }
            Ok(Subscribe { packet_id: packet_id(subscribe.packet_id())?, subscription_id: None, filters })
        }
        Version::V5 => {
            // Not the crate's parser of the whole packet, which refuses all filters for the group of one share: each
            // filter has its own reason code.
            let malformed = |error| DecodeError::from_crate(error, WHAT);
            let (&[high, low], rest) = body.split_first_chunk().ok_or(DecodeError::malformed(WHAT))?;
            let (properties, consumed) = Properties::parse(rest).map_err(malformed)?;
            let mut subscription_id = None;
            for property in &properties {
                match property {
                    Property::SubscriptionIdentifier(id) if subscription_id.is_none() => {
                        subscription_id = Some(id.val());
                    }
                    Property::UserProperty(_) => {}
                    _ => return Err(DecodeError::protocol("a property that SUBSCRIBE does not have, or has once")),
                }
            }
            let mut rest = &rest[consumed..];
            let mut filters = Vec::new();
            while !rest.is_empty() {
                let (entry, consumed) = SubEntry::parse(rest).map_err(malformed)?;
                rest = &rest[consumed..];
                let filter =
                    SubscribeFilter { filter: text(entry.topic_filter())?, options: options(entry.sub_opts()) };
                // MQTT 5.0 section 3.8.3.1.
                if filter.options.no_local && filter.filter.starts_with("$share/") {
                    return Err(DecodeError::protocol("No Local on a shared subscription"));
                }
                filters.push(filter);
            }
            if filters.is_empty() {
                return Err(DecodeError::protocol("SUBSCRIBE without a filter"));
            }
            Ok(Subscribe { packet_id: packet_id(u16::from_be_bytes([high, low]))?, subscription_id, filters })
        }
    }
}

fn suback(version: Version, body: &[u8]) -> Result<SubAck, DecodeError> {
    match version {
        Version::V311 => {
            let suback = whole(body, "SUBACK", v3_1_1::Suback::parse)?;
            let reasons = suback.return_codes().iter().map(|&code| Reason(code as u8)).collect();
            Ok(SubAck { packet_id: packet_id(suback.packet_id())?, reasons })
        }
        Version::V5 => {
            let suback = whole(body, "SUBACK", v5_0::Suback::parse)?;
            let reasons = suback.reason_codes().iter().map(|&code| Reason(code as u8)).collect();
            Ok(SubAck { packet_id: packet_id(suback.packet_id())?, reasons })
        }
    }
}

fn unsubscribe(version: Version, body: &[u8]) -> Result<Unsubscribe, DecodeError> {
    let (id, entries) = match version {
        Version::V311 => {
            let unsubscribe = whole(body, "UNSUBSCRIBE", v3_1_1::Unsubscribe::parse)?;
            (unsubscribe.packet_id(), unsubscribe.entries().clone())
        }
        Version::V5 => {
            let unsubscribe = whole(body, "UNSUBSCRIBE", v5_0::Unsubscribe::parse)?;
            (unsubscribe.packet_id(), unsubscribe.entries().clone())
        }
    };
    let filters = entries.iter().map(|filter| text(filter.as_str())).collect::<Result<Vec<_>, _>>()?;
    if filters.is_empty() {
        return Err(DecodeError::protocol("UNSUBSCRIBE without a filter"));
    }
    Ok(Unsubscribe { packet_id: packet_id(id)?, filters })
}

fn unsuback(version: Version, body: &[u8]) -> Result<UnsubAck, DecodeError> {
    match version {
        Version::V311 => {
            let unsuback = whole(body, "UNSUBACK", v3_1_1::Unsuback::parse)?;
            Ok(UnsubAck { packet_id: packet_id(unsuback.packet_id())?, reasons: Vec::new() })
        }
        Version::V5 => {
            let unsuback = whole(body, "UNSUBACK", v5_0::Unsuback::parse)?;
            let reasons = unsuback.reason_codes().iter().map(|&code| Reason(code as u8)).collect();
            Ok(UnsubAck { packet_id: packet_id(unsuback.packet_id())?, reasons })
        }
    }
}

fn disconnect(body: &[u8]) -> Result<Disconnect, DecodeError> {
    let disconnect = whole(body, "DISCONNECT", v5_0::Disconnect::parse)?;
    let reason = disconnect.reason_code().map_or(Reason::SUCCESS, |code| Reason(code as u8));
    let mut parsed = Disconnect::new(reason);
    for property in disconnect.props().iter().flatten() {
        match property {
            Property::SessionExpiryInterval(value) => parsed.session_expiry_s = Some(value.val()),
            Property::ReasonString(value) => parsed.reason_string = Some(text(value.val())?),
            Property::ServerReference(value) => parsed.server_reference = Some(text(value.val())?),
            _ => {}
        }
    }
    Ok(parsed)
}

fn auth(body: &[u8]) -> Result<Packet, DecodeError> {
    let auth = whole(body, "AUTH", v5_0::Auth::parse)?;
    Ok(Packet::Auth(auth.reason_code().map_or(Reason::SUCCESS, |code| Reason(code as u8))))
}

fn connack_v311(body: &[u8]) -> Result<Packet, DecodeError> {
    let connack = whole(body, "CONNACK", v3_1_1::Connack::parse)?;
    let reason = Reason::from_connect_return_code(connack.return_code() as u8)
        .ok_or(DecodeError::malformed("the return code of CONNACK is reserved"))?;
    Ok(Packet::ConnAck(Box::new(ConnAck { session_present: connack.session_present(), ..ConnAck::new(reason) })))
}

fn connack_v5(body: &[u8]) -> Result<Packet, DecodeError> {
    let connack = whole(body, "CONNACK", v5_0::Connack::parse)?;
    let mut parsed =
        ConnAck { session_present: connack.session_present(), ..ConnAck::new(Reason(connack.reason_code() as u8)) };
    for property in connack.props() {
        match property {
            Property::SessionExpiryInterval(value) => parsed.session_expiry_s = Some(value.val()),
            Property::ReceiveMaximum(value) => parsed.receive_max = Some(value.val()),
            Property::MaximumQos(value) => {
                parsed.qos_max = Some(if value.val() == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce });
            }
            Property::RetainAvailable(value) => parsed.retain_available = value.val() == 1,
            Property::MaximumPacketSize(value) => parsed.packet_bytes_max = Some(value.val()),
            Property::AssignedClientIdentifier(value) => parsed.assigned_client_id = Some(text(value.val())?),
            Property::TopicAliasMaximum(value) => parsed.topic_alias_max = value.val(),
            Property::ReasonString(value) => parsed.reason_string = Some(text(value.val())?),
            Property::WildcardSubscriptionAvailable(value) => parsed.wildcard_subscriptions = value.val() == 1,
            Property::SubscriptionIdentifierAvailable(value) => parsed.subscription_ids = value.val() == 1,
            Property::SharedSubscriptionAvailable(value) => parsed.shared_subscriptions = value.val() == 1,
            Property::ServerKeepAlive(value) => parsed.keepalive_s = Some(value.val()),
            Property::ResponseInformation(value) => parsed.response_information = Some(text(value.val())?),
            Property::ServerReference(value) => parsed.server_reference = Some(text(value.val())?),
            _ => {}
        }
    }
    Ok(Packet::ConnAck(Box::new(parsed)))
}
