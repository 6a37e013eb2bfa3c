//! Messages find their subscribers, on both sides, whole and in order.

use polygate::testing::conn::QoS;

use crate::broker::harness::{BOTH, Client, Got, TestBroker, Version};

/// What a device publishes reaches MQTT clients, with its QoS.
#[tokio::test]
async fn device_to_mqtt() {
    let broker = TestBroker::start().await;
    let device = broker.device("d").await;
    for version in BOTH {
        let mut client = Client::connect(version, broker.addr(), "c").await;
        client.subscribe("d/+/#").await;
        for (qos, number) in [(QoS::AtMostOnce, 0), (QoS::AtLeastOnce, 1), (QoS::ExactlyOnce, 2)] {
            device.publish_qos("d/up/x", "hello", qos).await;
            let expected =
                Got::Publish { topic: "d/up/x".to_owned(), payload: "hello".to_owned(), qos: number, retain: false };
            assert_eq!(client.message().await, expected, "{version:?}");
        }
    }
}

/// A message of an MQTT client reaches a device with all fields of a handler's event.
#[tokio::test]
async fn mqtt_to_device() {
    let broker = TestBroker::start().await;
    for version in BOTH {
        let mut device = broker.device("d").await;
        device.subscribe("d/dn/#").await;
        let client = Client::connect(version, broker.addr(), "backend").await;
        for qos in 0..3 {
            client.publish_as("d/dn/x", "hello", qos, false).await;
            let message = device.message().await;
            assert_eq!(&*message.node, "gw-test");
            assert_eq!(message.id.len(), 32);
            assert!(message.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
            assert_eq!(message.qos as u8, qos, "{version:?}");
            assert_eq!((message.from.as_str(), message.topic.as_str()), ("backend", "d/dn/x"));
            assert_eq!(&*message.payload, b"hello");
            assert!(message.timestamp_ms > 1_600_000_000_000);
        }
    }
}

/// A device gets what it publishes itself, once, however many of its filters match.
#[tokio::test]
async fn own_publishes_return_once() {
    let broker = TestBroker::start().await;
    let mut device = broker.device("d").await;
    for filter in ["d/x", "d/+", "d/#", "+/x", "#"] {
        device.subscribe(filter).await;
    }
    device.publish_qos("d/x", "one", QoS::ExactlyOnce).await;
    device.publish("d/x", "two").await;
    let first = device.message().await;
    assert_eq!((first.from.as_str(), first.qos, &*first.payload), ("d", QoS::ExactlyOnce, &b"one"[..]));
    assert_eq!(device.payload().await, "two");
}

/// The gateway's own messages come from "exproto".
#[tokio::test]
async fn the_gateway_publishes_without_a_device() {
    let broker = TestBroker::start().await;
    let mut device = broker.device("d").await;
    let mut client = Client::connect(Version::V5, broker.addr(), "c").await;
    device.subscribe("x").await;
    client.subscribe("x").await;
    broker.publish_as_gateway("x", "hello").await.unwrap();
    assert_eq!(device.message().await.from, "exproto");
    assert_eq!(client.payload().await, "hello");
    assert!(broker.publish_as_gateway("x/+", "hello").await.is_err());
}

/// A thousand messages from either side arrive in the order in which they were published.
#[tokio::test]
async fn order_is_kept() {
    let broker = TestBroker::start().await;
    let mut device = broker.device_with_mailbox("d", 1_001).await;
    let mut client = Client::connect(Version::V3, broker.addr(), "c").await;
    device.subscribe("dn").await;
    client.subscribe("up").await;
    let expected: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();

    for number in &expected {
        client.publish_as("dn", number, 0, false).await;
    }
    client.publish_as("dn", "end", 0, false).await;
    assert_eq!(device.payloads_until("end").await, expected);

    for number in &expected {
        device.publish_qos("up", number, QoS::AtLeastOnce).await;
    }
    device.publish_qos("up", "end", QoS::AtLeastOnce).await;
    assert_eq!(client.payloads_until("end").await, expected);
}

/// Retained messages arrive on the first subscribe of a filter, and again after an unsubscribe.
#[tokio::test]
async fn a_device_gets_retained_messages_on_its_first_subscribe() {
    let broker = TestBroker::start().await;
    for version in BOTH {
        let mut backend = Client::connect(version, broker.addr(), "backend").await;
        backend.retain("conf/a", "old").await;
        backend.retain("conf/a", "new").await;
        backend.retain("conf/b", "b").await;
        backend.retain("conf/gone", "x").await;
        backend.retain("conf/gone", "").await;

        let mut device = broker.device("d").await;
        device.subscribe("conf/+").await;
        let message = device.message().await;
        assert_eq!((message.from.as_str(), &*message.payload), ("backend", &b"new"[..]));
        assert_eq!((message.id.len(), message.qos), (32, QoS::AtLeastOnce));
        assert_eq!(device.payload().await, "b");

        device.subscribe("conf/+").await;
        device.publish("conf/end", "end").await;
        assert_eq!(device.payload().await, "end", "no second time");

        device.session.unsubscribe("conf/+").await.unwrap();
        device.subscribe("conf/+").await;
        assert_eq!(device.payload().await, "new");
        device.subscribe("$share/g/conf/+").await;
        device.publish("conf/end", "end").await;
        assert_eq!(device.payloads_until("end").await, ["b"], "none for a share");
    }
}

/// An MQTT client gets retained messages marked as such, more of them than its queue holds.
#[tokio::test]
async fn an_mqtt_client_gets_all_retained_messages() {
    let broker = TestBroker::start().await;
    let mut backend = Client::connect(Version::V5, broker.addr(), "backend").await;
    for number in 0..2_000 {
        backend.publish_as(&format!("conf/{number}"), "kept", 0, true).await;
    }
    backend.retain("conf/last", "kept").await;
    assert_eq!(broker.broker.stats().retained, 2_001);

    for version in BOTH {
        let mut client = Client::connect(version, broker.addr(), "c").await;
        client.subscribe("conf/#").await;
        for _ in 0..2_001 {
            assert!(matches!(client.message().await, Got::Publish { retain: true, .. }), "{version:?}");
        }
        backend.publish("conf/end", "live").await;
        assert!(matches!(client.message().await, Got::Publish { retain: false, .. }), "{version:?}");
    }
}

/// After an unsubscribe, and after its session's end, nothing arrives.
#[tokio::test]
async fn an_ended_subscription_gets_nothing() {
    let broker = TestBroker::start().await;
    let mut device = broker.device("d").await;
    let publisher = broker.device("p").await;
    device.session.unsubscribe("never/subscribed").await.unwrap();
    device.subscribe("a").await;
    device.subscribe("b").await;
    device.session.unsubscribe("a").await.unwrap();
    publisher.publish("a", "a").await;
    publisher.publish("b", "b").await;
    assert_eq!(device.payload().await, "b");

    assert_eq!(broker.broker.stats().subscriptions, 1);
    device.session.close().await;
    publisher.publish("b", "b").await;
    assert!(device.mails.recv().await.is_none(), "the mailbox has been let go");
    assert_eq!((broker.broker.stats().subscriptions, broker.broker.stats().devices), (0, 1));
}
