//! Attacks with UDP datagrams from addresses that are spoofed, each from another one.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::transport::Transport;
use crate::harness::{Setup, within};

/// One empty datagram from each of many addresses, as a spoofing host sends them: it never sees an answer.
async fn spoof(gateway: SocketAddr, network: u8, count: u16) {
    for number in 1..=count {
        let [high, low] = number.to_be_bytes();
        let socket = UdpSocket::bind((Ipv4Addr::new(127, network, high, low), 0)).await.unwrap();
        socket.send_to(b"", gateway).await.unwrap();
    }
}

/// While spoofed datagrams open flow after flow, the number of flows stays at its bound, a device that was verified before
/// stays, and a new one gets its login through.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_served_during_a_flood_of_spoofed_datagrams() {
    let keys = "unverified_max = 32\nunverified_timeout = \"10m\"";
    let gateway = Setup::guest("echo").over(Transport::Udp).listener(keys).start().await;
    let mut early = gateway.device().await;
    early.log_in("early").await;
    spoof(gateway.listener(), 1, 500).await;

    let mut late = gateway.device().await;
    late.log_in("late").await;
    spoof(gateway.listener(), 2, 500).await;
    for device in [&mut early, &mut late] {
        let answer = device.publish("t", "still served").await;
        assert_eq!(answer["code"], 0, "{answer}");
    }
    let rejected = "polygate_connections_rejected_total{listener=\"l\",reason=\"unverified_max\"}";
    gateway.metric_reaches("polygate_accepted_connections_total{listener=\"l\"}", 1002.0).await;
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 34.0).await;
    assert_eq!(gateway.metric(rejected), 0.0);
    let closes = "polygate_closes_total{listener=\"l\",reason=\"unverified\"}";
    assert_eq!(gateway.metric(closes), 968.0);
}

/// A peer that sends one datagram ends soon; one that sends another after an answer stays.
#[tokio::test(flavor = "multi_thread")]
async fn unverified_flows_end_soon() {
    let gateway = Setup::guest("echo")
        .handler("settings = { mode = \"raw\" }")
        .over(Transport::Udp)
        .listener("unverified_timeout = \"1s\"")
        .start()
        .await;
    let mut device = gateway.connect().await;
    for _ in 0..2 {
        device.send("here").await;
        device.expect("here").await;
    }
    spoof(gateway.listener(), 1, 10).await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"unverified\"}", 10.0).await;
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 1.0);
    device.send("here").await;
    device.expect("here").await;
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 11.0);
}

/// An unverified peer gets no more than ten times what it has sent; the rest is dropped and counted. Once it is verified, it
/// gets everything.
#[tokio::test(flavor = "multi_thread")]
async fn answers_to_unverified_peers_are_bounded() {
    const ANSWER_BYTES: usize = 200;
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if matches!(callback.event, Event::Bytes(_)) {
            for number in 0..3 {
                calls.send_ok(&callback.conn, number.to_string().repeat(ANSWER_BYTES)).await;
            }
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).over(Transport::Udp).start().await;
    handler.use_adapter(gateway.adapter());
    let device = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    device.connect(gateway.listener()).await.unwrap();
    let mut buffer = [0; 1024];

    // 29 bytes with headers: 290 may go back, and one answer takes 228.
    device.send(b"?").await.unwrap();
    let dropped = "polygate_dropped_total{listener=\"l\",reason=\"unverified_answer\"}";
    gateway.metric_reaches(dropped, 2.0).await;
    assert_eq!(within("the answer", device.recv(&mut buffer)).await.unwrap(), ANSWER_BYTES);

    device.send(b"?").await.unwrap();
    for number in 0..3 {
        assert_eq!(within("an answer", device.recv(&mut buffer)).await.unwrap(), ANSWER_BYTES);
        assert_eq!(buffer[0], b'0' + number);
    }
    assert_eq!(gateway.metric(dropped), 2.0);
}
