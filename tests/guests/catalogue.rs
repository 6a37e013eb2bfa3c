//! Public frames of each protocol, with what is right, against the guests: frame by frame, byte by byte, and all at once.
//!
//! `tests/catalogue/` has them; its README tells what a line says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use crate::host::{Guest, Running, Socket};

static GT06: LazyLock<Guest> = LazyLock::new(|| Guest::load("gt06"));
static GB32960: LazyLock<Guest> = LazyLock::new(|| Guest::load("gb32960"));
static H02: LazyLock<Guest> = LazyLock::new(|| Guest::load("h02"));
static JT808: LazyLock<Guest> = LazyLock::new(|| Guest::load("jt808"));
static NMEA: LazyLock<Guest> = LazyLock::new(|| Guest::load("large/nmea"));
static TELTONIKA: LazyLock<Guest> = LazyLock::new(|| Guest::load("large/teltonika"));

#[test]
fn gt06() {
    every_case("gt06", &GT06);
}

#[test]
fn gb32960() {
    every_case("gb32960", &GB32960);
}

#[test]
fn h02() {
    every_case("h02", &H02);
}

#[test]
fn jt808() {
    every_case("jt808", &JT808);
}

#[test]
fn nmea() {
    every_case("nmea", &NMEA);
}

#[test]
fn teltonika() {
    every_case("teltonika", &TELTONIKA);
}

/// The public frames with some bytes changed: whatever comes of them, no guest fails, and what it publishes is JSON.
#[test]
fn damaged_frames() {
    let guests: [(&str, &Guest, u64); 6] = [
        ("gt06", &GT06, 60),
        ("gb32960", &GB32960, 60),
        ("h02", &H02, 60),
        ("jt808", &JT808, 60),
        ("nmea", &NMEA, 6),
        ("teltonika", &TELTONIKA, 6),
    ];
    for (name, guest, rounds) in guests {
        let frames: Vec<Vec<u8>> =
            cases(name).iter().flat_map(|case| case.frames.iter().map(|hex| unhex(hex))).collect();
        for round in 0..rounds {
            let mut random = round + 1;
            let mut next = move |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                usize::try_from(random % below as u64).unwrap()
            };
            let mut device = guest.connected(&[]);
            for frame in &frames {
                let mut frame = frame.clone();
                // Most checksums then fail; so some frames only lose their end, or stay whole.
                for _ in 0..next(3) {
                    let at = next(frame.len());
                    frame[at] = u8::try_from(next(256)).unwrap();
                }
                frame.truncate(frame.len() - next(4).saturating_sub(2));
                if device.seen().closed {
                    device = guest.connected(&[]);
                }
                device.receive(&frame);
            }
            for (topic, payload) in &device.seen().published {
                let json = serde_json::from_slice::<Value>(payload);
                assert!(json.is_ok(), "{name}, round {round}: {topic} {}", String::from_utf8_lossy(payload));
            }
            device.close();
        }
    }
}

/// Traffic that each guest takes for foreign, and what it says of it.
const FOREIGN: [(&str, &str); 8] = [
    ("*HQ,861234500000017,V1,000020,A,2250.1480,N,11425.2945,E,0.00,0,010615,FFFFFBFF#\r\n", "H02"),
    ("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "HTTP"),
    ("\x16\x03\x01\x02\0\x01\0\x01\u{7f}\x03", "TLS"),
    ("SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    ("$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n", "NMEA 0183"),
    ("\0\x0f352093081452251", "Teltonika"),
    ("##\x01\x7eLABCDEFGHIJKLMNOP\x01", "GB/T 32960"),
    ("xx\r\r\r\r\r\r", "GT06"),
];

/// A peer that speaks another protocol is ended: at once by a guest that can tell, after 4 KiB at the latest, and after 60 s
/// when it sends little. The log has one line about it, with its first bytes and what they look like.
#[test]
fn foreign_traffic_ends() {
    let guests: [(&str, &Guest, &str); 6] = [
        ("gt06", &GT06, "GT06"),
        ("gb32960", &GB32960, "GB/T 32960"),
        ("h02", &H02, "H02"),
        ("jt808", &JT808, "JT/T 808"),
        ("nmea", &NMEA, "NMEA 0183"),
        ("teltonika", &TELTONIKA, "Teltonika"),
    ];
    for (name, guest, own) in guests {
        for (line, foreign) in FOREIGN.iter().filter(|(_, foreign)| *foreign != own) {
            let context = format!("{name} gets {foreign}");
            let mut peer = guest.connected(&[]);
            let mut sent = 0;
            while !peer.seen().closed && sent < 4096 + line.len() {
                peer.receive(line.as_bytes());
                sent += line.len();
            }
            ended(&peer, line, foreign, &format!("{context}, much"));

            let mut peer = guest.connected(&[]);
            for _ in 0..4 {
                peer.receive(line.as_bytes());
                peer.pass_ms(20_000);
            }
            ended(&peer, line, foreign, &format!("{context}, slowly"));

            // One that is silent after its first bytes is ended by the keepalive, within 60 s.
            let mut peer = guest.connected(&[]);
            peer.receive(line.as_bytes());
            if !peer.seen().closed {
                assert!(peer.seen().keepalive_ms.is_some_and(|interval| interval <= 40_000), "{context}");
                peer.keepalive_timeout();
                said(&peer, line, foreign, &format!("{context}, once"));
            }
        }
    }
}

fn ended(peer: &Running, line: &str, foreign: &str, context: &str) {
    assert!(peer.seen().closed, "{context}: not ended");
    assert_eq!(peer.seen().published, [], "{context}");
    said(peer, line, foreign, context);
}

fn said(peer: &Running, line: &str, foreign: &str, context: &str) {
    let first: String = line.bytes().take(8).map(|byte| format!("{byte:02x}")).collect();
    let warnings = peer.logged().iter().filter(|said| said.starts_with("Level::Warn ") && said.contains("no frame of"));
    let warnings: Vec<_> = warnings.collect();
    assert_eq!(warnings.len(), 1, "{context}: {:?}", peer.logged());
    let looks_like = format!("they look like {foreign}");
    assert!(warnings[0].contains(&first) && warnings[0].contains(&looks_like), "{context}: {}", warnings[0]);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    case: String,
    #[allow(dead_code, reason = "for whoever reads the file")]
    source: String,
    #[serde(default)]
    transport: Transport,
    #[serde(default)]
    settings: BTreeMap<String, String>,
    /// In hexadecimal, in the order they are sent.
    frames: Vec<String>,
    /// A message on the device's command topic, after the frames.
    command: Option<String>,
    /// All bytes to the device; absent where the case does not say.
    sent: Option<String>,
    published: Vec<Published>,
    /// More may be published between these.
    #[serde(default)]
    more: bool,
    #[serde(default)]
    closed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Tcp,
    Udp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    topic: String,
    /// Members that must be there with these values; one that is null must not be there.
    #[serde(default)]
    payload: Value,
}

fn cases(protocol: &str) -> Vec<Case> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/catalogue").join(protocol).with_extension("jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(read).collect()
}

fn every_case(protocol: &str, guest: &Guest) {
    let mut failed = Vec::new();
    let cases = cases(protocol);
    for case in &cases {
        let frames: Vec<Vec<u8>> = case.frames.iter().map(|frame| unhex(frame)).collect();
        let settings: Vec<_> = case.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut ways = vec![("frame by frame", frames.clone())];
        if case.transport == Transport::Tcp {
            ways.push(("byte by byte", frames.concat().iter().map(|byte| vec![*byte]).collect()));
            ways.push(("all at once", vec![frames.concat()]));
        }
        for (way, pieces) in ways {
            let socket = if case.transport == Transport::Udp { Socket::Udp } else { Socket::Tcp };
            let mut device = guest.connected_over(socket, &settings);
            pieces.iter().for_each(|piece| device.receive(piece));
            if let Some(command) = &case.command {
                device.deliver(command.as_bytes());
            }
            if let Err(fault) = agrees(case, &device) {
                failed.push(format!("{}, {way}: {fault}", case.case));
            }
        }
    }
    assert!(!cases.is_empty() && failed.is_empty(), "{} of {protocol}:\n{}", failed.len(), failed.join("\n"));
}

fn agrees(case: &Case, device: &Running) -> Result<(), String> {
    let seen = device.seen();
    let sent: String = seen.sent.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(expected) = case.sent.as_ref().filter(|expected| **expected != sent) {
        return Err(format!("expected to be sent {expected}, found {sent}"));
    }
    if seen.closed != case.closed {
        return Err(format!("closed: {}, {:?}", seen.closed, device.logged()));
    }
    let mut published = seen.published.iter();
    for expected in &case.published {
        let found = loop {
            let Some((topic, payload)) = published.next() else {
                return Err(format!("expected a message on {}, found no more; {:?}", expected.topic, device.logged()));
            };
            if *topic == expected.topic {
                break payload;
            }
            if !case.more {
                return Err(format!("expected {}, found {topic} {}", expected.topic, String::from_utf8_lossy(payload)));
            }
        };
        let found: Value = serde_json::from_slice(found).map_err(|error| error.to_string())?;
        includes(&expected.payload, &found, "").map_err(|fault| format!("{fault} in {found}"))?;
    }
    match published.next() {
        Some((topic, payload)) if !case.more => {
            Err(format!("expected no more, found {topic} {}", String::from_utf8_lossy(payload)))
        }
        _ => Ok(()),
    }
}

/// Whether all that is expected is found: members of objects, elements of arrays, numbers as exactly as the member's name
/// asks for.
fn includes(expected: &Value, found: &Value, name: &str) -> Result<(), String> {
    let differs = || Err(format!("{name}: expected {expected}, found {found}"));
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (name, value) in expected {
                match (value, found.get(name)) {
                    (Value::Null, None | Some(Value::Null)) => {}
                    (Value::Null, Some(found)) => return Err(format!("{name}: expected none, found {found}")),
                    (value, Some(found)) => includes(value, found, name)?,
                    (_, None) => return Err(format!("{name}: expected {value}, found none")),
                }
            }
            Ok(())
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            expected.iter().zip(found).try_for_each(|(expected, found)| includes(expected, found, name))
        }
        (Value::Number(expected), Value::Number(found)) => {
            let tolerance = match name {
                "latitude" | "longitude" => 1e-5,
                "speed_kmh" => 0.1,
                _ => 1e-9,
            };
            let distance = expected.as_f64().unwrap() - found.as_f64().unwrap();
            if distance.abs() <= tolerance { Ok(()) } else { differs() }
        }
        (Value::Null, _) => Ok(()),
        _ if expected == found => Ok(()),
        _ => differs(),
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
