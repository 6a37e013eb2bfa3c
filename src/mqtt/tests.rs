//! The session's halves against models, and the codec against itself and against mutated packets.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::alias::{Known, ReceivedAliases, SentAliases};
use super::decode::Decoder;
use super::encode;
use super::inbound::{Inbound, Receipt};
use super::outbound::{Bounds, Outbound, PubRec, Send};
use super::packet::*;
use super::{PACKET_BYTES_MAX, Packet, Reason, Version};
use crate::conn::QoS;

const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

fn bytes_of(version: Version, packet: &Packet) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode::packet(version, packet, &mut out).unwrap();
    out.to_vec()
}

/// What a client of the version gets; what a server gets when the packet is a CONNECT.
fn decoded(version: Version, bytes: &[u8]) -> Result<Option<Packet>, super::decode::DecodeError> {
    let mut decoder = Decoder::client(version, PACKET_BYTES_MAX);
    decoder.push(bytes);
    decoder.next_packet()
}

fn refused(version: Version, bytes: &[u8]) -> Reason {
    decoded(version, bytes).unwrap_err().reason
}

fn at_server(bytes: &[u8]) -> (Option<Version>, Result<Option<Packet>, Reason>) {
    let mut decoder = Decoder::server(1 << 20);
    decoder.push(bytes);
    let packet = decoder.next_packet().map_err(|error| error.reason);
    (decoder.version(), packet)
}

/// A password without a user name is allowed in MQTT 5.0 and malformed in 3.1.1.
#[test]
fn a_password_needs_no_user_name_in_mqtt_5() {
    let v5 = b"\x10\x12\x00\x04MQTT\x05\x42\x00\x00\x00\x00\x01c\x00\x02pw";
    let (_, packet) = at_server(v5);
    let Ok(Some(Packet::Connect(connect))) = packet else { panic!("expected a CONNECT, got {packet:?}") };
    assert_eq!((connect.username, connect.password.as_deref()), (None, Some(&b"pw"[..])));
    assert_eq!(
        mqtt_protocol_core::mqtt::packet::v5_0::Connect::parse(&v5[2..]).err(),
        Some(mqtt_protocol_core::mqtt::result_code::MqttError::ProtocolError),
        "the crate takes it now: the detour can go"
    );

    let v311 = b"\x10\x11\x00\x04MQTT\x04\x42\x00\x00\x00\x01c\x00\x02pw";
    assert_eq!(at_server(v311), (Some(Version::V311), Err(Reason::MALFORMED_PACKET)));
}

#[test]
fn a_connect_of_another_version_is_answered_in_the_nearest_form() {
    let unsupported = Err(Reason::UNSUPPORTED_PROTOCOL_VERSION);
    assert_eq!(
        at_server(b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00"),
        (Some(Version::V5), unsupported.clone())
    );
    assert_eq!(at_server(b"\x10\x0c\x00\x04MQTT\x03\x02\x00\x00\x00\x00"), (Some(Version::V311), unsupported.clone()));
    assert_eq!(at_server(b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00"), (Some(Version::V311), unsupported));
    assert_eq!(at_server(b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x00\x00\x00"), (None, Err(Reason::PROTOCOL_ERROR)));
    assert_eq!(at_server(b"GET / HTTP/1.1\r\n"), (None, Err(Reason::PROTOCOL_ERROR)));
    assert_eq!(at_server(b"\xc0\x00"), (None, Err(Reason::PROTOCOL_ERROR)));
}

/// What the crate's parser lets through is refused here, with the reason that belongs to it.
#[test]
fn malformed_packets_are_refused_with_their_reason() {
    use Version::{V5, V311};

    // CONNECT: the reserved flag, a will QoS of 3, flags of a will without a will, bytes behind the end.
    for flags in [0x03, 0x1E, 0x0A, 0x22] {
        let connect = [&b"\x10\x0d\x00\x04MQTT\x05"[..], &[flags], b"\x00\x00\x00\x00\x00"].concat();
        assert_eq!(at_server(&connect).1, Err(Reason::MALFORMED_PACKET), "{flags:#x}");
    }
    assert_eq!(at_server(b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00x").1, Err(Reason::MALFORMED_PACKET));
    // Strings with U+0000, or that are not UTF-8.
    assert_eq!(refused(V311, b"\x30\x05\x00\x03a\x00b"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V311, b"\x30\x04\x00\x02\xff\xfe"), Reason::MALFORMED_PACKET);
    // PUBLISH: wildcards, no topic, packet identifier 0, QoS 3, DUP with QoS 0, no properties.
    assert_eq!(refused(V311, b"\x30\x05\x00\x03a/+"), Reason::TOPIC_NAME_INVALID);
    assert_eq!(refused(V5, b"\x30\x06\x00\x03a/#\x00"), Reason::TOPIC_NAME_INVALID);
    assert_eq!(refused(V311, b"\x30\x02\x00\x00"), Reason::PROTOCOL_ERROR);
    assert_eq!(refused(V311, b"\x32\x05\x00\x01a\x00\x00"), Reason::PROTOCOL_ERROR);
    assert_eq!(refused(V311, b"\x36\x05\x00\x01a\x00\x01"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V311, b"\x38\x03\x00\x01a"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V5, b"\x30\x03\x00\x01a"), Reason::MALFORMED_PACKET);
    // A response topic with a wildcard.
    assert_eq!(refused(V5, b"\x30\x09\x00\x01a\x05\x08\x00\x02+/"), Reason::PROTOCOL_ERROR);
    // Reserved flags of the fixed header, reserved types, bodies where there is none.
    assert_eq!(refused(V5, b"\x80\x07\x00\x01\x00\x00\x01a\x00"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V5, b"\x60\x02\x00\x01"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V311, b"\xf0\x00"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V5, b"\x00\x00"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V5, b"\xc0\x01\x00"), Reason::MALFORMED_PACKET);
    // SUBSCRIBE: packet identifier 0, no filter, No Local on a share, reserved bits.
    assert_eq!(refused(V5, b"\x82\x07\x00\x00\x00\x00\x01a\x00"), Reason::PROTOCOL_ERROR);
    assert_eq!(refused(V5, b"\x82\x03\x00\x01\x00"), Reason::PROTOCOL_ERROR);
    assert_eq!(refused(V5, b"\x82\x10\x00\x01\x00\x00\x0a$share/g/a\x04"), Reason::PROTOCOL_ERROR);
    assert_eq!(refused(V5, b"\x82\x07\x00\x01\x00\x00\x01a\x40"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V311, b"\x82\x06\x00\x01\x00\x01a\x04"), Reason::MALFORMED_PACKET);
    assert_eq!(refused(V311, b"\x40\x02\x00\x00"), Reason::PROTOCOL_ERROR);
    assert_eq!(refused(V311, b"\x40\x03\x00\x01\x00"), Reason::MALFORMED_PACKET);
    // A remaining length of five bytes.
    assert_eq!(refused(V5, b"\x30\xff\xff\xff\xff\x01"), Reason::MALFORMED_PACKET);
}

#[test]
fn a_packet_above_the_limit_is_refused_before_it_has_arrived() {
    let mut decoder = Decoder::client(Version::V5, 100);
    decoder.push(b"\x30\x63");
    assert_eq!(decoder.next_packet().unwrap_err().reason, Reason::PACKET_TOO_LARGE);
    let mut decoder = Decoder::client(Version::V5, 100);
    decoder.push(b"\x30\x62");
    assert_eq!(decoder.next_packet(), Ok(None));
}

/// A share whose group is malformed is one filter among others, with a reason code of its own in SUBACK.
#[test]
fn one_malformed_share_does_not_spoil_a_subscribe() {
    let body = b"\x00\x01\x00\x00\x0a$share/+/a\x00\x00\x01b\x01";
    let bytes = [&[0x82, body.len() as u8][..], body].concat();
    let Ok(Some(Packet::Subscribe(subscribe))) = decoded(Version::V5, &bytes) else { panic!("expected a SUBSCRIBE") };
    assert_eq!(subscribe.filters.iter().map(|filter| &*filter.filter).collect::<Vec<_>>(), ["$share/+/a", "b"]);
    assert!(
        mqtt_protocol_core::mqtt::packet::v5_0::Subscribe::parse(body).is_err(),
        "the crate takes it now: its parser can be used"
    );
}

/// Aliases are set and looked up on one connection; what was not announced is refused.
#[test]
fn topic_aliases() {
    let mut aliases = ReceivedAliases::new(2);
    let mut resolve = |alias, topic: &str| {
        let mut topic = topic.into();
        aliases.resolve(alias, &mut topic).map(|()| topic.to_string()).map_err(|error| error.reason)
    };
    assert_eq!(resolve(None, "a"), Ok("a".to_owned()));
    assert_eq!(resolve(Some(2), ""), Err(Reason::PROTOCOL_ERROR));
    assert_eq!(resolve(Some(2), "a"), Ok("a".to_owned()));
    assert_eq!(resolve(Some(2), ""), Ok("a".to_owned()));
    assert_eq!(resolve(Some(2), "b"), Ok("b".to_owned()));
    assert_eq!(resolve(Some(2), ""), Ok("b".to_owned()));
    assert_eq!(resolve(Some(1), ""), Err(Reason::PROTOCOL_ERROR));
    assert_eq!(resolve(Some(0), "a"), Err(Reason::TOPIC_ALIAS_INVALID));
    assert_eq!(resolve(Some(3), "a"), Err(Reason::TOPIC_ALIAS_INVALID));

    let mut aliases = SentAliases::new(1);
    assert_eq!(aliases.assign("a"), Some((1, Known::No)));
    assert_eq!(aliases.assign("b"), None);
    assert_eq!(aliases.assign("a"), Some((1, Known::Yes)));
    assert_eq!(SentAliases::new(0).assign("a"), None);
}

const WIDE: Bounds = Bounds { messages_max: 1_000, bytes_max: 1 << 20, inflight_max: 100 };

fn publish(send: Option<Send<u32>>) -> (u32, Option<u16>, bool) {
    match send {
        Some(Send::Publish { message, packet_id, dup, .. }) => (message, packet_id, dup),
        other => panic!("expected a PUBLISH, got {other:?}"),
    }
}

/// What is in flight is sent again after a reconnect, with DUP and in order, and not before.
#[test]
fn in_flight_messages_are_sent_again_on_the_next_connection_only() {
    let now = Instant::now();
    let mut session = Outbound::new(WIDE);
    for message in 0..4 {
        session.push(message, if message == 1 { QoS::ExactlyOnce } else { QoS::AtLeastOnce }, 1, None);
    }
    assert_eq!(session.poll_send(now, &mut 0), None, "no connection");
    session.connected(10);
    for message in 0..3 {
        assert_eq!(publish(session.poll_send(now, &mut 0)).0, message);
    }
    assert_eq!(session.handle_pubrec(2, Reason::SUCCESS), (PubRec::Release(Reason::SUCCESS), Some(1)));
    assert_eq!(session.handle_pubrec(2, Reason::SUCCESS), (PubRec::Release(Reason::SUCCESS), None));
    assert_eq!(publish(session.poll_send(now, &mut 0)), (3, Some(4), false));
    assert_eq!(session.poll_send(now + Duration::from_secs(3_600), &mut 0), None, "nothing is sent again meanwhile");

    session.disconnected();
    session.connected(10);
    assert_eq!(publish(session.poll_send(now, &mut 0)), (0, Some(1), true));
    assert_eq!(session.poll_send(now, &mut 0), Some(Send::PubRel { packet_id: 2 }));
    assert_eq!(session.handle_puback(1), Some(0));
    assert_eq!(session.handle_puback(1), None);
    assert!(session.handle_pubcomp(2));
    assert_eq!(publish(session.poll_send(now, &mut 0)), (2, Some(3), true));
    assert_eq!(publish(session.poll_send(now, &mut 0)), (3, Some(4), true));
    assert!(session.handle_puback(4).is_some() && session.handle_puback(3).is_some());
    assert!(session.is_empty());
    assert_eq!(session.bytes(), 0);
}

/// A peer that has lost the session gets what was in flight as new messages, in the old order, before the rest.
#[test]
fn without_a_session_messages_begin_anew() {
    let now = Instant::now();
    let mut session = Outbound::new(WIDE);
    for (message, qos) in [(0, QoS::AtLeastOnce), (1, QoS::ExactlyOnce), (2, QoS::ExactlyOnce), (3, QoS::AtLeastOnce)] {
        session.push(message, qos, 1, None);
    }
    session.connected(3);
    for _ in 0..3 {
        session.poll_send(now, &mut 0);
    }
    session.handle_pubrec(2, Reason::SUCCESS);
    session.disconnected();
    session.restart();
    session.connected(3);
    // Message 1 is the peer's since its PUBREC.
    let sent: Vec<_> = (0..3).map(|_| publish(session.poll_send(now, &mut 0))).collect();
    assert_eq!(
        sent.iter().map(|(message, _, dup)| (*message, *dup)).collect::<Vec<_>>(),
        [(0, false), (2, false), (3, false)]
    );
    let id = session.reserve_request();
    assert!(sent.iter().all(|(_, sent, _)| *sent != Some(id)), "requests and messages share their identifiers");
    assert!(session.release_request(id) && !session.release_request(id));
}

/// A PUBREC with an error ends the message, and nothing more is sent for it.
#[test]
fn a_refused_message_is_not_released() {
    let mut session = Outbound::new(WIDE);
    session.connected(1);
    session.push(0, QoS::ExactlyOnce, 1, None);
    session.push(1, QoS::ExactlyOnce, 1, None);
    assert_eq!(publish(session.poll_send(Instant::now(), &mut 0)).1, Some(1));
    assert_eq!(session.poll_send(Instant::now(), &mut 0), None, "the Receive Maximum is 1");
    assert_eq!(session.handle_pubrec(1, Reason::QUOTA_EXCEEDED), (PubRec::Refused, Some(0)));
    assert_eq!(publish(session.poll_send(Instant::now(), &mut 0)).1, Some(2));
    assert_eq!(session.handle_pubrec(7, Reason::SUCCESS).0, PubRec::Release(Reason::PACKET_ID_NOT_FOUND));
}

#[test]
fn a_message_expires_in_the_queue_and_not_in_flight() {
    let now = Instant::now();
    let mut session = Outbound::new(WIDE);
    session.push(0, QoS::AtLeastOnce, 1, Some(now + Duration::from_millis(1_000)));
    session.push(1, QoS::AtMostOnce, 1, Some(now + Duration::from_millis(1_001)));
    session.connected(10);
    let mut expired = 0;
    assert_eq!(publish(session.poll_send(now + Duration::from_millis(1_000), &mut expired)).0, 1);
    assert_eq!((expired, session.bytes()), (1, 0));
}

/// A full queue drops messages of QoS 0 first, and those of an absent peer are not kept at all.
#[test]
fn messages_of_qos_0_make_room() {
    let mut session = Outbound::new(Bounds { messages_max: 3, bytes_max: 100, inflight_max: 10 });
    let mut push = |qos, bytes| {
        let pushed = session.push(0, qos, bytes, None);
        (pushed.queued, pushed.dropped)
    };
    assert_eq!(push(QoS::AtMostOnce, 50), (true, 0));
    assert_eq!(push(QoS::AtMostOnce, 50), (true, 0));
    assert_eq!(push(QoS::AtMostOnce, 1), (false, 1));
    assert_eq!(push(QoS::AtLeastOnce, 60), (true, 2));
    assert_eq!(push(QoS::AtLeastOnce, 60), (false, 1));
    assert_eq!(push(QoS::AtMostOnce, 10), (true, 0));
    assert_eq!(session.disconnected(), 1);
    assert_eq!((session.len(), session.bytes()), (1, 60));
}

#[derive(Clone, Debug)]
enum Step {
    Push(QoS),
    Send,
    Ack(usize),
    Receive(usize),
    Complete(usize),
    Reconnect(u16),
    Disconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => qos_strategy().prop_map(Step::Push),
        6 => Just(Step::Send),
        3 => (0usize..8).prop_map(Step::Ack),
        3 => (0usize..8).prop_map(Step::Receive),
        3 => (0usize..8).prop_map(Step::Complete),
        1 => (1u16..6).prop_map(Step::Reconnect),
        1 => Just(Step::Disconnect),
    ]
}

fn qos_strategy() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

proptest! {
    /// Whatever comes: every message is sent in order, none twice on one connection, none lost but those of QoS 0 over
    /// a reconnect, packet identifiers are unique and come back, and the Receive Maximum holds.
    #[test]
    fn outbound_agrees_with_a_model(steps in prop::collection::vec(step(), 0..200)) {
        let now = Instant::now();
        let mut session = Outbound::new(Bounds { messages_max: 50, bytes_max: 500, inflight_max: 4 });
        // The model: by message its packet identifier and QoS while unfinished.
        let mut pushed: Vec<(u32, QoS)> = Vec::new();
        let mut open: Vec<(u16, u32, QoS)> = Vec::new();
        let mut released: BTreeSet<u16> = BTreeSet::new();
        let mut on_wire: BTreeSet<u16> = BTreeSet::new();
        let mut receive_max = 0;
        let mut next = 0u32;
        for step in steps {
            match step {
                Step::Push(qos) => {
                    let before: Vec<_> = pushed.clone();
                    let result = session.push(next, qos, 10, None);
                    if result.queued {
                        let evicted = result.dropped;
                        for _ in 0..evicted {
                            let place = pushed.iter().position(|(_, qos)| *qos == QoS::AtMostOnce).unwrap();
                            pushed.remove(place);
                        }
                        pushed.push((next, qos));
                    } else {
                        prop_assert!(before.len() + open.len() >= 50
                            || (before.len() + open.len() - released.len()) * 10 + 10 > 500);
                    }
                    next += 1;
                }
                Step::Send => match session.poll_send(now, &mut 0) {
                    None => {
                        let idle = pushed.is_empty() && on_wire.len() == open.len();
                        let counted = on_wire.iter().filter(|id| open.iter().any(|(o, ..)| o == *id)).count();
                        prop_assert!(receive_max == 0 || idle || counted > 0 || open.len() >= 4);
                    }
                    Some(Send::PubRel { packet_id }) => {
                        prop_assert!(released.contains(&packet_id));
                        prop_assert!(on_wire.insert(packet_id));
                    }
                    Some(Send::Publish { message, qos, packet_id, dup, .. }) => {
                        prop_assert!(receive_max > 0);
                        match packet_id {
                            None => {
                                prop_assert_eq!((qos, dup), (QoS::AtMostOnce, false));
                                prop_assert_eq!(pushed.remove(0), (message, qos));
                            }
                            Some(id) if dup => {
                                prop_assert!(open.contains(&(id, message, qos)));
                                prop_assert!(on_wire.insert(id), "sent twice on one connection");
                            }
                            Some(id) => {
                                prop_assert_eq!(pushed.remove(0), (message, qos));
                                prop_assert!(!open.iter().any(|(known, ..)| *known == id));
                                open.push((id, message, qos));
                                on_wire.insert(id);
                            }
                        }
                    }
                },
                Step::Ack(place) => {
                    let Some(&(id, _, qos)) = open.get(place) else { continue };
                    let fits = qos == QoS::AtLeastOnce;
                    prop_assert_eq!(session.handle_puback(id).is_some(), fits);
                    if fits {
                        open.remove(place);
                        on_wire.remove(&id);
                    }
                }
                Step::Receive(place) => {
                    let Some(&(id, _, qos)) = open.get(place) else { continue };
                    let expected =
                        if qos == QoS::ExactlyOnce { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
                    prop_assert_eq!(session.handle_pubrec(id, Reason::SUCCESS).0, PubRec::Release(expected));
                    if qos == QoS::ExactlyOnce {
                        released.insert(id);
                    }
                }
                Step::Complete(place) => {
                    let Some(&(id, ..)) = open.get(place) else { continue };
                    let fits = released.remove(&id);
                    prop_assert_eq!(session.handle_pubcomp(id), fits);
                    if fits {
                        open.remove(place);
                        on_wire.remove(&id);
                    }
                }
                Step::Reconnect(max) => {
                    let dropped = session.disconnected();
                    prop_assert_eq!(dropped, pushed.iter().filter(|(_, qos)| *qos == QoS::AtMostOnce).count());
                    pushed.retain(|(_, qos)| *qos != QoS::AtMostOnce);
                    on_wire.clear();
                    session.connected(max);
                    receive_max = max;
                }
                Step::Disconnect => {
                    session.disconnected();
                    pushed.retain(|(_, qos)| *qos != QoS::AtMostOnce);
                    receive_max = 0;
                }
            }
            prop_assert_eq!(session.len(), pushed.len() + open.len());
            prop_assert_eq!(session.inflight(), open.len());
            prop_assert_eq!(session.bytes(), (pushed.len() + open.len() - released.len()) * 10);
        }
        // Nothing leaks: once everything is acknowledged, nothing is held.
        session.disconnected();
        session.connected(u16::MAX);
        while !session.is_empty() {
            match session.poll_send(now, &mut 0) {
                Some(Send::Publish { packet_id: Some(id), qos: QoS::AtLeastOnce, .. }) => {
                    prop_assert!(session.handle_puback(id).is_some());
                }
                Some(Send::Publish { packet_id: Some(id), .. }) => {
                    session.handle_pubrec(id, Reason::SUCCESS);
                    prop_assert!(session.handle_pubcomp(id));
                }
                Some(Send::Publish { .. }) => {}
                Some(Send::PubRel { packet_id }) => prop_assert!(session.handle_pubcomp(packet_id)),
                None => prop_assert!(false, "stuck with {session:?}"),
            }
        }
        prop_assert_eq!(session.bytes(), 0);
    }

    /// Messages of QoS 2 are passed on once however often they come before PUBREL.
    #[test]
    fn inbound_agrees_with_a_model(steps in prop::collection::vec((1u16..6, 0u8..3), 0..100)) {
        let mut session = Inbound::default();
        let mut model: HashMap<u16, ()> = HashMap::new();
        for (id, what) in steps {
            match what {
                0 => {
                    let expected = if model.insert(id, ()).is_some() { Receipt::Duplicate } else { Receipt::New };
                    prop_assert_eq!(session.handle_publish(id, true, 10), expected);
                }
                1 => prop_assert_eq!(session.handle_pubrel(id), model.remove(&id).is_some()),
                _ => session.connected(),
            }
        }
    }
}

#[test]
fn the_receive_maximum_bounds_what_is_not_acknowledged() {
    let mut session = Inbound::default();
    assert_eq!(session.handle_publish(1, true, 2), Receipt::New);
    assert_eq!(session.handle_publish(2, true, 2), Receipt::New);
    assert_eq!(session.handle_publish(1, true, 2), Receipt::Duplicate);
    assert!(session.handle_pubrel(1));
    assert_eq!(session.handle_publish(3, false, 2), Receipt::New);
    assert_eq!(session.handle_publish(4, false, 2), Receipt::TooMany);
}

fn text() -> impl Strategy<Value = Box<str>> {
    "[a-z/äß ]{1,20}".prop_map(Into::into)
}

fn properties() -> impl Strategy<Value = MessageProperties> {
    (
        any::<Option<bool>>(),
        prop::option::of(1u32..),
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
        prop::collection::vec((text(), text()), 0..3),
    )
        .prop_map(|(payload_is_utf8, expiry, content_type, response_topic, data, user_properties)| {
            MessageProperties {
                payload_is_utf8,
                expiry: expiry.map(|seconds| Duration::from_secs(seconds.into())),
                content_type,
                response_topic,
                correlation_data: data.map(Bytes::from),
                user_properties,
            }
        })
}

fn publish_packet() -> impl Strategy<Value = Packet> {
    (
        qos_strategy(),
        any::<(bool, bool)>(),
        1u16..,
        text(),
        prop::option::of(1u16..),
        prop::collection::vec(1u32..268_435_455, 0..3),
        properties(),
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(qos, (dup, retain), id, topic, topic_alias, subscription_ids, properties, payload)| {
            let some = properties != MessageProperties::default();
            Packet::Publish(Publish {
                dup: dup && qos != QoS::AtMostOnce,
                qos,
                retain,
                packet_id: (qos != QoS::AtMostOnce).then_some(id),
                topic,
                topic_alias,
                subscription_ids,
                properties: some.then(|| Box::new(properties)),
                payload: payload.into(),
            })
        })
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let ack = |codes: &'static [u8]| {
        (1u16.., prop::sample::select(codes), prop::option::of(text()))
            .prop_map(|(packet_id, code, reason_string)| Ack { packet_id, reason: Reason(code), reason_string })
    };
    let will =
        (text(), prop::collection::vec(any::<u8>(), 0..50), qos_strategy(), any::<bool>(), any::<u32>(), properties())
            .prop_map(|(topic, payload, qos, retain, delay_s, properties)| {
                Box::new(Will { topic, payload: payload.into(), qos, retain, delay_s, properties })
            });
    let connect = (
        any::<(bool, u16, Option<u32>, u16, bool, bool)>(),
        text(),
        prop::option::of(text()),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..50)),
        prop::option::of(will),
        (prop::option::of(1u16..), prop::option::of(1u32..)),
    )
        .prop_map(|(flags, client_id, username, password, will, (receive_max, packet_bytes_max))| {
            let (clean_start, keepalive_s, session_expiry_s, topic_alias_max, response, problem) = flags;
            Packet::Connect(Box::new(Connect {
                clean_start,
                keepalive_s,
                session_expiry_s,
                topic_alias_max,
                request_response_information: response,
                request_problem_information: problem,
                // Without a user name it is written as one that is empty.
                password: password.filter(|_| username.is_some()).map(Bytes::from),
                username,
                will,
                receive_max,
                packet_bytes_max,
                ..Connect::new(Version::V5, &client_id)
            }))
        });
    let filter = (text(), qos_strategy(), any::<(bool, bool)>(), 0u8..3).prop_map(|(filter, qos, (nl, rap), rh)| {
        SubscribeFilter {
            filter,
            options: SubscriptionOptions {
                qos,
                no_local: nl,
                retain_as_published: rap,
                retain_handling: [RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend]
                    [usize::from(rh)],
            },
        }
    });
    prop_oneof![
        connect,
        publish_packet(),
        ack(&[0x00, 0x10, 0x80, 0x87, 0x97]).prop_map(Packet::PubAck),
        ack(&[0x00, 0x10, 0x80, 0x91]).prop_map(Packet::PubRec),
        ack(&[0x00, 0x92]).prop_map(Packet::PubRel),
        ack(&[0x00, 0x92]).prop_map(Packet::PubComp),
        (1u16.., prop::option::of(1u32..268_435_455), prop::collection::vec(filter, 1..4)).prop_map(
            |(packet_id, subscription_id, filters)| Packet::Subscribe(Subscribe {
                packet_id,
                subscription_id,
                filters
            })
        ),
        (1u16.., prop::collection::vec(prop::sample::select(&[0u8, 1, 2, 0x80, 0x87, 0x8F][..]), 1..4)).prop_map(
            |(packet_id, codes)| Packet::SubAck(SubAck { packet_id, reasons: codes.into_iter().map(Reason).collect() })
        ),
        (1u16.., prop::collection::vec(text(), 1..4))
            .prop_map(|(packet_id, filters)| Packet::Unsubscribe(Unsubscribe { packet_id, filters })),
        (1u16.., prop::collection::vec(prop::sample::select(&[0u8, 0x11, 0x87][..]), 1..4)).prop_map(
            |(packet_id, codes)| {
                Packet::UnsubAck(UnsubAck { packet_id, reasons: codes.into_iter().map(Reason).collect() })
            }
        ),
        (any::<bool>(), any::<Option<u32>>(), prop::option::of(text()), any::<(bool, bool)>()).prop_map(
            |(session_present, session_expiry_s, reason_string, (retain_available, shared_subscriptions))| {
                Packet::ConnAck(Box::new(ConnAck {
                    session_present,
                    session_expiry_s,
                    reason_string,
                    retain_available,
                    shared_subscriptions,
                    qos_max: Some(QoS::AtLeastOnce),
                    keepalive_s: Some(7),
                    ..ConnAck::new(Reason::SUCCESS)
                }))
            }
        ),
        (prop::sample::select(&[0u8, 0x04, 0x8E][..]), any::<Option<u32>>(), prop::option::of(text())).prop_map(
            |(code, session_expiry_s, reason_string)| Packet::Disconnect(Disconnect {
                session_expiry_s,
                reason_string,
                ..Disconnect::new(Reason(code))
            })
        ),
        Just(Packet::PingReq),
        Just(Packet::PingResp),
    ]
}

proptest! {
    /// What is written is read back, also when it comes byte by byte, and the size is what was announced.
    #[test]
    fn packets_are_read_back(packet in any_packet()) {
        let bytes = bytes_of(Version::V5, &packet);
        let is_connect = matches!(packet, Packet::Connect(_));
        let mut decoder = if is_connect { Decoder::server(1 << 20) } else { Decoder::client(Version::V5, 1 << 20) };
        for (place, byte) in bytes.iter().enumerate() {
            decoder.push(&[*byte]);
            let read = decoder.next_packet();
            if place + 1 < bytes.len() {
                prop_assert_eq!(read, Ok(None));
            } else {
                prop_assert_eq!(read, Ok(Some(packet.clone())));
            }
        }
        if let Packet::Publish(publish) = &packet {
            prop_assert_eq!(encode::publish_bytes(Version::V5, &publish.into()), bytes.len());
        }
    }

    /// The crate reads the PUBLISH that is written without it as it was meant.
    #[test]
    fn the_crate_reads_what_is_written_without_it(packet in publish_packet()) {
        use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};

        let Packet::Publish(publish) = &packet else { unreachable!() };
        let body = |bytes: &[u8]| {
            let header = 1 + bytes[1..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            std::sync::Arc::<[u8]>::from(&bytes[header..])
        };
        let bytes = bytes_of(Version::V5, &packet);
        let (read, _) = v5_0::Publish::parse(bytes[0] & 0x0F, body(&bytes)).unwrap();
        prop_assert_eq!(read.to_continuous_buffer(), bytes);
        prop_assert_eq!(read.payload().as_slice(), &*publish.payload);

        let bytes = bytes_of(Version::V311, &packet);
        let (read, _) = v3_1_1::Publish::parse(bytes[0] & 0x0F, body(&bytes)).unwrap();
        prop_assert_eq!(read.to_continuous_buffer(), bytes.clone());
        prop_assert_eq!(encode::publish_bytes(Version::V311, &publish.into()), bytes.len());
    }

    /// Mutated packets are read or refused, and never panic; a refusal has a reason of a failure.
    #[test]
    fn mutated_packets_are_read_or_refused(
        packets in prop::collection::vec(any_packet(), 1..4),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
    ) {
        for version in VERSIONS {
            let mut bytes = Vec::new();
            for packet in &packets {
                let mut out = BytesMut::new();
                if encode::packet(version, packet, &mut out).is_ok() {
                    bytes.extend_from_slice(&out);
                }
            }
            for (place, byte, how) in &mutations {
                if bytes.is_empty() {
                    break;
                }
                let place = place.index(bytes.len());
                match how {
                    0 => bytes[place] = *byte,
                    1 => { bytes.remove(place); }
                    _ => bytes.insert(place, *byte),
                }
            }
            for mut decoder in [Decoder::server(1 << 16), Decoder::client(version, 1 << 16)] {
                decoder.push(&bytes);
                loop {
                    match decoder.next_packet() {
                        Ok(Some(packet)) => {
                            // What was read can be written again, whatever came.
                            let mut out = BytesMut::new();
                            if let Err(error) = encode::packet(version, &packet, &mut out) {
                                prop_assert!(out.is_empty(), "{error}");
                            }
                        }
                        Ok(None) => break,
                        Err(error) => {
                            prop_assert!(error.reason.is_error());
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Arbitrary bytes are read or refused.
    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for mut decoder in [
            Decoder::server(1 << 16),
            Decoder::client(Version::V311, 1 << 16),
            Decoder::client(Version::V5, 1 << 16),
        ] {
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_packet() {}
        }
    }
}
