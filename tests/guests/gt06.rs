//! GT06 frames in every piece, and bytes that are none.

use std::sync::LazyLock;

use polygate::testing::conversation::{Action, Conversation};
use proptest::prelude::*;

use crate::host::{Guest, Seen};

static GT06: LazyLock<Guest> = LazyLock::new(|| Guest::load("gt06"));

/// However the tour is cut, the terminal gets the same answers and the broker the same messages.
#[test]
fn any_cut_of_the_tour() {
    let tour = uplink("tour");
    let whole = answers([&tour[..]]);
    assert_eq!(whole.published.len(), 8);
    for cut in 0..=tour.len() {
        let (head, tail) = tour.split_at(cut);
        assert_eq!(answers([head, tail]), whole, "cut at {cut}");
    }
    assert_eq!(answers(tour.chunks(1)), whole);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// All the recorded frames on one connection, with the broken ones between them, in pieces of any size.
    #[test]
    fn any_pieces_of_all_frames(sizes in prop::collection::vec(1_usize..300, 1..20)) {
        let all = every_uplink();
        let (mut pieces, mut rest) = (Vec::new(), &all[..]);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        prop_assert_eq!(answers(pieces), answers([&all[..]]));
    }

    /// Whatever a peer sends ends in no trap, and no more is kept of it than a frame.
    #[test]
    fn random_bytes(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        answers(chunks.iter().map(Vec::as_slice));
    }

    /// Frames whose checksum holds, with any protocol number and any body: these are looked at.
    #[test]
    fn random_bodies(
        frames in prop::collection::vec((any::<bool>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..90)), 0..40)
    ) {
        let frames = frames.iter().map(|(extended, protocol, body)| frame(*extended, *protocol, body));
        let login = frame(false, 0x01, b"\x01\x23\x45\x67\x89\x01\x23\x45");
        let stream: Vec<u8> = std::iter::once(login).chain(frames).flatten().collect();
        for (_, payload) in answers([&stream[..]]).published {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&payload).is_ok(), "{:?}", payload);
        }
    }

    /// Recorded frames with some bytes changed.
    #[test]
    fn damaged_frames(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200)) {
        let mut stream = every_uplink();
        for (index, byte) in changes {
            let at = index.index(stream.len());
            stream[at] = byte;
        }
        answers(stream.chunks(97));
    }

    /// A command of any bytes: those that are a command go out in a frame, all others are told.
    #[test]
    fn random_commands(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut terminal = GT06.connected(&[]);
        terminal.receive(&frame(false, 0x01, b"\x01\x23\x45\x67\x89\x01\x23\x45"));
        terminal.take_seen();
        terminal.deliver(&payload);
        let seen = terminal.take_seen();
        let valid = (1..=243).contains(&payload.len()) && payload.iter().all(|byte| (0x20..0x7f).contains(byte));
        let topic = if valid { "gt06/123456789012345/command/sent" } else { "gt06/123456789012345/command/error" };
        prop_assert_eq!(&seen.published[0].0, topic);
        prop_assert_eq!(!seen.sent.is_empty(), valid);
    }
}

/// The longest frame is taken, and one that says it is longer is skipped at once.
#[test]
fn the_longest_frame() {
    let mut terminal = GT06.connected(&[]);
    terminal.receive(&frame(false, 0x01, b"\x01\x23\x45\x67\x89\x01\x23\x45"));
    terminal.take_seen();
    terminal.receive(&frame(true, 0x8c, &vec![0x33; 4096 - 11]));
    assert_eq!(terminal.take_seen().published.len(), 1);
    terminal.receive(&frame(true, 0x8c, &vec![0x33; 4096 - 10])[..100]);
    terminal.receive(&frame(false, 0x13, b"\x40\x04\x03\x00\x02"));
    assert_eq!(terminal.take_seen().published.len(), 1, "the frame after it is not held up");
}

/// What comes before the login goes nowhere; the login of another terminal ends the connection.
#[test]
fn logins() {
    let mut terminal = GT06.connected(&[("keepalive_s", "60")]);
    terminal.receive(&frame(false, 0x13, b"\x40\x04\x03\x00\x02"));
    assert_eq!(terminal.take_seen(), Seen { keepalive_ms: Some(60_000), ..Seen::default() });

    terminal.receive(&frame(false, 0x01, b"\x01\x23\x45\x67\x89\x01\x23\x45"));
    let seen = terminal.take_seen();
    assert_eq!(seen.authenticated, ["123456789012345"]);
    assert_eq!(seen.subscribed, ["gt06/123456789012345/command"]);

    terminal.receive(&frame(false, 0x01, b"\x01\x23\x45\x67\x89\x01\x23\x46"));
    terminal.receive(&frame(false, 0x13, b"\x40\x04\x03\x00\x02"));
    assert_eq!(terminal.take_seen(), Seen { closed: true, ..Seen::default() });
}

/// The setting says what the terminal's clock shows.
#[test]
fn timezone() {
    let position = b"\x1a\x05\x09\x16\x02\x03\xcf\x05\xbe\x31\xf8\x0c\x30\x65\x30\x00\x1c\x00";
    for (timezone, time) in
        [("Z", "2026-05-09T22:02:03Z"), ("-03:30", "2026-05-10T01:32:03Z"), ("+8", "2026-05-09T22:02:03Z")]
    {
        let mut terminal = GT06.connected(&[("timezone", timezone)]);
        terminal.receive(&frame(false, 0x01, b"\x01\x23\x45\x67\x89\x01\x23\x45"));
        terminal.receive(&frame(false, 0x10, position));
        let (_, payload) = terminal.seen().published.last().unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(payload).unwrap()["time"], time);
    }
}

/// What a new terminal gets for these pieces.
fn answers<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut terminal = GT06.connected(&[]);
    pieces.into_iter().for_each(|piece| terminal.receive(piece));
    terminal.close();
    terminal.take_seen()
}

/// The bytes that the terminal of a recorded conversation sends.
fn uplink(name: &str) -> Vec<u8> {
    let file = format!("{}/examples/conversations/gt06/{name}.conversation", env!("CARGO_MANIFEST_DIR"));
    let conversation = Conversation::read(file.as_ref()).unwrap();
    let bytes = conversation.steps().filter_map(|(_, step)| match &step.action {
        Action::FromPeer(bytes) => Some(bytes.to_vec()),
        _ => None,
    });
    bytes.flatten().collect()
}

/// All of them, those of one made-up terminal first; the logins of others end the connection, and are left out.
fn every_uplink() -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/conversations/gt06");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter_map(|name| name.strip_suffix(".conversation").map(str::to_owned));
    let mut names: Vec<_> = names.filter(|name| name.starts_with("0x") || name.starts_with("refused")).collect();
    names.sort();
    names.iter().flat_map(|name| uplink(name)).collect()
}

/// A frame with serial 9.
fn frame(extended: bool, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 5).unwrap().to_be_bytes();
    let length = if extended { &length[..] } else { &length[1..] };
    let summed = [length, &[protocol], body, &[0, 9]].concat();
    let sum = summed.iter().fold(0xffff_u16, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x8408 } else { 0 })
    });
    let start = if extended { b"\x79\x79" } else { b"\x78\x78" };
    [&start[..], &summed, &(!sum).to_be_bytes(), b"\r\n"].concat()
}
