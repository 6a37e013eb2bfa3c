//! From packets to bytes.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use mqtt_protocol_core::mqtt::packet::{
    AssignedClientIdentifier, AuthenticationMethod, ContentType, CorrelationData, MaximumPacketSize, MaximumQos,
    MessageExpiryInterval, PayloadFormat, PayloadFormatIndicator, Properties, Property, Qos, ReasonString,
    ReceiveMaximum, RequestProblemInformation, RequestResponseInformation, ResponseInformation, ResponseTopic,
    RetainAvailable, RetainHandling as WireRetainHandling, ServerKeepAlive, ServerReference, SessionExpiryInterval,
    SharedSubscriptionAvailable, SubEntry, SubOpts, SubscriptionIdentifier, SubscriptionIdentifierAvailable,
    TopicAliasMaximum, UserProperty, WildcardSubscriptionAvailable, WillDelayInterval, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, ConnectReturnCode, DisconnectReasonCode, MqttError, PubackReasonCode, PubcompReasonCode,
    PubrecReasonCode, PubrelReasonCode, SubackReasonCode, SubackReturnCode, UnsubackReasonCode,
};

use super::packet::{
    Ack, ConnAck, Connect, Disconnect, MessageProperties, Packet, Publish, RetainHandling, SubAck, Subscribe, UnsubAck,
    Unsubscribe,
};
use super::{Reason, Version};
use crate::conn::QoS;

/// A packet that MQTT cannot express, or not in this version: a string above 65,535 bytes, a packet above
/// 268,435,455, a reason code that the packet type does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be expressed in MQTT {}", match version { Version::V311 => "3.1.1", Version::V5 => "5.0" })]
pub(crate) struct EncodeError {
    /// The packet type.
    pub what: &'static str,
    /// The version.
    pub version: Version,
}

/// Appends a packet to `out`; nothing is appended on an error.
///
/// # Errors
///
/// The packet cannot be expressed.
pub(crate) fn packet(version: Version, packet: &Packet, out: &mut BytesMut) -> Result<(), EncodeError> {
    let failed = EncodeError { what: packet.name(), version };
    if let Packet::Publish(message) = packet {
        return publish(version, &PublishParts::from(message), out);
    }
    let bytes = match version {
        Version::V311 => v311(packet),
        Version::V5 => v5(packet),
    };
    out.extend_from_slice(&bytes.map_err(|_| failed)?);
    Ok(())
}

fn v311(packet: &Packet) -> Result<Vec<u8>, MqttError> {
    Ok(match packet {
        Packet::Connect(packet) => connect_v311(packet)?.to_continuous_buffer(),
        Packet::ConnAck(packet) => {
            let code = ConnectReturnCode::try_from(packet.reason.to_connect_return_code());
            v3_1_1::Connack::builder()
                .session_present(packet.session_present)
                .return_code(code.unwrap_or(ConnectReturnCode::ServerUnavailable))
                .build()?
                .to_continuous_buffer()
        }
        Packet::PubAck(ack) => v3_1_1::Puback::builder().packet_id(ack.packet_id).build()?.to_continuous_buffer(),
        Packet::PubRec(ack) => v3_1_1::Pubrec::builder().packet_id(ack.packet_id).build()?.to_continuous_buffer(),
        Packet::PubRel(ack) => v3_1_1::Pubrel::builder().packet_id(ack.packet_id).build()?.to_continuous_buffer(),
        Packet::PubComp(ack) => v3_1_1::Pubcomp::builder().packet_id(ack.packet_id).build()?.to_continuous_buffer(),
        Packet::Subscribe(packet) => v3_1_1::Subscribe::builder()
            .packet_id(packet.packet_id)
            .entries(entries(packet, Version::V311)?)
            .build()?
            .to_continuous_buffer(),
        Packet::SubAck(packet) => {
            let codes = packet.reasons.iter().map(|reason| {
                // MQTT 3.1.1 section 3.9.3 has one code for all failures.
                SubackReturnCode::try_from(reason.0).unwrap_or(SubackReturnCode::Failure)
            });
            v3_1_1::Suback::builder()
                .packet_id(packet.packet_id)
                .return_codes(codes.collect())
                .build()?
                .to_continuous_buffer()
        }
        Packet::Unsubscribe(packet) => v3_1_1::Unsubscribe::builder()
            .packet_id(packet.packet_id)
            .entries(packet.filters.iter().map(|filter| &**filter))?
            .build()?
            .to_continuous_buffer(),
        Packet::UnsubAck(packet) => {
            v3_1_1::Unsuback::builder().packet_id(packet.packet_id).build()?.to_continuous_buffer()
        }
        Packet::PingReq => v3_1_1::Pingreq::new().to_continuous_buffer(),
        Packet::PingResp => v3_1_1::Pingresp::new().to_continuous_buffer(),
        Packet::Disconnect(_) => v3_1_1::Disconnect::new().to_continuous_buffer(),
        Packet::Auth(_) | Packet::Publish(_) => return Err(MqttError::PacketNotAllowedToSend),
    })
}

fn v5(packet: &Packet) -> Result<Vec<u8>, MqttError> {
    Ok(match packet {
        Packet::Connect(packet) => connect_v5(packet)?.to_continuous_buffer(),
        Packet::ConnAck(packet) => connack_v5(packet)?,
        Packet::PubAck(ack) => {
            let builder = v5_0::Puback::builder().packet_id(ack.packet_id);
            match ack_reason(ack, PubackReasonCode::try_from)? {
                None => builder.build()?.to_continuous_buffer(),
                Some((code, props)) => builder.reason_code(code).props(props).build()?.to_continuous_buffer(),
            }
        }
        Packet::PubRec(ack) => {
            let builder = v5_0::Pubrec::builder().packet_id(ack.packet_id);
            match ack_reason(ack, PubrecReasonCode::try_from)? {
                None => builder.build()?.to_continuous_buffer(),
                Some((code, props)) => builder.reason_code(code).props(props).build()?.to_continuous_buffer(),
            }
        }
        Packet::PubRel(ack) => {
            let builder = v5_0::Pubrel::builder().packet_id(ack.packet_id);
            match ack_reason(ack, PubrelReasonCode::try_from)? {
                None => builder.build()?.to_continuous_buffer(),
                Some((code, props)) => builder.reason_code(code).props(props).build()?.to_continuous_buffer(),
            }
        }
        Packet::PubComp(ack) => {
            let builder = v5_0::Pubcomp::builder().packet_id(ack.packet_id);
            match ack_reason(ack, PubcompReasonCode::try_from)? {
                None => builder.build()?.to_continuous_buffer(),
                Some((code, props)) => builder.reason_code(code).props(props).build()?.to_continuous_buffer(),
            }
        }
        Packet::Subscribe(packet) => {
            let props = match packet.subscription_id {
                Some(id) => vec![SubscriptionIdentifier::new(id)?.into()],
                None => Properties::new(),
            };
            v5_0::Subscribe::builder()
                .packet_id(packet.packet_id)
                .entries(entries(packet, Version::V5)?)
                .props(props)
                .build()?
                .to_continuous_buffer()
        }
        Packet::SubAck(SubAck { packet_id, reasons }) => {
            let codes = reasons
                .iter()
                .map(|reason| SubackReasonCode::try_from(reason.0).map_err(|_| MqttError::ValueOutOfRange));
            v5_0::Suback::builder()
                .packet_id(*packet_id)
                .reason_codes(codes.collect::<Result<_, _>>()?)
                .build()?
                .to_continuous_buffer()
        }
        Packet::Unsubscribe(Unsubscribe { packet_id, filters }) => v5_0::Unsubscribe::builder()
            .packet_id(*packet_id)
            .entries(filters.iter().map(|filter| &**filter))?
            .build()?
            .to_continuous_buffer(),
        Packet::UnsubAck(UnsubAck { packet_id, reasons }) => {
            let codes = reasons
                .iter()
                .map(|reason| UnsubackReasonCode::try_from(reason.0).map_err(|_| MqttError::ValueOutOfRange));
            v5_0::Unsuback::builder()
                .packet_id(*packet_id)
                .reason_codes(codes.collect::<Result<_, _>>()?)
                .build()?
                .to_continuous_buffer()
        }
        Packet::PingReq => v5_0::Pingreq::new().to_continuous_buffer(),
        Packet::PingResp => v5_0::Pingresp::new().to_continuous_buffer(),
        Packet::Disconnect(packet) => disconnect_v5(packet)?,
        Packet::Auth(_) | Packet::Publish(_) => return Err(MqttError::PacketNotAllowedToSend),
    })
}

fn qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

/// The reason code and the properties of an acknowledgement; none of them for a success, which is shorter.
fn ack_reason<T, E>(ack: &Ack, code: impl FnOnce(u8) -> Result<T, E>) -> Result<Option<(T, Properties)>, MqttError> {
    if ack.reason == Reason::SUCCESS && ack.reason_string.is_none() {
        return Ok(None);
    }
    let code = code(ack.reason.0).map_err(|_| MqttError::ValueOutOfRange)?;
    let props = match &ack.reason_string {
        Some(reason) => vec![ReasonString::new(&**reason)?.into()],
        None => Properties::new(),
    };
    Ok(Some((code, props)))
}

fn entries(packet: &Subscribe, version: Version) -> Result<Vec<SubEntry>, MqttError> {
    let entry = |entry: &super::packet::SubscribeFilter| {
        let mut options = SubOpts::new().set_qos(qos(entry.options.qos));
        if version == Version::V5 {
            options = options.set_nl(entry.options.no_local).set_rap(entry.options.retain_as_published).set_rh(
                match entry.options.retain_handling {
                    RetainHandling::Send => WireRetainHandling::SendRetained,
                    RetainHandling::SendIfNew => WireRetainHandling::SendRetainedIfNotExists,
                    RetainHandling::DoNotSend => WireRetainHandling::DoNotSendRetained,
                },
            );
        }
        SubEntry::new(&*entry.filter, options)
    };
    packet.filters.iter().map(entry).collect()
}

fn connect_v311(connect: &Connect) -> Result<v3_1_1::Connect, MqttError> {
    let mut builder = v3_1_1::Connect::builder()
        .clean_session(connect.clean_start)
        .keep_alive(connect.keepalive_s)
        .client_id(&*connect.client_id)?;
    if let Some(will) = &connect.will {
        builder = builder.will_message(&*will.topic, will.payload.to_vec(), qos(will.qos), will.retain)?;
    }
    if let Some(username) = &connect.username {
        builder = builder.user_name(&**username)?;
    }
    if let Some(password) = &connect.password {
        builder = builder.password(password.to_vec())?;
    }
    builder.build()
}

fn connect_v5(connect: &Connect) -> Result<v5_0::Connect, MqttError> {
    let mut props = Properties::new();
    if let Some(seconds) = connect.session_expiry_s {
        props.push(SessionExpiryInterval::new(seconds)?.into());
    }
    if let Some(max) = connect.receive_max {
        props.push(ReceiveMaximum::new(max)?.into());
    }
    if let Some(bytes) = connect.packet_bytes_max {
        props.push(MaximumPacketSize::new(bytes)?.into());
    }
    if connect.topic_alias_max != 0 {
        props.push(TopicAliasMaximum::new(connect.topic_alias_max)?.into());
    }
    if connect.request_response_information {
        props.push(RequestResponseInformation::new(1)?.into());
    }
    if !connect.request_problem_information {
        props.push(RequestProblemInformation::new(0)?.into());
    }
    if let Some(method) = &connect.authentication_method {
        props.push(AuthenticationMethod::new(&**method)?.into());
    }
    let mut builder = v5_0::Connect::builder()
        .clean_start(connect.clean_start)
        .keep_alive(connect.keepalive_s)
        .client_id(&*connect.client_id)?
        .props(props);
    if let Some(will) = &connect.will {
        let mut props = properties(&will.properties, will.properties.expiry)?;
        if will.delay_s != 0 {
            props.push(WillDelayInterval::new(will.delay_s)?.into());
        }
        builder =
            builder.will_message(&*will.topic, will.payload.to_vec(), qos(will.qos), will.retain)?.will_props(props);
    }
    match (&connect.username, &connect.password) {
        (Some(username), _) => builder = builder.user_name(&**username)?,
        // The crate refuses a password without a user name.
        (None, Some(_)) => builder = builder.user_name("")?,
        (None, None) => {}
    }
    if let Some(password) = &connect.password {
        builder = builder.password(password.to_vec())?;
    }
    builder.build()
}

fn connack_v5(packet: &ConnAck) -> Result<Vec<u8>, MqttError> {
    let mut props = Properties::new();
    if let Some(seconds) = packet.session_expiry_s {
        props.push(SessionExpiryInterval::new(seconds)?.into());
    }
    if let Some(max) = packet.receive_max {
        props.push(ReceiveMaximum::new(max)?.into());
    }
    match packet.qos_max {
        Some(QoS::AtMostOnce) => props.push(MaximumQos::new(0)?.into()),
        Some(QoS::AtLeastOnce) => props.push(MaximumQos::new(1)?.into()),
        Some(QoS::ExactlyOnce) | None => {}
    }
    if !packet.retain_available {
        props.push(RetainAvailable::new(0)?.into());
    }
    if let Some(bytes) = packet.packet_bytes_max {
        props.push(MaximumPacketSize::new(bytes)?.into());
    }
    if let Some(client_id) = &packet.assigned_client_id {
        props.push(AssignedClientIdentifier::new(&**client_id)?.into());
    }
    if packet.topic_alias_max != 0 {
        props.push(TopicAliasMaximum::new(packet.topic_alias_max)?.into());
    }
    if let Some(reason) = &packet.reason_string {
        props.push(ReasonString::new(&**reason)?.into());
    }
    if !packet.wildcard_subscriptions {
        props.push(WildcardSubscriptionAvailable::new(0)?.into());
    }
    if !packet.subscription_ids {
        props.push(SubscriptionIdentifierAvailable::new(0)?.into());
    }
    if !packet.shared_subscriptions {
        props.push(SharedSubscriptionAvailable::new(0)?.into());
    }
    if let Some(seconds) = packet.keepalive_s {
        props.push(ServerKeepAlive::new(seconds)?.into());
    }
    if let Some(information) = &packet.response_information {
        props.push(ResponseInformation::new(&**information)?.into());
    }
    if let Some(server) = &packet.server_reference {
        props.push(ServerReference::new(&**server)?.into());
    }
    let code = ConnectReasonCode::try_from(packet.reason.0).map_err(|_| MqttError::ValueOutOfRange)?;
    Ok(v5_0::Connack::builder()
        .session_present(packet.session_present)
        .reason_code(code)
        .props(props)
        .build()?
        .to_continuous_buffer())
}

fn disconnect_v5(packet: &Disconnect) -> Result<Vec<u8>, MqttError> {
    let code = DisconnectReasonCode::try_from(packet.reason.0).map_err(|_| MqttError::ValueOutOfRange)?;
    let mut props = Properties::new();
    if let Some(seconds) = packet.session_expiry_s {
        props.push(SessionExpiryInterval::new(seconds)?.into());
    }
    if let Some(reason) = &packet.reason_string {
        props.push(ReasonString::new(&**reason)?.into());
    }
    if let Some(server) = &packet.server_reference {
        props.push(ServerReference::new(&**server)?.into());
    }
    Ok(v5_0::Disconnect::builder().reason_code(code).props(props).build()?.to_continuous_buffer())
}

/// The properties of a will.
fn properties(message: &MessageProperties, expiry: Option<Duration>) -> Result<Properties, MqttError> {
    let mut props: Properties = Properties::new();
    if let Some(is_utf8) = message.payload_is_utf8 {
        let format = if is_utf8 { PayloadFormat::String } else { PayloadFormat::Binary };
        props.push(PayloadFormatIndicator::new(format)?.into());
    }
    if let Some(expiry) = expiry {
        props.push(MessageExpiryInterval::new(seconds(expiry))?.into());
    }
    if let Some(content_type) = &message.content_type {
        props.push(ContentType::new(&**content_type)?.into());
    }
    if let Some(topic) = &message.response_topic {
        props.push(ResponseTopic::new(&**topic)?.into());
    }
    if let Some(data) = &message.correlation_data {
        props.push(CorrelationData::new(data.to_vec())?.into());
    }
    for (name, value) in &message.user_properties {
        props.push(Property::from(UserProperty::new(&**name, &**value)?));
    }
    Ok(props)
}

/// Whole seconds, of which there is at least one: 0 would mean that the message has expired.
fn seconds(expiry: Duration) -> u32 {
    u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// A PUBLISH by reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PublishParts<'a> {
    /// DUP.
    pub dup: bool,
    /// QoS; there is a packet identifier exactly when it is not 0.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// Packet Identifier.
    pub packet_id: Option<u16>,
    /// Topic Name; empty when an alias stands for it.
    pub topic: &'a str,
    /// Topic Alias.
    pub topic_alias: Option<u16>,
    /// Message Expiry Interval that is left.
    pub expiry: Option<Duration>,
    /// Subscription Identifiers.
    pub subscription_ids: &'a [u32],
    /// The properties that are passed on; the expiry in them is not looked at.
    pub properties: Option<&'a MessageProperties>,
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> From<&'a Publish> for PublishParts<'a> {
    fn from(publish: &'a Publish) -> Self {
        Self {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            packet_id: publish.packet_id,
            topic: &publish.topic,
            topic_alias: publish.topic_alias,
            expiry: publish.properties.as_ref().and_then(|properties| properties.expiry),
            subscription_ids: &publish.subscription_ids,
            properties: publish.properties.as_deref(),
            payload: &publish.payload,
        }
    }
}

/// The size of a PUBLISH in bytes, fixed header included.
pub(crate) fn publish_bytes(version: Version, publish: &PublishParts<'_>) -> usize {
    let body = body_bytes(version, publish);
    1 + length_bytes(body) + body
}

fn body_bytes(version: Version, publish: &PublishParts<'_>) -> usize {
    let head = 2 + publish.topic.len() + if publish.packet_id.is_some() { 2 } else { 0 };
    let properties = match version {
        Version::V311 => 0,
        Version::V5 => {
            let bytes = properties_bytes(publish);
            length_bytes(bytes) + bytes
        }
    };
    head + properties + publish.payload.len()
}

fn properties_bytes(publish: &PublishParts<'_>) -> usize {
    let ids: usize = publish.subscription_ids.iter().map(|&id| 1 + length_bytes(id as usize)).sum();
    let own = ids + if publish.topic_alias.is_some() { 3 } else { 0 } + if publish.expiry.is_some() { 5 } else { 0 };
    let Some(passed_on) = publish.properties else { return own };
    let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| 3 + text.len());
    let user: usize = passed_on.user_properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
    own + if passed_on.payload_is_utf8.is_some() { 2 } else { 0 }
        + text(&passed_on.content_type)
        + text(&passed_on.response_topic)
        + passed_on.correlation_data.as_ref().map_or(0, |data| 3 + data.len())
        + user
}

/// The size of a Variable Byte Integer (MQTT 5.0 section 1.5.5).
const fn length_bytes(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

fn put_length(out: &mut BytesMut, mut value: usize) {
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

/// Appends a length of two bytes and the bytes. The caller has checked that they fit.
fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16(bytes.len() as u16);
    out.extend_from_slice(bytes);
}

/// Appends a PUBLISH to `out`; nothing is appended on an error.
///
/// # Errors
///
/// A string is above 65,535 bytes, or the packet above 268,435,455.
pub(crate) fn publish(version: Version, publish: &PublishParts<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
    const STRING_BYTES_MAX: usize = u16::MAX as usize;
    const BODY_BYTES_MAX: usize = 268_435_455;
    let body = body_bytes(version, publish);
    // What was parsed from a packet fits into one again; the topic may come from elsewhere.
    let too_long = publish.properties.is_some_and(|properties| {
        let long = |text: &Option<Box<str>>| text.as_ref().is_some_and(|text| text.len() > STRING_BYTES_MAX);
        long(&properties.content_type)
            || long(&properties.response_topic)
            || properties.correlation_data.as_ref().is_some_and(|data| data.len() > STRING_BYTES_MAX)
            || properties
                .user_properties
                .iter()
                .any(|(name, value)| name.len() > STRING_BYTES_MAX || value.len() > STRING_BYTES_MAX)
    });
    if body > BODY_BYTES_MAX || publish.topic.len() > STRING_BYTES_MAX || too_long {
        return Err(EncodeError { what: "PUBLISH", version });
    }
    out.reserve(1 + length_bytes(body) + body);
    out.put_u8(0x30 | u8::from(publish.dup) << 3 | (publish.qos as u8) << 1 | u8::from(publish.retain));
    put_length(out, body);
    put_bytes(out, publish.topic.as_bytes());
    if let Some(packet_id) = publish.packet_id {
        out.put_u16(packet_id);
    }
    if version == Version::V5 {
        put_length(out, properties_bytes(publish));
        put_properties(publish, out);
    }
    out.extend_from_slice(publish.payload);
    Ok(())
}

fn put_properties(publish: &PublishParts<'_>, out: &mut BytesMut) {
    const PAYLOAD_FORMAT_INDICATOR: u8 = 1;
    const MESSAGE_EXPIRY_INTERVAL: u8 = 2;
    const CONTENT_TYPE: u8 = 3;
    const RESPONSE_TOPIC: u8 = 8;
    const CORRELATION_DATA: u8 = 9;
    const SUBSCRIPTION_IDENTIFIER: u8 = 11;
    const TOPIC_ALIAS: u8 = 35;
    const USER_PROPERTY: u8 = 38;

    if let Some(expiry) = publish.expiry {
        out.put_u8(MESSAGE_EXPIRY_INTERVAL);
        out.put_u32(seconds(expiry));
    }
    for &id in publish.subscription_ids {
        out.put_u8(SUBSCRIPTION_IDENTIFIER);
        put_length(out, id as usize);
    }
    if let Some(alias) = publish.topic_alias {
        out.put_u8(TOPIC_ALIAS);
        out.put_u16(alias);
    }
    let Some(passed_on) = publish.properties else { return };
    if let Some(is_utf8) = passed_on.payload_is_utf8 {
        out.put_u8(PAYLOAD_FORMAT_INDICATOR);
        out.put_u8(is_utf8.into());
    }
    if let Some(content_type) = &passed_on.content_type {
        out.put_u8(CONTENT_TYPE);
        put_bytes(out, content_type.as_bytes());
    }
    if let Some(topic) = &passed_on.response_topic {
        out.put_u8(RESPONSE_TOPIC);
        put_bytes(out, topic.as_bytes());
    }
    if let Some(data) = &passed_on.correlation_data {
        out.put_u8(CORRELATION_DATA);
        put_bytes(out, data);
    }
    for (name, value) in &passed_on.user_properties {
        out.put_u8(USER_PROPERTY);
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}
