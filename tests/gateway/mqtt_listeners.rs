//! MQTT clients connect over TCP, TLS and WebSocket, and pass what devices pass.

use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::harness::certificates::Certificates;
use crate::harness::peer::RawPeer;
use crate::harness::{GatewayUnderTest, Setup, within};

const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

/// The address of the listener that the test has added.
fn added(gateway: &GatewayUnderTest) -> SocketAddr {
    gateway.mqtt_listener("broker.listeners[0]")
}

async fn websocket(
    address: SocketAddr,
    path: &str,
    protocol: &'static str,
) -> Result<tokio_tungstenite::WebSocketStream<TcpStream>, tungstenite::Error> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(protocol));
    let stream = TcpStream::connect(address).await.unwrap();
    let (stream, response) = within("the handshake", tokio_tungstenite::client_async(request, stream)).await?;
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
    Ok(stream)
}

/// MQTT over WebSocket: packets may be cut anywhere, and come in binary frames only (MQTT 5.0 section 6).
#[tokio::test]
async fn websocket_clients() {
    let gateway = Setup::guest("echo").more("[[broker.listeners]]\nbind = \"ws://127.0.0.1:0\"").start().await;
    let address = added(&gateway);
    let mut client = websocket(address, "/mqtt", "mqttv3.1, mqtt").await.unwrap();
    let (first, rest) = CONNECT.split_at(5);
    client.send(Message::binary(first.to_vec())).await.unwrap();
    client.send(Message::Ping("p".into())).await.unwrap();
    client.send(Message::binary([rest, b"\xc0\x00"].concat())).await.unwrap();
    let mut received = Vec::new();
    while received.len() < CONNACK.len() + 2 {
        match within("a frame", client.next()).await.unwrap().unwrap() {
            Message::Binary(bytes) => received.extend_from_slice(&bytes),
            Message::Pong(bytes) => assert_eq!(&*bytes, b"p"),
            other => panic!("expected a binary frame, got {other:?}"),
        }
    }
    assert_eq!(received, [CONNACK, b"\xd0\x00"].concat());
    client.send(Message::text("hello")).await.unwrap();
    within("the end", async { while let Some(Ok(_)) = client.next().await {} }).await;

    for (path, protocol) in [("/other", "mqtt"), ("/mqtt", "chat")] {
        assert!(matches!(websocket(address, path, protocol).await, Err(tungstenite::Error::Http(_))), "{path}");
    }
    gateway.metric_reaches("polygate_broker_connects_refused_total{reason=\"websocket\"}", 2.0).await;
}

/// MQTT over TLS, with a client certificate where one is demanded.
#[tokio::test]
async fn tls_clients() {
    let certificates = Certificates::new();
    let (cert, key) = certificates.sign("localhost");
    let ca = certificates.ca_file();
    let device = certificates.sign_device("pump", |_| {});
    let tables = format!(
        "[[broker.listeners]]\nbind = \"tls://127.0.0.1:0\"\n\
         tls = {{ cert_file = {cert:?}, key_file = {key:?}, client_ca_file = {ca:?}, client_cert = \"required\" }}"
    );
    let gateway = Setup::guest("echo").more(&tables).start().await;
    let mut peer = RawPeer::connect_tls(added(&gateway), &certificates.client(Some(&device))).await.unwrap();
    peer.send(CONNECT).await;
    peer.expect(CONNACK).await;
    // In TLS 1.3 the refusal comes after the client's side of the handshake.
    if let Ok(mut peer) = RawPeer::connect_tls(added(&gateway), &certificates.client(None)).await {
        assert!(within("the alert", peer.read_some()).await.is_err());
    }
}

/// Access rules, the limit of an address and the connection limit hold for MQTT clients too.
#[tokio::test]
async fn mqtt_clients_pass_what_devices_pass() {
    let tables = "[[broker.listeners]]\nbind = \"tcp://127.0.0.1:0\"\naccess = [\"deny 127.0.0.2\"]\n\
                  connections_per_address_max = 1";
    let gateway = Setup::guest("echo").more(tables).start().await;
    let address = added(&gateway);
    let mut denied = RawPeer::connect_from("127.0.0.2".parse().unwrap(), address).await;
    denied.expect_closed().await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(CONNECT).await.unwrap();
    let mut connack = [0; 4];
    within("CONNACK", first.read_exact(&mut connack)).await.unwrap();
    let mut second = RawPeer::connect(address).await;
    second.expect_closed().await;
    let rejected =
        |reason| format!("polygate_connections_rejected_total{{listener=\"broker.listeners[0]\",reason=\"{reason}\"}}");
    gateway.metric_reaches(&rejected("access"), 1.0).await;
    gateway.metric_reaches(&rejected("address_connections"), 1.0).await;

    // A reload holds for new connections, and who is connected stays.
    gateway.reload("deny 127.0.0.2", "deny 127.0.0.3").await.unwrap();
    let mut allowed = RawPeer::connect_from("127.0.0.2".parse().unwrap(), address).await;
    allowed.send(CONNECT.iter().map(|&byte| if byte == b'c' { b'd' } else { byte }).collect::<Vec<_>>()).await;
    allowed.expect(CONNACK).await;
    first.write_all(b"\xc0\x00").await.unwrap();
    let mut pong = [0; 2];
    within("PINGRESP", first.read_exact(&mut pong)).await.unwrap();
}
