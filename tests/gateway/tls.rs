//! What the gateway promises a TLS peer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{KeyPair, SerialNumber};
use rustls::{ClientConfig, HandshakeKind};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::certificates::Certificates;
use crate::harness::echo_device::EchoDevice;
use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::transport::Transport;
use crate::harness::{GatewayUnderTest, Setup, eventually, within};

/// A gateway that gives every byte back at once.
fn raw_echo() -> Setup {
    Setup::guest("echo").handler("settings = { mode = \"raw\" }")
}

/// Sends something and gets it back: the handshake was good on both sides.
async fn is_served(peer: &mut RawPeer) {
    peer.send("here?").await;
    peer.expect("here?").await;
}

/// Peers that got no connection for this reason.
fn rejected(reason: &str) -> String {
    format!("polygate_connections_rejected_total{{listener=\"l\",reason=\"{reason}\"}}")
}

/// The names in the device's certificate reach the handler, also from a session that is resumed.
#[tokio::test(flavor = "multi_thread")]
async fn the_handler_learns_who_the_device_is() {
    for versions in ["1.2", "1.3"] {
        let certificates = Certificates::new();
        let ca = certificates.ca_file();
        let device = certificates.sign_device("Pump 7, Süd", |_| {});
        let client = certificates.client(Some(&device));
        let transport = Transport::tls(certificates, &format!("client_ca_file = {ca:?}, versions = [\"{versions}\"]"));
        let mut handler = ScriptedHandler::echo(Serves::Unary).await;
        let gateway = Setup::grpc(&handler).over(transport).start().await;
        handler.use_adapter(gateway.adapter());
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let peer = RawPeer::connect_tls(gateway.listener(), &client).await.unwrap();
            let mut device = EchoDevice::over(peer);
            device.log_in("device-1").await;
            let Event::Created(info) = handler.next().await.event else { panic!("not the first event") };
            assert_eq!(info.socktype, 1, "SSL");
            let certificate = info.peercert.unwrap();
            assert_eq!(certificate.cn, "Pump 7, Süd");
            assert_eq!(certificate.dn, r"CN=Pump 7\, Süd,O=Example");

            device.send(&json!({"type": 9})).await;
            device.expect_closed().await;
            assert_eq!(handler.next_closed().await, "{shutdown,normal}");
            let stream = device.into_peer().into_tls();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{versions}");
        }
    }
}

/// Each certificate that is not good is refused for its own reason, and counted.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_refused() {
    let certificates = Certificates::new();
    let (ca, revoked) = (certificates.ca_file(), certificates.revoke(&[66]));
    let good = certificates.client(Some(&certificates.sign_device("good", |params| {
        params.serial_number = Some(SerialNumber::from(65_u64));
    })));
    let strangers = Certificates::of("another authority");
    // It believes the listener, and has a certificate that the listener does not believe.
    let stranger = certificates.client(Some(&strangers.sign_device("stranger", |_| {})));
    let expired = certificates.client(Some(&certificates.sign_device("expired", |params| {
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    })));
    let was_revoked = certificates.client(Some(&certificates.sign_device("revoked", |params| {
        params.serial_number = Some(SerialNumber::from(66_u64));
    })));
    let of_a_server = certificates.client(Some(&certificates.sign_device("server", |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    })));
    let nobody = certificates.client(None);
    let refused = [
        (&stranger, "unknown_authority"),
        (&expired, "expired_certificate"),
        (&was_revoked, "revoked_certificate"),
        (&of_a_server, "bad_certificate"),
        (&nobody, "no_certificate"),
    ];
    // OpenSSL serves a listener with pre-shared keys; it must judge as rustls does.
    let psk = certificates.write("devices.psk", "device:00112233445566778899aabbccddeeff");
    let keys = format!("client_ca_file = {ca:?}, crl_file = {revoked:?}");
    let with_psk = format!("{keys}, psk_file = {psk:?}");
    let certificates = &certificates.sign("localhost");
    for keys in [keys, with_psk] {
        let gateway = listening(certificates, &keys).await;
        is_served(&mut RawPeer::connect_tls(gateway.listener(), &good).await.unwrap()).await;
        for (client, reason) in refused {
            is_refused(&gateway, client).await;
            gateway.metric_reaches(&rejected(reason), 1.0).await;
        }
        gateway.metric_reaches("polygate_accepted_connections_total{listener=\"l\"}", 1.0).await;
    }
}

/// A gateway that gives every byte back, with a certificate for localhost and more keys of the table `tls`.
async fn listening((certificate, key): &(PathBuf, PathBuf), more_keys: &str) -> GatewayUnderTest {
    raw_echo()
        .bind("tls://127.0.0.1:0")
        .listener(&format!("tls = {{ cert_file = {certificate:?}, key_file = {key:?}, {more_keys} }}"))
        .start()
        .await
}

/// The peer gets an alert, at the latest when it reads.
async fn is_refused(gateway: &GatewayUnderTest, client: &Arc<ClientConfig>) {
    let error = match RawPeer::connect_tls(gateway.listener(), client).await {
        Err(error) => error,
        Ok(mut peer) => peer.read_some().await.unwrap_err(),
    };
    assert!(error.to_string().contains("fatal alert"), "{error}");
}

/// Where a certificate is optional a device may have none, and one that it has must be good.
#[tokio::test(flavor = "multi_thread")]
async fn an_optional_certificate() {
    let (certificates, strangers) = (Certificates::new(), Certificates::of("another authority"));
    let keys = format!("client_ca_file = {:?}, client_cert = \"optional\"", certificates.ca_file());
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let device = certificates.client(Some(&certificates.sign_device("device", |_| {})));
    let nobody = certificates.client(None);
    let stranger = certificates.client(Some(&strangers.sign_device("stranger", |_| {})));
    let gateway = Setup::grpc(&handler).over(Transport::tls(certificates, &keys)).start().await;
    handler.use_adapter(gateway.adapter());
    for (client, name) in [(&device, Some("device")), (&nobody, None)] {
        let peer = RawPeer::connect_tls(gateway.listener(), client).await.unwrap();
        EchoDevice::over(peer).log_in("device-1").await;
        let Event::Created(info) = handler.next().await.event else { panic!("not the first event") };
        assert_eq!(info.peercert.map(|certificate| certificate.cn).as_deref(), name);
        handler.next_closed().await;
    }
    is_refused(&gateway, &stranger).await;
}

/// A device gets the certificate with the name it asks for, its own before a wildcard's, of a kind that it knows; and
/// the first one for any other name.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_chosen_by_name_and_kind() {
    let certificates = Certificates::new();
    let named = |file: &str, key: KeyPair, name: &str| {
        let name = name.to_owned();
        certificates.sign_with(file, key, |params| {
            params.subject_alt_names = rcgen::CertificateParams::new(vec![name]).unwrap().subject_alt_names;
        })
    };
    let ecdsa = || KeyPair::generate().unwrap();
    let rsa = || {
        let key = openssl::pkey::PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
        KeyPair::from_pem(&String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap()).unwrap()
    };
    let main = named("main", ecdsa(), "localhost");
    let more: Vec<String> = [
        named("wild", ecdsa(), "*.dev.example"),
        named("own", ecdsa(), "own.example"),
        named("own-rsa", rsa(), "own.example"),
    ]
    .iter()
    .map(|(certificate, key)| format!("{{ cert_file = {certificate:?}, key_file = {key:?} }}"))
    .collect();
    let gateway = listening(&main, &format!("certificates = [{}]", more.join(", "))).await;

    let client = certificates.client(None);
    for (asked, expected) in
        [("localhost", "main"), ("own.example", "own"), ("OWN.example", "own"), ("other.dev.example", "wild")]
    {
        let peer = RawPeer::connect(gateway.listener()).await.begin_tls(asked, &client).await.unwrap();
        assert_eq!(presented(peer), certificates.leaf(expected), "{asked}");
    }
    // No certificate has this name, so the client does not believe the first one, which it got.
    let Err(error) = RawPeer::connect(gateway.listener()).await.begin_tls("a.b.dev.example", &client).await else {
        panic!("the client believes everything");
    };
    assert!(error.to_string().contains("localhost"), "{error}");

    let mut only_rsa = rustls::crypto::aws_lc_rs::default_provider();
    only_rsa.cipher_suites.retain(|suite| format!("{suite:?}").contains("ECDHE_RSA"));
    let roots = Arc::new(rustls::RootCertStore { roots: client_roots(&certificates) });
    let only_rsa = ClientConfig::builder_with_provider(Arc::new(only_rsa))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let peer = RawPeer::connect(gateway.listener()).await.begin_tls("own.example", &Arc::new(only_rsa)).await.unwrap();
    assert_eq!(presented(peer), certificates.leaf("own-rsa"));
}

/// The certificate that a listener showed, in DER.
fn presented(peer: RawPeer) -> Vec<u8> {
    peer.into_tls().get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn client_roots(certificates: &Certificates) -> Vec<rustls::pki_types::TrustAnchor<'static>> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(certificates.ca_file()).unwrap();
    let ca = openssl::x509::X509::from_pem(&ca).unwrap().to_der().unwrap();
    roots.add(ca.into()).unwrap();
    roots.roots
}

/// A thousand peers that begin no handshake, or do not go on with it, are turned away by its deadline or for others, and
/// devices are served.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_finish_free_their_places() {
    const SILENT: usize = 1000;
    let gateway = raw_echo()
        .over(Transport::mutual_tls())
        .listener("handshake_timeout = \"300ms\"\nconnections_max = 200\nhandshakes_max = 100")
        .start()
        .await;
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut peer = RawPeer::connect(gateway.listener()).await;
        if number % 2 == 0 {
            // The beginning of a record that does not come.
            peer.send([22, 3, 1, 2, 0, 1]).await;
        }
        silent.push(peer);
    }
    is_served(&mut gateway.connect().await).await;
    let reasons = ["handshake_timed_out", "handshake_displaced", "handshakes_max"];
    eventually("an end of all", || {
        reasons.map(|reason| gateway.metric(&rejected(reason))).iter().sum::<f64>() == SILENT as f64
    })
    .await;
    drop(silent);
    is_served(&mut gateway.connect().await).await;
}

/// One that speaks something else, or a version that is not spoken here, or leaves in the middle, is counted as what it
/// is.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_fail_are_counted_by_reason() {
    let certificates = Certificates::new();
    let psk = certificates.write("devices.psk", "device:00112233445566778899aabbccddeeff");
    let only_12 = {
        let roots = rustls::RootCertStore { roots: client_roots(&certificates) };
        let builder = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12]);
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    };
    let own = certificates.sign("localhost");
    let strangers = Certificates::of("another authority");
    for keys in ["versions = [\"1.3\"]".to_owned(), format!("versions = [\"1.3\"], psk_file = {psk:?}")] {
        let gateway = listening(&own, &keys).await;
        let mut http = RawPeer::connect(gateway.listener()).await;
        http.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        gateway.metric_reaches(&rejected("not_tls"), 1.0).await;

        let mut leaves = RawPeer::connect(gateway.listener()).await;
        leaves.send([22, 3, 1, 2, 0, 1]).await;
        drop(leaves);
        gateway.metric_reaches(&rejected("handshake_closed"), 1.0).await;

        is_refused(&gateway, &only_12).await;
        gateway.metric_reaches(&rejected("no_shared_version"), 1.0).await;

        // The client does not believe the listener.
        let error = RawPeer::connect_tls(gateway.listener(), &strangers.client(None)).await.err().unwrap();
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        gateway.metric_reaches(&rejected("handshake_refused"), 1.0).await;
    }
}

/// A balancer's header comes in the clear, before the handshake.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_before_the_handshake() {
    let certificates = Certificates::new();
    let client = certificates.client(None);
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let transport = Transport::tls(certificates, "");
    let gateway = Setup::grpc(&handler).over(transport).listener("proxy_protocol = true").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = RawPeer::connect(gateway.listener()).await;
    peer.send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n").await;
    let peer = peer.begin_tls("localhost", &client).await.unwrap();
    EchoDevice::over(peer).log_in("device-1").await;
    let Event::Created(info) = handler.next().await.event else { panic!("not the first event") };
    let peer = info.peername.unwrap();
    assert_eq!((info.socktype, peer.host.as_str(), peer.port), (1, "192.0.2.7", 4711));
}

/// A device that ends its side still gets the answer to its last bytes, then the gateway's own end. Its handler is told
/// in the words for TLS, also when the device just closes its socket.
async fn both_ends_are_told(transport: Transport) {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).over(transport).start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = gateway.device().await;
    device.send(&json!({"type": 1, "clientinfo": {"clientid": "device-1"}})).await;
    device.peer().shutdown().await;
    assert_eq!(device.receive().await, json!({"type": 2, "code": 0}));
    device.expect_closed().await;
    assert_eq!(handler.next_closed().await, "{shutdown,ssl_closed}");

    let device = gateway.login("device-2").await;
    let (mut socket, _) = device.into_peer().into_tls().into_inner();
    socket.shutdown().await.unwrap();
    assert_eq!(handler.next_closed().await, "{shutdown,ssl_closed}");

    gateway.login("device-3").await.reset();
    let reason = handler.next_closed().await;
    assert!(reason == "{shutdown,econnreset}" || reason == "{shutdown,ssl_closed}", "{reason}");
}

/// A device that sends much and reads nothing is not read any more; when it reads, it gets every byte in order.
async fn back_pressure(transport: Transport) {
    const BYTES: usize = 16 << 20;
    let gateway = raw_echo().over(transport).listener("write_timeout = \"10m\"").start().await;
    let (mut read, mut write) = tokio::io::split(gateway.connect().await.into_tls());
    let sent: Arc<[u8]> = (0..BYTES).map(|byte| (byte / 7) as u8).collect();

    let mut taken = 0;
    while taken < BYTES {
        match tokio::time::timeout(Duration::from_millis(300), write.write(&sent[taken..])).await {
            Ok(count) => taken += count.unwrap(),
            Err(_) => break,
        }
    }
    assert!(taken < BYTES, "everything was taken although nothing was read");

    let rest = Arc::clone(&sent);
    let writing = tokio::spawn(async move {
        write.write_all(&rest[taken..]).await.unwrap();
        write.flush().await.unwrap();
        write
    });
    let mut got = vec![0; BYTES];
    within("all bytes", read.read_exact(&mut got)).await.unwrap();
    assert!(got == *sent, "bytes were lost, doubled or out of order");
    drop(writing.await.unwrap());
}

/// A burst in answer to one small frame arrives whole, though the device sends nothing more that would wake the
/// gateway.
async fn a_burst_is_flushed(transport: Transport) {
    const BYTES: usize = 900_000;
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if matches!(callback.event, Event::Bytes(_)) {
            calls.send_ok(&callback.conn, vec![7; BYTES]).await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).over(transport).start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    for _ in 0..5 {
        peer.send("more").await;
        assert!(peer.receive(BYTES).await == vec![7; BYTES]);
    }
}

/// Other certificates are for devices that come after the reload; the connections that are there live on. Sessions from
/// before are not resumed, so a certificate that is revoked now lets nobody in.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_brings_other_certificates() {
    let certificates = Certificates::new();
    let revoked = certificates.revoke(&[]);
    let keys = format!("client_ca_file = {:?}, crl_file = {revoked:?}", certificates.ca_file());
    let device = certificates.client(Some(&certificates.sign_device("device", |params| {
        params.serial_number = Some(SerialNumber::from(66_u64));
    })));
    let own = certificates.sign("localhost");
    let gateway = listening(&own, &keys).await;
    let mut first = RawPeer::connect_tls(gateway.listener(), &device).await.unwrap();
    is_served(&mut first).await;
    let before = certificates.leaf("localhost");

    // Nothing has changed, so the session is resumed.
    gateway.follow(gateway.text()).await.unwrap();
    let mut second = RawPeer::connect_tls(gateway.listener(), &device).await.unwrap();
    is_served(&mut second).await;
    assert_eq!(second.into_tls().get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));

    certificates.sign("localhost");
    assert_ne!(certificates.leaf("localhost"), before);
    gateway.follow(gateway.text()).await.unwrap();
    let mut third = RawPeer::connect_tls(gateway.listener(), &device).await.unwrap();
    is_served(&mut third).await;
    assert_eq!(presented(third), certificates.leaf("localhost"));
    is_served(&mut first).await;

    certificates.revoke(&[66]);
    gateway.follow(gateway.text()).await.unwrap();
    is_refused(&gateway, &device).await;
    gateway.metric_reaches(&rejected("revoked_certificate"), 1.0).await;
    is_served(&mut first).await;
}

macro_rules! over_both_libraries {
    ($($case:ident)*) => {
        mod rustls_listener {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Transport::mutual_tls()).await;
            })*
        }

        mod openssl_listener {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Transport::mutual_tls_beside_keys()).await;
            })*
        }
    };
}

over_both_libraries!(both_ends_are_told back_pressure a_burst_is_flushed);
