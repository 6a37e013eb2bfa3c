//! Shared subscriptions: each message to one member, whichever kind it is.

use crate::broker::harness::{BOTH, Client, TestBroker, Version};

/// Ten messages among two devices: five each.
#[tokio::test]
async fn devices_share() {
    let broker = TestBroker::start().await;
    let mut one = broker.device("one").await;
    let mut other = broker.device("other").await;
    for device in [&one, &other] {
        device.subscribe("$share/g/job/#").await;
        device.subscribe("end").await;
    }
    let publisher = broker.device("p").await;
    for _ in 0..10 {
        publisher.publish("job/x", "job").await;
    }
    publisher.publish("end", "end").await;
    assert_eq!(one.payloads_until("end").await.len(), 5);
    assert_eq!(other.payloads_until("end").await.len(), 5);
}

/// Ten messages among two MQTT clients: five each.
#[tokio::test]
async fn mqtt_clients_share() {
    let broker = TestBroker::start().await;
    for version in BOTH {
        let mut one = Client::connect(version, broker.addr(), "one").await;
        let mut other = Client::connect(version, broker.addr(), "other").await;
        for client in [&mut one, &mut other] {
            client.subscribe("$share/g/job/#").await;
            client.subscribe("end").await;
        }
        let publisher = broker.device("p").await;
        for _ in 0..10 {
            publisher.publish("job/x", "job").await;
        }
        publisher.publish("end", "end").await;
        assert_eq!(one.payloads_until("end").await.len(), 5, "{version:?}");
        assert_eq!(other.payloads_until("end").await.len(), 5, "{version:?}");
    }
}

/// A device and an MQTT client in one group share; another group, and a plain subscription, get all.
#[tokio::test]
async fn a_group_has_members_of_both_kinds() {
    let broker = TestBroker::start().await;
    let mut device = broker.device("d").await;
    let mut client = Client::connect(Version::V5, broker.addr(), "c").await;
    let mut audit = broker.device("audit").await;
    device.subscribe("$share/g/job").await;
    device.subscribe("end").await;
    client.subscribe("$share/g/job").await;
    client.subscribe("end").await;
    audit.subscribe("$share/h/job").await;
    audit.subscribe("#").await;

    let mut publisher = Client::connect(Version::V3, broker.addr(), "p").await;
    for _ in 0..10 {
        publisher.publish("job", "job").await;
    }
    publisher.publish("end", "end").await;
    assert_eq!(device.payloads_until("end").await.len(), 5);
    assert_eq!(client.payloads_until("end").await.len(), 5);
    assert_eq!(audit.payloads_until("end").await.len(), 20, "one for each of its subscriptions");
}

/// When a member has gone, the others get its part.
#[tokio::test]
async fn the_rest_of_a_group_takes_over() {
    let broker = TestBroker::start().await;
    let mut stays = broker.device("stays").await;
    let leaves = broker.device("leaves").await;
    stays.subscribe("$share/g/job").await;
    leaves.subscribe("$share/g/job").await;
    drop(leaves);
    let publisher = broker.device("p").await;
    for _ in 0..4 {
        publisher.publish("job", "job").await;
    }
    for _ in 0..4 {
        assert_eq!(stays.payload().await, "job");
    }
}
