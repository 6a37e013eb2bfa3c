//! The recorded GT06 terminals of examples/, against the guest, with the messages seen over MQTT.

use polygate::testing::conversation::{Action, Payload};
use serde_json::Value;

use crate::harness::Setup;
use crate::harness::recorded::{play_all, recorded};

/// Every terminal gets the recorded answers, and MQTT clients the recorded messages.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_terminals() {
    let gateway = Setup::guest("gt06").start().await;
    play_all(&gateway, &recorded("examples/conversations/gt06")).await;
}

/// Each whole and valid frame has been published, and each position as another, simpler reading of the frames has it.
#[test]
fn every_frame_is_published() {
    let (mut frames_seen, mut positions_seen) = (0, 0);
    let conversations = recorded("examples/conversations/gt06").into_iter();
    for conversation in conversations.filter(|conversation| !conversation.name().contains("public-")) {
        let mut sent = Vec::new();
        let mut published = Vec::new();
        for (_, step) in conversation.steps() {
            match &step.action {
                Action::FromPeer(bytes) => sent.extend_from_slice(bytes),
                Action::Publish(message) if !message.topic.contains("/command/") => published.push(message),
                _ => {}
            }
        }
        let frames = frames(&sent);
        let logged_in = frames.iter().any(|frame| frame.protocol == 0x01);
        let reports: Vec<_> = frames.iter().filter(|frame| frame.protocol != 0x8a).collect();
        if !logged_in {
            assert!(published.is_empty(), "{}", conversation.name());
            continue;
        }
        assert_eq!(published.len(), reports.len(), "{}", conversation.name());
        for (frame, message) in reports.iter().zip(&published) {
            let Payload::Json(json) = &message.payload else { panic!("{}: no JSON", conversation.name()) };
            assert_eq!(json["id"], format!("{:#04x}", frame.protocol));
            assert_eq!(json["serial"], frame.serial);
            let is_position = message.topic.ends_with("/position");
            // These have their position elsewhere, which tests/guests/catalogue.rs looks at.
            let elsewhere = matches!((frame.extended, frame.protocol), (true, 0x70) | (false, 0x95));
            let expected = frame.position().filter(|_| !message.topic.ends_with("/cells"));
            assert_eq!(is_position && !elsewhere, expected.is_some(), "{}: {json}", conversation.name());
            if let Some(position) = expected {
                let near = |name: &str, degrees: f64| {
                    let found = json[name].as_f64().unwrap();
                    assert!(
                        (found - degrees).abs() < 0.000_001,
                        "{}: {name} {found} for {degrees}",
                        conversation.name()
                    );
                };
                near("latitude", position.latitude);
                near("longitude", position.longitude);
                assert_eq!(json["time"], position.time);
                assert_eq!(
                    [&json["speed_kmh"], &json["course_deg"]],
                    [&Value::from(position.speed), &position.course.into()]
                );
                positions_seen += 1;
            }
            frames_seen += 1;
        }
    }
    assert_eq!((frames_seen, positions_seen), (FRAMES, POSITIONS));
}

/// In all recorded frames and the tour.
const FRAMES: usize = 170;
const POSITIONS: usize = 50;

struct Frame {
    extended: bool,
    protocol: u8,
    body: Vec<u8>,
    serial: u16,
}

struct Position {
    time: String,
    latitude: f64,
    longitude: f64,
    speed: u8,
    course: u16,
}

/// The frames in the bytes of a terminal: every sequence with valid length, end and checksum.
fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at + 10 <= bytes.len() {
        let (head, length) = match &bytes[at..at + 4] {
            [0x78, 0x78, length, _] => (3, usize::from(*length)),
            [0x79, 0x79, high, low] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
            _ => (0, 0),
        };
        let whole = bytes.get(at..at + head + length + 2).filter(|_| length >= 5);
        let Some(whole) = whole.filter(|whole| whole.ends_with(b"\r\n") && residue(&whole[2..head + length]) == 0xf0b8)
        else {
            at += 1;
            continue;
        };
        let tail = &whole[head + length - 4..];
        frames.push(Frame {
            extended: head == 4,
            protocol: whole[head],
            body: whole[head + 1..head + length - 4].to_vec(),
            serial: u16::from_be_bytes([tail[0], tail[1]]),
        });
        at += whole.len();
    }
    frames
}

/// CRC-ITU over a text and its own checksum, which is the same for every text; the checksum comes low byte last.
fn residue(bytes: &[u8]) -> u16 {
    let (text, sum) = bytes.split_at(bytes.len() - 2);
    [text, &[sum[1], sum[0]]].concat().iter().fold(0xffff, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x8408 } else { crc >> 1 })
    })
}

impl Frame {
    /// Read as floating point, from where the documents of each protocol number have it.
    fn position(&self) -> Option<Position> {
        let (date_at, gps_at) = match (self.extended, self.protocol) {
            (false, 0x34) => (4, 10),
            (true, 0x32) => (0, 7),
            (false, 0x25) => (15, 21),
            (false, 0x61) => (8, 14),
            (false, 0x10 | 0x11 | 0x12 | 0x16 | 0x17 | 0x1e | 0x22 | 0x24 | 0x26 | 0x27 | 0x32 | 0x36 | 0x37) => (0, 6),
            (false, 0xa0 | 0xa2 | 0xa4) => (0, 6),
            _ => return None,
        };
        let gps = self.body.get(gps_at..gps_at + 12)?;
        let [year, month, day, hour, minute, second] = self.body[date_at..date_at + 6] else { return None };
        let degrees = |bytes: &[u8]| f64::from(u32::from_be_bytes(bytes.try_into().unwrap())) / 1_800_000.0;
        let flags = u16::from_be_bytes([gps[10], gps[11]]);
        let (latitude, longitude) = (degrees(&gps[1..5]), degrees(&gps[5..9]));
        let exists = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
        (exists && latitude <= 90.0 && longitude <= 180.0).then(|| Position {
            time: format!("20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"),
            latitude: if flags & 0x400 == 0 { -latitude } else { latitude },
            longitude: if flags & 0x800 == 0 { longitude } else { -longitude },
            speed: gps[9],
            course: flags & 0x3ff,
        })
    }
}
