//! The recorded JT/T 808 terminals of examples/, against the guest, with the messages seen over MQTT.

use std::path::Path;

use polygate::testing::conversation::Action;

use crate::harness::Setup;
use crate::harness::recorded::{play_all, recorded};

/// Every terminal gets the recorded answers, and MQTT clients the recorded messages, byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_terminals() {
    // The gateway starts only if the guest does the same in the player inside of it, however the frames are cut.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/conversations/jt808");
    let keys = format!("settings = {{ auth_code = \"tour\" }}\nconversations = {folder:?}");
    let gateway = Setup::guest("jt808").handler(&keys).start().await;
    play_all(&gateway, &recorded("examples/conversations/jt808")).await;
    play_all(&gateway, &recorded("examples/conversations/jt808-public")).await;
}

/// Each frame that is a whole and valid 0x0200 or 0x0704 has given its positions: they are counted here by another,
/// simpler reading of the frames.
#[test]
fn every_position_is_published() {
    let mut positions_in_frames = 0;
    let mut positions_published = 0;
    for conversation in recorded("examples/conversations/jt808") {
        for (_, step) in conversation.steps() {
            match &step.action {
                Action::FromPeer(frame) => positions_in_frames += positions(frame),
                Action::Publish(message) if message.topic.ends_with("/location") => positions_published += 1,
                _ => {}
            }
        }
    }
    assert_eq!(positions_published, positions_in_frames);
    assert_eq!(positions_published, 65);
}

/// How many positions a frame holds: none when it is not whole.
fn positions(frame: &[u8]) -> usize {
    let Some(inside) = frame.strip_prefix(b"\x7e").and_then(|rest| rest.strip_suffix(b"\x7e")) else { return 0 };
    if inside.contains(&0x7e) {
        return 0;
    }
    let mut content = Vec::new();
    let mut bytes = inside.iter();
    while let Some(&byte) = bytes.next() {
        content.push(if byte != 0x7d {
            byte
        } else if bytes.next() == Some(&2) {
            0x7e
        } else {
            0x7d
        });
    }
    if content.iter().fold(0, |sum, byte| sum ^ byte) != 0 {
        return 0;
    }
    let header_bytes = if content[2] & 0x40 != 0 { 17 } else { 12 };
    let body = &content[header_bytes..content.len() - 1];
    let promised = usize::from(u16::from_be_bytes([content[2], content[3]]) & 0x3ff);
    match (content[0], content[1]) {
        _ if promised != body.len() => 0,
        (0x02, 0x00) => usize::from(body.len() >= 28),
        (0x07, 0x04) => usize::from(u16::from_be_bytes([body[0], body[1]])),
        _ => 0,
    }
}
