//! A configuration that is read again while devices are connected.

use polygate::testing::gateway::ReloadError;
use tokio::net::TcpStream;

use crate::harness::peer::RawPeer;
use crate::harness::transport::Transport;
use crate::harness::{GatewayUnderTest, Setup, eventually, within};

/// A gateway that gives every byte back at once.
async fn raw_echo() -> GatewayUnderTest {
    Setup::guest("echo").handler("settings = { mode = \"raw\" }").start().await
}

async fn echoes(peer: &mut RawPeer) {
    peer.send("still there").await;
    peer.expect("still there").await;
}

async fn is_refused(gateway: &GatewayUnderTest, address: std::net::SocketAddr) {
    let error = within("a refusal", TcpStream::connect(address)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{}", gateway.text());
}

/// A changed listener keeps its socket and its connections; what has changed holds for those that come then.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_listener_applies_to_new_connections() {
    let gateway = raw_echo().await;
    let address = gateway.listener();
    let mut old = gateway.connect().await;
    echoes(&mut old).await;

    let changed = gateway.reload("handlers = [\"h\"]", "handlers = [\"h\"]\nidle_timeout = \"50ms\"").await.unwrap();
    assert!(changed.needs_restart.is_empty(), "{changed:?}");
    assert_eq!(gateway.listener(), address);
    let mut silent = gateway.connect().await;
    silent.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"idle_timed_out\"}", 1.0).await;
    echoes(&mut old).await;
}

/// Room for more is there at once; with room for fewer, those who are there stay.
#[tokio::test(flavor = "multi_thread")]
async fn connections_max_follows() {
    let gateway = raw_echo().await;
    let (mut first, mut second) = (gateway.connect().await, gateway.connect().await);
    echoes(&mut first).await;
    echoes(&mut second).await;

    gateway.reload("handlers = [\"h\"]", "handlers = [\"h\"]\nconnections_max = 1").await.unwrap();
    let mut third = gateway.connect().await;
    third.send("still there").await;
    drop(first);
    echoes(&mut second).await;
    eventually("the first is gone, and the third waits", || gateway.connections() == 1).await;
    gateway.reload("handlers = [\"h\"]", "handlers = [\"h\"]\nconnections_max = 2").await.unwrap();
    third.expect("still there").await;
}

/// A listener comes and goes; its connections live on without it.
#[tokio::test(flavor = "multi_thread")]
async fn listeners_come_and_go() {
    let gateway = raw_echo().await;
    let more = format!("{}\n[listeners.more]\nbind = \"tcp://[::1]:0\"\nhandlers = [\"h\"]\n", gateway.text());
    let changed = gateway.follow(&more).await.unwrap();
    assert_eq!((changed.listeners.added.len(), changed.listeners.removed.len()), (1, 0));
    let address = gateway.listener_named("more");
    let mut peer = RawPeer::connect(address).await;
    echoes(&mut peer).await;

    let changed = gateway.follow(gateway.text()).await.unwrap();
    assert_eq!((changed.listeners.added.len(), changed.listeners.removed.len()), (0, 1));
    is_refused(&gateway, address).await;
    echoes(&mut peer).await;
    echoes(&mut gateway.connect().await).await;
    assert_eq!(gateway.stop().await, 0);
    peer.expect_closed().await;
}

/// A listener moves to another address; who came over the last one stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_moves() {
    let gateway = raw_echo().await;
    let address = gateway.listener();
    let mut old = gateway.connect().await;
    echoes(&mut old).await;
    let changed = gateway.reload("bind = \"tcp://127.0.0.1:0\"", "bind = \"tcp://[::1]:0\"").await.unwrap();
    assert_eq!(changed.listeners.moved.len(), 1);
    is_refused(&gateway, address).await;
    echoes(&mut gateway.connect().await).await;
    echoes(&mut old).await;
}

/// A listener with another name takes the socket over, with the peers that wait in its backlog.
#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_listener_keeps_its_socket() {
    let gateway =
        Setup::guest("echo").handler("settings = { mode = \"raw\" }").listener("connections_max = 1").start().await;
    let address = gateway.listener();
    let mut first = gateway.connect().await;
    echoes(&mut first).await;
    let mut waiting = gateway.connect().await;

    let text = gateway
        .text()
        .replace("[listeners.l]", "[listeners.other]")
        .replace("tcp://127.0.0.1:0", &format!("tcp://{address}"));
    let changed = gateway.follow(&text).await.unwrap();
    assert_eq!((changed.listeners.added.len(), changed.listeners.removed.len()), (1, 1));
    echoes(&mut waiting).await;
    echoes(&mut first).await;
    assert_eq!(gateway.listener_named("other"), address);
}

/// The same for datagrams: a listener with another name takes the sockets over, and one that is gone and comes back
/// finds the peers that it had; they keep their connections all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_udp_listener_keeps_its_sockets() {
    let gateway = Setup::guest("echo")
        .handler("settings = { mode = \"raw\" }")
        .over(Transport::Udp)
        .listener("idle_timeout = \"1h\"")
        .start()
        .await;
    let address = gateway.listener();
    let mut first = RawPeer::connect_udp(address).await;
    echoes(&mut first).await;

    let text = gateway.text().replace("udp://127.0.0.1:0", &format!("udp://{address}"));
    let renamed = text.replace("[listeners.l]", "[listeners.other]");
    let changed = gateway.follow(&renamed).await.unwrap();
    assert_eq!((changed.listeners.added.len(), changed.listeners.removed.len()), (1, 1));
    let mut second = RawPeer::connect_udp(address).await;
    echoes(&mut second).await;
    gateway.metric_reaches("polygate_connections{listener=\"other\"}", 1.0).await;
    echoes(&mut first).await;

    let gone =
        text.replace("[listeners.l]", "[listeners.elsewhere]").replace(&format!("udp://{address}"), "udp://[::1]:0");
    gateway.follow(&gone).await.unwrap();
    let mut third = RawPeer::connect_udp(address).await;
    third.send("anybody?").await;
    gateway.metric_reaches("polygate_connections_rejected_total{listener=\"other\",reason=\"draining\"}", 1.0).await;
    echoes(&mut first).await;
    echoes(&mut second).await;

    gateway.follow(&renamed).await.unwrap();
    echoes(&mut third).await;
    echoes(&mut first).await;
    gateway.metric_reaches("polygate_connections{listener=\"other\"}", 2.0).await;
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 1.0);
    assert_eq!(gateway.stop().await, 0);
}

/// An address that is taken leaves everything as it was, the handlers too.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_address_changes_nothing() {
    let gateway = raw_echo().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = gateway.text().replace("mode = \"raw\"", "mode = \"json\"")
        + &format!("\n[listeners.more]\nbind = \"tcp://{}\"\nhandlers = [\"h\"]\n", taken.local_addr().unwrap());
    let [ReloadError::Listener(error)] = &gateway.follow(&text).await.unwrap_err()[..] else { panic!("another error") };
    assert!(error.to_string().contains("cannot bind listener \"more\""), "{error}");
    assert_eq!(gateway.handlers().list()[0].active, 1);
    echoes(&mut gateway.connect().await).await;
}

/// A listener that keeps its address keeps it for itself, also where the system chose it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_not_shared() {
    for (transport, name) in [(Transport::Tcp, "tcp"), (Transport::Udp, "udp")] {
        let gateway = Setup::guest("echo").over(transport).handler("settings = { mode = \"raw\" }").start().await;
        let bind = format!("{name}://{}", gateway.listener());
        let more = format!("{}\n[listeners.more]\nbind = \"{bind}\"\nhandlers = [\"h\"]\n", gateway.text());
        let errors = gateway.follow(&more).await.unwrap_err();
        assert!(matches!(errors[..], [ReloadError::Listener(_)]), "{errors:?}");
    }
}

/// A version that cannot be loaded leaves everything as it was, the listeners too.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_handler_changes_nothing() {
    let gateway = raw_echo().await;
    let broken = gateway.data_dir().join("broken.wasm");
    std::fs::write(&broken, b"\0asm\x01\0\0\0").unwrap();
    let text = format!(
        "{}\n[handlers.new]\nkind = \"wasm\"\ncomponent = {broken:?}\n[listeners.more]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"new\"]\n",
        gateway.text()
    );
    let [ReloadError::Handler(_)] = &gateway.follow(&text).await.unwrap_err()[..] else { panic!("another error") };
    assert_eq!(gateway.handlers().names().len(), 1);
    echoes(&mut gateway.connect().await).await;
}

/// A handler that is new serves the listener that is routed to it; one that is gone is freed with its last connection.
#[tokio::test(flavor = "multi_thread")]
async fn handlers_come_and_go() {
    let gateway = raw_echo().await;
    let mut old = gateway.connect().await;
    echoes(&mut old).await;
    let text = gateway
        .text()
        .replace("[handlers.h]", "[handlers.fresh]")
        .replace("handlers = [\"h\"]", "handlers = [\"fresh\"]");
    gateway.follow(&text).await.unwrap();
    assert_eq!(gateway.handlers().names(), ["fresh".into()]);
    let mut new = gateway.connect().await;
    echoes(&mut new).await;
    gateway.metric_reaches("polygate_instances{handler=\"fresh\"}", 1.0).await;
    echoes(&mut old).await;
    drop(old);
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 0.0).await;
    echoes(&mut new).await;
}
