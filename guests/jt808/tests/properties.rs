//! Laws that hold for any bytes.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on stops, and says where"
)]

mod device;

use device::{Device, frame, part};
use jt808::assembly::{Assembler, BYTES_MAX};
use jt808::header::Header;
use jt808::wire;
use polygate_guest::framing::{Between, Found};
use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes in which flags, escapes and beginnings of frames are frequent.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        Just(vec![wire::FLAG]),
        Just(vec![0x7d, 0x01]),
        (message_id(), any::<u16>(), vec(any::<u8>(), 0..60)).prop_map(|(id, serial, body)| frame(id, serial, &body)),
        (message_id(), 0..4_u16, 0..3_u16, 1..3_u16, vec(any::<u8>(), 0..40))
            .prop_map(|(id, serial, index, total, body)| part(id, serial, (index, total), &body)),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn message_id() -> impl Strategy<Value = u16> {
    prop_oneof![
        any::<u16>(),
        prop::sample::select(vec![
            0x0001, 0x0002, 0x0004, 0x0100, 0x0102, 0x0104, 0x0107, 0x0200, 0x0201, 0x0702, 0x0704, 0x0801, 0x0900
        ]),
    ]
}

proptest! {
    /// What was escaped comes back, and is found in a stream as one frame.
    #[test]
    fn escapes(content in vec(prop_oneof![any::<u8>(), Just(0x7e), Just(0x7d)], 0..1500)) {
        let sealed = wire::seal(&content);
        let (mut between, mut bytes) = (Between::default(), sealed.as_slice());
        let mut frames = Vec::new();
        while let Some(found) = wire::FRAMES.next(&mut between, &mut bytes) {
            let Found::Frame(raw) = found else { panic!("{found:?}") };
            frames.push(wire::open(&raw).map(std::borrow::Cow::into_owned));
        }
        prop_assert_eq!(frames, [Ok(content)]);
    }

    /// However a stream is cut, the handler does the same; and whatever the stream, what it publishes is JSON.
    #[test]
    fn any_cut(stream in stream(), cuts in vec(any::<prop::sample::Index>(), 0..5)) {
        let mut whole = Device::new();
        whole.says(&stream);
        whole.hangs_up();
        let mut cut = Device::new();
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        places.sort_unstable();
        let mut from = 0;
        for to in places.into_iter().chain([stream.len()]) {
            cut.says(&stream[from..to]);
            from = to;
        }
        cut.hangs_up();
        prop_assert_eq!(&whole.adapter.calls, &cut.adapter.calls);
        for (topic, payload) in whole.adapter.published() {
            let json: Result<serde_json::Value, _> = serde_json::from_slice(&payload);
            prop_assert!(json.is_ok(), "{} {:?}", topic, payload);
        }
        // Every answer is a whole frame.
        whole.answers();
    }

    /// Wherever the stream is cut, the connection may move to another version there, and nobody sees it.
    #[test]
    fn any_swap(stream in stream(), place in any::<prop::sample::Index>()) {
        let mut stayed = Device::new();
        stayed.says(&stream);
        stayed.hangs_up();
        let (before, after) = stream.split_at(place.index(stream.len() + 1));
        let mut moved = Device::new();
        moved.says(before);
        let mut moved = moved.swapped();
        moved.says(after);
        moved.hangs_up();
        prop_assert_eq!(&stayed.adapter.calls, &moved.adapter.calls);
    }

    /// The assembler never holds more than its limit.
    #[test]
    fn assembler_is_bounded(parts in vec((0..3_u16, any::<u16>(), 1..40_u16, 1..2000_u16), 0..300)) {
        let mut assembler = Assembler::default();
        for (id, serial, index, total) in parts {
            let raw = part(id, serial, (index.min(total), total), &[0; 1023]);
            let content = wire::open(&raw[1..raw.len() - 1]).unwrap().into_owned();
            let (header, body) = Header::parse(&content).unwrap();
            assembler.push(&header, header.part.unwrap(), body, 0, |_| {});
            prop_assert!(assembler.bytes() <= BYTES_MAX);
        }
    }

    /// Any command ends in frames and a report, or in an error.
    #[test]
    fn any_command(command in r#"\{("(type|text|text_hex|flags|ids|id|body|ref)":("(text|raw|query_parameters|query_position|0x8300|7e7d)"|[0-9]{1,4}|\[1,"0x2"\]),?){0,4}"x":1\}?"#) {
        let mut device = Device::new();
        device.says(&frame(0x0002, 1, &[]));
        device.is_told(&command);
        let (sent, refused) = (device.published("command/sent").len(), device.published("command/error").len());
        prop_assert_eq!(sent + refused, 1);
        prop_assert_eq!(device.answers().len(), 1 + sent);
    }
}
