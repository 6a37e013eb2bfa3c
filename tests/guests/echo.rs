//! The echo protocol with what no device sends.

use std::sync::LazyLock;

use proptest::prelude::*;

use crate::host::{Guest, Seen};

static RUST: LazyLock<Guest> = LazyLock::new(|| Guest::load("echo"));
static C: LazyLock<Guest> = LazyLock::new(|| Guest::load("echo-c"));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever JSON a device sends as a payload arrives as it was meant, with the handler in C as with the one in
    /// Rust.
    #[test]
    fn any_text(topic in "\\PC{0,20}", payload in any::<String>(), qos in 0..4) {
        let request = serde_json::json!({"type": 3, "topic": topic, "qos": qos, "payload": payload}).to_string();
        let (one, other) = (answers(&RUST, [request.as_bytes()]), answers(&C, [request.as_bytes()]));
        prop_assert_eq!(&one, &other);
        if qos < 3 {
            prop_assert_eq!(one.published, [(topic, payload.into_bytes())]);
        }
    }

    /// Delivered bytes come in the same JSON; how many U+FFFD stand for bytes that are no text is not said.
    #[test]
    fn any_message(payload in prop::collection::vec(any::<u8>(), 0..60)) {
        let sent = |guest: &Guest| {
            let mut device = guest.connected(&[]);
            device.deliver(&payload);
            let mut message: serde_json::Value = serde_json::from_slice(&device.take_seen().sent).unwrap();
            let mut text: Vec<char> = message["payload"].as_str().unwrap().chars().collect();
            text.dedup_by(|one, other| *one == '\u{fffd}' && one == other);
            message["payload"] = text.into_iter().collect::<String>().into();
            message
        };
        prop_assert_eq!(sent(&RUST), sent(&C));
    }

    /// Bytes that look like JSON, in pieces, end in no trap.
    #[test]
    fn almost_json(chunks in prop::collection::vec("[{}\\[\\]\"\\\\:,a-u0-9 \\n]{0,60}|[\\{]\"type\":[0-9]+,\"topic\":\"(\\\\u[0-9a-f]{0,5}|x){0,4}\"[\\}]", 0..10)) {
        answers(&C, chunks.iter().map(String::as_bytes));
    }

    /// Escapes of every kind, valid or not, mean the same in both.
    #[test]
    fn escapes(text in "(\\\\u(d[89a-f][0-9a-f]{2}|[0-9a-fA-F]{4})|\\\\[\"\\\\/bfnrt]|[a-z]){0,8}") {
        let request = format!("{{\"type\":3,\"topic\":\"t\",\"payload\":\"{text}\"}}");
        prop_assert_eq!(answers(&RUST, [request.as_bytes()]).published, answers(&C, [request.as_bytes()]).published);
    }
}

fn answers<'a>(guest: &Guest, pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut device = guest.connected(&[]);
    pieces.into_iter().for_each(|piece| device.receive(piece));
    device.take_seen()
}
