//! What devices and operators can rely on while handlers change.

use std::path::Path;

use polygate::testing::gateway::ReloadError;
use polygate::testing::rollout::{Candidate, Error, FAILURES_MIN, Initiator, Swap, VersionState};
use serde_json::json;

use crate::harness::admin::ask;
use crate::harness::echo_device::EchoDevice;
use crate::harness::mqtt::MqttClient;
use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::{GatewayUnderTest, Setup, eventually, guest};

/// What a handler's options say; the counter answers it.
const ONE: &str = "settings = { version = \"1\" }";
const TWO: &str = "settings = { version = \"2\" }";

/// What the counter does as version 1.
const COUNTED: &str = "> \"x\"\n< \"1:1\\n\"\n";

const SHADOW_EVENTS: &str = "polygate_shadow_events_total{handler=\"h\"}";
const SHADOW_DIFFERENCES: &str = "polygate_shadow_differences_total{handler=\"h\"}";

/// Every device keeps its socket and its state, and the old version is gone with its memory and its code.
#[tokio::test(flavor = "multi_thread")]
async fn live_with_state() {
    let gateway = Setup::guest("counter").handler(ONE).start().await;
    let mut devices = Vec::new();
    for _ in 0..50 {
        let mut device = gateway.connect().await;
        asks(&mut device, "1:1").await;
        devices.push(device);
    }
    let old = weak_active(&gateway);
    let done = gateway.reload(ONE, TWO).await.unwrap();
    assert_eq!((done.changed.len(), done.needs_restart), (1, Vec::<String>::new()));
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 50.0).await;
    for device in &mut devices {
        asks(device, "2:2").await;
    }
    asks(&mut gateway.connect().await, "2:1").await;
    assert_eq!(gateway.metric("polygate_pinned_connections_total{handler=\"h\"}"), 0.0);
    assert_eq!(gateway.metric("polygate_handler_active_version{handler=\"h\"}"), 2.0);
    eventually("the old version is gone", || old.strong_count() == 0).await;
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
}

/// The code of a version that nobody uses is not mapped into the process any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_an_old_version_is_unmapped() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Setup::guest("counter").data_dir(&format!("data_dir = {:?}", dir.path())).start();
    // The first start compiles; from the second on the code is mapped from the cache, where it has a name.
    start().await.stop().await;
    let gateway = start().await;
    let components = dir.path().join("components");
    let [first] = &compiled(&components)[..] else { panic!("not one component") };
    let mut device = gateway.connect().await;
    asks(&mut device, "1:1").await;
    assert!(is_mapped(first));
    upload(&gateway, "counter-pinned", Swap::NewConnections).await.unwrap();
    assert!(is_mapped(first), "a device is still with it");
    asks(&mut device, "1:2").await;
    drop(device);
    eventually("the code is unmapped", || !is_mapped(first)).await;
    asks(&mut gateway.connect().await, "1:1").await;
}

/// A connection whose guest cannot carry its state over stays with its version, until the drain timeout.
#[tokio::test(flavor = "multi_thread")]
async fn pinned_without_migration() {
    let gateway = Setup::guest("counter-pinned").handler(ONE).gateway("drain_timeout = \"3s\"").start().await;
    let mut device = gateway.connect().await;
    asks(&mut device, "1:1").await;
    gateway.reload(ONE, TWO).await.unwrap();
    gateway.metric_reaches("polygate_pinned_connections_total{handler=\"h\"}", 1.0).await;
    asks(&mut device, "1:2").await;
    let mut next = gateway.connect().await;
    asks(&mut next, "2:1").await;
    assert_eq!(gateway.metric("polygate_handler_versions{handler=\"h\"}"), 2.0);
    device.expect_closed().await;
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
    asks(&mut next, "2:2").await;
}

/// `new-connections`: nobody is moved.
#[tokio::test(flavor = "multi_thread")]
async fn new_connections() {
    let gateway = Setup::guest("counter").handler(ONE).handler("swap = \"new-connections\"").start().await;
    let mut device = gateway.connect().await;
    asks(&mut device, "1:1").await;
    gateway.reload(ONE, TWO).await.unwrap();
    asks(&mut gateway.connect().await, "2:1").await;
    asks(&mut device, "1:2").await;
    drop(device);
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
}

/// A canary gets its share of the new connections, exactly; promoted, it gets all of them, and those that were there.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_promoted() {
    let (gateway, mut devices) = with_a_canary().await;
    let done = gateway.handlers().promote("h", Initiator::Reload).await.unwrap();
    assert_eq!((done.version, done.state, done.before), (2, VersionState::Active, 1));
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 30.0).await;
    for device in &mut devices {
        asks(device, "2:2").await;
    }
    assert!(matches!(gateway.handlers().promote("h", Initiator::Reload).await, Err(Error::NoTrial { .. })));
}

/// An abandoned canary gives its connections back, and is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_abandoned() {
    let (gateway, mut devices) = with_a_canary().await;
    gateway.handlers().abandon("h", Initiator::Reload).await.unwrap();
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 10.0).await;
    for device in &mut devices {
        asks(device, "1:2").await;
    }
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
}

/// A canary that fails is abandoned by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_fails_is_abandoned() {
    let gateway = Setup::guest("counter").handler("on_failure = \"close\"").start().await;
    upload(&gateway, "trap", "canary:50%".parse().unwrap()).await.unwrap();
    for _ in 0..2 * FAILURES_MIN {
        let mut device = gateway.connect().await;
        device.send("trap").await;
        assert!(["", "1:1\n"].contains(&&*String::from_utf8_lossy(&device.read_some().await.unwrap_or_default())));
    }
    gateway.metric_reaches(&swaps("rolled_back"), 1.0).await;
    for _ in 0..4 {
        asks(&mut gateway.connect().await, "1:1").await;
    }
    assert_eq!(gateway.metric("polygate_handler_active_version{handler=\"h\"}"), 1.0);
}

/// A shadow gets every event that the active version gets, to the last, and does the same; devices and MQTT clients get
/// everything once.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_does_the_same() {
    let gateway = Setup::guest("echo").start().await;
    let done = upload(&gateway, "echo", Swap::Shadow).await.unwrap();
    assert_eq!((done.version, done.state, done.before), (2, VersionState::Trial, 1));
    let mut app = MqttClient::connect(gateway.broker(), "app").await;
    app.subscribe("up/#").await;

    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    assert_eq!(device.subscribe("dn/1").await, json!({"type": 6, "code": 0}));
    assert_eq!(device.publish("up/1", "from the device").await, json!({"type": 4, "code": 0}));
    app.publish("dn/1", "to the device").await;
    let message = json!({"type": 3, "topic": "dn/1", "qos": 1, "payload": "to the device"});
    assert_eq!(device.receive().await, message);
    // Created, login, subscribe, publish, message.
    gateway.metric_reaches(SHADOW_EVENTS, 5.0).await;
    assert_eq!(gateway.metric("polygate_instances{handler=\"h\"}"), 2.0);
    device.send(&json!({"type": 9})).await;
    device.expect_closed().await;
    // Disconnect, closed.
    gateway.metric_reaches(SHADOW_EVENTS, 7.0).await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 0.0).await;

    app.publish("up/end", "").await;
    assert_eq!(app.next_text().await, ("up/1".to_owned(), "from the device".to_owned()));
    assert_eq!(app.next_text().await.0, "up/end", "nothing came twice");
    assert_eq!(gateway.metric(SHADOW_DIFFERENCES), 0.0);
    let [two, one] = &gateway.handlers().list_versions("h").unwrap()[..] else { panic!("not two versions") };
    assert_eq!((one.events, one.failures, two.events, two.failures), (7, 0, 7, 0));
}

/// What a shadow would have answered and published otherwise is counted, and seen by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_does_something_else() {
    let (raw, json) = ("settings = { mode = \"raw\" }", "settings = { mode = \"json\" }");
    let gateway = Setup::guest("echo").handler("swap = \"shadow\"").handler(raw).start().await;
    gateway.reload(raw, json).await.unwrap();
    let mut app = MqttClient::connect(gateway.broker(), "app").await;
    app.subscribe("#").await;

    let mut device = EchoDevice::connect(gateway.listener()).await;
    let login = json!({"type": 1, "clientinfo": {"proto_name": "echo", "proto_ver": "1", "clientid": "device-1"}});
    let publish = json!({"type": 3, "topic": "up/1", "qos": 0, "payload": "from the device"});
    for object in [login, publish] {
        assert_eq!(device.ask(object.clone()).await, object, "the active version's answer alone");
    }
    gateway.metric_reaches(SHADOW_EVENTS, 3.0).await;
    assert_eq!(gateway.metric(SHADOW_DIFFERENCES), 2.0);
    app.publish("end", "").await;
    assert_eq!(app.next_text().await.0, "end");
}

/// A shadow that traps is counted and gone, and its device does not notice; when too many have, none is tried any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_traps() {
    let gateway = Setup::guest("counter").start().await;
    upload(&gateway, "trap", Swap::Shadow).await.unwrap();
    let mut devices = Vec::new();
    for tried in 1..=FAILURES_MIN {
        let mut device = gateway.connect().await;
        device.send("trap").await;
        device.expect("1:1\n").await;
        gateway.metric_reaches(SHADOW_DIFFERENCES, tried as f64).await;
        devices.push(device);
    }
    gateway.metric_reaches(&swaps("rolled_back"), 1.0).await;
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", FAILURES_MIN as f64).await;
    assert_eq!(gateway.metric(SHADOW_EVENTS), 2.0 * FAILURES_MIN as f64);
    assert!(gateway.handlers().list()[0].trial.is_none());
    devices.push(gateway.connect().await);
    let last = devices.pop();
    for device in &mut devices {
        asks(device, "1:2").await;
    }
    asks(&mut last.unwrap(), "1:1").await;
    assert_eq!(gateway.metric(SHADOW_EVENTS), 2.0 * FAILURES_MIN as f64);
}

/// A shadow is gone with its instances when it is abandoned.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_abandoned() {
    let (gateway, mut device) = with_a_shadow().await;
    gateway.handlers().abandon("h", Initiator::Reload).await.unwrap();
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 1.0).await;
    asks(&mut device, "1:2").await;
    assert_eq!((gateway.metric(SHADOW_EVENTS), gateway.metric(SHADOW_DIFFERENCES)), (2.0, 1.0));
}

/// A shadow that is promoted takes over what the active version knows, and ends as a shadow.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_promoted() {
    let (gateway, mut device) = with_a_shadow().await;
    gateway.handlers().promote("h", Initiator::Reload).await.unwrap();
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 1.0).await;
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 1.0).await;
    asks(&mut device, "2:2").await;
    asks(&mut gateway.connect().await, "2:1").await;
    assert_eq!((gateway.metric(SHADOW_EVENTS), gateway.metric(SHADOW_DIFFERENCES)), (2.0, 1.0));
}

/// A shadow that serves many devices hears when one of them has gone, and can forget it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_shadow_hears_the_end() {
    let shared = "isolation = { shared = 1 }\nswap = \"shadow\"";
    let gateway = Setup::guest("trap").handler(shared).handler(ONE).start().await;
    gateway.reload(ONE, TWO).await.unwrap();
    let mut device = gateway.connect().await;
    // Whoever hears the end of this connection traps, and is gone.
    device.send("close").await;
    device.expect("close").await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 2.0).await;
    drop(device);
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 0.0).await;
}

/// A server's calls have effects, so it cannot be a shadow.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_no_shadow() {
    let server = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::guest("counter").start().await;
    let body = json!({ "kind": "grpc", "url": server.url() }).to_string();
    let answer = put(&gateway, "?swap=shadow", &["content-type: application/json"], body.as_bytes()).await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.error(), "a gRPC handler cannot be a shadow, because its calls have effects; expected a guest");
    assert_eq!(gateway.handlers().list_versions("h").unwrap().len(), 1);
}

/// A second swap takes the place of a canary; what the canary served goes where the new version is.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_supersedes_a_canary() {
    let (gateway, mut devices) = with_a_canary().await;
    gateway
        .reload(
            "swap = { canary = \"25%\" }\nsettings = { version = \"1\" }",
            "swap = \"live\"\nsettings = { version = \"3\" }",
        )
        .await
        .unwrap();
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 40.0).await;
    for device in &mut devices {
        asks(device, "3:2").await;
    }
    assert!(gateway.handlers().list()[0].trial.is_none());
}

/// Changes that are asked for together are made one after the other; more than may wait are refused.
#[tokio::test(flavor = "multi_thread")]
async fn changes_wait_for_each_other() {
    let gateway = Setup::guest("counter").start().await;
    let changes: Vec<_> = (0..12).map(|_| upload(&gateway, "counter", Swap::Live)).collect();
    let results = futures::future::join_all(changes).await;
    let done = results.iter().filter(|result| result.is_ok()).count();
    let busy = results.iter().filter(|result| matches!(result, Err(Error::Busy { .. }))).count();
    assert_eq!((done, busy), (5, 7), "one under way and four that wait");
    assert_eq!(gateway.handlers().list()[0].active, 6);
    // Requests that are made together have no order.
    let numbers: std::collections::BTreeSet<u32> = results.iter().flatten().map(|done| done.version).collect();
    assert!(numbers.into_iter().eq(2..=6));
}

/// A server takes a guest's place and a guest a server's, on the same sockets.
#[tokio::test(flavor = "multi_thread")]
async fn from_a_server_to_a_guest_and_back() {
    let server = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(_) = callback.event {
            calls.send_ok(&callback.conn, "server\n").await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&server).start().await;
    server.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    asks(&mut device, "server").await;

    upload(&gateway, "counter", Swap::Live).await.unwrap();
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 1.0).await;
    asks(&mut device, "1:1").await;
    assert_eq!(gateway.handlers().list()[0].kind, "wasm");

    let body = json!({ "kind": "grpc", "url": server.url() }).to_string();
    let answer = put(&gateway, "?swap=live", &["content-type: application/json"], body.as_bytes()).await;
    assert_eq!((answer.status, answer.json()["version"].as_u64()), (201, Some(3)), "{answer:?}");
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 2.0).await;
    asks(&mut device, "server").await;

    gateway.handlers().roll_back("h", Initiator::Reload).await.unwrap();
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 3.0).await;
    asks(&mut device, "1:1").await;
}

/// A new version that traps is taken back by itself, and says so; devices are served again.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_traps_is_taken_back() {
    let gateway = Setup::guest("counter").handler("on_failure = \"close\"").start().await;
    let mut witness = gateway.connect().await;
    asks(&mut witness, "1:1").await;
    upload(&gateway, "trap", Swap::Live).await.unwrap();
    // A device whose guest has trapped fails at most twice: with its bytes, and with its end.
    for _ in 0..(FAILURES_MIN - 1) / 2 {
        trap(&gateway).await;
    }
    assert_eq!(gateway.metric("polygate_handler_active_version{handler=\"h\"}"), 2.0);
    for _ in 0..FAILURES_MIN {
        let mut device = gateway.connect().await;
        device.send("trap").await;
        drop(device.read_some().await);
    }
    gateway.metric_reaches("polygate_handler_active_version{handler=\"h\"}", 1.0).await;
    gateway.metric_reaches(&swaps("rolled_back"), 1.0).await;
    asks(&mut gateway.connect().await, "1:1").await;
    // It had no state to hand over, so it was with its version all the time.
    asks(&mut witness, "1:2").await;
    gateway.metric_reaches("polygate_handler_versions{handler=\"h\"}", 1.0).await;
    let [two, one] = &gateway.handlers().list_versions("h").unwrap()[..] else { panic!("not two versions") };
    assert_eq!((two.number, two.state, one.number, one.state), (2, VersionState::Kept, 1, VersionState::Active));
}

/// A version that was loaded with too little memory goes back to the options that worked.
#[tokio::test(flavor = "multi_thread")]
async fn options_come_back_with_their_version() {
    let gateway = Setup::guest("counter").handler(ONE).start().await;
    let mut device = gateway.connect().await;
    asks(&mut device, "1:1").await;
    gateway.reload(ONE, TWO).await.unwrap();
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 1.0).await;
    for (active, answer) in [(1, "1:2"), (2, "2:3"), (1, "1:4")] {
        let done = gateway.handlers().roll_back("h", Initiator::Reload).await.unwrap();
        assert_eq!(done.version, active);
        eventually("the device has moved", || connections_of(&gateway, active) == 1).await;
        asks(&mut device, answer).await;
    }
}

/// There is nothing to go back to before there was a change.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_go_back_to() {
    let gateway = Setup::guest("counter").start().await;
    let handlers = gateway.handlers();
    assert!(matches!(handlers.roll_back("h", Initiator::Reload).await, Err(Error::NoPrevious { .. })));
    assert!(matches!(handlers.activate("h", 1, None, Initiator::Reload).await, Err(Error::IsActive { number: 1, .. })));
    let error = handlers.activate("h", 7, None, Initiator::Reload).await.unwrap_err();
    assert_eq!(error.to_string(), "handler \"h\" has no version 7; expected one of 1");
    let error = handlers.abandon("x", Initiator::Reload).await.unwrap_err();
    assert_eq!(error.to_string(), "no handler is named \"x\"; expected one of h");
}

/// What was active is active after a restart, with its number; a component that has changed meanwhile is a new version.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_active_version() {
    let dir = tempfile::tempdir().unwrap();
    let component = dir.path().join("guest.wasm");
    std::fs::copy(guest("counter"), &component).unwrap();
    let start = || Setup::guest_at(&component).data_dir(&format!("data_dir = {:?}", dir.path().join("data"))).start();
    let versions = |gateway: &GatewayUnderTest| -> Vec<(u32, VersionState)> {
        gateway.handlers().list_versions("h").unwrap().iter().map(|version| (version.number, version.state)).collect()
    };

    let gateway = start().await;
    upload(&gateway, "echo", Swap::Live).await.unwrap();
    gateway.stop().await;

    let gateway = start().await;
    assert_eq!(versions(&gateway), [(2, VersionState::Active), (1, VersionState::Kept)]);
    gateway.handlers().roll_back("h", Initiator::Reload).await.unwrap();
    asks(&mut gateway.connect().await, "1:1").await;
    gateway.stop().await;

    let gateway = start().await;
    assert_eq!(versions(&gateway), [(2, VersionState::Kept), (1, VersionState::Active)]);
    gateway.handlers().activate("h", 2, None, Initiator::Reload).await.unwrap();
    gateway.stop().await;

    std::fs::copy(guest("counter-pinned"), &component).unwrap();
    let gateway = start().await;
    let expected = [(3, VersionState::Active), (2, VersionState::Kept), (1, VersionState::Kept)];
    assert_eq!(versions(&gateway), expected);
    asks(&mut gateway.connect().await, "1:1").await;
    gateway.stop().await;

    // Without a usable memory of it, the gateway goes on with what the configuration names.
    std::fs::write(dir.path().join("data/versions/h/index.json"), "{").unwrap();
    let gateway = start().await;
    assert_eq!(versions(&gateway), [(1, VersionState::Active)]);
    gateway.stop().await;
}

/// Of a version that cannot be loaded any more, the start tells, and goes on with what the configuration names.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_component_is_not_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Setup::guest("counter").data_dir(&format!("data_dir = {:?}", dir.path())).start();
    let gateway = start().await;
    upload(&gateway, "echo", Swap::Live).await.unwrap();
    gateway.stop().await;
    let own = std::fs::read(guest("counter")).unwrap();
    for entry in std::fs::read_dir(dir.path().join("versions/h")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wasm") && std::fs::read(&path).unwrap() != own {
            std::fs::write(path, "gone").unwrap();
        }
    }
    let gateway = start().await;
    asks(&mut gateway.connect().await, "1:1").await;
    assert_eq!(gateway.handlers().list()[0].active, 3, "the lost one's number is not used again");
}

/// Only so many old versions are kept.
#[tokio::test(flavor = "multi_thread")]
async fn old_versions_are_forgotten() {
    let gateway = Setup::guest("counter").start().await;
    let own = std::fs::read(guest("counter")).unwrap();
    for number in 0..15u8 {
        // A custom section, which changes nothing but the digest.
        let component = [&own[..], &[0, 3, 1, b'n', number]].concat();
        let candidate = Candidate::Component(component.into());
        gateway.handlers().swap("h", candidate, None, true, Initiator::Reload).await.unwrap();
    }
    let kept = gateway.handlers().list_versions("h").unwrap();
    assert_eq!((kept.len(), kept[0].number), (12, 16), "the active one, the last and ten more");
    let files = std::fs::read_dir(gateway.data_dir().join("versions/h")).unwrap().count();
    // The configuration's own is kept for the next start.
    assert_eq!(files, 12 + 1 + 1, "with the index");
}

/// What cannot be used is refused in words, and the old version goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_component_is_refused() {
    let gateway = Setup::guest("counter").start().await;
    let mut device = gateway.connect().await;
    asks(&mut device, "1:1").await;
    let cases: [(&[u8], u16, &str); 4] = [
        (b"", 415, "expected a component or a core module in binary form, found 0 bytes of something else"),
        (b"#!/bin/sh", 415, "found 9 bytes of something else"),
        (b"\0asm\x0d\0\x01\0", 422, "does not export polygate:handler/handler@0.1.0; it exports nothing"),
        (b"\0asm\x0d\0\x01\0garbage", 422, "\"the upload\" could not be compiled"),
    ];
    for (component, status, told) in cases {
        let answer = put(&gateway, "", &[], component).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.error().contains(told), "{answer:?}");
    }
    let unreachable = json!({ "kind": "grpc", "url": "http://127.0.0.1:1" }).to_string();
    let answer = put(&gateway, "", &["content-type: application/json"], unreachable.as_bytes()).await;
    assert_eq!(answer.status, 422);
    assert!(answer.error().starts_with("handler \"h\": the new version cannot be reached: unavailable"), "{answer:?}");
    asks(&mut device, "1:2").await;
    assert_eq!(gateway.handlers().list_versions("h").unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(gateway.data_dir().join("versions/h")).unwrap().count(), 2, "nothing refused is kept");
    assert_eq!(gateway.metric(&swaps("refused")), 5.0);
}

/// A version that does not do what the handler's conversations say is refused with the file and the line, and the old
/// version goes on; the operator can insist.
#[tokio::test(flavor = "multi_thread")]
async fn conversations_come_first() {
    let (_dir, conversations) = conversations(&[("a", COUNTED), ("b", COUNTED)]);
    let gateway = Setup::guest("counter").handler(ONE).handler(&conversations).start().await;
    let mut device = gateway.connect().await;
    asks(&mut device, "1:1").await;

    let [error] = &gateway.reload(ONE, TWO).await.unwrap_err()[..] else { panic!("not one error") };
    let told = told_of(error);
    assert!(told.starts_with("handler \"h\": \"") && told.contains("failed its conversations: "), "{told}");
    assert!(told.contains("a.conversation: line 2: the bytes to the device differ"), "{told}");
    assert!(told.contains("b.conversation: line 2: the bytes to the device differ"), "{told}");
    asks(&mut device, "1:2").await;
    let other = "settings = { version = \"1\", other = \"yes\" }";
    assert_eq!(gateway.reload(ONE, other).await.unwrap().changed[0].version, 2);
    gateway.metric_reaches("polygate_moved_connections_total{handler=\"h\"}", 1.0).await;
    asks(&mut device, "1:3").await;

    let trap = std::fs::read(guest("trap")).unwrap();
    let answer = put(&gateway, "", &[], &trap).await;
    assert_eq!(answer.status, 422);
    assert!(answer.error().contains("\"the upload\" failed its conversations: "), "{answer:?}");
    assert!(answer.error().contains("a.conversation: line 2: "), "{answer:?}");
    assert_eq!(
        put(&gateway, "?activate=false", &[], &trap).await.status,
        422,
        "nothing is kept that could be activated"
    );
    asks(&mut device, "1:4").await;
    assert_eq!(gateway.metric("polygate_instances{handler=\"h\"}"), 1.0, "the player's instances are not the device's");
    assert_eq!(gateway.handlers().list_versions("h").unwrap().len(), 2);

    let counter = std::fs::read(guest("counter-pinned")).unwrap();
    assert_eq!(put(&gateway, "", &[], &counter).await.json()["version"], 3);
    assert_eq!(put(&gateway, "?unchecked=true", &[], &trap).await.json()["version"], 4);
    gateway.connect().await.send("hello").await;
    assert_eq!(gateway.handlers().roll_back("h", Initiator::Reload).await.unwrap().version, 3);
}

/// A gateway whose handler does not do what its conversations say does not start, nor does one whose conversations
/// cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn conversations_at_the_start() {
    for (text, told) in [
        ("> \"x\"\n< \"2:1\\n\"\n", "a.conversation: line 2: the bytes to the device differ"),
        ("> \"x\"\n\nhello\n", "a.conversation has 1 fault:\n  line 3 column 1"),
    ] {
        let (dir, conversations) = conversations(&[("a", text)]);
        let setup = || Setup::guest("counter").handler(ONE).handler(&conversations);
        let error = setup().try_start().await.err().unwrap();
        let told_at_start = told_of(&error);
        assert!(told_at_start.contains(told), "{told_at_start}");
        std::fs::write(dir.path().join("a.conversation"), COUNTED).unwrap();
        let gateway = setup().start().await;
        // What is wrong with the gateway's own files is not the upload's fault.
        std::fs::write(dir.path().join("a.conversation"), text).unwrap();
        let answer = put(&gateway, "", &[], &std::fs::read(guest("counter-pinned")).unwrap()).await;
        assert_eq!(answer.status, if text.contains("hello") { 500 } else { 422 });
        assert!(answer.error().contains(told), "{answer:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Setup::guest("counter").handler(&format!("conversations = {:?}", dir.path())).try_start().await;
    let told = told_of(&error.err().unwrap());
    assert!(told.contains("expected files that end in .conversation in "), "{told}");
}

/// A configuration of which one handler cannot be followed changes none; what it changes besides is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_whole() {
    let gateway = Setup::guest("counter").handler(ONE).then_guest("z", "counter-pinned").start().await;
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.wasm");
    std::fs::write(&broken, b"\0asm\x0d\0\x01\0").unwrap();
    let from = format!("{ONE}\n[handlers.z]\nkind = \"wasm\"\ncomponent = {:?}", guest("counter-pinned"));
    let errors = gateway
        .reload(
            &from,
            &from.replace(ONE, TWO).replace(guest("counter-pinned").to_str().unwrap(), broken.to_str().unwrap()),
        )
        .await
        .unwrap_err();
    let [error] = &errors[..] else { panic!("{errors:?}") };
    assert!(error.to_string().contains("broken.wasm\" does not export"), "{error}");
    assert!(gateway.handlers().list().iter().all(|handler| handler.active == 1));
    let reloaded = gateway.reload("node = \"test\"", "node = \"other\"").await.unwrap();
    assert_eq!((reloaded.changed.len(), reloaded.needs_restart), (0, vec!["gateway.node".to_owned()]));
}

/// The whole REST API, with its errors for invalid requests.
#[tokio::test(flavor = "multi_thread")]
async fn rest() {
    let gateway = Setup::guest("counter").start().await;
    let admin = gateway.admin();
    let post = |path: &'static str| ask(admin, "POST", path, &[], b"");

    let list = ask(admin, "GET", "/api/v1/handlers", &[], b"").await;
    assert_eq!(list.status, 200);
    assert_eq!(list.json()["handlers"][0]["name"], "h");
    assert_eq!(list.json()["handlers"][0]["active"], 1);

    let pinned = std::fs::read(guest("counter-pinned")).unwrap();
    let kept = put(&gateway, "?activate=false", &[], &pinned).await;
    assert_eq!((kept.status, kept.json()["state"].as_str()), (201, Some("kept")), "{kept:?}");
    let activated = post("/api/v1/handlers/h/versions/2/activate").await;
    assert_eq!((activated.status, activated.json()["before"].as_u64()), (200, Some(1)));
    let tried = put(&gateway, "?swap=canary:5%25", &[], &pinned).await;
    assert_eq!(tried.json()["state"], "trial");
    assert_eq!(
        ask(admin, "GET", "/api/v1/handlers", &[], b"").await.json()["handlers"][0]["trial"]["how"],
        "canary:5%"
    );
    assert_eq!(post("/api/v1/handlers/h/abandon").await.status, 200);
    put(&gateway, "?swap=shadow", &[], &pinned).await;
    assert_eq!(post("/api/v1/handlers/h/promote").await.json()["version"], 4);
    assert_eq!(post("/api/v1/handlers/h/rollback").await.json()["version"], 2);

    let versions = ask(admin, "GET", "/api/v1/handlers/h/versions", &[], b"").await.json();
    let newest = &versions["versions"][0];
    assert_eq!(
        (newest["number"].as_u64(), &newest["kind"], &newest["origin"]),
        (Some(4), &json!("wasm"), &json!("upload"))
    );
    assert!(newest["by"].as_str().unwrap().starts_with("admin 127.0.0.1:"), "{newest}");

    for (path, status, told) in [
        ("/api/v1/handlers/x/rollback", 404, "no handler is named \"x\"; expected one of h"),
        ("/api/v1/handlers/h/versions/9/activate", 404, "handler \"h\" has no version 9; expected one of 1, 2, 3, 4"),
        ("/api/v1/handlers/h/versions/two/activate", 400, "expected the number of a version"),
        ("/api/v1/handlers/h/versions/1/activate?swap=slow", 400, "swap: \"slow\" is not a swap mode; expected live"),
        (
            "/api/v1/handlers/h/promote",
            409,
            "handler \"h\" has no version on trial; expected a canary or a shadow in progress",
        ),
        ("/api/v1/handlers/h/versions/2/activate", 409, "version 2 of handler \"h\" is active already"),
    ] {
        let answer = post(path).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.error().starts_with(told), "{path}: {answer:?}");
    }
    let wrong = put(&gateway, "", &["content-type: application/json"], b"{\"kind\":\"wasm\",\"url\":\"x\"}").await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.error().contains("expected {\"kind\": \"grpc\""), "{wrong:?}");
}

/// An upload is bounded, whether it says its length or not.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_bounded() {
    let gateway = Setup::guest("counter").start().await;
    let too_long = put(&gateway, "", &["content-length: 67108865"], b"").await;
    assert_eq!(too_long.status, 413);
    assert_eq!(too_long.error(), "the body is too large; expected at most 67108864 bytes");
}

/// Whoever has no token changes nothing, and neither does another site's page in the operator's browser.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_operator_changes_handlers() {
    let path = "/api/v1/handlers/h/rollback";
    let gateway = Setup::guest("counter").admin("token = \"a-token-of-the-test\"").start().await;
    for header in ["x-nothing: 1", "authorization: Bearer wrong"] {
        assert_eq!(ask(gateway.admin(), "POST", path, &[header], b"").await.status, 401);
        assert_eq!(ask(gateway.admin(), "GET", "/api/v1/handlers", &[header], b"").await.status, 401);
    }
    let token = "authorization: Bearer a-token-of-the-test";
    assert_eq!(ask(gateway.admin(), "POST", path, &[token], b"").await.status, 409);

    let gateway = Setup::guest("counter").start().await;
    for headers in
        [["origin: http://evil.example", "x-nothing: 1"], ["origin: http://evil.example", "host: evil.example"]]
    {
        assert_eq!(ask(gateway.admin(), "POST", path, &headers, b"").await.status, 403, "{headers:?}");
    }
    let own = format!("origin: http://{}", gateway.admin());
    assert_eq!(ask(gateway.admin(), "POST", path, &[&own], b"").await.status, 409);
}

/// Devices that never stop talking, and changes that never stop coming: every answer comes once, and every count goes
/// on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_swapped_nothing_is_lost_or_doubled() {
    let gateway = Setup::guest("counter").handler(ONE).start().await;
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut devices = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut device = gateway.connect().await;
        let over = std::sync::Arc::clone(&over);
        devices.spawn(async move {
            let mut count = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                count += 1;
                device.send("x").await;
                let expected = format!(":{count}\n");
                let answer = String::from_utf8(device.receive(1 + expected.len()).await).unwrap();
                assert!(answer.ends_with(&expected), "expected {expected:?}, got {answer:?}");
            }
            (count, device)
        });
    }
    let mut state: u64 = match std::env::var("SWAP_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => 1,
    };
    println!("SWAP_SEED={state}");
    for round in 0..40u32 {
        // An xorshift generator: the same changes again for the same seed.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let handlers = gateway.handlers();
        let result = match state % 5 {
            0 | 1 => gateway
                .reload(ONE, &format!("settings = {{ version = \"{}\" }}", round % 10))
                .await
                .map(|_| ())
                .map_err(|mut errors| match errors.remove(0) {
                    ReloadError::Handler(error) => error,
                    other => panic!("{other}"),
                }),
            2 => upload(&gateway, "counter", "canary:50%".parse().unwrap()).await.map(|_| ()),
            3 => handlers.promote("h", Initiator::Reload).await.map(|_| ()),
            _ => handlers.roll_back("h", Initiator::Reload).await.map(|_| ()),
        };
        assert!(
            matches!(result, Ok(()) | Err(Error::NoTrial { .. } | Error::NoPrevious { .. })),
            "round {round}: {result:?}"
        );
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut answers = 0;
    let mut peers = Vec::new();
    while let Some(ended) = devices.join_next().await {
        let (count, peer) = ended.unwrap();
        answers += count;
        peers.push(peer);
    }
    let moved = gateway.metric("polygate_moved_connections_total{handler=\"h\"}");
    println!("{answers} answers, {moved} moves");
    assert!(moved > 20.0, "{moved} moves");
    assert_eq!(gateway.metric("polygate_pinned_connections_total{handler=\"h\"}"), 0.0);
    assert_eq!(gateway.connections(), 20);
}

/// A device says something and is answered with this line.
async fn asks(device: &mut RawPeer, answer: &str) {
    device.send("x").await;
    device.expect(format!("{answer}\n")).await;
}

/// A device makes its guest trap, and loses its connection.
async fn trap(gateway: &GatewayUnderTest) {
    let mut device = gateway.connect().await;
    device.send("trap").await;
    device.expect_closed().await;
}

/// Forty devices, every fourth of which is served by a canary.
async fn with_a_canary() -> (GatewayUnderTest, Vec<RawPeer>) {
    let gateway = Setup::guest("counter").handler("swap = { canary = \"25%\" }").handler(ONE).start().await;
    gateway.reload(ONE, TWO).await.unwrap();
    let (mut devices, mut tried) = (Vec::new(), 0);
    for _ in 0..40 {
        let mut device = gateway.connect().await;
        device.send("x").await;
        match &*String::from_utf8(device.receive(4).await).unwrap() {
            "1:1\n" => {}
            "2:1\n" => tried += 1,
            other => panic!("{other:?}"),
        }
        devices.push(device);
    }
    assert_eq!(tried, 10);
    (gateway, devices)
}

/// A folder of conversations, and the key that names it.
fn conversations(files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name).with_extension("conversation"), text).unwrap();
    }
    let key = format!("conversations = {:?}", dir.path());
    (dir, key)
}

/// An error with its causes.
fn told_of(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A device with a shadow that answers otherwise.
async fn with_a_shadow() -> (GatewayUnderTest, RawPeer) {
    let gateway = Setup::guest("counter").handler("swap = \"shadow\"").handler(ONE).start().await;
    gateway.reload(ONE, TWO).await.unwrap();
    let mut device = gateway.connect().await;
    asks(&mut device, "1:1").await;
    gateway.metric_reaches(SHADOW_EVENTS, 2.0).await;
    assert_eq!(gateway.metric("polygate_handler_versions{handler=\"h\"}"), 2.0);
    assert_eq!(gateway.metric("polygate_instances{handler=\"h\"}"), 2.0);
    (gateway, device)
}

async fn upload(
    gateway: &GatewayUnderTest,
    name: &str,
    swap: Swap,
) -> Result<polygate::testing::rollout::ChangeResult, Error> {
    let component = std::fs::read(guest(name)).unwrap();
    gateway.handlers().swap("h", Candidate::Component(component.into()), Some(swap), true, Initiator::Reload).await
}

async fn put(gateway: &GatewayUnderTest, query: &str, headers: &[&str], body: &[u8]) -> crate::harness::admin::Answer {
    ask(gateway.admin(), "PUT", &format!("/api/v1/handlers/h/versions{query}"), headers, body).await
}

fn swaps(result: &str) -> String {
    format!("polygate_handler_swaps_total{{handler=\"h\",result=\"{result}\"}}")
}

fn connections_of(gateway: &GatewayUnderTest, number: u32) -> usize {
    let versions = gateway.handlers().list_versions("h").unwrap();
    versions.iter().find(|version| version.number == number).unwrap().connections
}

fn weak_active(gateway: &GatewayUnderTest) -> std::sync::Weak<polygate::testing::dispatch::Version> {
    std::sync::Arc::downgrade(&gateway.handlers().versions("h").unwrap().active())
}

/// The names of the compiled components.
fn compiled(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".cwasm")).collect()
}

/// Whether a file of this name is mapped into this process.
fn is_mapped(file: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(file)
}
