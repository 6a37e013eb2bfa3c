//! Attacks by a device that knows its own password, on the rules that the documents show.

use argon2::{Argon2, CustomizedPasswordHasher, Params, PasswordHash};
use serde_json::{Value, json};

use crate::harness::{GatewayUnderTest, Setup};

/// The example of [auth] in docs/coming-from-emqx.md, with the hash of the password "right".
fn documented() -> String {
    let page = include_str!("../../../docs/coming-from-emqx.md");
    let (_, section) = page.split_once("## Users and rules").unwrap();
    let (_, block) = section.split_once("```toml\n[auth]\n").unwrap();
    let (keys, _) = block.split_once("```").unwrap();
    let cheap = Params::new(8, 1, 1, None).unwrap();
    let hash: PasswordHash =
        Argon2::default().hash_password_customized(b"right", b"salt salt salt s", None, Some(19), cheap).unwrap();
    let example = "$argon2id$v=19$m=19456,t=2,p=1$..";
    assert!(keys.contains(example), "{keys}");
    keys.replace(example, &hash.to_string())
}

/// The code of the answer to a login.
async fn login(gateway: &GatewayUnderTest, client_id: &str, username: &str, password: &str) -> Value {
    let clientinfo = json!({ "clientid": client_id, "username": username });
    let answer = gateway.device().await.ask(json!({ "type": 1, "clientinfo": clientinfo, "password": password })).await;
    answer["code"].clone()
}

/// The documented rules let a device do its own, and deny it everything else: the client id of another device, topics of
/// others, and all topics at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rules_deny() {
    let gateway = Setup::guest("echo").auth(&documented()).start().await;
    for (client_id, username, password) in [
        ("evil", "meter-7", "right"),
        ("meter-7", "meter-7", "wrong"),
        ("meter-7", "", ""),
        ("meter-7", "evil", "right"),
    ] {
        assert_eq!(login(&gateway, client_id, username, password).await, 1, "{client_id} {username} {password}");
    }
    let mut device = gateway.device().await;
    let clientinfo = json!({ "clientid": "meter-7", "username": "meter-7" });
    let answer = device.ask(json!({ "type": 1, "clientinfo": clientinfo, "password": "right" })).await;
    assert_eq!(answer["code"], 0, "{answer}");
    for (topic, code) in [("devices/meter-7/up", 0), ("devices/meter-8/up", 1), ("devices", 1), ("elsewhere", 1)] {
        assert_eq!(device.publish(topic, "x").await["code"], code, "{topic}");
    }
    for (filter, code) in [
        ("devices/meter-7/#", 0),
        ("devices/+/up", 1),
        ("devices/#", 1),
        ("#", 1),
        ("+/meter-7/#", 1),
        ("$share/g/devices/#", 1),
    ] {
        assert_eq!(device.subscribe(filter).await["code"], code, "{filter}");
    }
}
