//! What outlives the end of the broker: retained messages, sessions, queued messages, wills.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use polygate::testing::auth::Options as AuthOptions;
use polygate::testing::conn::QoS;
use polygate::testing::mqtt::packet::Ack;
use polygate::testing::mqtt::{Packet, Reason};
use polygate::testing::pubsub::embedded::Durability;
use tempfile::TempDir;

use super::raw::{RawClient, connect_v5, packet, publish_v5};
use crate::broker::harness::{Client, Connect, Got, TestBroker, Version};

/// Session Expiry Interval of an hour.
const HOUR: &[u8] = b"\x11\x00\x00\x0e\x10";

async fn broker(dir: &Path, durability: Durability) -> TestBroker {
    TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, |options| {
        options.state_dir = Some(dir.to_owned());
        options.durability = durability;
    })
    .await
}

#[tokio::test]
async fn a_stop_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path(), Durability::Periodic).await;
    let keeps = Connect { keeps_session: true, ..Connect::default() };
    let mut subscriber = Client::connect_with(Version::V5, first.addr(), "c", keeps.clone()).await.unwrap();
    subscriber.subscribe("queue/+").await;
    subscriber.subscribe("gone").await;
    drop(subscriber);
    let mut publisher = Client::connect(Version::V5, first.addr(), "p").await;
    publisher.retain("kept/1", "one").await;
    publisher.retain("kept/2", "two").await;
    publisher.retain("kept/2", "three").await;
    publisher.retain("kept/1", "").await;
    for payload in ["a", "b", "c"] {
        assert!(publisher.publish("queue/x", payload).await.contains("Success"));
    }
    first.broker.shutdown().await;

    let second = broker(dir.path(), Durability::Periodic).await;
    let stats = second.broker.stats();
    assert_eq!((stats.clients, stats.subscriptions, stats.retained), (1, 2, 1));
    assert!(stats.queued_bytes > 0 && stats.subscription_bytes > 0, "{stats:?}");
    let mut subscriber = Client::connect_with(Version::V5, second.addr(), "c", keeps).await.unwrap();
    for payload in ["a", "b", "c"] {
        assert_eq!(subscriber.payload().await, payload);
    }
    // The subscription is there, and a new one gets what is retained.
    second.publish_as_gateway("queue/y", "d").await.unwrap();
    assert_eq!(subscriber.payload().await, "d");
    subscriber.subscribe("kept/#").await;
    let kept = Got::Publish { topic: "kept/2".to_owned(), payload: "three".to_owned(), qos: 1, retain: true };
    assert_eq!(subscriber.message().await, kept);
}

#[tokio::test]
async fn without_durability_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path(), Durability::None).await;
    Client::connect(Version::V5, first.addr(), "p").await.retain("a", "x").await;
    first.broker.shutdown().await;
    assert_eq!(broker(dir.path(), Durability::None).await.broker.stats().retained, 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Both directions of QoS 2 go on where they were: what was received is not passed on again, what was sent has its packet
/// identifier, what was released is not sent again.
#[tokio::test]
async fn what_is_in_flight_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path(), Durability::EveryMessage).await;
    let (mut client, _) = RawClient::v5_with(first.addr(), &connect_v5("c", 0x02, HOUR, &[])).await;
    client.subscribe("x", 2).await;
    let device = first.device("d").await;
    for payload in ["released", "sent", "queued"] {
        device.publish_qos("x", payload, QoS::ExactlyOnce).await;
    }
    let ids: Vec<u16> = [client.publish().await, client.publish().await].iter().map(|p| p.packet_id.unwrap()).collect();
    assert_eq!(ids, [1, 2]);
    client.publish().await;
    client.send(&packet(0x50, &1u16.to_be_bytes())).await;
    assert_eq!(client.packet().await, Packet::PubRel(Ack::new(1, Reason::SUCCESS)));
    client.send(&publish_v5(0x34, "other", 7, &[], b"once")).await;
    assert_eq!(client.packet().await, Packet::PubRec(Ack::new(7, Reason::NO_MATCHING_SUBSCRIBERS)));
    first.broker.shutdown().await;

    let second = broker(dir.path(), Durability::EveryMessage).await;
    let mut other = second.device("d").await;
    other.subscribe("other").await;
    let (mut client, connack) = RawClient::v5_with(second.addr(), &connect_v5("c", 0x00, HOUR, &[])).await;
    assert!(connack.session_present);
    assert_eq!(client.packet().await, Packet::PubRel(Ack::new(1, Reason::SUCCESS)));
    for (id, payload) in [(2, "sent"), (3, "queued")] {
        let publish = client.publish().await;
        assert_eq!((publish.packet_id, publish.dup, &publish.payload[..]), (Some(id), true, payload.as_bytes()));
    }
    client.send(&publish_v5(0x3c, "other", 7, &[], b"once")).await;
    assert_eq!(client.packet().await, Packet::PubRec(Ack::new(7, Reason::SUCCESS)), "a duplicate");
    client.send(&packet(0x62, &7u16.to_be_bytes())).await;
    assert_eq!(client.packet().await, Packet::PubComp(Ack::new(7, Reason::SUCCESS)));
    client.send(&publish_v5(0x34, "other", 7, &[], b"next")).await;
    assert_eq!(other.payload().await, "next");
}

/// What is acknowledged, to MQTT clients and to devices that ask for it, is on the disk at that moment.
#[tokio::test]
async fn an_acknowledgement_waits_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path(), Durability::EveryMessage).await;
    let (mut client, _) = RawClient::v5_with(first.addr(), &connect_v5("c", 0x02, HOUR, &[])).await;
    client.subscribe("x", 1).await;
    client.send(b"\xe0\x00").await;
    client.closed().await;
    let device = first.device("d").await;
    let confirm = Some(Duration::from_secs(10));
    for number in 0..20 {
        let payload = Bytes::from(number.to_string());
        device.session.publish("x", QoS::AtLeastOnce, payload, confirm).await.unwrap();
    }
    let image = crash(dir.path());
    let crashed = broker(image.path(), Durability::EveryMessage).await;
    let (mut client, connack) = RawClient::v5_with(crashed.addr(), &connect_v5("c", 0x00, HOUR, &[])).await;
    assert!(connack.session_present);
    for number in 0..20 {
        assert_eq!(client.publish().await.payload, number.to_string());
    }
    let mut publisher = Client::connect(Version::V5, first.addr(), "p").await;
    publisher.retain("kept", "r").await;
    let crashed = broker(crash(dir.path()).path(), Durability::EveryMessage).await;
    assert_eq!(crashed.broker.stats().retained, 1);
}

/// The directory as a crash at this moment would leave it.
fn crash(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("state.log"), image.path().join("state.log")).unwrap();
    image
}

/// A will with a delay is published although the broker has ended meanwhile; that of a client that was connected when the
/// broker was killed begins its delay at the next start.
#[tokio::test]
async fn a_delayed_will_outlives_the_broker() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path(), Durability::EveryMessage).await;
    // Will properties with a Will Delay Interval of 1 s, its topic and payload.
    let will = b"\x05\x18\x00\x00\x00\x01\x00\x04will\x00\x04late";
    let (mut client, _) = RawClient::v5_with(first.addr(), &connect_v5("c", 0x06, HOUR, will)).await;
    client.subscribe("x", 1).await;
    let crashed = broker(crash(dir.path()).path(), Durability::EveryMessage).await;
    let mut watcher = crashed.device("w").await;
    watcher.subscribe("will").await;
    assert_eq!(watcher.payload().await, "late");
    drop(client);
    first.broker.shutdown().await;

    let second = broker(dir.path(), Durability::EveryMessage).await;
    let mut watcher = second.device("w").await;
    watcher.subscribe("will").await;
    assert_eq!(watcher.payload().await, "late");
    second.broker.shutdown().await;
    let third = broker(dir.path(), Durability::EveryMessage).await;
    assert_eq!(third.broker.stats().clients, 1, "the session waits for its client");
}

/// The end of the file that a crash has cut is left out; a file that is damaged elsewhere is kept aside.
#[tokio::test]
async fn a_damaged_state_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("state.log");
    let first = broker(dir.path(), Durability::EveryMessage).await;
    let mut publisher = Client::connect(Version::V5, first.addr(), "p").await;
    for topic in ["a", "b", "c"] {
        publisher.retain(topic, topic).await;
    }
    first.broker.shutdown().await;

    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, &whole[..whole.len() - 3]).unwrap();
    let torn = broker(dir.path(), Durability::EveryMessage).await;
    assert_eq!(torn.broker.stats().retained, 2);
    torn.publish_as_gateway("a", "x").await.unwrap();
    torn.broker.shutdown().await;

    let mut damaged = whole;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&log, &damaged).unwrap();
    let second = broker(dir.path(), Durability::EveryMessage).await;
    assert!(second.broker.stats().retained < 3);
    assert_eq!(second.broker.counters().journal.damaged.get(), 1);
    let kept = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(kept.into_iter().any(|name| name.starts_with("state.damaged-")));
    Client::connect(Version::V5, second.addr(), "p").await.retain("d", "d").await;
    let retained = second.broker.stats().retained;
    second.broker.shutdown().await;
    assert_eq!(broker(dir.path(), Durability::EveryMessage).await.broker.stats().retained, retained);
}

/// Two gateways cannot have one state.
#[tokio::test]
async fn a_state_has_one_broker() {
    use polygate::testing::pubsub::embedded::{Broker, Options};

    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path(), Durability::Periodic).await;
    let options = Options { state_dir: Some(dir.path().to_owned()), ..Options::default() };
    let telemetry = polygate::testing::telemetry::Telemetry::new();
    let error = Broker::start(options, first.auth.clone(), &telemetry, None).await.unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "another process uses the directory");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
}
