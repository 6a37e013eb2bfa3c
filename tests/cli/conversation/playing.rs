//! One conversation against a scripted gateway.

use std::time::{Duration, Instant};

use polygate::testing::conversation::Conversation;
use polygate::testing::conversation::bless::bless;
use polygate::testing::conversation::play::{GatewayAddr, Options, Outcome, PlayError, Played, play, record};
use polygate::testing::conversation::run::Replies;

use crate::conversation::gateway::{PATIENCE, Peer, gateway};

const TALK: &str = "> 0102\n< 8182\n\n> \"ping\"\n< \"pong\"\nclose peer\n";

fn conversation(text: &str) -> Conversation {
    Conversation::parse("talk", text).unwrap()
}

fn short() -> Options {
    Options { timeout: Duration::from_millis(200), linger: Duration::from_millis(200), ..Options::default() }
}

async fn played(text: &str, to: &GatewayAddr, options: &Options) -> Result<Played, PlayError> {
    tokio::time::timeout(PATIENCE, play(&conversation(text), to, None, options, |_| {})).await.unwrap()
}

async fn failure(text: &str, to: &GatewayAddr, options: &Options) -> String {
    played(text, to, options).await.unwrap_err().to_string()
}

/// Answers both questions of `TALK`.
async fn good(mut peer: Peer) {
    assert_eq!(peer.take(2).await.unwrap(), [1, 2]);
    peer.send(&[0x81, 0x82]).await;
    assert_eq!(peer.take(4).await.unwrap(), b"ping");
    peer.send(b"pong").await;
    assert_eq!(peer.until_end().await, b"");
}

/// The observer gets each step in order, with a latency where a `<` line answers a `>` line.
#[tokio::test]
async fn as_recorded() {
    let to = gateway(good).await;
    let mut seen = Vec::new();
    let talk = conversation(TALK);
    let options = Options::default();
    let played = play(&talk, &to, None, &options, |progress| {
        let latency = matches!(progress.outcome, Outcome::Met { latency: Some(_) });
        seen.push((progress.stop.line, progress.stop.step.action.word(), latency));
    });
    let played = played.await.unwrap();
    assert_eq!(seen, [(1, ">", false), (2, "<", true), (4, ">", false), (5, "<", true), (6, "close", false)]);
    assert_eq!((played.sent_bytes, played.received_bytes), (6, 6));
}

/// An answer may come in any pieces.
#[tokio::test]
async fn split_replies() {
    let to = gateway(|mut peer| async move {
        peer.take(2).await.unwrap();
        for byte in [0x81, 0x82] {
            peer.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
        peer.take(4).await.unwrap();
        for byte in b"pong" {
            peer.send(&[*byte]).await;
            tokio::task::yield_now().await;
        }
        peer.until_end().await;
    })
    .await;
    played(TALK, &to, &Options::default()).await.unwrap();
}

/// Two answers may come in one piece, and a greeting before any question.
#[tokio::test]
async fn joined_replies() {
    let to = gateway(|mut peer| async move {
        peer.send(b"hello").await;
        peer.take(2).await.unwrap();
        peer.send(&[0x81, 0x82, 0x83]).await;
        peer.until_end().await;
    })
    .await;
    played("< \"hel\"\n< \"lo\"\n> 0102\n< 81\n< ??83\n", &to, &Options::default()).await.unwrap();
}

#[tokio::test]
async fn wrong_bytes() {
    let to = gateway(|mut peer| async move {
        peer.take(2).await.unwrap();
        peer.send(&[0x81, 0x99, 0x00]).await;
        peer.until_end().await;
    })
    .await;
    let reported = failure(TALK, &to, &Options::default()).await;
    assert_eq!(reported, "line 2: the bytes to the device differ at byte 2 of 2\n  expected  8182\n  received  819900");
}

#[tokio::test]
async fn early_close() {
    let to = gateway(|mut peer| async move {
        peer.take(2).await.unwrap();
        peer.send(&[0x81]).await;
    })
    .await;
    let reported = failure(TALK, &to, &Options::default()).await;
    let text = "line 2: expected 2 bytes to the device, received 1 and then the end of the connection\n  expected  8182\n  received  81";
    assert_eq!(reported, text);
}

/// A missing answer is waited for as long as was said and no longer.
#[tokio::test]
async fn timeout() {
    let to = gateway(|peer| async move { drop(peer.until_end().await) }).await;
    let begun = Instant::now();
    let reported = failure(TALK, &to, &short()).await;
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(
        reported,
        "line 2: expected 2 bytes to the device, received 0 in time\n  expected  8182\n  received  nothing"
    );
}

/// What comes without being expected is found at the end at the latest, also after the device has ended its side.
#[tokio::test]
async fn more_than_expected() {
    let to = gateway(|mut peer| async move {
        peer.take(1).await.unwrap();
        assert_eq!(peer.take(1).await, None);
        peer.send(b"late").await;
    })
    .await;
    let reported = failure("> 01\n", &to, &Options::default()).await;
    assert_eq!(reported, "after line 1: expected no more bytes to the device, received 4\n  received  \"late\"");

    let counted = Options { replies: Replies::Counted, ..Options::default() };
    played("> 01\n", &to, &counted).await.unwrap();
}

/// The closing side is distinguished as far as a device can see it.
#[tokio::test]
async fn expected_close() {
    let closing = gateway(|mut peer| async move {
        peer.take(1).await.unwrap();
        peer.send(b"bye").await;
    })
    .await;
    played("> 01\n< \"bye\"\nclose handler\n", &closing, &Options::default()).await.unwrap();
    played("> 01\n< \"bye\"\nclose gateway\n", &closing, &Options::default()).await.unwrap();

    let open = gateway(|peer| async move { drop(peer.until_end().await) }).await;
    let reported = failure("> 01\nclose handler\n", &open, &short()).await;
    assert_eq!(reported, "line 2: expected the connection to be closed (handler), it was not in time");
    let reported = failure("> 01\nclose gateway\n", &open, &short()).await;
    assert_eq!(reported, "line 2: expected the gateway to close the connection, it did not in time");
}

/// A gateway that takes nothing is given up after the timeout; one that answers in the midst of a long line is heard.
#[tokio::test]
async fn large_writes() {
    let deaf = gateway(|peer| async move {
        let _open = peer;
        std::future::pending::<()>().await;
    })
    .await;
    let text = format!("> {}\n", "00".repeat(8 * 1024 * 1024 - 2));
    let reported = failure(&text, &deaf, &short()).await;
    assert_eq!(reported, "line 1: expected the gateway to take 8388606 bytes within 200ms, it did not");

    let size = 7 * 1024 * 1024;
    let echo = gateway(move |mut peer| async move {
        for _ in 0..size / 1024 {
            let bytes = peer.take(1024).await.unwrap();
            peer.send(&bytes[..64]).await;
        }
        peer.until_end().await;
    })
    .await;
    let text = format!("> {}\n< {}\n", "07".repeat(size), "07".repeat(size / 16));
    played(&text, &echo, &Options { timeout: PATIENCE, ..Options::default() }).await.unwrap();
}

/// Recorded times are kept to when that is asked for, at the speed that is asked for.
#[tokio::test]
async fn recorded_times() {
    let to = gateway(|peer| async move { drop(peer.until_end().await) }).await;
    let text = "> 01\n@10s > 02\n";
    let begun = Instant::now();
    played(text, &to, &Options { speed: Some(100.0), ..Options::default() }).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(100));
    // Without a speed they are ignored: this would take ten seconds.
    tokio::time::timeout(Duration::from_secs(5), played(text, &to, &Options::default())).await.unwrap().unwrap();
}

/// A device's part in a timer is to be silent for long enough.
#[tokio::test]
async fn keepalive() {
    let to = gateway(|mut peer| async move {
        peer.take(1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        peer.send(b"still there?").await;
    })
    .await;
    let text = "> 01\ntimer keepalive\n< \"still there?\"\nclose keepalive\n";
    played(text, &to, &Options { timer_wait: Some(PATIENCE), ..short() }).await.unwrap();

    let reported = failure(text, &to, &short()).await;
    assert_eq!(
        reported,
        "line 2: \"timer\" needs a time to wait for the timer (--timer-wait), since line 3 depends on it"
    );
}

#[tokio::test]
async fn nobody_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = played("> 01\n", &free.into(), &Options::default()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot connect to tcp://{free}"));
    assert!(std::error::Error::source(&error).is_some());
}

/// Answers are recorded into a conversation that has none, and then it plays.
#[tokio::test]
async fn record_and_bless() {
    let to = gateway(good).await;
    let questions = conversation("# a talk\n\n> 0102\n\n# and again\n> \"ping\"\nclose peer\n");
    let happened = record(&questions, &to, None, &Options::default(), Duration::from_millis(100)).await.unwrap();
    let blessed = bless(&questions, &happened).unwrap().to_string();
    assert_eq!(blessed, "# a talk\n\n> 0102\n< 8182\n\n# and again\n> \"ping\"\n< \"pong\"\nclose peer\n");
    played(&blessed, &to, &Options::default()).await.unwrap();
}
