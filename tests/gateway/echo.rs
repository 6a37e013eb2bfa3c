//! The echo cases of EMQX's own suite, through every kind of handler and over every transport.

use serde_json::json;

use crate::harness::certificates::Certificates;
use crate::harness::echo_device::EchoDevice;
use crate::harness::mqtt::MqttClient;
use crate::harness::scripted_handler::{self, ScriptedHandler, Serves};
use crate::harness::transport::Transport;
use crate::harness::{GatewayUnderTest, Setup, guest};

/// The kinds of handler that speak the echo protocol.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A component of guests/dist.
    Guest(&'static str),
    Unary,
    Streaming,
    UnaryConnectionHandler,
    Https,
}

/// A gateway whose handler is of this kind, and the handler if it is a server.
async fn start(
    kind: Kind,
    transport: Transport,
    configure: impl FnOnce(Setup) -> Setup,
) -> (GatewayUnderTest, Option<ScriptedHandler>) {
    let configure = |setup: Setup| configure(setup.over(transport));
    let handler = match kind {
        Kind::Guest(file) => {
            let gateway = configure(Setup::guest(file)).start().await;
            return (gateway, None);
        }
        Kind::Unary => ScriptedHandler::echo(Serves::Unary).await,
        Kind::Streaming => ScriptedHandler::echo(Serves::Streaming).await,
        Kind::UnaryConnectionHandler => ScriptedHandler::echo(Serves::UnaryConnectionHandler).await,
        Kind::Https => return start_https(configure).await,
    };
    let gateway = configure(Setup::grpc(&handler)).start().await;
    handler.use_adapter(gateway.adapter());
    (gateway, Some(handler))
}

/// The handler and the adapter on https, each with a private authority and a certificate for the other.
async fn start_https(configure: impl FnOnce(Setup) -> Setup) -> (GatewayUnderTest, Option<ScriptedHandler>) {
    let certificates = Certificates::new();
    let ca = certificates.ca_file();
    let (certificate, key) = certificates.sign("localhost");
    let tls = (certificate.clone(), key.clone(), ca.clone());
    let transport = scripted_handler::Transport { tls: Some(tls.clone()), ..scripted_handler::Transport::default() };
    let handler = ScriptedHandler::echo_on(transport, Serves::Unary).await;
    let gateway = configure(Setup::grpc(&handler))
        .handler(&format!("tls = {{ ca_file = {ca:?}, cert_file = {certificate:?}, key_file = {key:?} }}"))
        .adapter(&format!("tls = {{ cert_file = {certificate:?}, key_file = {key:?}, client_ca_file = {ca:?} }}"))
        .start()
        .await;
    handler.use_adapter_tls(gateway.adapter(), &tls);
    (gateway, Some(handler))
}

/// A message to the device loses the mountpoint, one from it gains it.
async fn mountpoint_echo(kind: Kind, transport: Transport) {
    let (gateway, _handler) = start(kind, transport, |setup| setup.listener("mountpoint = \"ct/\"")).await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.subscribe("ct/#").await;
    let mut device = gateway.login("device-1").await;

    assert_eq!(device.subscribe("t/dn").await, json!({"type": 6, "code": 0}));
    client.publish("ct/t/dn", "echo").await;
    assert_eq!(device.receive().await, json!({"type": 3, "topic": "t/dn", "qos": 1, "payload": "echo"}));
    assert_eq!(client.next_text().await, ("ct/t/dn".to_owned(), "echo".to_owned()));

    assert_eq!(device.publish("t/up", "hello").await, json!({"type": 4, "code": 0}));
    assert_eq!(client.next_text().await, ("ct/t/up".to_owned(), "hello".to_owned()));

    assert_eq!(device.ask(json!({"type": 7, "topic": "t/dn"})).await, json!({"type": 8, "code": 0}));
    client.publish("ct/t/dn", "unheard").await;
    assert_eq!(device.publish("t/up", "after").await, json!({"type": 4, "code": 0}), "nothing was delivered before");
}

/// A raw publish goes past the mountpoint.
async fn raw_publish(kind: Kind, transport: Transport) {
    let (gateway, _handler) = start(kind, transport, |setup| setup.listener("mountpoint = \"ct/\"")).await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.subscribe("t/raw").await;
    let mut device = gateway.login("device-1").await;

    let answer = device.ask(json!({"type": 10, "topic": "t/raw", "qos": 0, "payload": "past"})).await;
    assert_eq!(answer, json!({"type": 4, "code": 0}));
    assert_eq!(client.next_text().await, ("t/raw".to_owned(), "past".to_owned()));
}

/// A refused device gets its refusal, then the end of the stream.
async fn authentication_refused(kind: Kind, transport: Transport) {
    let (gateway, _handler) = start(kind, transport, |setup| setup.auth("allow_anonymous = false\n")).await;
    let mut device = gateway.device().await;
    let connect = json!({"type": 1, "clientinfo": {"proto_name": "echo", "proto_ver": "1", "clientid": "device-1"}});
    assert_eq!(device.ask(connect).await, json!({"type": 2, "code": 1}));
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"handler_asked\"}", 1.0).await;
    device.expect_closed().await;
}

/// A rule denies one topic and not another, for publishing and for subscribing.
async fn rules(kind: Kind, transport: Transport) {
    let (gateway, _handler) = start(kind, transport, |setup| {
        setup.auth(
            "allow_anonymous = true\n[[auth.rules]]\neffect = \"deny\"\naction = \"all\"\nclients = [\"device-*\"]\n\
             topics = [\"denied/#\"]\n",
        )
    })
    .await;
    let mut device = gateway.login("device-1").await;
    assert_eq!(device.publish("denied/up", "x").await, json!({"type": 4, "code": 1}));
    assert_eq!(device.subscribe("denied/dn").await, json!({"type": 6, "code": 1}));
    assert_eq!(device.subscribe("allowed/dn").await, json!({"type": 6, "code": 0}));

    let mut other = gateway.login("other").await;
    assert_eq!(other.publish("denied/up", "x").await, json!({"type": 4, "code": 0}));
}

/// A device that is silent for one and a half intervals is ended; what others send does not count for it.
async fn keepalive(kind: Kind, transport: Transport) {
    let (gateway, handler) = start(kind, transport, |setup| setup).await;
    let mut silent = gateway.device().await;
    let mut lively = gateway.login("lively").await;
    let connect = json!({"type": 1, "clientinfo": {"clientid": "silent", "keepalive": 1}});
    assert_eq!(silent.ask(connect).await, json!({"type": 2, "code": 0}));
    assert_eq!(lively.subscribe("t").await, json!({"type": 6, "code": 0}));

    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"keepalive_expired\"}", 1.0).await;
    silent.expect_closed().await;
    assert_eq!(lively.publish("up", "still here").await, json!({"type": 4, "code": 0}));
    if let Some(mut handler) = handler {
        assert_eq!(handler.next_closed().await, "{shutdown,keepalive_timeout}");
    }
}

/// The handler learns of the beginning and the end; a Close by the handler ends the stream in order.
async fn lifecycle(kind: Kind, transport: Transport) {
    let (gateway, handler) = start(kind, transport, |setup| setup).await;
    let mut device = gateway.login("device-1").await;
    device.send(&json!({"type": 9})).await;
    device.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"handler_asked\"}", 1.0).await;
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 0.0).await;
    if let Some(mut handler) = handler {
        handler.next_created().await;
        assert_eq!(handler.next_closed().await, "{shutdown,normal}");
    }
}

macro_rules! cases {
    ($($name:ident => $kind:expr, $transport:expr;)*) => {
        $(mod $name {
            use super::{Kind, Transport};

            cases!(@case $kind, $transport; mountpoint_echo raw_publish authentication_refused rules keepalive lifecycle);
        })*
    };
    (@case $kind:expr, $transport:expr; $($case:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            super::$case($kind, $transport).await;
        })*
    };
}

cases! {
    guest => Kind::Guest("echo"), Transport::Tcp;
    guest_c => Kind::Guest("echo-c"), Transport::Tcp;
    guest_go => Kind::Guest("large/echo-go"), Transport::Tcp;
    guest_js => Kind::Guest("large/echo-js"), Transport::Tcp;
    guest_python => Kind::Guest("large/echo-python"), Transport::Tcp;
    grpc_unary => Kind::Unary, Transport::Tcp;
    grpc_streaming => Kind::Streaming, Transport::Tcp;
    grpc_unary_connection_handler => Kind::UnaryConnectionHandler, Transport::Tcp;
    grpc_https => Kind::Https, Transport::Tcp;
    udp_guest => Kind::Guest("echo"), Transport::Udp;
    udp_grpc_unary => Kind::Unary, Transport::Udp;
    udp_grpc_streaming => Kind::Streaming, Transport::Udp;
    udp_grpc_https => Kind::Https, Transport::Udp;
    guest_dtls => Kind::Guest("echo"), Transport::mutual_dtls();
    grpc_unary_dtls => Kind::Unary, Transport::mutual_dtls();
    grpc_streaming_dtls => Kind::Streaming, Transport::mutual_dtls();
    grpc_https_dtls => Kind::Https, Transport::mutual_dtls();
    guest_tls => Kind::Guest("echo"), Transport::mutual_tls();
    guest_tls_beside_keys => Kind::Guest("echo"), Transport::mutual_tls_beside_keys();
    grpc_unary_tls => Kind::Unary, Transport::mutual_tls();
    grpc_streaming_tls => Kind::Streaming, Transport::mutual_tls();
    grpc_https_tls => Kind::Https, Transport::mutual_tls();
}

/// Two listeners with handlers of their own, one of each kind, behind one gateway.
#[tokio::test(flavor = "multi_thread")]
async fn each_listener_has_its_own_handler() {
    let handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler)
        .more(&format!(
            "[handlers.raw]\nkind = \"wasm\"\ncomponent = {:?}\nsettings = {{ mode = \"raw\" }}\n\
             [listeners.second]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"raw\"]\n",
            guest("echo")
        ))
        .start()
        .await;
    handler.use_adapter(gateway.adapter());

    EchoDevice::login(gateway.listener(), "device-1").await;
    let mut raw = crate::harness::peer::RawPeer::connect(gateway.listener_named("second")).await;
    raw.send("anything").await;
    raw.expect("anything").await;
}
