//! Every recorded frame of a real terminal, through the whole handler.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on stops, and says where"
)]

mod device;

use device::{Device, unhex};
use jt808::wire;
use polygate_guest::scripted::Call;
use serde_json::Value;

/// Lines that no decoder should take: a bad checksum, or no frame at all.
const REFUSED: [usize; 3] = [22, 42, 65];
/// Lines whose body is shorter than the header says, so that it is passed on as it is.
const WRONG_LENGTH: [usize; 4] = [23, 29, 41, 43];

/// Every frame gives what its message promises: positions, a message passed on, an answer, or a refusal with a reason.
#[test]
fn every_frame() {
    for Recorded { line, bytes, .. } in recorded() {
        let mut device = Device::new();
        device.says(&bytes);
        device.hangs_up();
        let positions = device.published("location");
        let messages = device.published("message");
        let answered = device.answers().len();
        if REFUSED.contains(&line) {
            assert_eq!((positions.len(), messages.len(), answered), (0, 0, 0), "line {line}");
            let logged = device.adapter.logged();
            assert!(
                logged.iter().any(|text| text.contains("refused: ")
                    || text.contains("are in no frame")
                    || text.contains("are no frame")),
                "line {line}: {logged:?}"
            );
            continue;
        }
        let content = wire::open(&bytes[1..bytes.len() - 1]).unwrap();
        let (id, versioned) = (u16::from_be_bytes([content[0], content[1]]), content[2] & 0x40 != 0);
        let body = &content[if versioned { 17 } else { 12 }..];
        let expected = match id {
            _ if WRONG_LENGTH.contains(&line) => (0, 1, 1),
            0x0200 => (1, 0, 1),
            0x0704 => (usize::from(u16::from_be_bytes([body[0], body[1]])), 0, 1),
            0x0100 | 0x0102 => (0, 0, 1),
            // An answer is not answered.
            0x0107 => (0, 1, 0),
            _ => (0, 1, 1),
        };
        assert_eq!((positions.len(), messages.len(), answered), expected, "line {line}: {:?}", device.adapter.logged());
        let bodies: Vec<&[u8]> = match id {
            0x0200 => vec![body],
            0x0704 => batch(body),
            _ => vec![],
        };
        for (position, body) in positions.iter().zip(bodies) {
            agrees(position, body, line);
        }
    }
}

/// However a frame is cut in two, and in single bytes, the handler does the same.
#[test]
fn every_cut() {
    for Recorded { line, bytes, .. } in recorded() {
        let whole = calls(&[&bytes]);
        for at in 0..=bytes.len() {
            assert_eq!(calls(&[&bytes[..at], &bytes[at..]]), whole, "line {line}, cut at {at}");
        }
        assert_eq!(calls(&bytes.chunks(1).collect::<Vec<_>>()), whole, "line {line}, single bytes");
    }
}

/// Every frame is found behind the text of another protocol, and in a burst of frames.
#[test]
fn among_others() {
    for Recorded { line, bytes, .. } in recorded() {
        let mut device = Device::new();
        device.says(&[b"(noise,1,2)".as_slice(), &bytes, &bytes].concat());
        let mut alone = Device::new();
        alone.says(&bytes);
        let twice = 2 * alone.published("location").len();
        assert_eq!(device.published("location").len(), twice, "line {line}");
        if !alone.published("location").is_empty() {
            assert!(device.adapter.logged().contains(&"skipped 11 bytes that are in no frame".to_owned()));
        }
    }
}

/// What Traccar knows of a frame and the standard defines, we know too.
#[test]
fn known_attributes() {
    let mut checked = 0;
    for Recorded { line, bytes, attribute } in recorded() {
        let Some((key, value)) = attribute.as_deref().and_then(|attribute| attribute.split_once(", ")) else {
            continue;
        };
        let mut device = Device::new();
        device.says(&bytes);
        let first = |kind: &str| device.published(kind).into_iter().next().unwrap_or_default();
        let found = match (line, key) {
            (_, "Position.KEY_SATELLITES") => first("location")["satellites"].to_string(),
            (59, "Position.KEY_ICCID") => first("message")["decoded"]["iccid"].to_string(),
            (7, "\"cardCode\"") => first("message")["decoded"]["certificate"].to_string(),
            (12, "Position.KEY_RESULT") => {
                let body = first("message")["body"].as_str().map(unhex).unwrap();
                format!("{:?}", String::from_utf8_lossy(&body[4..]))
            }
            _ => continue,
        };
        assert_eq!(found, value, "line {line}");
        checked += 1;
    }
    assert_eq!(checked, 5);
}

/// What vendors put beside a position arrives as they wrote it, under its id.
#[test]
fn vendor_items() {
    for (line, id, data) in [
        (2, "0xe1", "0072"),
        (21, "0xeb", "000c00b28986049910219020787400060089ffffffff000600c5ffffffef0004002d0f4e000300a84c"),
    ] {
        let mut device = Device::new();
        device.says(&recorded()[line - 1].bytes);
        let items = device.published("location")[0]["items"].clone();
        let found = items.as_array().unwrap().iter().find(|item| item["id"] == id).map(|item| item["data"].clone());
        assert_eq!(found, Some(Value::from(data)), "line {line}: {items}");
    }
}

struct Recorded {
    line: usize,
    bytes: Vec<u8>,
    attribute: Option<String>,
}

fn recorded() -> Vec<Recorded> {
    let lines = include_str!("data/recorded.jsonl").lines().enumerate();
    lines
        .map(|(index, line)| {
            let object: Value = serde_json::from_str(line).unwrap();
            let bytes = on_the_wire(unhex(object["hex"].as_str().unwrap()));
            Recorded { line: index + 1, bytes, attribute: object["attribute"].as_str().map(str::to_owned) }
        })
        .collect()
}

/// Escapes a frame that was recorded without its escapes: as it stands its checksum holds, but on the wire it would not.
fn on_the_wire(recorded: Vec<u8>) -> Vec<u8> {
    let inside = &recorded[1..recorded.len() - 1];
    let as_it_is = !inside.contains(&wire::FLAG) && wire::open(inside).is_ok();
    let holds = inside.iter().fold(0, |sum, byte| sum ^ byte) == 0;
    if holds && !as_it_is { wire::seal(&inside[..inside.len() - 1]) } else { recorded }
}

fn calls(chunks: &[&[u8]]) -> Vec<Call> {
    let mut device = Device::new();
    chunks.iter().for_each(|chunk| device.says(chunk));
    device.hangs_up();
    device.adapter.take_calls()
}

fn batch(body: &[u8]) -> Vec<&[u8]> {
    let mut rest = &body[3..];
    let mut positions = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (position, tail) = tail.split_at(u16::from_be_bytes(*length).into());
        positions.push(position);
        rest = tail;
    }
    positions
}

/// Reads the fixed part of a position once more, in another way.
fn agrees(position: &Value, body: &[u8], line: usize) {
    let number =
        |at: usize, length: usize| body[at..at + length].iter().fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
    let sign = |bit: u32| if number(4, 4) >> bit & 1 == 1 { -1.0 } else { 1.0 };
    let close = |name: &str, expected: f64| {
        let found = position[name].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-9, "line {line}: {name} {found}, expected {expected}");
    };
    close("latitude", sign(2) * f64::from(number(8, 4)) / 1e6);
    close("longitude", sign(3) * f64::from(number(12, 4)) / 1e6);
    close("altitude_m", f64::from(number(16, 2) as u16 as i16));
    close("speed_kmh", f64::from(number(18, 2)) / 10.0);
    close("course_deg", f64::from(number(20, 2)));
    assert_eq!(position["positioned"], number(4, 4) & 2 == 2, "line {line}");
    let digits: String = body[22..28].iter().map(|byte| format!("{byte:02x}")).collect();
    let time = position["time"].as_str().unwrap();
    assert_eq!(&time[14..19], format!("{}:{}", &digits[8..10], &digits[10..12]), "line {line}");
}
