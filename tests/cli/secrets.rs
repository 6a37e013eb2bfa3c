//! Secrets that must not be in the log.

use std::process::Stdio;
use std::time::Duration;

use argon2::{Argon2, CustomizedPasswordHasher, Params};
use rumqttc::{AsyncClient, ConnectReturnCode, ConnectionError, Event, MqttOptions, Packet, QoS};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::program::{Device, Serving, Setup, messages, within};

/// Names and passwords that are shown, right and wrong ones.
const CREDENTIALS: [(&str, &str, bool); 2] =
    [("meter-7", "correct-secret", true), ("meter-8", "mistaken-secret", false)];

const PAYLOAD: &str = "payload-of-the-test";

fn users() -> String {
    let cheap = Params::new(8, 1, 1, None).unwrap();
    let hash = Argon2::default()
        .hash_password_customized(b"correct-secret", b"salt salt salt s", None, Some(19), cheap)
        .unwrap();
    let user = |name| format!("[[auth.users]]\nusername = \"{name}\"\npassword_hash = \"{hash}\"\n");
    CREDENTIALS.map(|(name, ..)| user(name)).concat()
}

/// At no level does the log hold a password of a device or of an MQTT client, right or wrong, or a hash, but where the
/// device's bytes themselves are asked for; also when the lines of the broker's library are asked for.
#[tokio::test]
async fn passwords() {
    let mut serving = Setup::guest("echo", "").more(&users()).serve(&[
        "--log-format",
        "json",
        "--log",
        "trace,polygate::payload=debug,rmqtt=trace",
    ]);
    serving.line("started").await;
    devices_log_in(&serving).await;
    clients_log_in(&serving).await;
    let log = stopped(serving).await;
    let warning = "lines of rmqtt are logged from info on: below, they hold the passwords of MQTT clients";
    assert_eq!(log[0], warning);
    // The gateway's own lines are there at this level, so the test has looked at something.
    assert!(log.iter().any(|message| message == "MQTT client refused"), "{log:#?}");
}

/// A gRPC handler's calls are no way out either: here it is an example handler, with its own process.
#[tokio::test]
async fn passwords_over_grpc() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "[adapter]\nbind = \"127.0.0.1:0\"\n[handlers.h]\nkind = \"grpc\"\nurl = \"http://{taken}\"\n\
         [listeners.l]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"h\"]\n"
    );
    let mut serving =
        Setup::new(&text).more(&users()).serve(&["--log-format", "json", "--log", "trace,polygate::payload=debug"]);
    serving.line("started").await;

    // Cargo puts a test under deps/ and the examples beside it.
    let deps = std::env::current_exe().unwrap();
    let example = deps.ancestors().nth(2).unwrap().join("examples/handler");
    assert!(example.exists(), "{} is missing: run cargo build --example handler", example.display());
    let adapter = format!("http://{}", serving.port("started", "adapter"));
    let mut handler = Command::new(example)
        .args(["--listen", &taken.to_string(), "--adapter", &adapter])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(handler.stdout.take().unwrap()).lines();
    assert!(within("the handler to listen", lines.next_line()).await.unwrap().is_some());

    for (name, password, right) in CREDENTIALS {
        let mut device = Device::connect(serving.listener()).await;
        device.says(format!("login {name} {password}\n")).await;
        device.gets(if right { "ok\n" } else { "refused: " }).await;
    }
    stopped(serving).await;
}

/// What devices and MQTT clients publish is not in the log of somebody who looks for a fault.
#[tokio::test]
async fn payloads() {
    let mut serving =
        Setup::guest("echo", "").more(&users()).serve(&["--log-format", "json", "--log", "debug,rmqtt=debug"]);
    serving.line("started").await;
    devices_log_in(&serving).await;
    clients_log_in(&serving).await;
    let log = serving.stop().await.1;
    assert!(!log.iter().any(|line| line.contains(PAYLOAD)), "{log:#?}");
}

/// Somebody who asks for what devices say gets it, to the byte.
#[tokio::test]
async fn payloads_when_asked_for() {
    let mut serving = Setup::guest("echo", "").more(&users()).serve(&[
        "--log-format",
        "json",
        "--log",
        "info,polygate::payload=trace",
    ]);
    serving.line("started").await;
    devices_log_in(&serving).await;
    let log = serving.stop().await.1;
    for what in ["to the handler", "from the handler", "published by the handler"] {
        assert!(log.iter().any(|line| line.contains(what)), "no line says {what:?}: {log:#?}");
    }
    assert!(log.iter().any(|line| line.contains(PAYLOAD)), "{log:#?}");
}

async fn stopped(serving: Serving) -> Vec<String> {
    let (code, log) = serving.stop().await;
    assert_eq!(code, Some(0));
    for line in &log {
        assert!(!line.contains("-secret") && !line.contains("argon2"), "{line}");
    }
    messages(&log)
}

/// Each logs in, and publishes if it could.
async fn devices_log_in(serving: &Serving) {
    for (name, password, right) in CREDENTIALS {
        let mut device = Device::connect(serving.listener()).await;
        device
            .says(format!(
                "{{\"type\":1,\"clientinfo\":{{\"proto_name\":\"echo\",\"proto_ver\":\"1\",\"clientid\":\"{name}\",\
                 \"username\":\"{name}\"}},\"password\":\"{password}\"}}"
            ))
            .await;
        device.gets(if right { "{\"type\":2,\"code\":0}" } else { "{\"type\":2,\"code\":1}" }).await;
        if right {
            device.says(format!("{{\"type\":3,\"topic\":\"a\",\"qos\":0,\"payload\":\"{PAYLOAD}\"}}")).await;
            device.gets("{\"type\":4,\"code\":0}").await;
        } else {
            device.expect_closed().await;
        }
    }
}

/// Each logs in, and publishes if it could.
async fn clients_log_in(serving: &Serving) {
    let broker = serving.broker();
    for (name, password, right) in CREDENTIALS {
        let mut options = MqttOptions::new("dashboard", broker.ip().to_string(), broker.port());
        options.set_keep_alive(Duration::from_secs(30)).set_credentials(name, password);
        let (client, mut events) = AsyncClient::new(options, 8);
        match within("the broker's CONNACK", events.poll()).await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => assert!(right),
            Err(ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword)) => {
                assert!(!right);
                continue;
            }
            other => panic!("{other:?}"),
        }
        client.publish("b", QoS::AtLeastOnce, false, PAYLOAD).await.unwrap();
        within("the broker's PUBACK", async {
            while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::PubAck(_))) {}
        })
        .await;
    }
}
