//! `publish` and `deliver` lines, with a broker behind the gateway.

use polygate::testing::cli::replay::Error;
use rumqttc::v5::mqttbytes::QoS;
use tokio::sync::Mutex;
use tokio::sync::mpsc;

use std::process::ExitCode;
use std::sync::Arc;

use crate::conversation::broker::Broker;
use crate::conversation::gateway::{PATIENCE, gateway};
use crate::conversation::replaying::{replayed, write};

const TALK: &str =
    "> 01\npublish \"up\" qos=1 json {\"n\":1,\"at\":\"*\"}\ndeliver \"down\" qos=1 \"do\"\n< \"done\"\nclose peer\n";

/// What the broker hears; a test waits for each line.
struct Heard(mpsc::Receiver<String>);

impl Heard {
    async fn next(&mut self) -> String {
        tokio::time::timeout(PATIENCE, self.0.recv()).await.unwrap().unwrap()
    }
}

/// A gateway that publishes `payload` when it has got a byte and, when the broker has heard a message, passes it on.
async fn running(
    payload: &'static str,
    mountpoint: &'static str,
) -> (String, polygate::testing::conversation::play::GatewayAddr) {
    let Broker { url, heard, say } = Broker::start("locked").await;
    let heard = Arc::new(Mutex::new(Heard(heard)));
    let to = gateway(move |mut peer| {
        let (heard, say) = (Arc::clone(&heard), say.clone());
        async move {
            let mut heard = heard.lock().await;
            assert_eq!(heard.next().await, format!("{mountpoint}up"));
            peer.take(1).await.unwrap();
            say.send((format!("{mountpoint}up"), QoS::AtLeastOnce, payload.to_owned())).await.unwrap();
            // A message on a topic that nobody asked for is nobody's.
            say.send((format!("{mountpoint}elsewhere"), QoS::AtMostOnce, String::new())).await.unwrap();
            if payload.contains("\"n\":1") {
                assert_eq!(heard.next().await, format!("{mountpoint}down do"));
                peer.send(b"done").await;
            }
            peer.until_end().await;
        }
    })
    .await;
    (url, to)
}

/// `publish` lines are checked at the broker, `deliver` lines are published there, below the mountpoint.
#[tokio::test]
async fn checked_and_published() {
    let (url, to) = running("{\"at\":7,\"n\":1}", "trackers/").await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "talk.conversation", TALK);
    let (good, out) = replayed(&[file], &to, &["--mqtt", &url, "--mountpoint", "trackers/"]).await.unwrap();
    assert!(good, "{out}");
}

#[tokio::test]
async fn another_message() {
    let (url, to) = running("{\"at\":7,\"n\":2}", "").await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "talk.conversation", TALK);
    let (good, out) = replayed(&[file], &to, &["--mqtt", &url]).await.unwrap();
    assert!(!good && out.contains("line 2: another message was published: /n: expected 1, received 2\n"), "{out}");
}

/// Without a broker, what depends on it is refused before anything is sent.
#[tokio::test]
async fn refused_without_a_broker() {
    let to = gateway(|peer| async move { assert_eq!(peer.until_end().await, b"") }).await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "talk.conversation", TALK);
    let (good, out) = replayed(&[file], &to, &[]).await.unwrap();
    assert!(!good);
    assert!(
        out.contains("line 3: \"deliver\" needs a broker to publish it at (--mqtt), since line 4 answers it\n"),
        "{out}"
    );
}

#[tokio::test]
async fn the_broker_refuses() {
    let broker = Broker::start("locked").await;
    let to = gateway(|_| async {}).await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "talk.conversation", "> 01\npublish \"locked\" \"\"\n");
    let error = replayed(std::slice::from_ref(&file), &to, &["--mqtt", &broker.url]).await.unwrap_err();
    let text = "expected the broker to grant a subscription to \"locked\", it answered NotAuthorized";
    assert_eq!(error.to_string(), text);

    let nobody = "mqtt://user:secret@127.0.0.1:1";
    let text = replayed(&[file], &to, &["--mqtt", nobody]).await.unwrap_err().to_string();
    assert!(text.starts_with("cannot connect to the broker at mqtt://127.0.0.1:1: "), "{text}");
}

/// One device twice at once cannot be distinguished: wrong usage.
#[tokio::test]
async fn more_connections_than_conversations() {
    let broker = Broker::start("").await;
    let to = gateway(|_| async {}).await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "talk.conversation", TALK);
    let error = replayed(&[file], &to, &["--mqtt", &broker.url, "--connections", "2"]).await.unwrap_err();
    assert!(matches!(error, Error::TooManyConnections { connections: 2, conversations: 1 }), "{error}");
    assert_eq!(error.exit_code(), ExitCode::from(2));
}

/// Recording sees every message below the mountpoint.
#[tokio::test]
async fn messages_are_recorded() {
    let Broker { url, heard, say } = Broker::start("").await;
    let heard = Arc::new(Mutex::new(Heard(heard)));
    let to = gateway(move |mut peer| {
        let (heard, say) = (Arc::clone(&heard), say.clone());
        async move {
            assert_eq!(heard.lock().await.next().await, "gw/#");
            peer.take(1).await.unwrap();
            say.send(("gw/up".to_owned(), QoS::ExactlyOnce, "[1]".to_owned())).await.unwrap();
            peer.until_end().await;
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "talk.conversation", "> 01\n");
    let more = ["--bless", "--quiet", "300ms", "--mqtt", &url, "--mountpoint", "gw/"];
    replayed(std::slice::from_ref(&file), &to, &more).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "> 01\npublish \"up\" qos=2 json [1]\n");
}
