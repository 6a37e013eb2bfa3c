//! How fast devices may come and send. The rates are one in an hour: what is over them comes after every test has
//! ended, and what comes within them does so at once, so no clock is looked at. When exactly is proved where time is an
//! argument.

use std::net::Ipv4Addr;

use polygate::testing::exproto::proto::{TimerRequest, TimerType};

use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::{GatewayUnderTest, Setup, eventually, within};

const HELD_BACK: &str = "polygate_reads_throttled_total{listener=\"l\"}";
const RECEIVED: &str = "polygate_received_bytes_total{listener=\"l\"}";

/// A gateway that gives every byte back at once.
fn raw_echo() -> Setup {
    Setup::guest("echo").handler("settings = { mode = \"raw\" }")
}

fn rejected(reason: &str) -> String {
    format!("polygate_connections_rejected_total{{listener=\"l\",reason={reason:?}}}")
}

/// It is connected, and served.
async fn expect_served(peer: &mut RawPeer) {
    peer.send("served?").await;
    peer.expect("served?").await;
}

/// Whether it is connected and served, and not rejected.
async fn is_served(peer: &mut RawPeer) -> bool {
    peer.send("served?").await;
    // Turned away, it sees the end or, because of the bytes that nobody has read, a reset.
    peer.read_some().await.is_ok_and(|bytes| bytes == b"served?")
}

/// Peers over the rate wait in the backlog; a reload lets them in.
#[tokio::test(flavor = "multi_thread")]
async fn connection_rate() {
    let gateway = raw_echo().listener("connection_rate = \"1/h\"").start().await;
    let mut first = gateway.connect().await;
    expect_served(&mut first).await;
    let mut others = Vec::new();
    for _ in 0..29 {
        let mut peer = gateway.connect().await;
        peer.send("waiting").await;
        others.push(peer);
    }
    // The gateway has had every occasion to accept them.
    for _ in 0..20 {
        expect_served(&mut first).await;
    }
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 1.0);

    gateway.reload("1/h", "1000/s").await.unwrap();
    for mut peer in others {
        peer.expect("waiting").await;
    }
}

/// A device that sends too much is not read any more, and loses no byte by that; the others are.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_rate() {
    let gateway = raw_echo().listener("bytes_rate = \"1KiB/h\"").start().await;
    let mut greedy = gateway.connect().await;
    greedy.send(vec![b'x'; 10_000]).await;
    assert_eq!(greedy.receive(1024).await, [b'x'; 1024]);
    gateway.metric_reaches(HELD_BACK, 1.0).await;
    let mut modest = gateway.connect().await;
    expect_served(&mut modest).await;
    assert_eq!(gateway.metric(RECEIVED), 1024.0 + 7.0);
    assert_eq!(gateway.connections(), 2);
}

/// A device at its rate gets all of it through.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_back_comes_through() {
    let gateway = raw_echo().listener("bytes_rate = \"256KiB/s\"").start().await;
    let mut peer = gateway.connect().await;
    let sent: Vec<u8> = (0..300_000u32).map(|byte| (byte / 7) as u8).collect();
    peer.send(&sent).await;
    assert!(peer.receive(sent.len()).await == sent);
    assert!(gateway.metric(HELD_BACK) > 0.0);
}

/// A stream is read as often as packets may come.
#[tokio::test(flavor = "multi_thread")]
async fn packets_rate() {
    let gateway = raw_echo().listener("packets_rate = \"1/h\"").start().await;
    let mut peer = gateway.connect().await;
    expect_served(&mut peer).await;
    gateway.metric_reaches(HELD_BACK, 1.0).await;
    peer.send("not read").await;
    let mut other = gateway.connect().await;
    expect_served(&mut other).await;
    assert_eq!(gateway.metric(RECEIVED), 14.0);
}

/// Keepalive does not count the silence that the gateway itself makes: of two devices with the same timer the later
/// one, which is heard and says nothing, is ended, and the one that is not read stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_back_device_is_not_silent() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if matches!(callback.event, Event::Bytes(_)) {
            calls.authenticate_ok(&callback.conn, &callback.conn).await;
            let timer = TimerRequest { conn: callback.conn.clone(), r#type: TimerType::Keepalive.into(), interval: 1 };
            assert_eq!(calls.start_timer(timer).await.code, 0);
        }
        Ok(())
    })
    .await;
    let more = "[listeners.free]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"h\"]";
    let gateway = Setup::grpc(&handler).listener("packets_rate = \"1/h\"").more(more).start().await;
    handler.use_adapter(gateway.adapter());

    let mut held_back = gateway.connect().await;
    held_back.send("a").await;
    while !matches!(handler.next().await.event, Event::Bytes(_)) {}
    gateway.metric_reaches(HELD_BACK, 1.0).await;
    held_back.send("b").await;
    let mut silent = RawPeer::connect(gateway.listener_named("free")).await;
    silent.send("a").await;
    silent.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"free\",reason=\"keepalive_expired\"}", 1.0).await;
    eventually("one connection is left", || gateway.connections() == 1).await;
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 1.0);
}

/// One address cannot take the connections of the others; what it gives back it may have again.
#[tokio::test(flavor = "multi_thread")]
async fn connections_per_address_max() {
    let gateway = raw_echo().listener("connections_per_address_max = 2").start().await;
    let mut first = from(1, &gateway).await;
    let mut second = from(1, &gateway).await;
    for peer in [&mut first, &mut second] {
        expect_served(peer).await;
    }
    from(1, &gateway).await.expect_closed().await;
    gateway.metric_reaches(&rejected("address_connections"), 1.0).await;
    for address in 2..10 {
        expect_served(&mut from(address, &gateway).await).await;
    }
    drop(first);
    within("the place of the first", async { while !is_served(&mut from(1, &gateway).await).await {} }).await;
    expect_served(&mut second).await;
}

/// IPv6 has the same limits.
#[tokio::test(flavor = "multi_thread")]
async fn connections_per_address_max_of_ipv6() {
    let gateway = raw_echo().bind("tcp://[::1]:0").listener("connections_per_address_max = 1").start().await;
    let mut first = gateway.connect().await;
    expect_served(&mut first).await;
    gateway.connect().await.expect_closed().await;
    gateway.metric_reaches(&rejected("address_connections"), 1.0).await;
}

/// As many may come at once as were said; more are refused, also when the first have gone, and other addresses are not.
#[tokio::test(flavor = "multi_thread")]
async fn connection_rate_per_address() {
    let gateway = raw_echo().listener("connection_rate_per_address = \"3/h\"").start().await;
    for _ in 0..3 {
        expect_served(&mut from(1, &gateway).await).await;
    }
    for _ in 0..27 {
        from(1, &gateway).await.expect_closed().await;
    }
    gateway.metric_reaches(&rejected("address_rate"), 27.0).await;
    expect_served(&mut from(2, &gateway).await).await;
}

/// Five thousand peers at once, from fifty addresses of which each may have ten: five hundred are served, the rest are
/// refused, and nothing is left of any.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_connects() {
    let gateway = raw_echo().listener("connections_per_address_max = 10\nbacklog = 65535").start().await;
    let mut peers = Vec::new();
    for _ in 0..100 {
        for address in 1..=50 {
            peers.push(from(address, &gateway).await);
        }
    }
    gateway.metric_reaches(&rejected("address_connections"), 4500.0).await;
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 500.0).await;
    for peer in peers.iter_mut().take(50) {
        expect_served(peer).await;
    }
    drop(peers);
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 0.0).await;
    within("a place", async { while !is_served(&mut from(1, &gateway).await).await {} }).await;
}

async fn from(last: u8, gateway: &GatewayUnderTest) -> RawPeer {
    RawPeer::connect_from(Ipv4Addr::new(127, 0, 0, last), gateway.listener()).await
}
