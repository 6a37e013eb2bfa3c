//! The receivers of NMEA 0183 in examples/, against the guest that is written in Python.

use polygate::testing::conversation::Action;
use serde_json::{Value, json};

use crate::harness::mqtt::MqttClient;
use crate::harness::recorded::{play_all, recorded};
use crate::harness::{GatewayUnderTest, Setup};

const SENTENCE: &str = "$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n";

/// Every receiver gets the answers, and MQTT clients the messages, that the conversations say.
#[tokio::test(flavor = "multi_thread")]
async fn the_written_receivers() {
    let gateway = Setup::guest("large/nmea").start().await;
    play_all(&gateway, &recorded("examples/conversations/nmea")).await;
}

/// The conversations themselves are right: a sentence whose checksum does not hold stands only among the faulty ones,
/// and every RMC and GGA elsewhere is published.
#[test]
fn every_good_sentence_is_published() {
    let mut sentences = 0;
    for conversation in recorded("examples/conversations/nmea")
        .iter()
        .filter(|it| !["faulty", "no-login", "public-", "satellites", "ais"].iter().any(|n| it.name().contains(n)))
    {
        let (mut sent, mut published) = (Vec::new(), 0);
        for (_, step) in conversation.steps() {
            match &step.action {
                Action::FromPeer(bytes) => sent.extend_from_slice(bytes),
                Action::Publish(message) if message.topic.ends_with("position") || message.topic.ends_with("fix") => {
                    published += 1;
                }
                _ => {}
            }
        }
        let text = String::from_utf8(sent).unwrap();
        let mut positions = 0;
        for line in text.lines().filter(|line| line.starts_with('$')) {
            let (body, checksum) = line[1..].split_once('*').unwrap();
            let expected = body.bytes().fold(0, |sum, byte| sum ^ byte);
            assert_eq!(u8::from_str_radix(checksum, 16), Ok(expected), "{line}");
            positions += usize::from(["RMC", "GGA"].contains(&&body[2..5]));
        }
        assert_eq!(published, positions, "{}", conversation.name());
        sentences += positions;
    }
    assert_eq!(sentences, 16);
}

/// However the stream is cut, the position arrives.
#[tokio::test(flavor = "multi_thread")]
async fn sentences_are_cut_anywhere() {
    let gateway = Setup::guest("large/nmea").start().await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.subscribe("nmea/+/position").await;
    let stream = format!("LOGIN boat\r\n{SENTENCE}");
    for cut in 0..=stream.len() {
        let mut receiver = gateway.connect().await;
        receiver.send(&stream[..cut]).await;
        tokio::task::yield_now().await;
        receiver.send(&stream[cut..]).await;
        receiver.expect("OK\r\n").await;
        assert_eq!(next_json(&mut client).await["latitude"], 48.1173, "cut at {cut}");
    }
}

/// Sentences of other kinds arrive field by field, if the settings want them.
#[tokio::test(flavor = "multi_thread")]
async fn other_kinds() {
    let gateway = Setup::guest("large/nmea").handler("settings = { others = \"publish\" }").start().await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.subscribe("nmea/boat/sentence").await;
    let mut receiver = gateway.connect().await;
    receiver.send("LOGIN boat\r\n$PMTK001,220,3*30\r\n").await;
    receiver.expect("OK\r\n").await;
    let sentence = json!({"client": "boat", "talker": "P", "kind": "MTK001", "fields": ["220", "3"]});
    assert_eq!(next_json(&mut client).await, sentence);
}

/// A receiver with the wrong password gets a refusal; one with the right one is authenticated, and its password is not
/// shared.
#[tokio::test(flavor = "multi_thread")]
async fn a_password() {
    use argon2::{Argon2, CustomizedPasswordHasher, Params, PasswordHash};

    let cheap = Params::new(8, 1, 1, None).unwrap();
    let hash: PasswordHash =
        Argon2::default().hash_password_customized(b"secret", b"salt salt salt s", None, Some(19), cheap).unwrap();
    let hash = hash.to_string();
    let gateway = Setup::guest("large/nmea")
        .auth(&format!("allow_anonymous = false\n[[auth.users]]\nusername = \"boat\"\npassword_hash = {hash:?}\n"))
        .start()
        .await;
    for login in ["LOGIN boat\r\n", "LOGIN boat ebb\r\n", "LOGIN ship secret\r\n"] {
        let mut receiver = gateway.connect().await;
        receiver.send(login).await;
        assert_eq!(receiver.receive_to_end().await, b"ERR permission-denied\r\n");
    }
    let mut receiver = gateway.connect().await;
    receiver.send("LOGIN boat secret\r\n").await;
    receiver.expect("OK\r\n").await;
}

/// A line may have 256 bytes, and not one more, whether its end has come or not.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_line() {
    let gateway = Setup::guest("large/nmea").start().await;
    let mut receiver = login(&gateway).await;
    receiver.send(format!("{}\r\n", "x".repeat(256))).await;
    receiver.send(format!("{}\r\n", "x".repeat(257))).await;
    receiver.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"handler_asked\"}", 1.0).await;
}

/// A receiver that is silent is ended, with the keepalive that the settings say.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_receiver() {
    let gateway = Setup::guest("large/nmea").handler("settings = { keepalive_s = \"1\" }").start().await;
    login(&gateway).await.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"keepalive_expired\"}", 1.0).await;
}

async fn login(gateway: &GatewayUnderTest) -> crate::harness::peer::RawPeer {
    let mut receiver = gateway.connect().await;
    receiver.send("LOGIN boat\r\n").await;
    receiver.expect("OK\r\n").await;
    receiver
}

async fn next_json(client: &mut MqttClient) -> Value {
    serde_json::from_str(&client.next_text().await.1).unwrap()
}
