//! Devices and MQTT clients, through both kinds of handler, with programs that others wrote.

use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::harness::echo_device::EchoDevice;
use crate::harness::mqtt::MqttClient;
use crate::harness::scripted_handler::{ScriptedHandler, Serves};
use crate::harness::{GatewayUnderTest, Setup, within};

/// Debian's mosquitto_sub and mosquitto_pub exchange messages with a device.
async fn exchange_with_mosquitto(gateway: &GatewayUnderTest) {
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    assert_eq!(device.subscribe("device-1/dn").await, json!({"type": 6, "code": 0}));

    let port = gateway.broker().port().to_string();
    // The last message of the broker's own that it subscribes to tells us that the subscription stands.
    let mut subscriber = Command::new("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &port, "-V", "5", "-t", "device-1/up", "-t", "marker", "-F", "%t %p"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("mosquitto-clients is installed");
    let mut lines = BufReader::new(subscriber.stdout.take().unwrap()).lines();
    let mut marker = MqttClient::connect(gateway.broker(), "marker").await;
    marker.publish_retained("marker", "ready").await;
    let mut line = async || within("a line of mosquitto_sub", lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line().await, "marker ready");

    assert_eq!(device.publish("device-1/up", "from the device").await, json!({"type": 4, "code": 0}));
    // A marker that comes while the client subscribes reaches it twice: as it is published, and as it is kept.
    let mut next = line().await;
    if next == "marker ready" {
        next = line().await;
    }
    assert_eq!(next, "device-1/up from the device");

    for (version, qos) in [("311", "0"), ("5", "1"), ("5", "2")] {
        let published = Command::new("mosquitto_pub")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-V",
                version,
                "-q",
                qos,
                "-t",
                "device-1/dn",
                "-m",
                "to the device",
            ])
            .status()
            .await
            .unwrap();
        assert!(published.success());
        let qos: u8 = qos.parse().unwrap();
        let expected = json!({"type": 3, "topic": "device-1/dn", "qos": qos, "payload": "to the device"});
        assert_eq!(device.receive().await, expected);
    }
    subscriber.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_with_a_guest() {
    exchange_with_mosquitto(&Setup::guest("echo").start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_with_a_grpc_handler() {
    let handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    exchange_with_mosquitto(&gateway).await;
}

/// A device gets its own publishes, and a retained message with its first subscribe.
#[tokio::test(flavor = "multi_thread")]
async fn own_and_retained_messages() {
    let gateway = Setup::guest("echo").start().await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.publish_retained("settings", "retained").await;
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    device.send(&json!({"type": 5, "topic": "settings", "qos": 1})).await;
    let mut got = [device.receive().await, device.receive().await];
    got.sort_by_key(|object| object["type"].as_u64());
    assert_eq!(got[0], json!({"type": 3, "topic": "settings", "qos": 1, "payload": "retained"}));
    assert_eq!(got[1], json!({"type": 6, "code": 0}));

    device.send(&json!({"type": 3, "topic": "settings", "qos": 0, "payload": "mine"})).await;
    let mut got = [device.receive().await, device.receive().await];
    got.sort_by_key(|object| object["type"].as_u64());
    assert_eq!(got[0], json!({"type": 3, "topic": "settings", "qos": 0, "payload": "mine"}));
}

/// A device and an MQTT client of the same name live side by side.
#[tokio::test(flavor = "multi_thread")]
async fn devices_and_mqtt_clients_have_names_of_their_own() {
    let gateway = Setup::guest("echo").start().await;
    let mut client = MqttClient::connect(gateway.broker(), "same").await;
    let mut device = EchoDevice::login(gateway.listener(), "same").await;
    client.subscribe("up").await;
    assert_eq!(device.publish("up", "both live").await, json!({"type": 4, "code": 0}));
    assert_eq!(client.next_text().await, ("up".to_owned(), "both live".to_owned()));
}

/// A mountpoint with placeholders keeps two devices' topics apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_mountpoint_for_each_device() {
    let gateway = Setup::guest("echo").listener("mountpoint = \"${peerhost}/${clientid}/\"").start().await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.subscribe("#").await;
    for id in ["one", "two"] {
        let mut device = EchoDevice::login(gateway.listener(), id).await;
        assert_eq!(device.publish("up", "hello").await, json!({"type": 4, "code": 0}));
        assert_eq!(client.next_text().await, (format!("127.0.0.1/{id}/up"), "hello".to_owned()));
    }
    let mut hostile = EchoDevice::connect(gateway.listener()).await;
    let connect = json!({"type": 1, "clientinfo": {"clientid": "one/../#"}});
    assert_eq!(hostile.ask(connect).await, json!({"type": 2, "code": 1}), "it would leave its mountpoint");
}

/// Shared subscriptions split the messages among devices, also under a mountpoint.
#[tokio::test(flavor = "multi_thread")]
async fn shared_subscriptions() {
    let gateway = Setup::guest("echo").listener("mountpoint = \"m/\"").start().await;
    let mut one = EchoDevice::login(gateway.listener(), "one").await;
    let mut two = EchoDevice::login(gateway.listener(), "two").await;
    for device in [&mut one, &mut two] {
        assert_eq!(device.subscribe("$share/group/dn").await, json!({"type": 6, "code": 0}));
    }
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    for number in 0..10 {
        client.publish("m/dn", number.to_string()).await;
    }
    let mut got = Vec::new();
    for _ in 0..10 {
        let object = tokio::select! {
            object = one.receive() => object,
            object = two.receive() => object,
        };
        got.push(object["payload"].as_str().unwrap().parse::<u32>().unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, (0..10).collect::<Vec<_>>(), "each message reached one of them");
}

/// The users of the configuration are the same for devices and for MQTT clients.
#[tokio::test(flavor = "multi_thread")]
async fn users() {
    use argon2::{Argon2, CustomizedPasswordHasher, Params, PasswordHash};

    let cheap = Params::new(8, 1, 1, None).unwrap();
    let hash: PasswordHash =
        Argon2::default().hash_password_customized(b"right", b"salt salt salt s", None, Some(19), cheap).unwrap();
    let hash = hash.to_string();
    let gateway = Setup::guest("echo")
        .auth(&format!("allow_anonymous = false\n[[auth.users]]\nusername = \"u\"\npassword_hash = {hash:?}\n"))
        .start()
        .await;
    let connect = |username: &str, password: &str| json!({"type": 1, "clientinfo": {"clientid": "d", "username": username}, "password": password});
    for (username, password, code) in [("u", "right", 0), ("u", "wrong", 1), ("x", "right", 1), ("", "", 1)] {
        let mut device = EchoDevice::connect(gateway.listener()).await;
        assert_eq!(device.ask(connect(username, password)).await, json!({"type": 2, "code": code}), "{username}");
        let client = MqttClient::connect_with(gateway.broker(), "c", Some((username, password))).await;
        assert_eq!(client.is_ok(), code == 0, "{username}");
    }
}
