//! Devices as clients of the user's own broker, which is Debian's mosquitto here.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::harness::certificates::Certificates;
use crate::harness::echo_device::EchoDevice;
use crate::harness::mqtt::MqttClient;
use crate::harness::{GatewayUnderTest, Setup, eventually, within};

/// mosquitto with a directory of its own.
struct Mosquitto {
    process: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Mosquitto {
    /// With plain MQTT on a free port; `more` is configuration.
    async fn start(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // mosquitto gives its privileges up and must be able to read what the test has written.
        open_to_all(dir.path(), 0o755);
        let port = free_port();
        let text = format!(
            "persistence false\nper_listener_settings false\nlistener {port} 127.0.0.1\n\
             password_file {0}/passwords\nallow_anonymous true\n{more}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("mosquitto.conf"), text).unwrap();
        std::fs::write(dir.path().join("passwords"), "").unwrap();
        let made = Command::new("mosquitto_passwd")
            .args(["-b", &dir.path().join("passwords").to_string_lossy(), "meter-7", "secret"])
            .stderr(Stdio::null())
            .status()
            .await
            .expect("mosquitto is installed");
        assert!(made.success());
        open_to_all(&dir.path().join("passwords"), 0o644);
        let process = Self::spawn(dir.path());
        let broker = Self { process, dir, port };
        broker.answers().await;
        broker
    }

    fn spawn(dir: &Path) -> Child {
        let program =
            ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"].into_iter().find(|path| Path::new(path).exists());
        Command::new(program.expect("mosquitto is installed"))
            .arg("-c")
            .arg(dir.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn answers(&self) {
        within("mosquitto to listen", async {
            while TcpStream::connect(self.addr()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    async fn restart(&mut self) {
        self.process = Self::spawn(self.dir.path());
        self.answers().await;
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// A gateway whose devices are its clients.
    async fn gateway(&self, keys: &str) -> GatewayUnderTest {
        gateway(&format!("mqtt://127.0.0.1:{}", self.port), keys).await
    }
}

async fn gateway(url: &str, keys: &str) -> GatewayUnderTest {
    let broker = format!("kind = \"mqtt\"\nurls = [\"{url}\"]\n{keys}");
    Setup::guest("echo").broker(&broker).start().await
}

fn open_to_all(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;

    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn publish(device: &mut EchoDevice, topic: &str, payload: &str, qos: u8) -> Value {
    device.ask(json!({"type": 3, "topic": topic, "qos": qos, "payload": payload})).await
}

fn delivered(topic: &str, payload: &str, qos: u8) -> Value {
    json!({"type": 3, "topic": topic, "qos": qos, "payload": payload})
}

/// Messages go both ways in each QoS, in both versions.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_clients_of_the_broker() {
    let broker = Mosquitto::start("").await;
    for version in ["5", "3.1.1"] {
        let gateway = broker.gateway(&format!("protocol = \"{version}\"")).await;
        let mut backend = MqttClient::connect(broker.addr(), "backend").await;
        backend.subscribe("up/#").await;
        let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
        assert_eq!(device.subscribe("dn/#").await, json!({"type": 6, "code": 0}));
        for qos in 0..3 {
            let payload = format!("{version} {qos}");
            assert_eq!(publish(&mut device, "up/1", &payload, qos).await, json!({"type": 4, "code": 0}));
            assert_eq!(backend.next_text().await, ("up/1".to_owned(), payload));
        }
        backend.publish("dn/1", "do").await;
        assert_eq!(device.receive().await, delivered("dn/1", "do", 1));
        device.ask(json!({"type": 7, "topic": "dn/#"})).await;
        backend.publish("dn/1", "not heard").await;
        gateway.metric_reaches("polygate_broker_connections", 1.0).await;
        drop(device);
        gateway.metric_reaches("polygate_broker_connections", 0.0).await;
    }
}

/// Over TLS and over WebSocket it is the same.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_over_tls_and_websocket() {
    let certificates = Certificates::new();
    let (cert, key) = certificates.sign("localhost");
    let ca = certificates.ca_file();
    for path in [&cert, &key, &ca] {
        open_to_all(path, 0o644);
        open_to_all(path.parent().unwrap(), 0o755);
    }
    let (tls, ws) = (free_port(), free_port());
    let broker = Mosquitto::start(&format!(
        "listener {tls} 127.0.0.1\ncertfile {}\nkeyfile {}\nlistener {ws} 127.0.0.1\nprotocol websockets",
        cert.display(),
        key.display()
    ))
    .await;
    let trust = format!("tls = {{ ca_file = {ca:?} }}");
    for (url, keys) in [(format!("mqtts://localhost:{tls}"), &*trust), (format!("ws://127.0.0.1:{ws}/"), "")] {
        let gateway = gateway(&url, keys).await;
        let mut backend = MqttClient::connect(broker.addr(), "backend").await;
        backend.subscribe("up").await;
        let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
        assert_eq!(publish(&mut device, "up", &url, 1).await, json!({"type": 4, "code": 0}));
        assert_eq!(backend.next_text().await.1, url);
    }
    // A broker that is not trusted is not talked to.
    let gateway = gateway(&format!("mqtts://localhost:{tls}"), "").await;
    let mut device = EchoDevice::connect(gateway.listener()).await;
    let refused = device
        .ask(json!({"type": 1, "clientinfo": {"proto_name": "echo", "proto_ver": "1", "clientid": "device-1"}}))
        .await;
    assert_ne!(refused["code"], 0, "{refused}");
}

/// The broker decides who may come in.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_decides() {
    let broker = Mosquitto::start("").await;
    let gateway = broker.gateway("").await;
    for (password, code) in [("secret", 0), ("wrong", 1)] {
        let mut device = EchoDevice::connect(gateway.listener()).await;
        let client = json!({"proto_name": "echo", "proto_ver": "1", "clientid": "device-1", "username": "meter-7"});
        let answer = device.ask(json!({"type": 1, "clientinfo": client, "password": password})).await;
        assert_eq!(answer["code"] == 0, code == 0, "{answer}");
    }
    gateway.metric_reaches("polygate_broker_connects_failed_total", 1.0).await;
}

/// The broker is killed: devices keep their sockets, what they publish waits, what they have subscribed to is there again.
#[tokio::test(flavor = "multi_thread")]
async fn devices_outlive_the_broker() {
    let mut broker = Mosquitto::start("").await;
    let gateway = broker.gateway("").await;
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    assert_eq!(device.subscribe("dn").await, json!({"type": 6, "code": 0}));

    broker.kill().await;
    gateway.metric_reaches("polygate_broker_connections", 0.0).await;
    for qos in [1, 2, 0] {
        let payload = format!("in the outage {qos}");
        assert_eq!(publish(&mut device, "dn", &payload, qos).await, json!({"type": 4, "code": 0}));
    }
    gateway.metric_reaches("polygate_broker_outage_dropped_total", 1.0).await;
    let refused = device.subscribe("other").await;
    assert_ne!(refused["code"], 0, "{refused}");

    broker.restart().await;
    // mosquitto has forgotten everything, and the device's messages come when nobody else may be there yet: so the
    // device itself has subscribed to what it publishes.
    let mut received = Vec::new();
    while received.len() < 2 {
        received.push(device.receive().await["payload"].as_str().unwrap().to_owned());
    }
    received.sort();
    assert_eq!(received, ["in the outage 1", "in the outage 2"]);
    let mut backend = MqttClient::connect(broker.addr(), "backend").await;
    backend.publish("dn", "again").await;
    assert_eq!(device.receive().await, delivered("dn", "again", 1));
    gateway.metric_reaches("polygate_broker_connections", 1.0).await;
    assert!(gateway.metric("polygate_broker_connections_lost_total") >= 1.0);
}

/// Beyond the outage buffer messages are refused, and the device is told.
#[tokio::test(flavor = "multi_thread")]
async fn the_outage_buffer_is_bounded() {
    let mut broker = Mosquitto::start("").await;
    let gateway = broker.gateway("outage_buffer = \"1KiB\"").await;
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    broker.kill().await;
    gateway.metric_reaches("polygate_broker_connections", 0.0).await;
    let mut codes = Vec::new();
    for _ in 0..6 {
        codes.push(publish(&mut device, "up", &"x".repeat(100), 1).await["code"] == 0);
    }
    assert_eq!(codes, [true, true, true, false, false, false]);
}

/// A device that comes back at another gateway is taken over once, and the old connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_moves_between_gateways() {
    let broker = Mosquitto::start("").await;
    let (first, second) = (broker.gateway("").await, broker.gateway("").await);
    let mut old = EchoDevice::login(first.listener(), "device-1").await;
    let mut new = EchoDevice::login(second.listener(), "device-1").await;
    // This broker does not say that it has given the client id to another connection.
    old.expect_closed().await;
    first.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"replaced\"}", 1.0).await;
    second.metric_reaches("polygate_broker_connections", 1.0).await;
    assert_eq!(publish(&mut new, "up", "here", 1).await, json!({"type": 4, "code": 0}));
    eventually("the old connection is gone", || (first.connections(), second.connections()) == (0, 1)).await;
}

/// With `confirm`, a device gets no answer to a record that the broker does not have: its connection ends instead.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_without_the_brokers_acknowledgement() {
    let mut broker = Mosquitto::start("").await;
    let keys = format!("kind = \"mqtt\"\nurls = [\"mqtt://127.0.0.1:{}\"]", broker.port);
    let confirm = "confirm = \"before-send\"\nconfirm_timeout = \"200ms\"";
    let gateway = Setup::guest("echo").broker(&keys).listener(confirm).start().await;
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    assert_eq!(publish(&mut device, "up", "safe", 1).await, json!({"type": 4, "code": 0}));

    broker.kill().await;
    gateway.metric_reaches("polygate_broker_connections", 0.0).await;
    assert_eq!(publish(&mut device, "up", "never mind", 0).await, json!({"type": 4, "code": 0}));
    device.send(&json!({"type": 3, "topic": "up", "qos": 1, "payload": "a record"})).await;
    device.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"unconfirmed\"}", 1.0).await;
}

/// The connections between gateway and broker are cut again and again under load. Devices delete what is answered, and
/// the broker's subscriber has got every record that was.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_answered_has_arrived() {
    const DEVICES: usize = 8;
    const CUTS: usize = 25;
    const ANSWERS_BETWEEN_CUTS: usize = 15;

    let broker = Mosquitto::start("max_queued_messages 0\nmax_inflight_messages 0").await;
    let (proxy, cut) = cuttable_proxy(broker.addr()).await;
    let keys = format!("kind = \"mqtt\"\nurls = [\"mqtt://{proxy}\"]");
    let confirm = "confirm = \"before-send\"\nconfirm_timeout = \"300ms\"";
    let gateway = Setup::guest("echo").broker(&keys).listener(confirm).start().await;
    let mut backend = MqttClient::connect(broker.addr(), "backend").await;
    backend.subscribe("up/#").await;

    let (answered, mut answers) = tokio::sync::mpsc::channel::<String>(1024);
    let done = tokio_util::sync::CancellationToken::new();
    let devices: Vec<_> = (0..DEVICES)
        .map(|number| tokio::spawn(device_with_records(number, gateway.listener(), answered.clone(), done.clone())))
        .collect();
    drop(answered);
    let mut deleted = Vec::new();
    for _ in 0..CUTS {
        for _ in 0..ANSWERS_BETWEEN_CUTS {
            deleted.push(within("an answer", answers.recv()).await.unwrap());
        }
        cut.send_modify(|cuts| *cuts += 1);
    }
    done.cancel();
    while let Some(record) = answers.recv().await {
        deleted.push(record);
    }
    for device in devices {
        device.await.unwrap();
    }
    assert!(deleted.len() >= CUTS * ANSWERS_BETWEEN_CUTS);
    // A message of the same client comes behind all that were acknowledged before.
    let mut last = MqttClient::connect(broker.addr(), "last").await;
    last.publish("up/end", "end").await;
    let mut arrived = std::collections::HashSet::new();
    loop {
        match backend.next_text().await {
            (topic, _) if topic == "up/end" => break,
            (_, record) => arrived.insert(record),
        };
    }
    let missing: Vec<_> = deleted.iter().filter(|record| !arrived.contains(*record)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Sends one record after the other, each again until it is answered.
async fn device_with_records(
    number: usize,
    gateway: SocketAddr,
    answered: tokio::sync::mpsc::Sender<String>,
    done: tokio_util::sync::CancellationToken,
) {
    let mut record = 0;
    while !done.is_cancelled() {
        let mut device = TcpStream::connect(gateway).await.unwrap();
        let client = json!({"proto_name": "echo", "proto_ver": "1", "clientid": format!("device-{number}")});
        if !asked(&mut device, &json!({"type": 1, "clientinfo": client}), r#"{"type":2,"code":0}"#).await {
            continue;
        }
        while !done.is_cancelled() {
            let text = format!("{number}/{record}");
            let publish = json!({"type": 3, "topic": format!("up/{number}"), "qos": 1, "payload": text});
            if !asked(&mut device, &publish, r#"{"type":4,"code":0}"#).await {
                break;
            }
            record += 1;
            answered.send(text).await.unwrap();
        }
    }
}

/// Whether the answer came before the end of the connection.
async fn asked(device: &mut TcpStream, object: &Value, answer: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    if device.write_all(object.to_string().as_bytes()).await.is_err() {
        return false;
    }
    let mut received = vec![0; answer.len()];
    let read = within("an answer or the end", device.read_exact(&mut received)).await;
    read.is_ok() && received == answer.as_bytes()
}

/// A proxy in front of the broker; a change of the number cuts all of its connections.
async fn cuttable_proxy(broker: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<usize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, cuts) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(broker).await else { return };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    });
    (address, cut)
}
