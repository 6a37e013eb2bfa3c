//! Sessions come, are taken over and go; brokers live side by side.

use bytes::Bytes;
use polygate::testing::conn::{CloseReason, QoS};
use polygate::testing::pubsub::Error;

use crate::broker::harness::{BOTH, Client, Connect, TestBroker, Version, soon};

/// A second device with the same client id: the first ends, and its end harms the second in nothing.
#[tokio::test]
async fn the_newest_device_with_a_client_id_wins() {
    let broker = TestBroker::start().await;
    let mut old = broker.device("d").await;
    old.subscribe("a").await;
    let mut new = broker.device("d").await;
    assert_eq!(old.end().await, CloseReason::Replaced);
    new.subscribe("a").await;

    assert_eq!(old.session.publish("a", QoS::AtMostOnce, Bytes::new()).await, Err(Error::Replaced));
    assert_eq!(old.session.subscribe("b", QoS::AtMostOnce).await, Err(Error::Replaced));
    assert_eq!(old.session.unsubscribe("a").await, Err(Error::Replaced));
    old.session.close().await;

    broker.publish_as_gateway("a", "hello").await.unwrap();
    assert_eq!(new.payload().await, "hello");
    assert!(soon("the old mailbox is let go", old.mails.recv()).await.is_none());

    let mut third = broker.device("d").await;
    assert_eq!(new.end().await, CloseReason::Replaced);
    third.subscribe("a").await;
    broker.publish_as_gateway("a", "hello").await.unwrap();
    assert_eq!(third.payload().await, "hello");
    assert_eq!(broker.broker.stats().devices, 1);
}

/// A device whose mailbox is full does not hold up the one that takes its place.
#[tokio::test]
async fn a_stuck_device_can_be_taken_over() {
    let broker = TestBroker::start().await;
    let stuck = broker.device_with_mailbox("d", 1).await;
    stuck.subscribe("a").await;
    for _ in 0..100 {
        stuck.publish("a", "flood").await;
    }
    let mut new = soon("the takeover", broker.device("d")).await;
    new.subscribe("a").await;
    new.publish("a", "hello").await;
    assert_eq!(new.payload().await, "hello");
}

/// A device and an MQTT client with one client id do not know of each other.
#[tokio::test]
async fn a_device_and_an_mqtt_client_may_have_one_client_id() {
    let broker = TestBroker::start().await;
    for version in BOTH {
        let mut device = broker.device("a").await;
        device.subscribe("x").await;
        let mut client = Client::connect(version, broker.addr(), "a").await;
        client.subscribe("x").await;
        device.publish("x", "from the device").await;
        assert_eq!(device.payload().await, "from the device");
        assert_eq!(client.payload().await, "from the device");

        client.publish("x", "from the client").await;
        assert_eq!(device.message().await.from, "a");
        assert_eq!(client.payload().await, "from the client");

        drop(device);
        broker.publish_as_gateway("x", "still here").await.unwrap();
        assert_eq!(client.payload().await, "still here");
    }
}

/// A second MQTT client with the same client id: the first is disconnected, and the second's
/// subscriptions work.
#[tokio::test]
async fn the_newest_mqtt_client_with_a_client_id_wins() {
    let broker = TestBroker::start().await;
    for version in BOTH {
        let mut old = Client::connect(version, broker.addr(), "c").await;
        old.subscribe("a").await;
        let mut new = Client::connect(version, broker.addr(), "c").await;
        old.ended().await;
        new.subscribe("a").await;
        broker.publish_as_gateway("a", "hello").await.unwrap();
        assert_eq!(new.payload().await, "hello", "{version:?}");
    }
}

/// A session that its MQTT client wants kept gets its messages when the client is back.
#[tokio::test]
async fn a_kept_session_waits_for_its_mqtt_client() {
    let broker = TestBroker::start().await;
    let kept = Connect { keeps_session: true, ..Connect::default() };
    for version in BOTH {
        let client_id = format!("{version:?}");
        let mut client = Client::connect_with(version, broker.addr(), &client_id, kept.clone()).await.unwrap();
        client.subscribe("a").await;
        drop(client);
        let device = broker.device("d").await;
        device.publish_qos("a", "while you were away", QoS::AtLeastOnce).await;
        let mut client = Client::connect_with(version, broker.addr(), &client_id, kept.clone()).await.unwrap();
        assert_eq!(client.payload().await, "while you were away", "{version:?}");
        device.publish_qos("a", "and now", QoS::AtLeastOnce).await;
        assert_eq!(client.payload().await, "and now", "{version:?}");
    }
}

/// The will of an MQTT client that vanishes reaches devices.
#[tokio::test]
async fn a_will_reaches_devices() {
    let broker = TestBroker::start().await;
    for version in BOTH {
        let mut device = broker.device("d").await;
        device.subscribe("wills/#").await;
        let connect = Connect { will: Some("wills/c"), ..Connect::default() };
        let client = Client::connect_with(version, broker.addr(), "c", connect).await.unwrap();
        drop(client);
        assert_eq!(device.message().await.from, "c", "{version:?}");
    }
}

/// Twenty brokers in one process: each delivers its own messages only.
#[tokio::test]
async fn many_brokers_in_one_process() {
    let mut brokers = Vec::new();
    for _ in 0..20 {
        let broker = TestBroker::start().await;
        let client = Client::connect(Version::V5, broker.addr(), "c").await;
        let device = broker.device("d").await;
        brokers.push((broker, client, device));
    }
    for (_, client, device) in &mut brokers {
        client.subscribe("up").await;
        device.subscribe("dn").await;
    }
    for (number, (_, client, device)) in brokers.iter_mut().enumerate() {
        device.publish("up", &number.to_string()).await;
        client.publish("dn", &number.to_string()).await;
    }
    for (number, (_, client, device)) in brokers.iter_mut().enumerate() {
        assert_eq!(client.payload().await, number.to_string());
        assert_eq!(device.payload().await, number.to_string());
    }
}

/// Shutdown disconnects MQTT clients, closes the port and refuses devices.
#[tokio::test]
async fn a_stopped_broker_is_quiet() {
    let broker = TestBroker::start().await;
    let addr = broker.addr();
    let mut v3 = Client::connect(Version::V3, addr, "v3").await;
    let mut v5 = Client::connect(Version::V5, addr, "v5").await;
    let device = broker.device("d").await;
    device.subscribe("a").await;
    v3.retain("a", "x").await;

    soon("the shutdown", broker.broker.shutdown()).await;
    v3.ended().await;
    v5.ended().await;
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
    assert_eq!(device.session.publish("a", QoS::AtMostOnce, Bytes::new()).await, Err(Error::Stopped));
    assert_eq!(device.session.subscribe("b", QoS::AtMostOnce).await, Err(Error::Stopped));
    assert_eq!(broker.publish_as_gateway("a", "x").await, Err(Error::Stopped));
    let stats = broker.broker.stats();
    assert_eq!((stats.clients, stats.subscriptions, stats.retained), (0, 0, 0));
    broker.broker.shutdown().await;
}

/// The port of a stopped broker can be taken at once; a taken one is said to be.
#[tokio::test]
async fn a_port_is_taken_and_given_back() {
    let first = TestBroker::start().await;
    let addr = first.addr();
    let _client = Client::connect(Version::V3, addr, "c").await;
    let options = || polygate::testing::pubsub::embedded::Options {
        bind: Some(addr),
        ..polygate::testing::pubsub::embedded::Options::default()
    };
    let start = || polygate::testing::pubsub::embedded::Broker::start(options(), first.auth.clone());

    let error = start().await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot bind the broker's MQTT port on tcp {addr}"));
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);

    first.broker.shutdown().await;
    assert_eq!(start().await.unwrap().local_addr(), Some(addr));
}
