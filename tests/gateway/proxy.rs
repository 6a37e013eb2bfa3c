//! Devices behind a load balancer that sends PROXY headers.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use polygate::testing::exproto::proto::ConnInfo;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Callback, Event, ScriptedHandler, Serves};
use crate::harness::{GatewayUnderTest, Setup, within};

const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";

/// The same in version 2, with a TLV behind the addresses.
const FIELDS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb\x04\0\x01\x2a";

/// Version 2, from 2001:db8::1 port 80.
const FIELDS_OF_IPV6: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\
      \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\0\x50\x01\xbb";

fn rejected(reason: &str) -> String {
    format!("polygate_connections_rejected_total{{listener=\"l\",reason={reason:?}}}")
}

/// A gateway whose handler records its events; it echoes every byte.
async fn behind_balancer(keys: &str) -> (ScriptedHandler, GatewayUnderTest) {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            calls.send_ok(&callback.conn, bytes).await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).listener(keys).start().await;
    handler.use_adapter(gateway.adapter());
    (handler, gateway)
}

/// Peer and local address in the handler's event of the next connection.
async fn next_addresses(handler: &mut ScriptedHandler) -> (String, String) {
    loop {
        if let Callback { event: Event::Created(info), .. } = handler.next().await {
            let ConnInfo { peername: Some(peer), sockname: Some(local), .. } = info else { panic!("two addresses") };
            return (format!("{} {}", peer.host, peer.port), format!("{} {}", local.host, local.port));
        }
    }
}

/// Both versions name the peer, at once and byte by byte, and what stands behind them is the device's.
#[tokio::test(flavor = "multi_thread")]
async fn headers_name_the_peer() {
    let (mut handler, gateway) = behind_balancer("proxy_protocol = true").await;
    let v4 = ("192.0.2.1 56324", "198.51.100.1 443");
    for (header, (peer, local)) in [(LINE, v4), (FIELDS, v4), (FIELDS_OF_IPV6, ("2001:db8::1 80", "2001:db8::2 443"))] {
        for piece in [1, 1024] {
            let mut device = gateway.connect().await;
            for piece in [header, b"hello"].concat().chunks(piece) {
                device.send(piece).await;
            }
            device.expect("hello").await;
            assert_eq!(next_addresses(&mut handler).await, (peer.to_owned(), local.to_owned()));
        }
    }
}

/// A header without addresses leaves those of the socket.
#[tokio::test(flavor = "multi_thread")]
async fn headers_without_addresses_leave_the_sockets_own() {
    let (mut handler, gateway) = behind_balancer("proxy_protocol = true").await;
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut device = gateway.connect().await;
        device.send([header, b"hello"].concat()).await;
        device.expect("hello").await;
        let reported = |address: SocketAddr| format!("{} {}", address.ip(), address.port());
        let expected = (reported(device.local_addr()), reported(gateway.listener()));
        assert_eq!(next_addresses(&mut handler).await, expected);
    }
}

/// Rules and limits are for the address in the header: it is the device's.
#[tokio::test(flavor = "multi_thread")]
async fn rules_and_limits_see_the_address_in_the_header() {
    let keys = "proxy_protocol = true\naccess = [\"deny 192.0.2.0/24\"]\nconnections_per_address_max = 1";
    let (_handler, gateway) = behind_balancer(keys).await;
    let mut denied = gateway.connect().await;
    denied.send(LINE).await;
    denied.expect_closed().await;
    gateway.metric_reaches(&rejected("access"), 1.0).await;

    let mut first = gateway.connect().await;
    first.send([FIELDS_OF_IPV6, b"hello"].concat()).await;
    first.expect("hello").await;
    let mut second = gateway.connect().await;
    second.send(FIELDS_OF_IPV6).await;
    second.expect_closed().await;
    gateway.metric_reaches(&rejected("address_connections"), 1.0).await;
}

/// Who sends no header, a wrong one or half of one is disconnected, and the reason counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_header_is_ended() {
    let (_handler, gateway) = behind_balancer("proxy_protocol = { timeout = \"100ms\" }").await;
    let mut other = gateway.connect().await;
    other.send("G").await;
    // The byte is left unread, so the end may be a reset.
    assert!(other.read_some().await.map_or(true, |bytes| bytes.is_empty()));
    gateway.metric_reaches(&rejected("proxy_malformed"), 1.0).await;

    let mut half = gateway.connect().await;
    half.send(&LINE[..20]).await;
    half.shutdown().await;
    half.expect_closed().await;
    gateway.metric_reaches(&rejected("proxy_malformed"), 2.0).await;

    let (mut silent, mut slow) = (gateway.connect().await, gateway.connect().await);
    slow.send(&FIELDS[..20]).await;
    silent.expect_closed().await;
    slow.expect_closed().await;
    gateway.metric_reaches(&rejected("proxy_timed_out"), 2.0).await;
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 0.0);
}

/// Only those who are trusted may name another address; the others do not get in at all.
#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_peer_names_nobody() {
    let (mut handler, gateway) = behind_balancer("proxy_protocol = { trusted = [\"127.0.0.2\"] }").await;
    let mut untrusted = gateway.connect().await;
    untrusted.expect_closed().await;
    gateway.metric_reaches(&rejected("proxy_untrusted"), 1.0).await;

    let mut trusted = RawPeer::connect_from(Ipv4Addr::new(127, 0, 0, 2), gateway.listener()).await;
    trusted.send([LINE, b"hello"].concat()).await;
    trusted.expect("hello").await;
    assert_eq!(next_addresses(&mut handler).await.0, "192.0.2.1 56324");
}

/// HAProxy in front: the handler sees the device's address and port, and the one that it has connected to.
#[tokio::test(flavor = "multi_thread")]
async fn behind_haproxy() {
    // Longer than any test waits: a busy machine may leave the balancer without a turn for seconds.
    let keys = "proxy_protocol = { trusted = [\"127.0.0.1\"], timeout = \"1m\" }\nhandshake_timeout = \"1m\"";
    for version in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"] {
        let (mut handler, gateway) = behind_balancer(keys).await;
        let balancer = HaProxy::start(gateway.listener(), version);
        let mut device = RawPeer::connect(balancer.address).await;
        device.send("hello").await;
        device.expect("hello").await;
        let reported = |address: SocketAddr| format!("{} {}", address.ip(), address.port());
        let expected = (reported(device.local_addr()), reported(balancer.address));
        assert_eq!(next_addresses(&mut handler).await, expected, "{version}");
        balancer.stop().await;
        device.expect_closed().await;
    }
}

/// A load balancer of its own, which ends when it is dropped.
struct HaProxy {
    address: SocketAddr,
    process: Child,
    _dir: TempDir,
}

impl HaProxy {
    /// In front of this address.
    fn start(server: SocketAddr, options: &str) -> Self {
        // Bound here and inherited there: nobody can take the port in between, and peers may connect at once.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("haproxy.cfg");
        let config = format!(
            "global\n  maxconn 64\ndefaults\n  mode tcp\n  unique-id-format %pid\n  timeout connect 10s\n  timeout client 1m\n  \
             timeout server 1m\nlisten l\n  bind fd@3\n  server s {server} {options}\n"
        );
        std::fs::write(&file, config).unwrap();
        let address = socket.local_addr().unwrap();
        // As its descriptor 3: it takes none beyond those that it makes room for, and a test may have many open.
        let process = Command::new("bash")
            .args(["-c", "exec 3<&0 </dev/null; exec haproxy -db -f \"$0\""])
            .arg(&file)
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start haproxy, which this test needs (Debian's haproxy): {error}"));
        Self { address, process, _dir: dir }
    }

    async fn stop(mut self) {
        within("the end of haproxy", self.process.kill()).await.unwrap();
    }
}
