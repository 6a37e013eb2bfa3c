//! The protocol from the device's side, against a scripted adapter.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on stops, and says where"
)]

use echo::Echo;
use polygate_guest::scripted::{Call, Scripted, splits};
use polygate_guest::{ErrorCode, Message, Qos, Timer};

type Device = polygate_guest::scripted::Device<Echo>;

const CONNECT: &[u8] =
    br#"{"type":1,"clientinfo":{"proto_name":"demo","proto_ver":"v0.1","clientid":"c1","username":"u","keepalive":5},"password":"p"}"#;

/// A CONNECT authenticates, starts the keepalive in milliseconds, and is answered.
#[test]
fn connects() {
    let mut device = Device::connect();
    assert_eq!(device.asks(CONNECT), br#"{"type":2,"code":0}"#);
    assert!(device.adapter.calls.contains(&Call::Authenticate {
        proto_ver: "v0.1".into(),
        client_id: "c1".into(),
        username: Some("u".into()),
        password: Some("p".into()),
    }));
    assert!(device.adapter.calls.contains(&Call::StartTimer { timer: Timer::Keepalive, interval_ms: 5000 }));
}

/// A refused CONNECT gets its answer first, and then the connection ends.
#[test]
fn refused() {
    let mut device = Device::connect();
    device.adapter.refuse_authenticate = Some(ErrorCode::PermissionDenied);
    assert_eq!(device.asks(CONNECT), br#"{"type":2,"code":1}"#);
    assert_eq!(device.adapter.calls.last(), Some(&Call::Close));
}

/// A keepalive too long for the contract is refused rather than shortened.
#[test]
fn absurd_keepalive() {
    let mut device = Device::connect();
    let answer = device.asks(br#"{"type":1,"clientinfo":{"clientid":"c1","keepalive":4294968}}"#);
    assert_eq!(answer, br#"{"type":2,"code":1}"#);
}

/// Every request is answered with its own kind of answer, also when several come at once.
#[test]
fn several_at_once() {
    let mut device = Device::connect();
    device.says(CONNECT);
    let answers = device.asks(
        br#"{"type":5,"topic":"t/dn","qos":1}{"type":3,"topic":"t/up","qos":0,"payload":"hi"}
            {"type":10,"topic":"raw","qos":2,"payload":"x"}{"type":7,"topic":"t/dn"}"#,
    );
    assert_eq!(answers, br#"{"type":6,"code":0}{"type":4,"code":0}{"type":4,"code":0}{"type":8,"code":0}"#);
    let calls = &device.adapter.calls;
    assert!(calls.contains(&Call::Subscribe { filter: "t/dn".into(), qos: Qos::AtLeastOnce }));
    assert!(calls.contains(&Call::Publish { topic: "t/up".into(), qos: Qos::AtMostOnce, payload: b"hi".to_vec() }));
    assert!(calls.contains(&Call::RawPublish { topic: "raw".into(), qos: Qos::ExactlyOnce, payload: b"x".to_vec() }));
    assert!(calls.contains(&Call::Unsubscribe("t/dn".into())));
}

/// What the gateway refuses, and what is malformed, is answered with code 1.
#[test]
fn refusals() {
    let mut device = Device::connect();
    assert_eq!(device.asks(br#"{"type":3,"topic":"early","qos":0,"payload":""}"#), br#"{"type":4,"code":1}"#);
    device.says(CONNECT);
    assert_eq!(device.asks(br#"{"type":3,"topic":"t","qos":3,"payload":""}"#), br#"{"type":4,"code":1}"#);
    assert_eq!(device.asks(br#"{"type":3,"topic":"t","qos":0}"#), br#"{"type":4,"code":1}"#);
    assert_eq!(device.asks(br#"{"type":5,"qos":0}"#), br#"{"type":6,"code":1}"#);
    assert_eq!(device.asks(br#"{"type":7}"#), br#"{"type":8,"code":1}"#);
    device.adapter.refuse_subscribe = Some(ErrorCode::PermissionDenied);
    assert_eq!(device.asks(br#"{"type":5,"topic":"t","qos":0}"#), br#"{"type":6,"code":1}"#);
}

/// A message goes to the device as one PUBLISH, in one write.
#[test]
fn delivers() {
    let mut device = Device::connect();
    let message = |payload: &[u8]| Message {
        node: "gw-1".into(),
        id: "1".into(),
        topic: "t/dn".into(),
        payload: payload.to_vec(),
        qos: Qos::AtLeastOnce,
        sender: "someone".into(),
        timestamp_ms: 0,
    };
    device.is_sent(&[message(b"a \"b\""), message(b"\xff")]);
    assert_eq!(
        device.adapter.sends(),
        [
            br#"{"type":3,"topic":"t/dn","qos":1,"payload":"a \"b\""}"#.to_vec(),
            "{\"type\":3,\"topic\":\"t/dn\",\"qos\":1,\"payload\":\"\u{fffd}\"}".as_bytes().to_vec(),
        ]
    );
}

/// DISCONNECT closes; so do bytes that are no object, with a word in the log.
#[test]
fn ends() {
    let mut device = Device::connect();
    assert_eq!(device.asks(br#"{"type":9}"#), b"");
    assert!(device.adapter.is_closed());

    let mut device = Device::connect();
    device.says(b"GET / HTTP/1.1");
    assert!(device.adapter.is_closed());
    assert_eq!(device.adapter.logged(), ["expected a JSON object, found byte 0x47"]);
}

/// An unknown type, and an object that is no JSON, are logged; the device may go on.
#[test]
fn unknown_requests() {
    let mut device = Device::connect();
    assert_eq!(device.asks(br#"{"type":77}{"type":}{}"#), b"");
    assert_eq!(device.adapter.logged().len(), 3);
    assert_eq!(device.asks(CONNECT), br#"{"type":2,"code":0}"#);
}

/// In raw mode every chunk comes back as it went.
#[test]
fn raw() {
    let mut device = Device::on(Scripted::new().with_setting("mode", "raw"));
    device.says(b"\x00{\xff");
    device.says(CONNECT);
    assert_eq!(device.adapter.sends(), [b"\x00{\xff".to_vec(), CONNECT.to_vec()]);
}

/// However the stream is cut, the answers are the same.
#[test]
fn any_cut() {
    let stream = [CONNECT, b" ", br#"{"type":3,"topic":"t","qos":0,"payload":"}{"}{"type":9}"#].concat();
    let outcome = splits::<Echo>(Scripted::new, &stream);
    assert_eq!(outcome.sent(), br#"{"type":2,"code":0}{"type":4,"code":0}"#);
    assert_eq!(outcome.calls().last(), Some(&Call::Close));
}

/// In the middle of an object the connection moves to another version, and the device sees nothing of it.
#[test]
fn swapped_in_the_middle_of_an_object() {
    let mut device = Device::connect();
    device.says(CONNECT);
    device.says(br#"{"type":3,"topic":"t","payload":"{"#);
    let mut device = device.swapped::<Echo>().unwrap_or_else(|(_, refusal)| panic!("{refusal}"));
    assert_eq!(device.asks(br#""}"}"#), br#"{"type":4,"code":0}"#);
}
