//! Whole conversations between a terminal, the handler and the gateway.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on stops, and says where"
)]

mod device;

use device::{Device, PHONE, frame, frame_2019, frame_of, part, position, unhex};
use polygate_guest::scripted::{Call, Scripted};
use polygate_guest::{ErrorCode, Level, Qos, Timer};
use serde_json::{Value, json};

const OTHER_PHONE: [u8; 6] = [0x01, 0x39, 0, 0, 0, 0];

/// A terminal registers, authenticates with the code it was given, reports, and is answered each time.
#[test]
fn a_terminal_comes_online() {
    let mut device = Device::with(Scripted::new());
    device.says(&frame(0x0100, 1, &registration()));
    let (id, answer) = device.answers().remove(0);
    assert_eq!((id, &answer[..3]), (0x8100, &[0, 1, 0][..]));
    let code = answer[3..].to_vec();
    assert_eq!(code, b"0102030405060708");

    device.says(&frame(0x0102, 2, &code));
    assert_eq!(device.answers()[1], (0x8001, vec![0, 2, 1, 2, 0]));
    device.says(&frame(0x0002, 3, &[]));
    assert_eq!(device.answers()[2], (0x8001, vec![0, 3, 0, 2, 0]));
    device.says(&frame(0x0200, 4, &position()));
    assert_eq!(device.answers()[3], (0x8001, vec![0, 4, 2, 0, 0]));

    let steps: Vec<Call> =
        device.adapter.take_calls().into_iter().filter(|call| !matches!(call, Call::Send(_) | Call::Log(..))).collect();
    assert_eq!(steps[0], Call::StartTimer { timer: Timer::Keepalive, interval_ms: 40_000 });
    assert_eq!(steps[1], Call::StartTimer { timer: Timer::Keepalive, interval_ms: 180_000 });
    let steps = &steps[1..];
    assert_eq!(
        steps[1],
        Call::Authenticate {
            proto_ver: "2013".into(),
            client_id: "13800138000".into(),
            username: Some("13800138000".into()),
            password: Some("0102030405060708".into()),
        }
    );
    assert_eq!(steps[2], Call::Subscribe { filter: "jt808/13800138000/command".into(), qos: Qos::AtLeastOnce });
    let topics = steps[3..].iter().map(|step| {
        let Call::Publish { topic, qos: Qos::AtLeastOnce, .. } = step else {
            panic!("expected a publish with QoS 1, found {step:?}");
        };
        topic.as_str()
    });
    assert_eq!(topics.collect::<Vec<_>>(), ["jt808/13800138000/registration", "jt808/13800138000/location"]);
}

/// The JSON of a position, whole.
#[test]
fn location() {
    let mut device = Device::new();
    device.says(&frame(0x0200, 4, &[position(), vec![1, 4, 0, 0, 0, 7, 0xe1, 1, 9]].concat()));
    let (_, payload) = device.adapter.published().remove(0);
    assert_eq!(
        String::from_utf8(payload).unwrap(),
        "{\"phone\":\"13800138000\",\"id\":\"0x0200\",\"serial\":4,\"time\":\"2025-11-25T03:41:14Z\",\"positioned\":true,\
         \"latitude\":22.588456,\"longitude\":114.123456,\"altitude_m\":44,\"speed_kmh\":60.1,\"course_deg\":90,\"alarms\":[],\
         \"status\":[\"acc_on\",\"positioned\"],\"load\":\"empty\",\"mileage_km\":0.7,\"items\":[{\"id\":\"0xe1\",\"data\":\"09\"}]}"
    );
}

/// The code and the time zone come from the settings; the code never reaches the log.
#[test]
fn settings() {
    let adapter = Scripted::new()
        .with_setting("auth_code", "hunter2")
        .with_setting("timezone", "Z")
        .with_setting("keepalive_s", "60");
    let mut device = Device::with(adapter);
    device.says(&frame(0x0100, 1, &registration()));
    device.says(&frame(0x0102, 2, b"hunter2"));
    device.says(&frame(0x0200, 3, &position()));
    assert_eq!(device.answers()[0].1, b"\x00\x01\x00hunter2");
    assert_eq!(device.published("location")[0]["time"], "2025-11-25T11:41:14Z");
    assert!(device.adapter.calls.contains(&Call::StartTimer { timer: Timer::Keepalive, interval_ms: 60_000 }));
    assert!(device.adapter.logged().iter().all(|line| !line.contains("hunter2")));
}

/// A refused authentication is answered, and then the connection ends; what comes behind it is not looked at.
#[test]
fn refused() {
    let mut device = Device::new();
    device.adapter.refuse_authenticate = Some(ErrorCode::PermissionDenied);
    device.says(&[frame(0x0102, 1, b"wrong"), frame(0x0200, 2, &position())].concat());
    assert_eq!(device.answers(), [(0x8001, vec![0, 1, 1, 2, 1])]);
    assert!(device.adapter.is_closed());
    assert_eq!(device.adapter.published(), []);
    assert_eq!(device.adapter.logged(), ["terminal 13800138000 turned away at message 0x0102: permission denied"]);
}

/// A terminal that begins with a position is asked for without credentials, and the gateway decides.
#[test]
fn implicit() {
    let mut device = Device::new();
    device.says(&frame(0x0200, 1, &position()));
    let asked = Call::Authenticate {
        proto_ver: "2013".into(),
        client_id: "13800138000".into(),
        username: None,
        password: None,
    };
    assert!(device.adapter.calls.contains(&asked));
    assert_eq!(device.published("location").len(), 1);
    // It says who it is all the same: that is accepted, and asked no second time.
    device.says(&frame(0x0102, 2, b"code"));
    assert_eq!(device.answers()[1], (0x8001, vec![0, 2, 1, 2, 0]));
    assert_eq!(device.adapter.calls.iter().filter(|call| matches!(call, Call::Authenticate { .. })).count(), 1);

    let mut device = Device::with(Scripted::new().with_setting("implicit_authentication", "deny"));
    device.says(&frame(0x0200, 1, &position()));
    assert_eq!(device.answers(), [(0x8001, vec![0, 1, 2, 0, 1])]);
    assert!(device.adapter.is_closed());
}

/// Registration can be denied, and is then answered with "no such terminal".
#[test]
fn registration_denied() {
    let mut device = Device::with(Scripted::new().with_setting("registration", "deny"));
    device.says(&frame(0x0100, 1, &registration()));
    assert_eq!(device.answers(), [(0x8100, vec![0, 1, 4])]);
    device.says(&frame(0x0102, 2, b"code"));
    assert_eq!(device.published("registration").len(), 0);
}

/// A registration in no known layout still gets its code, and is passed on as it is.
#[test]
fn odd_registration() {
    let mut device = Device::new();
    device.says(&frame(0x0100, 1, &[1, 2, 3]));
    device.says(&frame(0x0102, 2, b"code"));
    assert_eq!(device.answers()[0].0, 0x8100);
    let published = &device.published("registration")[0];
    assert_eq!(
        (&published["body"], &published["error"]),
        (&"010203".into(), &"expected 2 bytes of city, found 1".into())
    );
}

/// Frames of another terminal on the same connection are refused, and never published.
#[test]
fn another_terminal() {
    let mut device = Device::new();
    device.says(&frame(0x0200, 1, &position()));
    device.says(&frame_of(OTHER_PHONE, 0x0200, 2, &position()));
    assert_eq!(device.published("location").len(), 1);
    assert_eq!(device.answers()[1], (0x8001, vec![0, 2, 2, 0, 1]));
    let logged = device.adapter.logged();
    assert_eq!(logged.last().unwrap(), "message 0x0200 of terminal 13900000000 refused: this is terminal 13800138000");
}

/// What was registered by one terminal is not published for another.
#[test]
fn registration_of_another() {
    let mut device = Device::new();
    device.says(&frame_of(OTHER_PHONE, 0x0100, 1, &registration()));
    device.says(&frame(0x0102, 2, b"code"));
    assert_eq!(device.adapter.published(), []);
}

/// The header of 2019: the same phone, and answers in its form.
#[test]
fn version_2019() {
    let mut device = Device::new();
    device.says(&frame_2019(0x0102, 1, b"\x04code123456789012345V1.0"));
    let answer = unhex("8001400501000000000138001380000000");
    assert_eq!(device.adapter.sent(), jt808::wire::seal(&[&answer[..], &[0, 1, 1, 2, 0]].concat()));
    let asked = Call::Authenticate {
        proto_ver: "2019".into(),
        client_id: "13800138000".into(),
        username: Some("13800138000".into()),
        password: Some("code".into()),
    };
    assert!(device.adapter.calls.contains(&asked));
}

/// A batch becomes one message for each position; a malformed one does not take the others with it.
#[test]
fn batch() {
    let sized = |position: &[u8]| [&(position.len() as u16).to_be_bytes(), position].concat();
    let no_clock = [&position()[..22], &[0xff; 6]].concat();
    let short = &position()[..27];
    let entries = [&sized(&position())[..], &sized(&no_clock), &sized(short), &sized(&position())].concat();
    let body = [&[0, 4, 1][..], &entries].concat();
    let mut device = Device::new();
    device.says(&frame(0x0704, 1, &body));
    let positions = device.published("location");
    let indexes: Vec<_> = positions.iter().map(|position| position["batch"]["index"].clone()).collect();
    assert_eq!(indexes, [1, 2, 4]);
    assert_eq!(positions[0]["batch"]["kind"], "blind_area");
    assert_eq!((&positions[1]["time"], &positions[1]["clock"]), (&Value::Null, &"ffffffffffff".into()));
    assert_eq!(device.published("message")[0]["error"], "expected 6 bytes of time, found 5");
    assert_eq!(device.answers(), [(0x8001, vec![0, 1, 7, 4, 0])]);
}

/// Batches that are cut off, or go on behind their end, are passed on whole beside the positions they have.
#[test]
fn broken_batches() {
    let one = [&[0, 2, 0, 0, 28][..], &position()].concat();
    for (body, error) in [
        (one.clone(), "expected 2 bytes of position, found 0"),
        ([&one[..], &[0, 9, 1]].concat(), "expected 9 bytes of position, found 1"),
        ([&[0, 1, 0, 0, 28][..], &position(), &[7]].concat(), "expected the end, found 1 more bytes"),
    ] {
        let mut device = Device::new();
        device.says(&frame(0x0704, 1, &body));
        assert_eq!(device.published("location").len(), 1);
        assert_eq!(device.published("message")[0]["error"], error);
    }
    let mut device = Device::new();
    device.says(&frame(0x0704, 1, &[0]));
    assert_eq!(device.published("message")[0]["error"], "expected 2 bytes of count, found 1");
}

/// A position that cannot be read is passed on with its body, and the log says why.
#[test]
fn malformed_position() {
    let mut device = Device::new();
    device.says(&frame(0x0200, 1, &position()[..27]));
    let message = &device.published("message")[0];
    assert_eq!(message["error"], "expected 6 bytes of time, found 5");
    assert_eq!(unhex(message["body"].as_str().unwrap()), &position()[..27]);
    assert_eq!(
        device.adapter.logged().last().unwrap(),
        "message 0x0200 passed on as it is: expected 6 bytes of time, found 5"
    );
}

/// A message that could not be published is answered with "failed", so that the terminal keeps it.
#[test]
fn broker_away() {
    let mut device = Device::new();
    device.says(&frame(0x0002, 1, &[]));
    device.adapter.refuse_publish = Some(ErrorCode::Unknown);
    device.says(&frame(0x0200, 2, &position()));
    device.says(&frame(0x0900, 3, &[0x41, 1]));
    device.says(&frame(0x0801, 4, &[0, 0, 0, 9]));
    let verdicts: Vec<u8> = device.answers().iter().map(|(_, body)| body[4]).collect();
    assert_eq!(verdicts, [0, 1, 1, 1]);
}

/// Encrypted bodies and unknown messages are passed on.
#[test]
fn passed_on() {
    let mut device = Device::new();
    let encrypted = [&[0x02, 0, 0b0100, 2][..], &PHONE, &[0, 1, 0xaa, 0xbb]].concat();
    device.says(&jt808::wire::seal(&encrypted));
    device.says(&frame(0x0f0f, 2, &[0xcc]));
    let messages = device.published("message");
    assert_eq!((&messages[0]["encryption"], &messages[0]["body"]), (&1.into(), &"aabb".into()));
    assert_eq!((&messages[1]["id"], &messages[1]["body"]), (&"0x0f0f".into(), &"cc".into()));
    assert_eq!(device.answers().len(), 2);
}

/// A photograph in sub-packages: each is answered, and the whole with its number.
#[test]
fn sub_packages() {
    let mut device = Device::new();
    device.says(&part(0x0801, 10, (1, 3), &[0, 0, 0, 9, 1]));
    device.says(&part(0x0801, 12, (3, 3), b"c"));
    device.says(&part(0x0801, 11, (2, 3), b"b"));
    let answers = [(0x8001, vec![0, 10, 8, 1, 0]), (0x8001, vec![0, 12, 8, 1, 0]), (0x8800, vec![0, 0, 0, 9])];
    assert_eq!(device.answers(), answers);
    assert_eq!(device.published("message")[0]["body"], "00000009016263");
}

/// The time is answered in UTC, and a request for sub-packages again as not supported.
#[test]
fn answers_of_their_own() {
    let mut device = Device::new();
    device.adapter.now_ms = 1_764_042_074_999;
    device.says(&frame(0x0004, 1, &[]));
    device.says(&frame(0x0005, 2, &[0, 1, 0, 0]));
    assert_eq!(device.answers(), [(0x8004, vec![0x25, 0x11, 0x25, 0x03, 0x41, 0x14]), (0x8001, vec![0, 2, 0, 5, 3])]);
}

/// Commands go out in the terminal's form, each with a serial that its answer names.
#[test]
fn commands() {
    let mut device = Device::new();
    device.says(&frame(0x0002, 1, &[]));
    device.is_told(r#"{"type":"text","text":"Turn ~ round","flags":8,"ref":"job 7"}"#);
    assert_eq!(device.answers()[1], (0x8300, b"\x08Turn ~ round".to_vec()));
    let sent = &device.published("command/sent")[0];
    assert_eq!(*sent, serde_json::json!({"type": "text", "id": "0x8300", "serial": 1, "frames": 1, "ref": "job 7"}));

    device.says(&frame(0x0001, 2, &[0, 1, 0x83, 0, 0]));
    let answer = &device.published("message")[0];
    assert_eq!((&answer["answers"], &answer["decoded"]["result"]), (&1.into(), &"done".into()));

    device.is_told(r#"{"type":"query_position"}"#);
    device.says(&frame(0x0201, 3, &[&[0, 2][..], &position()].concat()));
    let position = &device.published("location")[0];
    assert_eq!((&position["answers"], &position["id"]), (&2.into(), &"0x0201".into()));
    // Neither answer was answered.
    assert_eq!(device.answers().len(), 3);
}

/// A malformed command, and one that cannot be sent, come back to their sender with the reason.
#[test]
fn refused_commands() {
    let mut device = Device::new();
    device.says(&frame(0x0002, 1, &[]));
    device.is_told("{");
    device.is_told(r#"{"type":"dance","ref":"job 8"}"#);
    device.is_told(r#"{"type":"raw","id":33027,"ref":7}"#);
    device.adapter.refuse_send = Some(ErrorCode::Overloaded);
    device.is_told(r#"{"type":"query_position","ref":"job 9"}"#);
    let errors = device.published("command/error");
    assert_eq!(errors[0]["error"], "not JSON at byte 1: expected a name in quotes");
    assert_eq!(errors[1]["ref"], "job 8");
    assert_eq!(errors[2]["error"], "member \"ref\": expected a string of at most 256 bytes");
    assert_eq!(errors[3], serde_json::json!({"error": "cannot send: a queue is full", "ref": "job 9"}));
    assert_eq!(device.published("command/sent").len(), 0);
}

/// A raw command over 1,023 bytes goes out in sub-packages.
#[test]
fn long_command() {
    let mut device = Device::new();
    device.says(&frame(0x0002, 1, &[]));
    device.is_told(&format!(r#"{{"type":"raw","id":"0x8108","body":"{}"}}"#, "7e".repeat(2000)));
    let frames = device.answers();
    assert_eq!(
        frames[1..].iter().map(|(id, body)| (*id, body.len())).collect::<Vec<_>>(),
        [(0x8108, 1023), (0x8108, 977)]
    );
    assert_eq!(device.published("command/sent")[0]["frames"], 2);
}

/// A peer that only makes noise is ended after 4 KiB, and writes one warning about its frames and one about what came.
#[test]
fn noise_is_bounded() {
    let mut device = Device::new();
    (0..1000).for_each(|_| device.says(b"~noise~"));
    device.hangs_up();
    assert_eq!(device.adapter.calls.iter().filter(|call| matches!(call, Call::Close)).count(), 1);
    let warnings = device.adapter.calls.iter().filter(|call| matches!(call, Call::Log(Level::Warn, _))).count();
    // The frames, what is between them, and what came.
    assert_eq!(warnings, 3);
    let logged = device.adapter.logged();
    let ended = "4102 bytes that are no frame of JT/T 808, beginning with 7e6e6f6973657e7e6e6f6973657e7e6e; they look like JT/T 808";
    assert!(logged.iter().any(|line| line == ended), "{logged:?}");
    assert_eq!(logged.last().unwrap(), "faults of this connection: refused frames: 586");
}

/// What is unfinished at the end is said.
#[test]
fn unfinished() {
    let mut device = Device::new();
    device.says(&frame(0x0100, 1, &registration()));
    device.says(&part(0x0102, 2, (1, 2), b"a"));
    device.is_silent();
    device.says(b"~half a frame");
    device.hangs_up();
    let logged = device.adapter.logged();
    assert_eq!(
        logged,
        [
            "silent for 1.5 times 180 s",
            "12 bytes at the end are in no frame",
            "message 0x0102 dropped with 1 of 2 sub-packages: the connection ended",
            "terminal 13800138000 registered, and left without an authentication",
            "faults of this connection: bytes outside of frames: 1, unfinished messages: 1",
        ]
    );
}

/// An emergency before the first fix has no clock: it is an alarm all the same, before it is acknowledged.
#[test]
fn an_alarm_without_a_clock() {
    let mut device = Device::new();
    device.says(&frame(0x0200, 1, &[&[0, 0, 0, 1, 0, 0, 0, 1][..], &[0; 20]].concat()));
    let alarm = &device.published("location")[0];
    assert_eq!(
        (&alarm["alarms"], &alarm["time"], &alarm["positioned"]),
        (&json!(["emergency"]), &Value::Null, &json!(false))
    );
    assert_eq!(device.answers(), [(0x8001, vec![0, 1, 2, 0, 0])]);
}

/// Positions and heartbeats between the parts of a photograph take serials; it is whole all the same, with its place.
#[test]
fn a_photograph_between_positions() {
    let body = [&[0, 0, 0, 9, 0, 0, 1, 2][..], &position(), b"jpeg"].concat();
    let mut device = Device::new();
    device.says(&part(0x0801, 10, (1, 2), &body[..20]));
    device.says(&frame(0x0200, 11, &position()));
    device.says(&frame(0x0002, 12, &[]));
    device.says(&part(0x0801, 13, (2, 2), &body[20..]));
    let photograph = &device.published("message")[0];
    assert_eq!(photograph["decoded"]["multimedia_id"], 9);
    assert_eq!((&photograph["decoded"]["offset"], &photograph["decoded"]["bytes"]), (&json!(36), &json!(4)));
    assert_eq!(device.published("location")[1]["id"], "0x0801");
    let answers: Vec<_> = device.answers().into_iter().map(|(id, _)| id).collect();
    assert_eq!(answers, [0x8001, 0x8001, 0x8001, 0x8800]);
}

/// A photograph whose end never comes: what has come was acknowledged, so it is published when it is given up.
#[test]
fn a_photograph_without_its_end() {
    let mut device = Device::new();
    device.says(&part(0x0801, 10, (1, 3), b"first "));
    device.says(&part(0x0801, 12, (3, 3), b"third"));
    device.adapter.now_ms += 60_001;
    device.says(&frame(0x0002, 13, &[]));
    let message = &device.published("message")[0];
    assert_eq!(message["error"], "message 0x0801 dropped with 2 of 3 sub-packages: none came for 60 s");
    assert_eq!((&message["sub_packages"], &message["found"]), (&json!(3), &json!([1, 3])));
    assert_eq!(unhex(message["body"].as_str().unwrap()), b"first third");
}

/// The clock that 0x0109 asks for, and an answer of JT/T 1078 that names its command.
#[test]
fn clock_and_attributes() {
    let mut device = Device::new();
    device.says(&frame(0x0109, 1, &[]));
    let (id, clock) = device.answers().remove(0);
    assert_eq!((id, clock.len()), (0x8109, 7));
    device.is_told(r#"{"type":"raw","id":"0x9003"}"#);
    let serial = device.published("command/sent")[0]["serial"].clone();
    device.says(&frame(0x1003, 2, &[19, 1, 0, 1, 1, 64, 1, 98, 1, 4]));
    let attributes = &device.published("message")[0];
    assert_eq!(attributes["answers"], serial);
    assert_eq!(attributes["decoded"]["video_encoding"], 98);
}

/// 2013's layout.
fn registration() -> Vec<u8> {
    [&[0, 44, 1, 44][..], b"ACME\0", b"T1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", b"0000007", &[2], b"\xbe\xa9A12345"]
        .concat()
}
