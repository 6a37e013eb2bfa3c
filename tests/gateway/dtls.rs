//! What the gateway promises a DTLS peer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use polygate::testing::exproto::proto;
use proto::ResultCode;
use rcgen::SerialNumber;
use serde_json::json;
use tokio::net::UdpSocket;

use crate::harness::certificates::Certificates;
use crate::harness::dtls::{DtlsClient, DtlsSocket};
use crate::harness::echo_device::EchoDevice;
use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::transport::Transport;
use crate::harness::{GatewayUnderTest, Setup, within};

/// The most that one record carries.
const RECORD_BYTES_MAX: usize = 16_384;

/// The handler gets the transport DTLS, and the names in the device's certificate.
#[tokio::test(flavor = "multi_thread")]
async fn the_handler_learns_who_the_device_is() {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).over(Transport::mutual_dtls()).start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = gateway.login("device-1").await;
    let Event::Created(info) = handler.next().await.event else { panic!("not the first event") };
    assert_eq!(info.socktype, 3, "DTLS");
    let certificate = info.peercert.unwrap();
    assert_eq!((certificate.cn.as_str(), certificate.dn.as_str()), ("device", "CN=device,O=Example"));
    let (peer, local) = (info.peername.unwrap(), info.sockname.unwrap());
    assert_eq!(peer.port, u32::from(device.peer().local_addr().port()));
    assert_eq!(local.port, u32::from(gateway.listener().port()));
}

/// A close of the device reaches the handler with EMQX's reason, and a close of the gateway reaches the device.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_can_close() {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).over(Transport::mutual_dtls()).start().await;
    handler.use_adapter(gateway.adapter());

    let mut device = gateway.login("closes").await;
    device.peer().shutdown().await;
    assert_eq!(handler.next_closed().await, "{shutdown,ssl_closed}");
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"peer_closed\"}", 1.0).await;

    let mut device = gateway.login("asks").await;
    device.send(&json!({"type": 9})).await;
    device.expect_closed().await;
    assert_eq!(handler.next_closed().await, "{shutdown,normal}");

    let mut device = gateway.login("stays").await;
    let (cut_off, ()) = tokio::join!(gateway.stop(), device.expect_closed());
    assert_eq!(cut_off, 0);
}

/// Each record is an event, also of several in one datagram; each Send is a datagram, up to what a record can carry.
#[tokio::test(flavor = "multi_thread")]
async fn one_record_is_one_event() {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            let longer =
                proto::SendBytesRequest { conn: callback.conn.clone(), bytes: vec![1; RECORD_BYTES_MAX + 1].into() };
            assert_eq!(calls.send(longer).await.code, i32::from(ResultCode::ParamsTypeError));
            calls.send_ok(&callback.conn, [b"<", &bytes[..], b">"].concat()).await;
            calls.send_ok(&callback.conn, vec![2; RECORD_BYTES_MAX]).await;
        }
        Ok(())
    })
    .await;
    let Transport::Dtls(dtls) = Transport::mutual_dtls() else { unreachable!() };
    let gateway = Setup::grpc(&handler).over(Transport::Dtls(Arc::clone(&dtls))).start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = DtlsSocket::connect(gateway.listener(), &dtls.client).await.unwrap();
    let both = [device.seal(b"one"), device.seal(b"two")].concat();
    device.socket().send(&both).await.unwrap();
    for piece in ["<one>", "<two>"] {
        expect(&mut device, piece.as_bytes()).await;
        expect(&mut device, &[2; RECORD_BYTES_MAX]).await;
    }
}

/// What is replayed, changed or no record is dropped and counted, and the session goes on.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_new_and_authentic_is_read() {
    let (gateway, client) = raw_echo("").await;
    let mut device = DtlsSocket::connect(gateway.listener(), &client).await.unwrap();
    let datagram = device.seal(b"once");
    let mut changed = device.seal(b"changed");
    *changed.last_mut().unwrap() ^= 1;
    for datagram in [&datagram, &datagram, &changed, &b"no record".to_vec(), &vec![22; 2000]] {
        device.socket().send(datagram).await.unwrap();
    }
    expect(&mut device, b"once").await;
    gateway.metric_reaches("polygate_dropped_total{listener=\"l\",reason=\"record_dropped\"}", 4.0).await;
    is_served(&mut device).await;
    assert_eq!(gateway.metric("polygate_received_bytes_total{listener=\"l\"}"), 9.0);
}

/// A device that was switched off and on at the same address gets a new session, and its old connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_replaces_the_session() {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let Transport::Dtls(dtls) = Transport::mutual_dtls() else { unreachable!() };
    let gateway = Setup::grpc(&handler).over(Transport::Dtls(Arc::clone(&dtls))).start().await;
    handler.use_adapter(gateway.adapter());
    let device = DtlsSocket::connect(gateway.listener(), &dtls.client).await.unwrap();
    let first = handler.next_created().await;
    let again = DtlsSocket::connect_from(rebooted(device).await, &dtls.client).await.unwrap();
    assert_eq!(handler.next_closed().await, "{shutdown,ssl_closed}");
    let mut device = EchoDevice::over(RawPeer::over_dtls(again));
    device.log_in("device-1").await;
    assert_ne!(handler.next_created().await, first);
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 1.0).await;
}

/// Hellos that do not come from who receives at the address, and those that nobody goes on with, end nothing.
#[tokio::test(flavor = "multi_thread")]
async fn spoofed_hellos_end_no_session() {
    let (gateway, client) = raw_echo("").await;
    let mut device = DtlsSocket::connect(gateway.listener(), &client).await.unwrap();
    is_served(&mut device).await;
    // The answer goes to the device, which drops it; a spoofer does not see it, and can only guess the cookie.
    let hello = hello(&client).await;
    for datagram in [&hello, &with_cookie(&hello, &[7; 16]), &with_cookie(&hello, &[7; 255]), &hello] {
        device.socket().send(datagram).await.unwrap();
    }
    is_served(&mut device).await;
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 1.0);
}

/// A handshake that was given up, before or after its cookie, does not keep the device out.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_handshake_is_followed_by_another() {
    let (gateway, client) = raw_echo("").await;
    let mut silent = DtlsSocket::begin(local_socket(&gateway).await, &client);
    silent.say().await.unwrap();
    for abandoned in [silent, unfinished(&gateway, &client).await] {
        let mut device = DtlsSocket::connect_from(rebooted(abandoned).await, &client).await.unwrap();
        is_served(&mut device).await;
    }
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 2.0).await;
}

/// Three thousand strangers each get an answer and leave nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_hellos_leaves_nothing() {
    let (gateway, client) = raw_echo("").await;
    let hello = hello(&client).await;
    for _ in 0..3000 {
        let stranger = local_socket(&gateway).await;
        stranger.send(&hello).await.unwrap();
        let mut answer = [0; 100];
        let count = within("an answer", stranger.recv(&mut answer)).await.unwrap();
        assert!(count < hello.len());
        assert_eq!(answer[13], 3, "a HelloVerifyRequest");
    }
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 0.0);
    assert_eq!(gateway.connections(), 0);
    is_served(&mut DtlsSocket::connect(gateway.listener(), &client).await.unwrap()).await;
}

/// Peers that never finish delay nobody, up to the bound of those that may be about it; they give their places back.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_handshakes() {
    let (gateway, client) = raw_echo("handshakes_max = 11\nhandshake_timeout = \"2s\"").await;
    let mut peers = Vec::new();
    for _ in 0..10 {
        peers.push(unfinished(&gateway, &client).await);
    }
    is_served(&mut DtlsSocket::connect(gateway.listener(), &client).await.unwrap()).await;

    // One more takes the last place, and a further device gets no answer until there is room again.
    peers.push(unfinished(&gateway, &client).await);
    is_served(&mut DtlsSocket::connect(gateway.listener(), &client).await.unwrap()).await;
    assert!(gateway.metric(&rejected("handshakes_max")) > 0.0);
    gateway.metric_reaches(&rejected("handshake_timed_out"), 11.0).await;
}

/// While one address holds every place with handshakes that do not go on, devices of other addresses are served.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_served_while_one_address_holds_every_place() {
    // The deadline would free the places in ten minutes: it is not what serves the device.
    let (gateway, client) = raw_echo("handshakes_max = 8\nhandshake_timeout = \"10m\"").await;
    let mut flood = Vec::new();
    for _ in 0..8 {
        flood.push(unfinished(&gateway, &client).await);
    }
    for host in 2..6 {
        let socket = tokio::net::UdpSocket::bind((std::net::Ipv4Addr::new(127, 0, 0, host), 0)).await.unwrap();
        socket.connect(gateway.listener()).await.unwrap();
        is_served(&mut DtlsSocket::connect_from(socket, &client).await.unwrap()).await;
    }
    gateway.metric_reaches(&rejected("handshake_displaced"), 1.0).await;
    drop(flood);
}

/// Flights that are lost on the way are sent again.
#[tokio::test(flavor = "multi_thread")]
async fn lost_flights_are_sent_again() {
    let (gateway, client) = raw_echo("").await;
    let relay = Lossy::start(gateway.listener(), &[1, 3]).await;
    let mut device = DtlsSocket::connect(relay, &client).await.unwrap();
    is_served(&mut device).await;
}

/// Certificates and keys that are not good are refused for their own reasons, and counted.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused() {
    let certificates = Certificates::new();
    let (ca, revoked) = (certificates.ca_file(), certificates.revoke(&[66]));
    let psk = certificates.write("devices.psk", "device:00112233445566778899aabbccddeeff");
    let key: Vec<u8> = (0..16).map(|byte| byte * 0x11).collect();
    let good = certificates.sign_device("good", |_| {});
    let was_revoked =
        certificates.sign_device("revoked", |params| params.serial_number = Some(SerialNumber::from(66_u64)));
    let strangers = Certificates::new();
    let strange = strangers.sign_device("strange", |_| {});
    let identity =
        |identity: &(PathBuf, PathBuf)| DtlsClient { identity: Some(identity.clone()), ..DtlsClient::default() };
    let keyed = |name: &'static str, key: &[u8]| DtlsClient {
        psk: Some((name, key.to_vec())),
        ciphers: Some("PSK-AES128-CCM8"),
        ..DtlsClient::default()
    };
    let server = certificates.sign("localhost");
    let keys = format!(
        "tls = {{ cert_file = {:?}, key_file = {:?}, client_ca_file = {ca:?}, crl_file = {revoked:?}, psk_file = {psk:?} }}",
        server.0, server.1
    );
    let gateway = raw_echo_with(&keys).await;
    for client in [identity(&good), keyed("device", &key)] {
        is_served(&mut DtlsSocket::connect(gateway.listener(), &client).await.unwrap()).await;
    }
    for (client, reason, count) in [
        (identity(&was_revoked), "revoked_certificate", 1.0),
        (identity(&strange), "unknown_authority", 1.0),
        (DtlsClient::default(), "no_certificate", 1.0),
        (keyed("device", &[7; 16]), "wrong_key", 1.0),
        (keyed("stranger", &key), "wrong_key", 2.0),
    ] {
        // A device with a wrong key gets no alert, and retransmits.
        let (address, client) = (gateway.listener(), client.clone());
        let trying = tokio::spawn(async move { DtlsSocket::connect(address, &client).await.map(drop) });
        gateway.metric_reaches(&rejected(reason), count).await;
        trying.abort();
    }
    gateway.metric_reaches("polygate_accepted_connections_total{listener=\"l\"}", 2.0).await;
}

/// Other certificates are for devices that come after the reload, and a revoked one lets nobody in; the sessions that
/// are there live on.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_brings_other_certificates() {
    let certificates = Certificates::new();
    let (ca, revoked) = (certificates.ca_file(), certificates.revoke(&[]));
    let device = certificates.sign_device("device", |params| params.serial_number = Some(SerialNumber::from(66_u64)));
    let client = DtlsClient { identity: Some(device), ..DtlsClient::default() };
    let (certificate, key) = certificates.sign("localhost");
    let keys = format!(
        "tls = {{ cert_file = {certificate:?}, key_file = {key:?}, client_ca_file = {ca:?}, crl_file = {revoked:?} }}"
    );
    let gateway = raw_echo_with(&keys).await;
    let mut first = DtlsSocket::connect(gateway.listener(), &client).await.unwrap();
    is_served(&mut first).await;
    assert_eq!(first.presented(), certificates.leaf("localhost"));

    certificates.sign("localhost");
    assert_ne!(first.presented(), certificates.leaf("localhost"));
    gateway.follow(gateway.text()).await.unwrap();
    let mut second = DtlsSocket::connect(gateway.listener(), &client).await.unwrap();
    is_served(&mut second).await;
    assert_eq!(second.presented(), certificates.leaf("localhost"));
    is_served(&mut first).await;

    certificates.revoke(&[66]);
    gateway.follow(gateway.text()).await.unwrap();
    let address = gateway.listener();
    let trying = tokio::spawn(async move { DtlsSocket::connect(address, &client).await.map(drop) });
    gateway.metric_reaches(&rejected("revoked_certificate"), 1.0).await;
    trying.abort();
    is_served(&mut first).await;
    is_served(&mut second).await;
}

/// A gateway that gives every byte back, and what a device needs for it.
async fn raw_echo(more_keys: &str) -> (GatewayUnderTest, DtlsClient) {
    let transport = Transport::mutual_dtls();
    let Transport::Dtls(dtls) = &transport else { unreachable!() };
    let client = dtls.client.clone();
    let setup = Setup::guest("echo").handler("settings = { mode = \"raw\" }").over(transport);
    (setup.listener(more_keys).start().await, client)
}

async fn raw_echo_with(keys: &str) -> GatewayUnderTest {
    let setup = Setup::guest("echo").handler("settings = { mode = \"raw\" }");
    setup.bind("dtls://127.0.0.1:0").listener(keys).start().await
}

async fn local_socket(gateway: &GatewayUnderTest) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(gateway.listener()).await.unwrap();
    socket
}

/// The first datagram of a device.
async fn hello(client: &DtlsClient) -> Vec<u8> {
    let ear = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(ear.local_addr().unwrap()).await.unwrap();
    DtlsSocket::begin(socket, client).say().await.unwrap();
    let mut hello = vec![0; 2000];
    let count = within("a hello", ear.recv(&mut hello)).await.unwrap();
    hello.truncate(count);
    hello
}

/// The socket of a device that was switched off and on: the same address, and nothing that was sent to it before.
async fn rebooted(device: DtlsSocket) -> UdpSocket {
    let (near, far) = (device.socket().local_addr().unwrap(), device.socket().peer_addr().unwrap());
    drop(device);
    let socket = UdpSocket::bind(near).await.unwrap();
    socket.connect(far).await.unwrap();
    socket
}

/// The hello that would follow another one with this cookie.
fn with_cookie(hello: &[u8], cookie: &[u8]) -> Vec<u8> {
    let mut hello = hello.to_vec();
    // Behind the headers of the record and the message, a version, a random, and no session.
    let at = 13 + 12 + 2 + 32 + 1;
    assert_eq!(hello[at], 0, "there is none yet");
    hello[at] = cookie.len() as u8;
    hello.splice(at + 1..at + 1, cookie.iter().copied());
    // The length of the record and, twice, of the message; the message is the second of its handshake.
    let (record, message) = ((hello.len() - 13) as u16, (hello.len() - 25) as u16);
    hello[11..13].copy_from_slice(&record.to_be_bytes());
    for at in [15, 23] {
        hello[at..at + 2].copy_from_slice(&message.to_be_bytes());
    }
    hello[18] = 1;
    hello
}

/// A peer that has shown its cookie and hears nothing of what the listener answers.
async fn unfinished(gateway: &GatewayUnderTest, client: &DtlsClient) -> DtlsSocket {
    let mut peer = DtlsSocket::begin(local_socket(gateway).await, client);
    // The hello and the answer to it, then the hello with the cookie.
    peer.say().await.unwrap();
    within("a cookie", peer.socket().readable()).await.unwrap();
    assert!(!peer.step().await.unwrap());
    within("the listener's flight", peer.socket().readable()).await.unwrap();
    peer
}

async fn expect(device: &mut DtlsSocket, bytes: &[u8]) {
    let mut buffer = vec![0; RECORD_BYTES_MAX];
    let count = within("a datagram", device.read(&mut buffer)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..count]), String::from_utf8_lossy(bytes));
}

/// Sends something and gets it back.
async fn is_served(device: &mut DtlsSocket) {
    device.send(b"here?").await.unwrap();
    expect(device, b"here?").await;
}

/// Peers that got no connection for this reason.
fn rejected(reason: &str) -> String {
    format!("polygate_connections_rejected_total{{listener=\"l\",reason=\"{reason}\"}}")
}

/// Carries the datagrams of one device, but for some of those to it.
struct Lossy;

impl Lossy {
    /// Gives the address that stands for the gateway's; the datagrams of these numbers, from 0, are lost.
    async fn start(gateway: SocketAddr, lost: &'static [usize]) -> SocketAddr {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        far.connect(gateway).await.unwrap();
        let address = near.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut from_near, mut from_far) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
            let (mut device, mut number) = (None, 0);
            loop {
                tokio::select! {
                    received = near.recv_from(&mut from_near) => {
                        let (count, peer) = received.unwrap();
                        device = Some(peer);
                        far.send(&from_near[..count]).await.unwrap();
                    }
                    received = far.recv(&mut from_far) => {
                        let Ok(count) = received else { return };
                        if !lost.contains(&number) {
                            near.send_to(&from_far[..count], device.unwrap()).await.unwrap();
                        }
                        number += 1;
                    }
                }
            }
        });
        address
    }
}
