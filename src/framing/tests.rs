use std::path::Path;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::conversation::{Action, Conversation};

const MAX: usize = 24;

/// Result of a framed stream: its frames, the bytes held at its end, the skipped ones, and the error, if any.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    frames: Vec<Vec<u8>>,
    unfinished: usize,
    skipped: u64,
    broken: Option<Broken>,
}

fn length(offset: usize, width: Width, order: Order, adjust: i32) -> LengthPrefixed {
    LengthPrefixed { offset, width, order, adjust, max: MAX, deliver: Deliver::Wire }
}

fn delimited(delimiter: &[u8], deliver: Deliver) -> Framing {
    Framing::Delimiter(Delimited { delimiter: delimiter.into(), max: MAX, deliver })
}

fn flagged(escapes: Escapes, deliver: Deliver) -> Framing {
    Framing::Escape(Flagged { escapes, max: MAX, deliver })
}

/// Framings of each kind that do not depend on time.
fn kinds() -> Vec<Framing> {
    let mut kinds = vec![
        Framing::Fixed(Fixed { size: 5 }),
        Framing::Length(length(0, Width::Four, Order::Little, i32::MIN)),
        Framing::Length(length(0, Width::Eight, Order::Big, i32::MAX)),
        Framing::Length(length(1, Width::Eight, Order::Little, -9)),
    ];
    for deliver in [Deliver::Wire, Deliver::Payload] {
        kinds.extend([
            Framing::Length(LengthPrefixed { deliver, ..length(0, Width::One, Order::Big, 0) }),
            Framing::Length(LengthPrefixed { deliver, ..length(2, Width::Two, Order::Big, 1) }),
            Framing::Length(LengthPrefixed { deliver, ..length(1, Width::Three, Order::Little, -3) }),
            delimited(b"a", deliver),
            delimited(b"ab", deliver),
            delimited(b"aab", deliver),
            Framing::Line(Lines { max: MAX, deliver }),
            flagged(Escapes::Jt808, deliver),
            flagged(Escapes::Hdlc, deliver),
        ]);
    }
    kinds
}

fn outcome(framing: &Framing, chunks: &[&[u8]]) -> Outcome {
    let mut framer = Framer::new(Arc::new(framing.clone()));
    let mut outcome = Outcome::default();
    for chunk in chunks {
        framer.push(Instant::now(), Bytes::copy_from_slice(chunk));
        loop {
            match framer.poll_frame() {
                Ok(Some(frame)) => outcome.frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(broken) => assert_eq!(outcome.broken.replace(broken), None, "it breaks once"),
            }
            assert!(framer.held.capacity() <= framing.wire_max());
        }
        assert!(framer.held.len() < framing.wire_max().max(1));
        assert!(framer.held.capacity() <= framing.wire_max());
        assert_eq!(framer.arrived(), 0);
        if framer.unfinished() == 0 {
            assert_eq!(framer.held.capacity(), 0, "nothing is allocated between two frames");
        }
    }
    assert_eq!(framer.poll_timeout(), None);
    assert_eq!(framer.end(), None);
    outcome.unfinished = framer.unfinished();
    outcome.skipped = framer.take_skipped();
    assert_eq!(framer.take_skipped(), 0);
    outcome
}

fn frames(framing: &Framing, chunks: &[&[u8]]) -> Vec<Vec<u8>> {
    let outcome = outcome(framing, chunks);
    assert_eq!((outcome.unfinished, outcome.skipped, outcome.broken), (0, 0, None));
    outcome.frames
}

/// Cuts a stream at positions.
fn cut(stream: &[u8], mut positions: Vec<usize>) -> Vec<&[u8]> {
    positions.push(stream.len());
    positions.sort_unstable();
    let mut from = 0;
    let mut chunks = Vec::new();
    for to in positions {
        chunks.push(&stream[from..to]);
        from = to;
    }
    chunks
}

/// Bytes in which frame ends, escapes and small lengths are frequent.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        any::<u8>(),
        Just(b'\n'),
        Just(b'\r'),
        Just(b'a'),
        Just(b'b'),
        0..8_u8,
        Just(0),
        0x7d..=0x7e_u8,
        Just(0x7e)
    ];
    vec(byte, 0..160)
}

fn positions() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    vec(any::<prop::sample::Index>(), 0..6)
}

proptest! {
    /// For any fragmentation of a stream, frames, skipped bytes, held bytes and errors are the same; nothing panics,
    /// and never more is held than one frame may have.
    #[test]
    fn any_cut_gives_the_same_frames(stream in stream(), positions in positions()) {
        let positions: Vec<usize> = positions.iter().map(|place| place.index(stream.len() + 1)).collect();
        for framing in kinds() {
            let whole = outcome(&framing, &[&stream]);
            prop_assert_eq!(&outcome(&framing, &cut(&stream, positions.clone())), &whole, "{:?}", framing);
            prop_assert_eq!(&outcome(&framing, &stream.chunks(1).collect::<Vec<_>>()), &whole, "{:?}", framing);
        }
    }

    /// Every byte of a stream is in a frame, skipped, or held.
    #[test]
    fn every_byte_is_accounted_for(stream in stream()) {
        for framing in kinds() {
            let Outcome { frames, unfinished, skipped, .. } = outcome(&framing, &[&stream]);
            let accounted = frames.iter().map(Vec::len).sum::<usize>() + unfinished + skipped as usize;
            match framing {
                Framing::Length(LengthPrefixed { deliver: Deliver::Payload, .. })
                | Framing::Delimiter(Delimited { deliver: Deliver::Payload, .. })
                | Framing::Line(Lines { deliver: Deliver::Payload, .. }) => prop_assert!(accounted <= stream.len()),
                Framing::Length(_) | Framing::Delimiter(_) | Framing::Fixed(_) | Framing::Line(_) | Framing::Gap(_) => {
                    prop_assert_eq!(accounted, stream.len(), "{:?}", framing);
                }
                // A flag is in two frames or in none.
                Framing::Escape(_) => {}
            }
        }
    }

    /// The same for flags, which are not counted.
    #[test]
    fn every_byte_between_flags_is_accounted_for(stream in stream()) {
        let Outcome { frames, unfinished, skipped, broken } = outcome(&flagged(Escapes::Hdlc, Deliver::Wire), &[&stream]);
        let flags = stream.iter().filter(|byte| **byte == Escapes::FLAG).count();
        let framed = frames.iter().map(|frame| frame.len() - 2).sum::<usize>();
        prop_assert_eq!(framed + unfinished.saturating_sub(1) + skipped as usize + flags, stream.len());
        prop_assert_eq!(broken, None);
    }

    /// Escaped bytes round-trip in the payload, and are unchanged on the wire, for any fragmentation.
    #[test]
    fn escapes_come_back(payloads in vec(vec(prop_oneof![any::<u8>(), 0x7d..=0x7e_u8], 1..11), 0..6), positions in positions()) {
        for escapes in [Escapes::Jt808, Escapes::Hdlc] {
            let wires: Vec<Vec<u8>> = payloads.iter().map(|payload| wire(escapes, payload)).collect();
            let stream = wires.concat();
            let positions: Vec<usize> = positions.iter().map(|place| place.index(stream.len() + 1)).collect();
            let chunks = cut(&stream, positions);
            prop_assert_eq!(frames(&flagged(escapes, Deliver::Payload), &chunks), payloads.clone());
            prop_assert_eq!(frames(&flagged(escapes, Deliver::Wire), &chunks), wires);
        }
    }

    /// A stream of whole length-prefixed frames gives all of them, with any content.
    #[test]
    fn lengths(bodies in vec(vec(any::<u8>(), 0..20), 0..8)) {
        let kind = LengthPrefixed { adjust: 1, ..length(1, Width::Two, Order::Little, 0) };
        let frame = |body: &Vec<u8>| [&[9, body.len() as u8, 0][..], body, &[7]].concat();
        let all: Vec<Vec<u8>> = bodies.iter().map(frame).collect();
        prop_assert_eq!(frames(&Framing::Length(kind), &[&all.concat()]), all.clone());
        let payload = Framing::Length(LengthPrefixed { deliver: Deliver::Payload, ..kind });
        let payloads: Vec<Vec<u8>> = all.iter().map(|frame| frame[3..].to_vec()).collect();
        prop_assert_eq!(frames(&payload, &[&all.concat()]), payloads);
    }

    /// Only a full silence ends a frame; the steps move time, and bytes arrive between them.
    #[test]
    fn only_silence_cuts(steps in vec((0..40_u64, vec(any::<u8>(), 0..12)), 0..20)) {
        const SILENCE: u64 = 20;
        let mut framer = silent(SILENCE);
        let start = Instant::now();
        let (mut now, mut heard) = (0, None);
        let (mut expected, mut found) = (vec![Vec::new()], Vec::new());
        for (pause, bytes) in steps {
            now += pause;
            // The timer fires before the read.
            found.extend(framer.handle_timeout(at(start, now)));
            if heard.is_some_and(|heard| now >= heard + SILENCE) {
                expected.push(Vec::new());
            }
            if !bytes.is_empty() {
                heard = Some(now);
                expected.last_mut().unwrap().extend_from_slice(&bytes);
                framer.push(at(start, now), bytes.into());
                prop_assert_eq!(framer.poll_timeout(), Some(at(start, now + SILENCE)));
                prop_assert_eq!(framer.poll_frame(), Ok(None));
            }
            prop_assert!(framer.held.len() <= MAX && framer.held.capacity() <= MAX);
        }
        found.extend(framer.end());
        let is_short = |frame: &Vec<u8>| (1..=MAX).contains(&frame.len());
        let total = expected.iter().filter(|frame| frame.len() > MAX).map(Vec::len).sum::<usize>();
        prop_assert_eq!(found, expected.into_iter().filter(is_short).collect::<Vec<_>>());
        prop_assert_eq!(framer.take_skipped(), total as u64);
    }
}

/// Silence ends a frame exactly at its deadline; then no deadline is set and nothing is held.
#[test]
fn silence_ends_a_frame() {
    let start = Instant::now();
    let mut framer = silent(20);
    assert_eq!(framer.poll_timeout(), None);
    framer.push(start, Bytes::from_static(b"\x01\x03"));
    framer.push(at(start, 19), Bytes::from_static(b"\x00\x6b"));
    framer.push(at(start, 20), Bytes::new());
    assert_eq!(framer.poll_timeout(), Some(at(start, 39)));
    assert_eq!(framer.handle_timeout(at(start, 38)), None);
    assert_eq!(framer.unfinished(), 4);
    assert_eq!(framer.handle_timeout(at(start, 39)).unwrap(), "\x01\x03\x00\x6b");
    assert_eq!((framer.poll_timeout(), framer.unfinished(), framer.held.capacity()), (None, 0, 0));
    assert_eq!(framer.handle_timeout(at(start, 100)), None);
}

/// The end of a stream counts as silence.
#[test]
fn the_end_is_silence() {
    let mut framer = silent(20);
    framer.push(Instant::now(), Bytes::from_static(b"last"));
    assert_eq!(framer.end().unwrap(), "last");
    assert_eq!((framer.end(), framer.poll_timeout()), (None, None));
}

/// Bytes over the limit without a silence are skipped until there is one.
#[test]
fn too_many_bytes_without_silence_are_skipped() {
    let start = Instant::now();
    let mut framer = silent(20);
    for _ in 0..1000 {
        framer.push(start, Bytes::from_static(b"noise"));
        assert!(framer.held.capacity() <= MAX);
    }
    assert_eq!(framer.handle_timeout(at(start, 20)), None);
    framer.push(at(start, 20), Bytes::from_static(b"frame"));
    assert_eq!(framer.handle_timeout(at(start, 40)).unwrap(), "frame");
    assert_eq!(framer.take_skipped(), 5000);
}

/// A line may reach the bound and not pass it; its line feed does not count, and a carriage return does.
#[test]
fn line_max() {
    let lines = Framing::Line(Lines { max: 4, deliver: Deliver::Payload });
    assert_eq!(frames(&lines, &[b"four\nfou\r\n\n", b"\r", b"\n"]), [&b"four"[..], b"fou", b"", b""]);
    let wire = Framing::Line(Lines { max: 4, deliver: Deliver::Wire });
    assert_eq!(frames(&wire, &[b"four\nfou\r\n\n"]), [&b"four\n"[..], b"fou\r\n", b"\n"]);
    let broken = Some(Broken::TooLong { max: 4, found: None });
    for chunks in [&[&b"12345\n"[..]][..], &[b"four\r\n"], &[b"12345"], &[b"1234", b"5"], &[b"ok\n12345"]] {
        assert_eq!(outcome(&lines, chunks).broken, broken, "{chunks:?}");
    }
    assert_eq!(frames(&lines, &[b"1234", b"\n"]), [b"1234"]);
}

/// A frame may reach the bound and not pass it; its delimiter does not count, however the stream is cut.
#[test]
fn delimiter_max() {
    for deliver in [Deliver::Wire, Deliver::Payload] {
        let framing = Framing::Delimiter(Delimited { delimiter: b"\r\n"[..].into(), max: 3, deliver });
        let longest: &[u8] = if deliver == Deliver::Wire { b"abc\r\n" } else { b"abc" };
        for chunks in
            [&[&b"abc\r\n"[..]][..], &[b"abc", b"\r\n"], &[b"abc\r", b"\n"], &[b"a", b"b", b"c", b"\r", b"\n"]]
        {
            assert_eq!(frames(&framing, chunks), [longest], "{chunks:?}");
        }
        let broken = Some(Broken::TooLong { max: 3, found: None });
        for chunks in [&[&b"abcd\r\n"[..]][..], &[b"abcd\r"], &[b"abc", b"d\r\n"], &[b"abcde"]] {
            assert_eq!(outcome(&framing, chunks).broken, broken, "{chunks:?}");
        }
        // A frame shorter than its delimiter.
        let framing =
            Framing::Delimiter(Delimited { delimiter: b"####"[..].into(), max: 1, deliver: Deliver::Payload });
        assert_eq!(frames(&framing, &[b"a####", b"####"]), [&b"a"[..], b""]);
    }
}

/// After a broken frame nothing is a frame, and all of it is counted.
#[test]
fn nothing_follows_a_broken_frame() {
    let lines = Framing::Line(Lines { max: 4, deliver: Deliver::Payload });
    let outcome = outcome(&lines, &[b"one\n", b"twent", b"y\nthree\n", b"four\n"]);
    let broken = Some(Broken::TooLong { max: 4, found: None });
    assert_eq!(outcome, Outcome { frames: vec![b"one".to_vec()], unfinished: 0, skipped: 18, broken });
}

/// A length is accepted up to the limit, and not below the header's size.
#[test]
fn length_max() {
    let kind = LengthPrefixed { adjust: -2, max: 8, ..length(0, Width::Two, Order::Big, 0) };
    let whole = Framing::Length(kind);
    assert_eq!(frames(&whole, &[b"\0\x08abcdef\0\x02"]), [&b"\0\x08abcdef"[..], b"\0\x02"]);
    assert_eq!(outcome(&whole, &[b"\0\x09"]).broken, Some(Broken::TooLong { max: 8, found: Some(9) }));
    assert_eq!(outcome(&whole, &[b"\0\x01"]).broken, Some(Broken::TooShort { min: 2, found: 1 }));
    let wide = Framing::Length(LengthPrefixed { adjust: i32::MAX, ..length(0, Width::Eight, Order::Big, 0) });
    assert_eq!(outcome(&wide, &[&[0xff; 8]]).broken, Some(Broken::TooLong { max: MAX, found: Some(u64::MAX) }));
    let impossible = Framing::Length(LengthPrefixed { offset: usize::MAX, ..kind });
    assert_eq!(outcome(&impossible, &[b"x"]).broken, Some(Broken::TooLong { max: 8, found: Some(u64::MAX) }));
}

/// An announced length allocates no memory.
#[test]
fn an_announced_length_allocates_nothing() {
    let kind = LengthPrefixed { max: FRAME_BYTES_MAX, ..length(0, Width::Four, Order::Big, 0) };
    let mut framer = Framer::new(Arc::new(Framing::Length(kind)));
    framer.push(Instant::now(), Bytes::from_static(b"\x00\x0f\x00\x00abc"));
    assert_eq!(framer.poll_frame(), Ok(None));
    assert_eq!((framer.unfinished(), framer.held.capacity()), (7, 7));
}

/// A flag ends a frame and starts the next; noise and invalid escapes are skipped.
#[test]
fn flags() {
    let jt808 = flagged(Escapes::Jt808, Deliver::Payload);
    assert_eq!(frames(&jt808, &[b"~a~b~~c~~~"]), [b"a", b"b", b"c"]);
    assert_eq!(frames(&flagged(Escapes::Jt808, Deliver::Wire), &[b"~a~b~~c~"]), [b"~a~", b"~b~", b"~c~"]);
    assert_eq!(frames(&jt808, &[b"~\x7d\x02\x7d", b"\x01", b"~"]), [b"~\x7d"]);
    assert_eq!(frames(&flagged(Escapes::Hdlc, Deliver::Payload), &[b"~\x7d\x5e\x7d\x5d\x7d\x31~"]), [b"~\x7d\x11"]);

    let outcome = outcome(&jt808, &[b"noise~one~", &[b'x'; MAX + 1], b"~two~\x7d\x03~three~\x7d~four~fi"]);
    let frames = ["one", "two", "three", "four"].map(|frame| frame.as_bytes().to_vec()).to_vec();
    assert_eq!(outcome, Outcome { frames, unfinished: 3, skipped: 5 + MAX as u64 + 1 + 2 + 1, broken: None });
}

/// Between flags, the longest frame fits and one more byte does not, in one read or in many.
#[test]
fn flagged_max() {
    let wire = flagged(Escapes::Hdlc, Deliver::Wire);
    let longest = [b"~", &[b'x'; MAX][..], b"~"].concat();
    for chunks in [vec![&longest[..]], longest.chunks(1).collect()] {
        assert_eq!(frames(&wire, &chunks), [&longest[..]]);
    }
    let longer = [b"~", &[b'x'; MAX + 1][..], b"~"].concat();
    for chunks in [vec![&longer[..]], longer.chunks(1).collect()] {
        assert_eq!(outcome(&wire, &chunks), Outcome { skipped: MAX as u64 + 1, ..Outcome::default() });
    }
}

/// Frames of zero bytes are an error at once, not an endless loop.
#[test]
fn empty_frames() {
    for framing in [Framing::Fixed(Fixed { size: 0 }), delimited(b"", Deliver::Wire)] {
        assert_eq!(outcome(&framing, &[b"x"]).broken, Some(Broken::Empty));
    }
    let empty_lines = Framing::Line(Lines { max: 0, deliver: Deliver::Wire });
    assert_eq!(frames(&empty_lines, &[b"\n\n"]), [b"\n", b"\n"]);
    assert_eq!(outcome(&empty_lines, &[b"x"]).broken, Some(Broken::TooLong { max: 0, found: None }));
}

/// A peer that sends the longest frame byte by byte costs one scan of each byte: one scan of all held bytes each time
/// would take minutes.
#[test]
fn slow_peers_are_not_expensive() {
    let max = 1 << 18;
    let now = Instant::now();
    for (framing, head) in [
        (Framing::Length(LengthPrefixed { max, ..length(0, Width::Four, Order::Big, -4) }), &b"\0\x04\0\0"[..]),
        (Framing::Delimiter(Delimited { delimiter: b"xxxxxxxxy"[..].into(), max, deliver: Deliver::Wire }), b""),
        (Framing::Fixed(Fixed { size: max }), b""),
        (Framing::Line(Lines { max, deliver: Deliver::Payload }), b""),
        (Framing::Escape(Flagged { escapes: Escapes::Hdlc, max, deliver: Deliver::Wire }), b"~"),
        (Framing::Gap(Silence { silence: Duration::from_millis(20), max }), b""),
    ] {
        let wire_max = framing.wire_max();
        let mut framer = Framer::new(Arc::new(framing));
        for byte in head.iter().chain(std::iter::repeat_n(&b'x', max - 2 - head.len())) {
            framer.push(now, Bytes::copy_from_slice(std::slice::from_ref(byte)));
            assert_eq!(framer.poll_frame(), Ok(None));
        }
        assert_eq!(framer.unfinished(), max - 2);
        assert!(framer.held.capacity() <= wire_max);
    }
}

/// Each fault has its own text.
#[test]
fn error_texts() {
    for (broken, words) in [
        (Broken::TooLong { max: 8, found: Some(9) }, "expected a frame of at most 8 bytes, found one of 9"),
        (Broken::TooLong { max: 8, found: None }, "expected a frame's end within 8 bytes, found none"),
        (Broken::TooShort { min: 2, found: -1 }, "expected a frame of at least 2 bytes, found one of -1"),
        (Broken::Empty, "expected a frame, found one of no bytes"),
    ] {
        assert_eq!(broken.to_string(), words);
    }
}

/// A frame as a device encodes it.
fn wire(escapes: Escapes, payload: &[u8]) -> Vec<u8> {
    let mut wire = vec![Escapes::FLAG];
    for &byte in payload {
        match (escapes, byte) {
            (Escapes::Jt808, Escapes::FLAG) => wire.extend([Escapes::ESCAPE, 2]),
            (Escapes::Jt808, Escapes::ESCAPE) => wire.extend([Escapes::ESCAPE, 1]),
            (Escapes::Hdlc, Escapes::FLAG | Escapes::ESCAPE) => wire.extend([Escapes::ESCAPE, byte ^ 0x20]),
            (Escapes::Jt808 | Escapes::Hdlc, _) => wire.push(byte),
        }
    }
    wire.push(Escapes::FLAG);
    wire
}

fn silent(silence_ms: u64) -> Framer {
    let silence = Duration::from_millis(silence_ms);
    Framer::new(Arc::new(Framing::Gap(Silence { silence, max: MAX })))
}

fn at(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

/// The recorded devices of examples/: their concatenated frames are found again, cut at every byte or not at all.
#[test]
fn recorded_frames() {
    let jt808 = Framing::Escape(Flagged { escapes: Escapes::Jt808, max: 4096, deliver: Deliver::Wire });
    let prefixed = |offset, width, adjust| {
        Framing::Length(LengthPrefixed { adjust, max: 4096, ..length(offset, width, Order::Big, 0) })
    };
    let lines = Framing::Line(Lines { max: 4096, deliver: Deliver::Wire });
    let is_flagged = |frame: &[u8]| {
        frame.len() > 2
            && frame.iter().enumerate().all(|(at, byte)| (*byte == 0x7e) == (at == 0 || at + 1 == frame.len()))
    };
    let is_gt06 = |frame: &[u8]| frame.starts_with(b"\x78\x78") && frame.len() == usize::from(frame[2]) + 5;
    let is_teltonika = |frame: &[u8]| {
        frame.starts_with(&[0; 4]) && u32::from_be_bytes(frame[4..8].try_into().unwrap()) as usize + 12 == frame.len()
    };
    let is_line = |frame: &[u8]| frame.iter().position(|byte| *byte == b'\n') == Some(frame.len() - 1);
    for (folder, framing, is_whole, at_least) in [
        ("jt808", jt808, &is_flagged as &dyn Fn(&[u8]) -> bool, 70),
        ("gt06", prefixed(2, Width::One, 2), &is_gt06, 40),
        ("teltonika", prefixed(4, Width::Four, 4), &is_teltonika, 20),
        ("nmea", lines, &is_line, 20),
    ] {
        let recorded = recorded(folder, is_whole);
        assert!(recorded.len() >= at_least, "{} frames of {folder}", recorded.len());
        let stream = recorded.concat();
        assert_eq!(frames(&framing, &[&stream]), recorded, "{folder}");
        assert_eq!(frames(&framing, &stream.chunks(1).collect::<Vec<_>>()), recorded, "{folder}");
    }
}

/// The frames of the devices of a folder that are whole.
fn recorded(folder: &str, is_whole: &dyn Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/conversations").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut frames = Vec::new();
    for file in files {
        for (_, step) in Conversation::read(&file).unwrap().steps() {
            if let Action::FromPeer(bytes) = &step.action
                && is_whole(bytes)
            {
                frames.push(bytes.to_vec());
            }
        }
    }
    frames
}
