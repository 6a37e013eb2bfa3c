//! What a device and a message cost. Prints figures; run by hand:
//! `cargo test --test gateway broker::cost -- --ignored --nocapture --test-threads 1`

use std::time::Duration;

use bytes::Bytes;
use polygate::testing::conn::QoS;
use polygate::testing::conn::registry::Mail;

use crate::broker::harness::{Client, Connection, TestBroker, Version};

const DEVICES: usize = 100_000;

/// Memory of a device's session, and of its subscriptions, without its mailbox.
#[tokio::test]
#[ignore = "prints figures, promises nothing"]
async fn memory_of_a_device() {
    let broker = TestBroker::start().await;
    let mut connections: Vec<Connection> = (0..DEVICES).map(|_| Connection::new(64)).collect();
    let before = resident_bytes();
    let mut devices = Vec::with_capacity(DEVICES);
    for (number, connection) in connections.drain(..).enumerate() {
        devices.push(broker.open(&format!("device-{number:08}"), connection).await);
    }
    let opened = resident_bytes();
    // Kept until here, so that what it gives back is not counted.
    drop(connections);
    println!("session: {} bytes", (opened - before) / DEVICES);
    for (number, device) in devices.iter().enumerate() {
        device.subscribe(&format!("devices/device-{number:08}/cmd/#")).await;
    }
    let wild = resident_bytes();
    println!("first subscription, devices/N/cmd/#: {} bytes", (wild - opened) / DEVICES);
    for device in &devices {
        device.subscribe("broadcast/all").await;
    }
    println!("second subscription, shared by all: {} bytes", (resident_bytes() - wild) / DEVICES);
}

/// CPU of a message from a device to a device, and to an MQTT client, among many wildcard filters.
#[tokio::test]
#[ignore = "prints figures, promises nothing"]
async fn cpu_of_a_message() {
    for filters in [1, 2_000, 20_000, 200_000] {
        let broker = TestBroker::start().await;
        let publisher = broker.device("p").await;
        let mut devices = Vec::new();
        for number in 0..filters {
            let device = broker.device(&format!("d{number}")).await;
            device.subscribe(&format!("devices/{number}/cmd/#")).await;
            devices.push(device);
        }
        let topics: Vec<String> = (0..filters).map(|number| format!("devices/{number}/cmd/x")).collect();
        let payload = Bytes::from_static(&[b'x'; 64]);
        let messages = 100_000;
        let start = cpu();
        for message in 0..messages {
            let number = message % filters;
            publisher.session.publish(&topics[number], QoS::AtMostOnce, payload.clone()).await.unwrap();
            assert!(matches!(devices[number].mails.try_recv().map(|mail| *mail), Ok(Mail::Deliver(_))));
        }
        let spent = cpu() - start;
        println!("{filters} wildcard filters, device to device: {} ns", spent.as_nanos() / messages as u128);
    }

    let broker = TestBroker::start().await;
    let publisher = broker.device("p").await;
    let mut client = Client::connect(Version::V3, broker.addr(), "c").await;
    client.subscribe("up/#").await;
    let payload = Bytes::from_static(&[b'x'; 64]);
    let start = cpu();
    let messages = 50_000;
    for _ in 0..messages {
        publisher.session.publish("up/x", QoS::AtMostOnce, payload.clone()).await.unwrap();
        client.message().await;
    }
    let spent = cpu() - start;
    println!("device to MQTT client, the client's CPU included: {} ns", spent.as_nanos() / messages);
}

/// Of the process.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Of all threads of the process, user and system; the kernel counts it in steps of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
