//! Attacks with wrong passwords.

use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::mqtt::MqttClient;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves, authentication};
use crate::harness::{Setup, within};

/// Users "device" and "client" with the password "secret", whose hash costs what one of a real site does.
fn users() -> String {
    use argon2::{Argon2, CustomizedPasswordHasher, Params, PasswordHash};

    let params = Params::new(19_456, 2, 1, None).unwrap();
    let hash: PasswordHash =
        Argon2::default().hash_password_customized(b"secret", b"salt salt salt s", None, Some(19), params).unwrap();
    ["device", "client"]
        .map(|name| format!("[[auth.users]]\nusername = {name:?}\npassword_hash = \"{hash}\"\n"))
        .concat()
}

/// While hundreds of MQTT clients try wrong passwords, a device logs in, and none of its handler's failures is counted.
#[tokio::test(flavor = "multi_thread")]
async fn devices_log_in_while_mqtt_clients_try_passwords() {
    let gateway = Setup::guest("echo").auth(&users()).start().await;
    let broker = gateway.broker();
    let mut flood = JoinSet::new();
    for number in 0..200 {
        flood.spawn(async move {
            MqttClient::connect_with(broker, &format!("intruder-{number}"), Some(("client", "wrong"))).await.is_err()
        });
    }
    gateway.metric_exceeds("polygate_logins_overloaded_total", 0.0).await;
    let mut device = gateway.device().await;
    let login = json!({ "type": 1, "clientinfo": { "clientid": "d", "username": "device" }, "password": "secret" });
    let answer = device.ask(login).await;
    assert_eq!(answer["code"], 0, "{answer}");
    let refused = within("the flood", flood.join_all()).await;
    assert!(refused.into_iter().all(|refused| refused));
    assert_eq!(gateway.metric("polygate_logins_verified_total"), 1.0);
}

/// A source that keeps failing does not keep the others waiting: what it asks for beyond its allowance is refused at
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_keeps_failing_is_refused_at_once() {
    let gateway = Setup::guest("echo").auth(&users()).start().await;
    let broker = gateway.broker();
    let mut flood = JoinSet::new();
    for number in 0..100 {
        flood.spawn(async move {
            MqttClient::connect_with(broker, &format!("intruder-{number}"), Some(("client", "wrong"))).await.is_err()
        });
    }
    assert!(within("the flood", flood.join_all()).await.into_iter().all(|refused| refused));
    let overloaded = gateway.metric("polygate_logins_overloaded_total");
    let wrong = gateway.metric("polygate_logins_wrong_total");
    assert_eq!(overloaded + wrong, 100.0);
    assert!(overloaded >= 50.0, "{wrong} were verified");

    let client = MqttClient::connect_with(broker, "good", Some(("client", "secret")));
    within("a good login from the same address", client).await.unwrap();
}

/// Handlers wait for the gateway's verifications in their own calls; that time is not theirs.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_login_is_no_failure_of_the_handler() {
    const DEVICES: usize = 40;
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(_) = callback.event {
            let mut login = authentication(&callback.conn, &callback.conn);
            login.clientinfo.as_mut().unwrap().username = "device".to_owned();
            login.password = "wrong".to_owned();
            let code = calls.client().await.authenticate(login).await.unwrap().into_inner().code();
            calls.send_ok(&callback.conn, code.as_str_name()).await;
        }
        Ok(())
    })
    .await;
    // The queue of verifications is longer than a call may take.
    let gateway = Setup::grpc(&handler).handler("call_timeout = \"300ms\"").auth(&users()).start().await;
    handler.use_adapter(gateway.adapter());
    let mut devices = Vec::new();
    for _ in 0..DEVICES {
        let mut device = gateway.connect().await;
        device.send("login").await;
        devices.push(device);
    }
    for mut device in devices {
        let answer = within("an answer", device.read_some()).await.unwrap();
        assert!(matches!(&answer[..], b"PERMISSION_DENY" | b"UNKNOWN"), "{answer:?}");
    }
    assert_eq!(gateway.metric("polygate_handler_failures_total{listener=\"l\",handler=\"h\",kind=\"timeout\"}"), 0.0);
}
