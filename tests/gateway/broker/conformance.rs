//! What MQTT asks of a server, in raw packets.

use std::time::{Duration, Instant};

use polygate::testing::auth::{Action, Effect, Options as AuthOptions};
use polygate::testing::conn::QoS;
use polygate::testing::mqtt::packet::{Ack, UnsubAck};
use polygate::testing::mqtt::{Packet, Reason, Version};
use polygate::testing::pubsub::embedded::Options;

use super::harness::{TestBroker, rule, soon, users};
use super::raw::{RawClient, connect_v5, connect_v311, packet, publish_v5, subscribe_v5};

fn anonymous() -> AuthOptions {
    AuthOptions { allow_anonymous: true, ..AuthOptions::default() }
}

/// A payload with a will: no will properties but the given ones, topic `w`, payload `gone`.
fn will(properties: &[u8]) -> Vec<u8> {
    [&[properties.len() as u8][..], properties, b"\x00\x01w\x00\x04gone"].concat()
}

/// DISCONNECT ends the connection at once, without a will, and with the session (3.14).
#[tokio::test]
async fn disconnect_ends_the_connection_without_a_will() {
    let broker = TestBroker::start().await;
    let mut witness = RawClient::v5(broker.addr(), "witness").await;
    witness.subscribe("#", 0).await;
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect_v5("c", 0x06, &[], &will(&[]))).await;
    client.subscribe("x", 0).await;
    client.send(b"\xe0\x00").await;
    client.closed().await;
    assert_eq!((broker.broker.stats().clients, broker.broker.stats().subscriptions), (1, 1));

    let mut old = RawClient::v311(broker.addr(), "c").await;
    old.send(b"\xe0\x00").await;
    old.closed().await;
    broker.publish_as_gateway("end", "end").await.unwrap();
    assert_eq!(&*witness.publish().await.topic, "end", "there was no will");
}

/// DISCONNECT with 0x04, a closed socket and a protocol error publish the will (3.1.2.5).
#[tokio::test]
async fn a_will_is_published_unless_it_is_withdrawn() {
    let broker = TestBroker::start().await;
    let mut witness = RawClient::v5(broker.addr(), "witness").await;
    witness.subscribe("w", 1).await;
    for end in [&b"\xe0\x01\x04"[..], b"\xe0\x01\x80", b"", b"\xf0\x00"] {
        // Will QoS 1.
        let (mut client, _) = RawClient::v5_with(broker.addr(), &connect_v5("c", 0x0E, &[], &will(&[]))).await;
        client.send(end).await;
        drop(client);
        let publish = witness.publish().await;
        assert_eq!((&*publish.payload, publish.qos, publish.retain), (&b"gone"[..], QoS::AtLeastOnce, false));
        let id = publish.packet_id.unwrap().to_be_bytes();
        witness.send(&packet(0x40, &id)).await;
    }
}

/// A delayed will is withdrawn by a reconnect, published when the session ends first, and by a takeover with a clean
/// start (3.1.3.2.2).
#[tokio::test]
async fn a_will_delay_ends_with_the_session() {
    let broker = TestBroker::start().await;
    let mut witness = RawClient::v5(broker.addr(), "witness").await;
    witness.subscribe("#", 0).await;
    let hour = b"\x18\x00\x00\x0e\x10";
    let expiry = b"\x11\x00\x00\x00\x64";
    let connect = connect_v5("c", 0x04, expiry, &will(hour));
    let (first, _) = RawClient::v5_with(broker.addr(), &connect).await;
    drop(first);
    let (second, connack) = RawClient::v5_with(broker.addr(), &connect).await;
    assert!(connack.session_present);
    broker.publish_as_gateway("marker", "").await.unwrap();
    assert_eq!(&*witness.publish().await.topic, "marker", "the reconnect has withdrawn the will");
    drop(second);
    // A clean start ends the old session.
    let _third = RawClient::v5(broker.addr(), "c").await;
    assert_eq!(&*witness.publish().await.topic, "w");

    // The session's expiry of 1 s comes before the delay of an hour.
    let connect = connect_v5("d", 0x06, b"\x11\x00\x00\x00\x01", &will(hour));
    drop(RawClient::v5_with(broker.addr(), &connect).await);
    assert_eq!(&*witness.publish().await.topic, "w");
}

/// After a PUBREC with an error no PUBREL is sent, and the packet identifier is free (4.3.3).
#[tokio::test]
async fn nothing_follows_a_pubrec_with_an_error() {
    let broker = TestBroker::start().await;
    let device = broker.device("d").await;
    // Receive Maximum 1: a second message comes only when the first is done.
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect_v5("c", 0x02, b"\x21\x00\x01", &[])).await;
    client.subscribe("x", 2).await;
    device.publish_qos("x", "one", QoS::ExactlyOnce).await;
    device.publish_qos("x", "two", QoS::ExactlyOnce).await;
    let first = client.publish().await;
    client.ping().await;
    let id = first.packet_id.unwrap().to_be_bytes();
    client.send(&packet(0x50, &[id[0], id[1], 0x83])).await;
    let second = client.publish().await;
    assert_eq!(&*second.payload, b"two");
    let id = second.packet_id.unwrap().to_be_bytes();
    client.send(&packet(0x50, &id)).await;
    assert_eq!(client.packet().await, Packet::PubRel(Ack::new(second.packet_id.unwrap(), Reason::SUCCESS)));
    client.send(&packet(0x70, &id)).await;
    client.ping().await;
    // PUBREC for what is not in flight.
    client.send(&packet(0x50, &[0, 77])).await;
    assert_eq!(client.packet().await, Packet::PubRel(Ack::new(77, Reason::PACKET_ID_NOT_FOUND)));
}

/// QoS 2 from a client: passed on once, however often PUBLISH comes before PUBREL, also over a reconnect (4.3.3).
#[tokio::test]
async fn a_message_of_qos_2_is_passed_on_once() {
    let broker = TestBroker::start().await;
    let mut device = broker.device("d").await;
    device.subscribe("x").await;
    let connect = connect_v5("c", 0x00, b"\x11\x00\x00\x00\x64", &[]);
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect).await;
    client.send(&publish_v5(0x34, "x", 7, &[], b"once")).await;
    assert_eq!(client.packet().await, Packet::PubRec(Ack::new(7, Reason::SUCCESS)));
    drop(client);
    let (mut client, connack) = RawClient::v5_with(broker.addr(), &connect).await;
    assert!(connack.session_present);
    client.send(&publish_v5(0x3c, "x", 7, &[], b"once")).await;
    assert_eq!(client.packet().await, Packet::PubRec(Ack::new(7, Reason::SUCCESS)));
    client.send(b"\x62\x02\x00\x07").await;
    assert_eq!(client.packet().await, Packet::PubComp(Ack::new(7, Reason::SUCCESS)));
    client.send(b"\x62\x02\x00\x07").await;
    assert_eq!(client.packet().await, Packet::PubComp(Ack::new(7, Reason::PACKET_ID_NOT_FOUND)));
    device.publish("x", "end").await;
    assert_eq!(device.payloads_until("end").await, ["once"]);
}

/// MQTT 3.1.1 has no Receive Maximum: its clients may have any number of messages of QoS 2 in flight.
#[tokio::test]
async fn clients_of_3_1_1_have_no_receive_maximum() {
    let broker = TestBroker::start().await;
    let mut client = RawClient::v311(broker.addr(), "c").await;
    let count = Options::default().inflight_max + 10;
    for packet_id in 1..=count {
        // Without the length of properties it is a PUBLISH of 3.1.1.
        client.send(&packet(0x34, &[&b"\0\x01x"[..], &packet_id.to_be_bytes(), b"payload"].concat())).await;
    }
    for packet_id in 1..=count {
        assert_eq!(client.packet().await, Packet::PubRec(Ack::new(packet_id, Reason::SUCCESS)));
    }
}

/// What was in flight comes again after a reconnect with DUP and its packet identifier, PUBREL instead of a message
/// whose PUBREC has come, and nothing comes again meanwhile (4.4).
#[tokio::test]
async fn messages_are_sent_again_after_a_reconnect_only() {
    let broker = TestBroker::start().await;
    let device = broker.device("d").await;
    let connect = connect_v5("c", 0x00, b"\x11\x00\x00\x00\x64", &[]);
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect).await;
    client.subscribe("x", 2).await;
    device.publish_qos("x", "1", QoS::AtLeastOnce).await;
    device.publish_qos("x", "2", QoS::ExactlyOnce).await;
    let (one, two) = (client.publish().await, client.publish().await);
    assert!(!one.dup && !two.dup);
    let id = two.packet_id.unwrap().to_be_bytes();
    client.send(&packet(0x50, &id)).await;
    assert!(matches!(client.packet().await, Packet::PubRel(_)));
    client.ping().await;
    client.send(b"\xe0\x00").await;
    client.closed().await;

    device.publish_qos("x", "offline", QoS::AtLeastOnce).await;
    device.publish_qos("x", "not kept", QoS::AtMostOnce).await;
    let (mut client, connack) = RawClient::v5_with(broker.addr(), &connect).await;
    assert!(connack.session_present);
    let again = client.publish().await;
    assert_eq!((again.dup, again.packet_id, &*again.payload), (true, one.packet_id, &b"1"[..]));
    assert_eq!(client.packet().await, Packet::PubRel(Ack::new(two.packet_id.unwrap(), Reason::SUCCESS)));
    let offline = client.publish().await;
    assert_eq!((offline.dup, &*offline.payload), (false, &b"offline"[..]));
    client.ping().await;
    assert!(broker.broker.counters().dropped.offline.get() >= 1);
}

/// Retained messages: with the subscription's identifier and RETAIN, not on a share, as Retain Handling says (3.3.1.3).
#[tokio::test]
async fn retained_messages_follow_the_subscription() {
    let broker = TestBroker::start().await;
    let mut client = RawClient::v5(broker.addr(), "c").await;
    client.send(&publish_v5(0x33, "r", 1, &[], b"kept")).await;
    assert_eq!(client.packet().await, Packet::PubAck(Ack::new(1, Reason::NO_MATCHING_SUBSCRIBERS)));

    client.subscribe("$share/g/r", 1).await;
    client.ping().await;
    client.send(&subscribe_v5(2, b"\x0b\x05", "r", 0)).await;
    client.suback().await;
    let publish = client.publish().await;
    assert_eq!((publish.retain, publish.subscription_ids), (true, vec![5]));
    // Retain Handling 1: it exists; 2: never.
    for options in [0x10, 0x20] {
        client.subscribe("r", options).await;
        client.ping().await;
    }
    client.send(b"\xa2\x06\x00\x03\x00\x00\x01r").await;
    assert_eq!(client.packet().await, Packet::UnsubAck(UnsubAck { packet_id: 3, reasons: vec![Reason::SUCCESS] }));
    client.subscribe("r", 0x10).await;
    assert!(client.publish().await.retain);
}

/// Overlapping subscriptions: one copy with the highest QoS and all identifiers (3.3.4).
#[tokio::test]
async fn overlapping_subscriptions_get_one_copy() {
    let broker = TestBroker::start().await;
    let device = broker.device("d").await;
    let mut client = RawClient::v5(broker.addr(), "c").await;
    for (id, filter, qos) in [(1, "a/b", 0), (2, "a/+", 1), (3, "#", 0)] {
        client.send(&subscribe_v5(id, &[0x0b, id as u8], filter, qos)).await;
        assert_eq!(client.suback().await, [Reason(qos)]);
    }
    device.publish_qos("a/b", "x", QoS::ExactlyOnce).await;
    let mut publish = client.publish().await;
    publish.subscription_ids.sort_unstable();
    assert_eq!((publish.qos, publish.subscription_ids), (QoS::AtLeastOnce, vec![1, 2, 3]));
    client.ping().await;
}

/// Each filter has its own reason code in SUBACK and UNSUBACK (3.9.3, 3.11.3).
#[tokio::test]
async fn every_filter_has_its_reason_code() {
    let rules = vec![rule(Effect::Deny, Action::Subscribe, "*", "secret/#")];
    let broker = TestBroker::with(AuthOptions { rules, ..anonymous() }, |options| {
        options.subscriptions_max = 2;
        options.filter_bytes_max = 20;
    })
    .await;
    let mut client = RawClient::v5(broker.addr(), "c").await;
    let long = "x".repeat(21);
    for (filter, expected) in [
        ("a", 0x01),
        ("a/#/b", 0x8F),
        ("a+", 0x8F),
        ("", 0x8F),
        ("secret/x", 0x87),
        (&*long, 0x97),
        ("b", 0x01),
        ("c", 0x97),
        ("b", 0x01),
    ] {
        client.send(&subscribe_v5(1, &[], filter, 1)).await;
        assert_eq!(client.suback().await, [Reason(expected)], "{filter:?}");
    }
    for (filter, expected) in [("a", 0x00), ("a", 0x11), ("never", 0x11), ("a/#/b", 0x8F)] {
        let mut body = b"\x00\x02\x00".to_vec();
        body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
        body.extend_from_slice(filter.as_bytes());
        client.send(&packet(0xa2, &body)).await;
        let expected = UnsubAck { packet_id: 2, reasons: vec![Reason(expected)] };
        assert_eq!(client.packet().await, Packet::UnsubAck(expected), "{filter:?}");
    }
    let mut old = RawClient::v311(broker.addr(), "old").await;
    old.send(b"\x82\x0d\x00\x01\x00\x01a\x02\x00\x04a/#b\x00").await;
    assert_eq!(old.suback().await, [Reason(0x02), Reason(0x80)]);
}

/// What is malformed, or not allowed at this point, ends the connection with the reason that belongs to it (4.13).
#[tokio::test]
async fn protocol_errors_end_the_connection_with_a_reason() {
    let broker = TestBroker::with(anonymous(), |options| {
        options.packet_bytes_max = 2_000;
        options.inflight_max = 2;
    })
    .await;
    let publish = |first, topic: &str, properties: &[u8]| publish_v5(first, topic, 1, properties, b"");
    let too_large = packet(0x30, &[0; 2_000]);
    let three: Vec<u8> = (1..=3).flat_map(|id| publish_v5(0x34, "x", id, &[], b"")).collect();
    let cases: Vec<(&str, Vec<u8>, u8)> = vec![
        ("a second CONNECT", connect_v5("c", 2, &[], &[]), 0x82),
        ("a subscription identifier of a publisher", publish(0x30, "x", b"\x0b\x01"), 0x82),
        ("a wildcard in the topic name", publish(0x30, "x/+", b""), 0x90),
        ("a wildcard in the response topic", publish(0x30, "x", b"\x08\x00\x01#"), 0x82),
        ("an alias above the maximum", publish(0x30, "x", b"\x23\x00\x41"), 0x94),
        ("an alias of 0", publish(0x30, "x", b"\x23\x00\x00"), 0x82),
        ("an alias that was not set", publish(0x30, "", b"\x23\x00\x01"), 0x82),
        ("neither topic nor alias", publish(0x30, "", b""), 0x82),
        ("QoS 3", publish(0x36, "x", b""), 0x81),
        ("a property twice", publish(0x30, "x", b"\x01\x00\x01\x00"), 0x82),
        ("a property of another packet", publish(0x30, "x", b"\x11\x00\x00\x00\x01"), 0x82),
        ("a packet identifier of 0", publish_v5(0x32, "x", 0, &[], b""), 0x82),
        ("SUBSCRIBE without a filter", packet(0x82, b"\x00\x01\x00"), 0x82),
        ("SUBSCRIBE with wrong flags", packet(0x80, b"\x00\x01\x00\x00\x01a\x00"), 0x81),
        ("No Local on a share", subscribe_v5(1, &[], "$share/g/a", 0x04), 0x82),
        ("a subscription identifier of 0", subscribe_v5(1, b"\x0b\x00", "a", 0), 0x82),
        ("UNSUBSCRIBE without a filter", packet(0xa2, b"\x00\x01\x00"), 0x82),
        ("a packet of a server", packet(0xd0, b""), 0x82),
        ("AUTH without a method", packet(0xf0, b""), 0x82),
        ("a reserved type", packet(0x00, b""), 0x81),
        ("a packet above the maximum", too_large, 0x95),
        ("more than the Receive Maximum", three, 0x93),
        ("an expiry set by DISCONNECT after none", packet(0xe0, b"\x00\x05\x11\x00\x00\x00\x01"), 0x82),
    ];
    for (what, bytes, expected) in cases {
        let mut client = RawClient::v5(broker.addr(), "c").await;
        client.send(&bytes).await;
        let mut last = client.next().await;
        while let Some(Packet::PubRec(_)) = last {
            last = client.next().await;
        }
        let Some(Packet::Disconnect(disconnect)) = last else { panic!("{what}: expected a DISCONNECT, got {last:?}") };
        assert_eq!(disconnect.reason, Reason(expected), "{what}");
        client.closed().await;
    }
    let mut old = RawClient::v311(broker.addr(), "old").await;
    old.send(b"\x30\x02\x00\x00").await;
    old.closed().await;
}

/// A CONNECT that is refused gets a CONNACK with the reason (3.1.4, 3.2.2.2).
#[tokio::test]
async fn a_refused_connect_gets_its_reason() {
    let rules = vec![rule(Effect::Deny, Action::Publish, "*", "w")];
    let broker = TestBroker::with(AuthOptions { rules, users: users(&["u"]), ..anonymous() }, |options| {
        options.clients_max = 1;
    })
    .await;
    let long = "c".repeat(1_025);
    let cases: Vec<(&str, Vec<u8>, u8)> = vec![
        ("an authentication method", connect_v5("c", 2, b"\x15\x00\x01m", &[]), 0x8C),
        ("a wrong password", connect_v5("c", 0xC2, &[], b"\x00\x01u\x00\x01x"), 0x86),
        ("a will that is denied", connect_v5("c", 0x06, &[], &will(&[])), 0x87),
        ("a will with a wildcard", connect_v5("c", 0x06, &[], b"\x00\x00\x01#\x00\x00"), 0x90),
        ("a long client id", connect_v5(&long, 2, &[], &[]), 0x85),
        ("version 6", packet(0x10, b"\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00"), 0x84),
        ("a reserved flag", connect_v5("c", 0x03, &[], &[]), 0x81),
        ("a will QoS of 3", connect_v5("c", 0x1E, &[], &will(&[])), 0x81),
        ("a Receive Maximum of 0", connect_v5("c", 2, b"\x21\x00\x00", &[]), 0x82),
        ("a property twice", connect_v5("c", 2, b"\x21\x00\x01\x21\x00\x01", &[]), 0x82),
    ];
    for (what, bytes, expected) in cases {
        let mut client = RawClient::open(broker.addr(), Version::V5).await;
        client.send(&bytes).await;
        assert_eq!(client.connack().await.reason, Reason(expected), "{what}");
        client.closed().await;
    }
    for (what, bytes, expected) in [
        ("an empty client id with a session", connect_v311("", 0x00), 2),
        ("version 3.1", packet(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01c"), 1),
        ("a wrong password", packet(0x10, b"\x00\x04MQTT\x04\xc2\x00\x00\x00\x01c\x00\x01u\x00\x01x"), 4),
    ] {
        let mut client = RawClient::open(broker.addr(), Version::V311).await;
        client.send(&bytes).await;
        assert_eq!(client.connack().await.reason.to_connect_return_code(), expected, "{what}");
        client.closed().await;
    }
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x30\x03\x00\x01a", b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x00\x00\x00"]
    {
        let mut client = RawClient::open(broker.addr(), Version::V5).await;
        client.send(bytes).await;
        client.closed().await;
    }
    let _first = RawClient::v5(broker.addr(), "first").await;
    let mut second = RawClient::open(broker.addr(), Version::V5).await;
    second.send(&connect_v5("second", 2, &[], &[])).await;
    assert_eq!(second.connack().await.reason, Reason::QUOTA_EXCEEDED);
    assert_eq!(broker.broker.counters().connects_refused.get("quota_exceeded"), 1);
}

/// CONNACK says what differs from the protocol's defaults and from what was asked for (3.2.2.3).
#[tokio::test]
async fn connack_says_what_holds() {
    let broker = TestBroker::with(anonymous(), |options| {
        options.keepalive_min = Duration::from_secs(30);
        options.response_information = Some("replies/${clientid}/".into());
    })
    .await;
    // Session expiry for ever, response information asked for, keep alive 0.
    let connect = connect_v5("", 0x02, b"\x11\xff\xff\xff\xff\x19\x01", &[]);
    let (_client, connack) = RawClient::v5_with(broker.addr(), &connect).await;
    let id = connack.assigned_client_id.unwrap();
    assert_eq!(connack.response_information.as_deref(), Some(&*format!("replies/{id}/")));
    assert_eq!(connack.session_expiry_s, Some(300), "of a client without a user name");
    assert_eq!((connack.receive_max, connack.topic_alias_max), (Some(128), 64));
    assert_eq!((connack.packet_bytes_max, connack.keepalive_s), (Some(1 << 20), None));

    let mut connect = connect_v5("c", 0x02, &[], &[]);
    connect[11] = 10;
    let (_client, connack) = RawClient::v5_with(broker.addr(), &connect).await;
    assert_eq!((connack.keepalive_s, connack.assigned_client_id), (Some(30), None));
}

/// The broker says why it ends a connection: at a takeover, and at its stop (3.14.2.1).
#[tokio::test]
async fn the_broker_says_why_it_ends_a_connection() {
    let broker = TestBroker::start().await;
    let mut first = RawClient::v5(broker.addr(), "c").await;
    let mut second = RawClient::v5(broker.addr(), "c").await;
    assert_eq!(first.disconnected().await, Reason::SESSION_TAKEN_OVER);
    second.ping().await;
    let mut old = RawClient::v311(broker.addr(), "old").await;
    soon("the stop", broker.broker.shutdown()).await;
    assert_eq!(second.disconnected().await, Reason::SERVER_SHUTTING_DOWN);
    old.closed().await;
}

/// A client that is silent for 1.5 times its keep alive is disconnected, and not before (3.1.2.10).
#[tokio::test]
async fn keepalive_is_one_and_a_half() {
    let broker = TestBroker::start().await;
    let mut connect = connect_v5("c", 0x02, &[], &[]);
    connect[11] = 1;
    let before = Instant::now();
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect).await;
    // A packet that has not come in full is no packet.
    client.send(b"\x30\x05\x00").await;
    assert_eq!(client.disconnected().await, Reason::KEEP_ALIVE_TIMEOUT);
    assert!(before.elapsed() >= Duration::from_millis(1_500));
    assert_eq!(broker.broker.counters().disconnects.get("keepalive_timeout"), 1);
}

/// A peer that sends no CONNECT, or only a part of one, is closed.
#[tokio::test]
async fn a_silent_peer_is_closed() {
    let broker = TestBroker::with(anonymous(), |options| options.connect_timeout = Duration::from_millis(50)).await;
    for bytes in [&b""[..], b"\x10\x10\x00\x04MQ"] {
        let mut client = RawClient::open(broker.addr(), Version::V5).await;
        client.send(bytes).await;
        client.closed().await;
    }
    assert_eq!(broker.broker.counters().connects_refused.get("timeout"), 2);
}

/// A message of QoS 1 and 2 that is denied or malformed is refused in its acknowledgement (3.4.2.1, 3.5.2.1).
#[tokio::test]
async fn a_refused_message_has_its_reason_code() {
    let rules = vec![rule(Effect::Deny, Action::Publish, "*", "secret/#")];
    let broker = TestBroker::with(AuthOptions { rules, ..anonymous() }, |_| ()).await;
    let mut client = RawClient::v5(broker.addr(), "c").await;
    let deep = "/".repeat(200);
    for (topic, expected) in [("secret/x", 0x87), (&*deep, 0x90), ("x", 0x10)] {
        client.send(&publish_v5(0x32, topic, 1, &[], b"")).await;
        assert_eq!(client.packet().await, Packet::PubAck(Ack::new(1, Reason(expected))), "{topic}");
        client.send(&publish_v5(0x34, topic, 2, &[], b"")).await;
        assert_eq!(client.packet().await, Packet::PubRec(Ack::new(2, Reason(expected))), "{topic}");
        client.send(b"\x62\x02\x00\x02").await;
        let known = if expected >= 0x80 { Reason::PACKET_ID_NOT_FOUND } else { Reason::SUCCESS };
        assert_eq!(client.packet().await, Packet::PubComp(Ack::new(2, known)), "{topic}");
    }
}

/// Topic aliases work both ways, and properties pass through unchanged (3.3.2.3).
#[tokio::test]
async fn aliases_and_properties_pass_through() {
    let broker = TestBroker::start().await;
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect_v5("c", 0x02, b"\x22\x00\x01", &[])).await;
    client.subscribe("#", 0).await;
    let properties = b"\x01\x01\x03\x00\x01t\x08\x00\x01r\x09\x00\x01d\x26\x00\x01k\x00\x01v\x26\x00\x01k\x00\x01w";
    let with_alias = [&properties[..], b"\x23\x00\x07"].concat();
    client.send(&publish_v5(0x30, "a", 0, &with_alias, b"1")).await;
    client.send(&publish_v5(0x30, "", 0, b"\x23\x00\x07", b"2")).await;
    client.send(&publish_v5(0x30, "b", 0, &[], b"3")).await;
    let first = client.publish().await;
    assert_eq!((&*first.topic, first.topic_alias, &*first.payload), ("a", Some(1), &b"1"[..]));
    let passed = first.properties.unwrap();
    assert_eq!((passed.payload_is_utf8, passed.content_type.as_deref()), (Some(true), Some("t")));
    assert_eq!((passed.response_topic.as_deref(), passed.correlation_data.as_deref()), (Some("r"), Some(&b"d"[..])));
    assert_eq!(passed.user_properties, [("k".into(), "v".into()), ("k".into(), "w".into())]);
    let second = client.publish().await;
    assert_eq!((&*second.topic, second.topic_alias, &*second.payload), ("", Some(1), &b"2"[..]));
    let third = client.publish().await;
    assert_eq!((&*third.topic, third.topic_alias), ("b", None), "the client takes one alias");
}

/// A message's expiry counts down while it waits, and an expired one is not sent (3.3.2.3.3).
#[tokio::test]
async fn an_expired_message_is_not_sent() {
    let broker = TestBroker::start().await;
    let connect = connect_v5("c", 0x00, b"\x11\x00\x00\x00\x64", &[]);
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect).await;
    client.subscribe("#", 1).await;
    client.send(b"\xe0\x00").await;
    client.closed().await;
    let mut publisher = RawClient::v5(broker.addr(), "p").await;
    publisher.send(&publish_v5(0x32, "x", 1, b"\x02\x00\x00\x00\x00", b"expired")).await;
    publisher.send(&publish_v5(0x32, "x", 2, b"\x02\x00\x00\x00\x64", b"fresh")).await;
    publisher.pubacks(2).await;
    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect).await;
    let publish = client.publish().await;
    assert_eq!(&*publish.payload, b"fresh");
    assert!(publish.properties.unwrap().expiry.unwrap() <= Duration::from_secs(100));
    assert_eq!(broker.broker.counters().dropped.expired.get(), 1);
}

/// The session's end: at once without an expiry, later with one, and DISCONNECT may change it (3.1.2.11.2).
#[tokio::test]
async fn a_session_lasts_as_long_as_was_agreed() {
    let broker = TestBroker::start().await;
    let present = async |flags, properties: &[u8], end: &[u8]| {
        let connect = connect_v5("c", flags, properties, &[]);
        let (mut client, connack) = RawClient::v5_with(broker.addr(), &connect).await;
        client.send(end).await;
        client.closed().await;
        connack.session_present
    };
    let expiry = b"\x11\x00\x00\x00\x64";
    assert!(!present(0x00, expiry, b"\xe0\x00").await);
    assert!(present(0x00, expiry, b"\xe0\x07\x00\x05\x11\x00\x00\x00\x00").await);
    assert!(!present(0x00, &[], b"\xe0\x00").await, "DISCONNECT has ended it");
    assert!(!present(0x00, expiry, b"\xe0\x00").await, "it had no expiry");
    assert!(!present(0x02, expiry, b"\xe0\x00").await, "a clean start");
    assert!(present(0x00, &[], b"\xe0\x00").await);
    assert_eq!(broker.broker.stats().clients, 0);
}

/// No Local: not back to the publisher (3.8.3.1).
#[tokio::test]
async fn no_local() {
    let broker = TestBroker::start().await;
    let mut client = RawClient::v5(broker.addr(), "c").await;
    client.subscribe("x", 0x04).await;
    client.send(&publish_v5(0x30, "x", 0, &[], b"own")).await;
    broker.publish_as_gateway("x", "other").await.unwrap();
    // Both are handled by the time of the answer, in either order.
    assert_eq!(&*client.publish().await.payload, b"other");
    client.ping().await;
}
