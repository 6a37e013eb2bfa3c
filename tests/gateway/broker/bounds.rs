//! Nothing grows without a bound: full mailboxes and queues shed and count, limits are reached.

use bytes::Bytes;
use polygate::testing::conn::QoS;
use polygate::testing::mqtt::{Packet, Reason};
use polygate::testing::pubsub::Error;
use polygate::testing::pubsub::embedded::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::raw::{RawClient, connect_v5, packet, publish_v5, subscribe_v5};
use crate::broker::harness::{Client, Connect, TestBroker, Version, soon};
use polygate::testing::auth::Options as AuthOptions;

/// A device that does not read: its mailbox stays at its bound, and what did not fit is counted.
#[tokio::test]
async fn a_flooded_device_sheds_and_counts() {
    let broker = TestBroker::start().await;
    let mut slow = broker.device_with_mailbox("slow", 8).await;
    let mut quick = broker.device_with_mailbox("quick", 8).await;
    slow.subscribe("flood").await;
    quick.subscribe("flood").await;
    let publisher = broker.device("p").await;
    for _ in 0..10_000 {
        publisher.publish("flood", "x").await;
        assert_eq!(quick.payload().await, "x", "a slow neighbour costs the others nothing");
    }
    assert_eq!(slow.mails.len(), 8);
    assert_eq!((slow.dropped.get(), quick.dropped.get()), (9_992, 0));
    assert_eq!(slow.payload().await, "x");
}

/// An MQTT client that does not read: what waits for it stays bounded, the rest is counted.
#[tokio::test]
async fn a_flooded_mqtt_client_dropped_and_counts() {
    let broker = TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, |options| {
        options.client_queue_max = 100;
    })
    .await;
    let mut deaf = tokio::net::TcpStream::connect(broker.addr()).await.unwrap();
    deaf.write_all(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04deaf").await.unwrap();
    deaf.write_all(b"\x82\x0a\x00\x01\x00\x05flood\x01").await.unwrap();
    let mut acks = [0; 9];
    soon("CONNACK and SUBACK", deaf.read_exact(&mut acks)).await.unwrap();
    assert_eq!(acks, *b"\x20\x02\x00\x00\x90\x03\x00\x01\x01");

    let publisher = broker.device("p").await;
    let payload = Bytes::from(vec![b'x'; 16 * 1024]);
    let messages = 20_000;
    for _ in 0..messages {
        publisher.session.publish("flood", QoS::AtLeastOnce, payload.clone(), None).await.unwrap();
    }
    let shed = broker.broker.counters().dropped.queue_full.get();
    assert!(shed > messages - 5_000, "{shed} of {messages} shed");

    let mut client = Client::connect(Version::V3, broker.addr(), "c").await;
    client.subscribe("other").await;
    publisher.publish("other", "fine").await;
    assert_eq!(client.payload().await, "fine");
}

/// A client that takes small packets only does not get the large ones, and keeps its connection.
#[tokio::test]
async fn a_message_larger_than_a_client_takes_is_left_out() {
    let broker = TestBroker::start().await;
    let connect = Connect { packet_bytes_max: Some(100), ..Connect::default() };
    let mut client = Client::connect_with(Version::V5, broker.addr(), "c", connect).await.unwrap();
    client.subscribe("a").await;
    broker.publish_as_gateway("a", &"x".repeat(100)).await.unwrap();
    broker.publish_as_gateway("a", &"x".repeat(60)).await.unwrap();
    assert_eq!(client.payload().await.len(), 60);
    assert_eq!(broker.broker.counters().dropped.oversize.get(), 1);
}

/// Filters that multiply the cost of matching are refused when they are subscribed to, to MQTT clients and devices alike.
#[tokio::test]
async fn filters_that_are_costly_to_match_are_refused() {
    let broker = TestBroker::start().await;
    let filter = |bits: u32| -> String {
        (0..12).map(|level| if bits >> level & 1 == 0 { "a" } else { "+" }).collect::<Vec<_>>().join("/")
    };
    let mut attacker = RawClient::v5(broker.addr(), "c").await;
    let mut refused = 0;
    for bits in 0..1 << 10 {
        attacker.send(&subscribe_v5(1, &[], &filter(bits), 1)).await;
        match attacker.suback().await[..] {
            [Reason(0x01)] => {}
            [Reason(0x97)] => refused += 1,
            ref other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0);
    assert_eq!(broker.broker.counters().costly_filters_refused.get(), refused);
    attacker.send(&subscribe_v5(1, &[], &["+"; 17].join("/"), 1)).await;
    assert_eq!(attacker.suback().await, [Reason(0x8F)]);

    let device = broker.device("d").await;
    device.subscribe("+/+/cmd").await;
    let mut outcomes = Vec::new();
    for bits in 0..1 << 12 {
        outcomes.push(device.session.subscribe(&filter(bits), QoS::AtMostOnce).await);
    }
    let error = outcomes.into_iter().find_map(Result::err).unwrap();
    assert_eq!(error, Error::FilterTooCostly);
    assert!(error.to_string().contains("1024 steps for one topic name are allowed"), "{error}");
    let error = device.session.subscribe(&["+"; 17].join("/"), QoS::AtMostOnce).await.unwrap_err();
    assert!(error.to_string().ends_with("it has 17 levels \"+\", and 16 are allowed"), "{error}");
}

/// A device has as many subscriptions as it may have, and a payload is as large as it may be.
#[tokio::test]
async fn limits_are_reached_and_said() {
    let broker = TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, |options| {
        options.subscriptions_max = 3;
        options.packet_bytes_max = 1_000;
    })
    .await;
    let device = broker.device("d").await;
    for filter in ["a", "b", "$share/g/a", "a"] {
        device.subscribe(filter).await;
    }
    let full = Err(Error::TooManySubscriptions { subscriptions_max: 3 });
    assert_eq!(device.session.subscribe("c", QoS::AtMostOnce).await, full);
    device.session.unsubscribe("b").await.unwrap();
    device.subscribe("c").await;

    let publish = async |bytes| device.session.publish("a", QoS::AtMostOnce, Bytes::from(vec![0; bytes]), None).await;
    assert_eq!(publish(1_000).await, Ok(()));
    assert_eq!(publish(1_001).await, Err(Error::PayloadTooLarge { bytes: 1_001, bytes_max: 1_000 }));
    for topic in ["", "a/+", "a/#", "a\0"] {
        assert!(matches!(
            device.session.publish(topic, QoS::AtMostOnce, Bytes::new(), None).await,
            Err(Error::Topic(_))
        ));
    }
    for filter in ["", "a/#/b", "$share/g", "a+"] {
        assert!(matches!(device.session.subscribe(filter, QoS::AtMostOnce).await, Err(Error::Topic(_))));
    }
}

/// Retained messages that do not fit are passed on all the same, and counted.
#[tokio::test]
async fn a_full_store_keeps_no_more() {
    let broker = TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, |options| {
        options.retained_max = 2;
    })
    .await;
    let mut device = broker.device("d").await;
    device.subscribe("#").await;
    let mut client = Client::connect(Version::V5, broker.addr(), "c").await;
    for topic in ["a", "b", "c"] {
        client.retain(topic, topic).await;
        assert_eq!(device.payload().await, topic);
    }
    assert_eq!(broker.broker.stats().retained, 2);
    assert_eq!(broker.broker.counters().retained_refused.get(), 1);
}

/// A topic of sixty thousand levels, which would make a deep tree of nodes, is refused.
#[tokio::test]
async fn a_bottomless_topic_harms_nobody() {
    let broker = TestBroker::start().await;
    let deep = "/".repeat(60_000);
    let mut client = Client::connect(Version::V5, broker.addr(), "c").await;
    assert_ne!(client.try_subscribe(&deep).await, "Success(AtMostOnce)");
    client.publish_as(&deep, "x", 0, true).await;
    client.subscribe("a").await;
    client.publish("a", "still here").await;
    assert_eq!(client.payload().await, "still here");
    assert_eq!(broker.broker.stats().retained, 0);
}

/// Sessions whose queues fill up use half of the memory for queues; the others still get their messages.
#[tokio::test]
async fn sessions_with_full_queues_leave_room_for_the_others() {
    let adjust = |options: &mut Options| options.queued_bytes_max = 1 << 20;
    let broker = TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, adjust).await;
    let device = broker.device("d").await;
    let connect = |client_id: &str| connect_v5(client_id, 0x00, b"\x11\x00\x00\x00\x64", &[]);
    let leave = async |client_id: &str, filter: &str| {
        let (mut client, _) = RawClient::v5_with(broker.addr(), &connect(client_id)).await;
        client.subscribe(filter, 0x01).await;
        client.send(b"\xe0\x00").await;
        client.closed().await;
    };
    for number in 0..8 {
        leave(&format!("absent-{number}"), "flood").await;
    }
    leave("good", "news").await;
    let flood = "x".repeat(8 << 10);
    for _ in 0..200 {
        device.publish_qos("flood", &flood, QoS::AtLeastOnce).await;
    }
    assert!(broker.broker.counters().dropped.broker_full.get() > 0);
    for number in 0..10 {
        device.publish_qos("news", &number.to_string(), QoS::AtLeastOnce).await;
    }
    let (mut good, connack) = RawClient::v5_with(broker.addr(), &connect("good")).await;
    assert!(connack.session_present);
    for number in 0..10 {
        assert_eq!(good.publish().await.payload, number.to_string());
    }
}

/// Subscriptions likewise.
#[tokio::test]
async fn sessions_with_many_subscriptions_leave_room_for_the_others() {
    let adjust = |options: &mut Options| options.all_subscription_bytes_max = 1 << 20;
    let broker = TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, adjust).await;
    let mut greedy = RawClient::v5(broker.addr(), "greedy").await;
    let mut refused = false;
    for number in 0..2_000 {
        greedy.send(&subscribe_v5(1, &[], &format!("{number}/{}", "x".repeat(500)), 0)).await;
        refused = greedy.suback().await == [Reason::QUOTA_EXCEEDED];
        if refused {
            break;
        }
    }
    assert!(refused);
    let mut good = RawClient::v5(broker.addr(), "good").await;
    good.subscribe("news", 0x00).await;
}

/// The memory of all subscriptions together has a bound: the client that would exceed it is refused, whoever has taken the
/// others, until one of them ends.
#[tokio::test]
async fn all_subscriptions_together_are_bounded() {
    let broker = TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, |options| {
        options.all_subscription_bytes_max = 2_000;
    })
    .await;
    let mut first = RawClient::v5(broker.addr(), "first").await;
    for number in 0..7 {
        first.subscribe(&format!("filter/{number}"), 1).await;
    }
    let held = broker.broker.stats().subscription_bytes;
    assert_eq!(held, 7 * (256 + "filter/0".len()));
    let mut second = RawClient::v5(broker.addr(), "second").await;
    second.send(&subscribe_v5(1, &[], "filter/0", 1)).await;
    assert_eq!(second.suback().await, [Reason::QUOTA_EXCEEDED]);
    assert_eq!(broker.broker.stats().subscription_bytes, held);
    assert_eq!(broker.broker.counters().subscribes_denied.get(), 1);

    first.send(&packet(0xa2, b"\x00\x02\x00\x00\x08filter/3")).await;
    first.packet().await;
    second.subscribe("filter/0", 1).await;
    assert_eq!(broker.broker.stats().subscription_bytes, held);
}

/// The memory of all queues together has a bound: what exceeds it is dropped and counted, and what a client takes makes room.
#[tokio::test]
async fn all_queues_together_are_bounded() {
    let broker = TestBroker::with(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }, |options| {
        options.queued_bytes_max = 20_000;
    })
    .await;
    let keeps = b"\x11\x00\x00\x0e\x10";
    for id in ["a", "b"] {
        let (mut client, _) = RawClient::v5_with(broker.addr(), &connect_v5(id, 0x02, keeps, &[])).await;
        client.subscribe("x", 1).await;
        client.send(b"\xe0\x00").await;
        client.closed().await;
    }
    let device = broker.device("d").await;
    let payload = "x".repeat(1_000);
    for _ in 0..20 {
        device.publish_qos("x", &payload, QoS::AtLeastOnce).await;
    }
    let (stats, dropped) = (broker.broker.stats(), &broker.broker.counters().dropped);
    assert!((18_000..=20_000).contains(&stats.queued_bytes), "{stats:?}");
    let queued = 40 - dropped.broker_full.get();
    assert!((14..=16).contains(&queued), "{queued} are queued");

    let (mut client, _) = RawClient::v5_with(broker.addr(), &connect_v5("a", 0x00, keeps, &[])).await;
    for _ in 0..queued.div_ceil(2) {
        let id = client.publish().await.packet_id.unwrap();
        client.send(&packet(0x40, &id.to_be_bytes())).await;
    }
    client.ping().await;
    assert!(broker.broker.stats().queued_bytes < 12_000, "{:?}", broker.broker.stats());
    let before = dropped.broker_full.get();
    device.publish_qos("x", &payload, QoS::AtLeastOnce).await;
    assert_eq!(dropped.broker_full.get(), before);
}

/// Six clients that subscribe and publish at the same time all get every SUBACK and PUBACK, whatever else comes between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledgement_is_late_under_six_clients() {
    let broker = TestBroker::start().await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..6 {
        let addr = broker.addr();
        clients.spawn(async move {
            let mut client = RawClient::v5(addr, &format!("c{number}")).await;
            for round in 0..300u16 {
                client.send(&subscribe_v5(round + 1, &[], &format!("topic/{}", round % 7), 1)).await;
                client.send(&publish_v5(0x32, &format!("topic/{}", round % 5), 1_000 + round, &[], b"x")).await;
                let (mut has_suback, mut has_puback) = (false, false);
                while !(has_suback && has_puback) {
                    match client.packet().await {
                        Packet::SubAck(suback) if suback.packet_id == round + 1 => has_suback = true,
                        Packet::PubAck(puback) if puback.packet_id == 1_000 + round => has_puback = true,
                        Packet::Publish(publish) => {
                            client.send(&packet(0x40, &publish.packet_id.unwrap().to_be_bytes())).await;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}
