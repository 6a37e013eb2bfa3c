//! The recorded Teltonika trackers of examples/, against the guest that is written in TypeScript.

use polygate::testing::conversation::{Action, Conversation, Payload};
use serde_json::Value;

use crate::harness::mqtt::MqttClient;
use crate::harness::peer::RawPeer;
use crate::harness::recorded::{play_all, recorded};
use crate::harness::transport::Transport;
use crate::harness::{GatewayUnderTest, Setup};

const LOGIN: &[u8] = b"\x00\x0f350000000000001";

/// Every tracker gets the recorded answers, and MQTT clients the recorded messages.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_trackers() {
    let gateway = Setup::guest("large/teltonika").start().await;
    play_all(&gateway, &recorded("examples/conversations/teltonika")).await;
}

/// The other way round: each recorded position, put back into bytes, is found in its packet, in order, with as many
/// elements as the packet promises behind it; and there are as many positions as the packet says it has.
#[test]
fn every_position_is_published() {
    let mut positions = 0;
    for conversation in trackers() {
        let Some(packet) = packet_of_positions(&conversation) else { continue };
        let published = published(&conversation, "position");
        assert_eq!(published.len(), usize::from(packet[9]), "{}", conversation.name());
        let mut rest = &packet[10..];
        for position in &published {
            let bytes = gnss(position);
            let at = rest.windows(bytes.len()).position(|window| window == bytes);
            let at = at.unwrap_or_else(|| panic!("{}: {position} is not in the packet", conversation.name()));
            rest = &rest[at + bytes.len()..];
            let (event, elements) = match packet[8] {
                0x08 => (rest[0].into(), rest[1].into()),
                0x8e => (u16::from_be_bytes([rest[0], rest[1]]), u16::from_be_bytes([rest[2], rest[3]])),
                _ => (u16::from_be_bytes([rest[0], rest[1]]), rest[3].into()),
            };
            assert_eq!(position["event"], event, "{}", conversation.name());
            assert_eq!(position["io"].as_object().unwrap().len(), usize::from(elements), "{}", conversation.name());
        }
        positions += published.len();
    }
    assert_eq!(positions, 70);
}

/// Every element of a packet of codec 8 Extended stands in it, with its id before its value.
#[test]
fn every_element_has_its_value() {
    let mut elements = 0;
    for conversation in trackers() {
        let Some(packet) = packet_of_positions(&conversation).filter(|packet| packet[8] == 0x8e) else { continue };
        for position in published(&conversation, "position") {
            for (id, value) in position["io"].as_object().unwrap() {
                let id = id.parse::<u16>().unwrap().to_be_bytes();
                let written: Vec<Vec<u8>> = match value {
                    Value::String(hex) => {
                        let bytes = unhex(hex);
                        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                        vec![[&id, &bytes[..]].concat(), [&id, &length[..], &bytes].concat()]
                    }
                    number => {
                        let bytes = number.as_u64().unwrap().to_be_bytes();
                        [1, 2, 4].iter().map(|width| [&id, &bytes[8 - width..]].concat()).collect()
                    }
                };
                let found = written.iter().any(|bytes| packet.windows(bytes.len()).any(|window| window == bytes));
                assert!(found, "{}: {position} has {value}", conversation.name());
                elements += 1;
            }
        }
    }
    assert!(elements > 200, "{elements}");
}

/// However a login and a packet are cut in two, the answers are the same.
#[tokio::test(flavor = "multi_thread")]
async fn packets_are_cut_anywhere() {
    let gateway = Setup::guest("large/teltonika").start().await;
    let stream = [LOGIN, b"\xff", &one_record(), b"\xff\xff", &one_record()].concat();
    for cut in 0..=stream.len() {
        let mut tracker = gateway.connect().await;
        tracker.send(&stream[..cut]).await;
        tokio::task::yield_now().await;
        tracker.send(&stream[cut..]).await;
        assert_eq!(tracker.receive(9).await, b"\x01\0\0\0\x01\0\0\0\x01", "cut at {cut}");
    }
    let mut tracker = gateway.connect().await;
    for byte in &stream {
        tracker.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(tracker.receive(9).await, b"\x01\0\0\0\x01\0\0\0\x01");
}

/// What is no login ends the connection without an answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_login() {
    let gateway = Setup::guest("large/teltonika").start().await;
    for login in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\x10", b"\0\x0e", b"\0\x0f35000000000000x", &[0; 17]] {
        let mut tracker = gateway.connect().await;
        tracker.send(login).await;
        tracker.expect_closed().await;
    }
}

/// A tracker whose authentication is refused gets an answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login() {
    let gateway = Setup::guest("large/teltonika").auth("allow_anonymous = false\n").start().await;
    let mut tracker = gateway.connect().await;
    tracker.send([LOGIN, &one_record()].concat()).await;
    assert_eq!(tracker.receive_to_end().await, b"\0");
}

/// A packet that cannot be one ends the connection as soon as that is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_packet() {
    let gateway = Setup::guest("large/teltonika").start().await;
    let mut wrong_crc = one_record();
    *wrong_crc.last_mut().unwrap() ^= 1;
    let wrong_count = packet(&[0x08, 1, 2]);
    for bytes in [&b"\0\0\x01"[..], b"\0\0\0\0\0\0\0\x02", b"\0\0\0\0\0\0\x20\x01", &wrong_crc, &wrong_count] {
        let mut tracker = login(&gateway).await;
        tracker.send(bytes).await;
        tracker.expect_closed().await;
    }
}

/// The largest packet is taken; it is of no known codec, so it is passed on, and acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_packet() {
    let gateway = Setup::guest("large/teltonika").start().await;
    let mut tracker = login(&gateway).await;
    let mut data = vec![0; 8192];
    (data[0], data[1], data[8191]) = (0x42, 7, 7);
    tracker.send(packet(&data)).await;
    tracker.expect(b"\0\0\0\x07").await;
}

/// Records that the broker does not take are not acknowledged, so the tracker keeps them.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_refused_are_not_acknowledged() {
    let rule = "[[auth.rules]]\neffect = \"deny\"\naction = \"publish\"\ntopics = [\"teltonika/#\"]\n";
    let gateway = Setup::guest("large/teltonika").auth(&format!("allow_anonymous = true\n{rule}")).start().await;
    let mut tracker = login(&gateway).await;
    tracker.send(one_record()).await;
    tracker.expect(b"\0\0\0\0").await;
}

/// A tracker that is silent is ended, with the keepalive that the settings say.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_tracker() {
    let gateway = Setup::guest("large/teltonika").handler("settings = { keepalive_s = \"1\" }").start().await;
    login(&gateway).await.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"keepalive_expired\"}", 1.0).await;
}

/// A datagram is acknowledged on its own, and a tracker whose address changes is one client all the same: its newest flow ends
/// the older one.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams() {
    let gateway = Setup::guest("large/teltonika").over(Transport::Udp).start().await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.subscribe("teltonika/+/position").await;
    let conversations = recorded("examples/conversations/teltonika-udp");
    let datagram = conversations.iter().flat_map(Conversation::steps).find_map(|(_, step)| match &step.action {
        Action::FromPeer(bytes) if bytes.starts_with(b"\0\x5f") => Some(bytes.to_vec()),
        _ => None,
    });
    let datagram = datagram.unwrap();
    for _ in 0..2 {
        let mut tracker = RawPeer::connect_udp(gateway.listener()).await;
        for _ in 0..2 {
            tracker.send(&datagram).await;
            tracker.expect(b"\0\x05\xca\xfe\x01\x07\x01").await;
            let (topic, _) = client.next_text().await;
            assert_eq!(topic, "teltonika/352093086403655/position");
        }
    }
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"replaced\"}", 1.0).await;
}

/// Numbers of other lengths log in where the settings allow them, and commands go out in the codec that they say.
#[tokio::test(flavor = "multi_thread")]
async fn other_logins_and_commands() {
    let gateway = Setup::guest("large/teltonika")
        .handler("settings = { imei_length = \"any\", command_codec = \"14\" }")
        .start()
        .await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    let mut tracker = gateway.connect().await;
    tracker.send(b"\0\x0812345678").await;
    tracker.expect(b"\x01").await;
    client.publish("teltonika/12345678/command", "getver").await;
    let data = b"\x0e\x01\x05\0\0\0\x0e\0\0\0\0\x12\x34\x56\x78getver\x01";
    tracker.expect(packet(data)).await;
}

async fn login(gateway: &GatewayUnderTest) -> RawPeer {
    let mut tracker = gateway.connect().await;
    tracker.send(LOGIN).await;
    tracker.expect(b"\x01").await;
    tracker
}

/// Those that were recorded, without the cases that other projects made up.
fn trackers() -> impl Iterator<Item = Conversation> {
    let conversations = recorded("examples/conversations/teltonika").into_iter();
    conversations.filter(|conversation| !conversation.name().contains("public-"))
}

/// A packet of codec 8 with a record of zeros and no elements.
fn one_record() -> Vec<u8> {
    let mut data = vec![0; 2 + 24 + 6 + 1];
    (data[0], data[1], data[32]) = (8, 1, 1);
    packet(&data)
}

fn packet(data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&[0; 4], &length.to_be_bytes()[..], data, &crc16(data).to_be_bytes()].concat()
}

/// CRC-16/IBM.
fn crc16(data: &[u8]) -> u32 {
    data.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 })
    })
}

/// The packet in a conversation, if it is whole and of codec 8, 8 Extended or 16.
fn packet_of_positions(conversation: &Conversation) -> Option<Vec<u8>> {
    conversation.steps().find_map(|(_, step)| match &step.action {
        Action::FromPeer(bytes) if bytes.starts_with(&[0; 4]) => {
            let (data, crc) = bytes[8..].split_at(bytes.len() - 12);
            let whole = usize::from(u16::from_be_bytes([bytes[6], bytes[7]])) == data.len();
            let holds = whole && crc == crc16(data).to_be_bytes() && matches!(data[0], 0x08 | 0x8e | 0x10);
            holds.then(|| bytes.to_vec())
        }
        _ => None,
    })
}

fn published(conversation: &Conversation, what: &str) -> Vec<Value> {
    let steps = conversation.steps().filter_map(|(_, step)| match &step.action {
        Action::Publish(message) if message.topic.ends_with(what) => Some(&message.payload),
        _ => None,
    });
    steps
        .map(|payload| match payload {
            Payload::Json(value) => value.clone(),
            other => panic!("expected JSON, found {other:?}"),
        })
        .collect()
}

/// A position as the tracker wrote it: time, priority, longitude, latitude, altitude, course, satellites, speed.
fn gnss(position: &Value) -> Vec<u8> {
    let number = |name: &str| position[name].as_i64().unwrap();
    let degrees = |name: &str| format!("{:.0}", position[name].as_f64().unwrap() * 1e7).parse::<i32>().unwrap();
    let priority = ["low", "high", "panic"].iter().position(|name| position["priority"] == *name).unwrap();
    let mut bytes = milliseconds(position["time"].as_str().unwrap()).to_be_bytes().to_vec();
    bytes.push(u8::try_from(priority).unwrap());
    bytes.extend(degrees("longitude").to_be_bytes());
    bytes.extend(degrees("latitude").to_be_bytes());
    bytes.extend(i16::try_from(number("altitude_m")).unwrap().to_be_bytes());
    bytes.extend(u16::try_from(number("course_deg")).unwrap().to_be_bytes());
    bytes.push(u8::try_from(number("satellites")).unwrap());
    bytes.extend(u16::try_from(number("speed_kmh")).unwrap().to_be_bytes());
    bytes
}

/// Milliseconds since 1970 of a time like `2025-06-13T15:18:07.000Z`.
fn milliseconds(time: &str) -> u64 {
    let time = humantime::parse_rfc3339(time).unwrap();
    u64::try_from(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
