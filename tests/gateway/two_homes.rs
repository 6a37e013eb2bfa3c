//! One source, two homes: what is a component inside the gateway is also a server beside it, and nobody can tell.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness::echo_device::EchoDevice;
use crate::harness::mqtt::MqttClient;
use crate::harness::recorded::{play_all, recorded};
use crate::harness::relay::Relay;
use crate::harness::{GatewayUnderTest, Setup};

/// Every recorded terminal gets the same bytes, and MQTT clients get the same messages, from the server as from the
/// component (`crate::jt808`): both are compared with the same recordings, byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_terminals_at_the_server() {
    let served = Served::start("jt808", &["--setting", "auth_code=tour"]).await;
    play_all(&served.gateway, &recorded("examples/conversations/jt808")).await;
}

/// A device hears the same from both homes, message for message, also about what is refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_echo_from_both_homes() {
    let component = Setup::guest("echo").start().await;
    let served = Served::start("echo", &[]).await;
    let mut transcripts = Vec::new();
    for gateway in [&component, &served.gateway] {
        let mut console = MqttClient::connect(gateway.broker(), "console").await;
        console.subscribe("up").await;
        let mut device = EchoDevice::connect(gateway.listener()).await;
        let mut answers = vec![device.publish("up", "too early").await];
        let info = json!({"proto_name": "echo", "proto_ver": "1", "clientid": "c1", "keepalive": 60});
        answers.push(device.ask(json!({"type": 1, "clientinfo": info})).await);
        answers.push(device.subscribe("down").await);
        answers.push(device.subscribe("a wrong # filter").await);
        answers.push(device.publish("up", "one").await);
        answers.push(device.ask(json!({"type": 10, "topic": "up", "qos": 1, "payload": "raw"})).await);
        let published = [console.next_text().await, console.next_text().await];
        console.publish("down", "hello").await;
        answers.push(device.receive().await);
        device.send(&json!({"type": 9})).await;
        device.expect_closed().await;
        transcripts.push((answers, published));
    }
    let [component, served] = &transcripts[..] else { panic!("not two homes") };
    assert_eq!(component, served);
}

/// A device outlives the process that served it: the next one says that it does not know the connection, is told of it,
/// and gets the event again.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_restarted() {
    let mut served = Served::start("echo", &[]).await;
    let mut device = EchoDevice::login(served.gateway.listener(), "c1").await;
    served.restart().await;
    let mut answer = device.subscribe("down").await;
    if answer == json!({"type": 2, "code": 0}) {
        // The process went before it had said that the login was done, so the login was repeated.
        answer = device.receive().await;
    }
    assert_eq!(answer, json!({"type": 6, "code": 0}));
    let mut console = MqttClient::connect(served.gateway.broker(), "console").await;
    console.publish("down", "welcome back").await;
    assert_eq!(device.receive().await, json!({"type": 3, "topic": "down", "qos": 1, "payload": "welcome back"}));
}

/// How long a server may take to say where it listens, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A gateway whose handler is a server of `guests/exproto-server/examples`.
struct Served {
    gateway: GatewayUnderTest,
    relay: Relay,
    name: &'static str,
    args: &'static [&'static str],
    /// Killed when it is dropped.
    server: Child,
}

impl Served {
    async fn start(name: &'static str, args: &'static [&'static str]) -> Self {
        let relay = Relay::start().await;
        let gateway = Setup::grpc_at(&format!("http://{}", relay.address)).handler("channels = 1").start().await;
        let (server, address) = spawn(name, args, gateway.adapter()).await;
        relay.lead_to(address);
        Self { gateway, relay, name, args, server }
    }

    async fn restart(&mut self) {
        self.server.kill().await.unwrap();
        let (server, address) = spawn(self.name, self.args, self.gateway.adapter()).await;
        self.server = server;
        self.relay.lead_to(address);
    }
}

/// Starts a server on a free port, and waits until it listens.
async fn spawn(name: &str, args: &[&str], adapter: SocketAddr) -> (Child, SocketAddr) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/target/debug/examples").join(name);
    assert!(program.exists(), "{} is missing: run guests/build", program.display());
    let mut server = Command::new(program)
        .args(["--listen", "127.0.0.1:0", "--adapter", &format!("http://{adapter}")])
        .args(args)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(server.stdout.take().unwrap()).lines();
    let said = tokio::time::timeout(START_TIMEOUT, stdout.next_line()).await.unwrap();
    let line = said.unwrap().expect("the server ended without saying where it listens");
    let address = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("expected the address, found {line:?}"));
    (server, address.parse().unwrap())
}
