//! What a guest can rely on, and what it cannot do to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use polygate::testing::conn::{Message, QoS};
use serde_json::json;

use crate::harness::echo_device::EchoDevice;
use crate::harness::peer::RawPeer;
use crate::harness::{GatewayUnderTest, Setup};

/// A gateway on which one device has misbehaved.
struct Misbehaved {
    gateway: GatewayUnderTest,
    culprit: RawPeer,
    /// Two that were not harmed, and are still connected.
    _others: [RawPeer; 2],
}

/// Two devices on one guest: one makes it misbehave with `trigger`; the other goes on as if nothing happened.
async fn misbehaves(guest: &str, keys: &str, trigger: &str) -> Misbehaved {
    let gateway = Setup::guest(guest).handler("on_failure = \"close\"").handler(keys).start().await;
    let mut bystander = gateway.connect().await;
    let mut culprit = gateway.connect().await;
    for peer in [&mut bystander, &mut culprit] {
        peer.send("before").await;
        peer.expect("before").await;
    }
    culprit.send(trigger).await;
    for number in 0..100 {
        let text = format!("during {number}");
        bystander.send(&text).await;
        bystander.expect(&text).await;
    }
    let mut next = gateway.connect().await;
    next.send("after").await;
    next.expect("after").await;
    Misbehaved { gateway, culprit, _others: [bystander, next] }
}

async fn failed(gateway: &GatewayUnderTest, kind: &str) {
    let line = format!("polygate_handler_failures_total{{listener=\"l\",handler=\"h\",kind=\"{kind}\"}}");
    gateway.metric_reaches(&line, 1.0).await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"handler_failed\"}", 1.0).await;
}

/// A trap ends the connection that caused it, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_trap() {
    let Misbehaved { gateway, mut culprit, _others } = misbehaves("trap", "", "trap").await;
    culprit.expect_closed().await;
    failed(&gateway, "fault").await;
}

/// An endless loop ends with the event's CPU time; until then it yields to the others.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_loop() {
    let Misbehaved { gateway, mut culprit, _others } =
        misbehaves("forever", "event_timeout = \"200ms\"", "forever").await;
    culprit.expect_closed().await;
    failed(&gateway, "timeout").await;
}

/// More loops than worker threads still leave room for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_endless_loops() {
    let gateway = Setup::guest("forever").handler("event_timeout = \"300ms\"").start().await;
    let mut bystander = gateway.connect().await;
    let mut culprits = Vec::new();
    for _ in 0..10 {
        let mut culprit = gateway.connect().await;
        culprit.send("forever").await;
        culprits.push(culprit);
    }
    for number in 0..20 {
        let text = format!("during {number}");
        bystander.send(&text).await;
        bystander.expect(&text).await;
    }
    for mut culprit in culprits {
        culprit.expect_closed().await;
    }
}

/// A guest that takes ever more memory is stopped at its limit; the gauges return.
#[tokio::test(flavor = "multi_thread")]
async fn a_hoard() {
    let Misbehaved { gateway, mut culprit, _others } = misbehaves("hoard", "memory_max = \"4MiB\"", "hoard").await;
    culprit.expect_closed().await;
    failed(&gateway, "fault").await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 2.0).await;
}

/// A recursion without end is a trap and not the end of the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_recursion() {
    let Misbehaved { gateway, mut culprit, _others } = misbehaves("recurse", "", "recurse").await;
    culprit.expect_closed().await;
    failed(&gateway, "fault").await;
}

/// A guest that logs without end is rate-limited in the log, with a log line and a count.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_log_lines() {
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.fetch_add(bytes.iter().filter(|byte| **byte == b'\n').count(), Ordering::Relaxed);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || writer.clone());
    // Other tests of this process, if any, write there too; they say little.
    log.try_init().unwrap();

    let Misbehaved { gateway, mut culprit, _others } =
        misbehaves("babble", "event_timeout = \"300ms\"", "babble").await;
    culprit.expect_closed().await;
    failed(&gateway, "timeout").await;
    assert!(gateway.metric("polygate_guest_log_lines_suppressed_total{handler=\"h\"}") > 0.0);
    let written = lines.0.load(Ordering::Relaxed);
    assert!((100..1000).contains(&written), "{written} lines");
}

/// A guest that sends without end is refused at the bound of the queue, and the gateway's memory stays bounded.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bytes() {
    let Misbehaved { gateway, mut culprit, _others } = misbehaves("flood", "event_timeout = \"300ms\"", "flood").await;
    let received = culprit.receive_to_end().await.len();
    assert!(received < 8 << 20, "{received} bytes were queued");
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 2.0).await;
}

/// More messages than the guest can take do not keep the device from being heard.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_messages_does_not_silence_the_device() {
    let gateway = Setup::guest("trap").listener("messages_bytes_max = \"4MiB\"").start().await;
    let mut peer = gateway.connect().await;
    peer.send("before").await;
    peer.expect("before").await;

    let mailbox = gateway.mailbox();
    let over = Arc::new(AtomicBool::new(false));
    let floods = [(); 2].map(|()| {
        let (mailbox, over) = (mailbox.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            let message = Message {
                node: "test".into(),
                id: String::new(),
                qos: QoS::AtMostOnce,
                from: "test".to_owned(),
                topic: "dn".to_owned(),
                payload: Bytes::from_static(&[0; 8192]),
                timestamp_ms: 0,
            };
            while !over.load(Ordering::Relaxed) {
                mailbox.deliver(message.clone());
            }
        })
    });
    gateway.metric_exceeds("polygate_dropped_total{listener=\"l\",reason=\"messages_full\"}", 1000.0).await;
    for number in 0..100 {
        let text = format!("during {number}");
        peer.send(&text).await;
        peer.expect(&text).await;
    }
    over.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.join().unwrap();
    }
}

/// The second start takes the compiled component from the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_is_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let key = format!("data_dir = {:?}", dir.path());
    let compiled = || {
        let files = std::fs::read_dir(dir.path().join("components")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|extension| extension == "cwasm")).count()
    };
    for _ in 0..2 {
        let gateway = Setup::guest("echo").data_dir(&key).start().await;
        EchoDevice::login(gateway.listener(), "device-1").await;
        assert_eq!(compiled(), 1);
        gateway.stop().await;
    }
}

/// A device whose JSON is cut anywhere, or comes with the next object, gets the same answers, in whatever language.
#[tokio::test(flavor = "multi_thread")]
async fn objects_are_cut_anywhere() {
    for guest in ["echo", "echo-c", "large/echo-go", "large/echo-js", "large/echo-python"] {
        objects_cut_anywhere(guest).await;
    }
}

async fn objects_cut_anywhere(guest: &str) {
    let gateway = Setup::guest(guest).start().await;
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    let objects = format!(
        "{}{}",
        json!({"type": 3, "topic": "up", "qos": 0, "payload": "a}{\"b"}),
        json!({"type": 5, "topic": "dn", "qos": 0})
    );
    for cut in 0..=objects.len() {
        let (head, tail) = objects.split_at(cut);
        device.peer().send(head).await;
        tokio::task::yield_now().await;
        device.peer().send(tail).await;
        assert_eq!(device.receive().await, json!({"type": 4, "code": 0}), "{guest} cut at {cut}");
        assert_eq!(device.receive().await, json!({"type": 6, "code": 0}), "{guest} cut at {cut}");
    }
}
