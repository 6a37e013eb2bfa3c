use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MAX: usize = 24;

/// One of each kind, bounded at [`MAX`] or a little over.
fn kinds() -> Vec<Box<dyn Framing>> {
    let length = |offset, width, order, adjust| LengthPrefixed { offset, width, order, adjust, max: MAX };
    vec![
        Box::new(Lines { max: MAX }),
        Box::new(Delimited { delimiter: b"ab", max: MAX }),
        Box::new(Delimited { delimiter: b"aab", max: MAX }),
        Box::new(Fixed { size: 5 }),
        Box::new(length(0, Width::One, Order::Big, 0)),
        Box::new(length(2, Width::Two, Order::Big, 1)),
        Box::new(length(1, Width::Three, Order::Little, -3)),
        Box::new(length(0, Width::Four, Order::Little, i32::MIN)),
    ]
}

/// All frames of a stream, what is held at its end, and why it broke, if it did.
fn frames(kind: &dyn Framing, chunks: &[&[u8]]) -> (Vec<Vec<u8>>, Held, Option<Broken>) {
    let (mut held, mut found) = (Held::default(), Vec::new());
    for chunk in chunks {
        let mut bytes = *chunk;
        loop {
            match kind.next(&mut held, &mut bytes) {
                Ok(Some(frame)) => found.push(frame.into_owned()),
                Ok(None) => break,
                Err(broken) => return (found, held, Some(broken)),
            }
            assert!(held.len() <= kind.wire_max());
        }
        assert!(bytes.is_empty());
        assert!(held.len() < kind.wire_max().max(1) && held.0.capacity() <= 2 * kind.wire_max().max(8));
    }
    (found, held, None)
}

/// Cuts a stream at places.
fn cut(stream: &[u8], places: Vec<prop::sample::Index>) -> Vec<&[u8]> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(stream.len() + 1)).collect();
    places.sort_unstable();
    let mut from = 0;
    let mut chunks = Vec::new();
    for to in places.into_iter().chain([stream.len()]) {
        chunks.push(&stream[from..to]);
        from = to;
    }
    chunks
}

/// Bytes in which ends of frames and small lengths are frequent.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(b'a'), Just(b'b'), 0..8_u8, Just(0)];
    vec(byte, 0..120)
}

proptest! {
    /// However a stream is cut, the frames are the same and so is what breaks it; nothing panics, and no more is held
    /// than one frame may have.
    #[test]
    fn any_cut_gives_the_same_frames(stream in stream(), places in vec(any::<prop::sample::Index>(), 0..6)) {
        for kind in kinds() {
            let whole = frames(&*kind, &[&stream]);
            prop_assert_eq!(&frames(&*kind, &cut(&stream, places.clone())), &whole);
            prop_assert_eq!(&frames(&*kind, &stream.chunks(1).collect::<Vec<_>>()), &whole);
        }
    }

    /// The same between flags, where every byte is in a frame, skipped, or unfinished.
    #[test]
    fn any_cut_gives_the_same_between_flags(stream in stream(), places in vec(any::<prop::sample::Index>(), 0..6)) {
        let flagged = Flagged { flag: b'\n', max: MAX };
        let found = |chunks: &[&[u8]]| {
            let (mut between, mut all) = (Between::default(), Vec::new());
            for chunk in chunks {
                let mut bytes = *chunk;
                while let Some(found) = flagged.next(&mut between, &mut bytes) {
                    all.push(match found {
                        Found::Frame(frame) => Found::Frame(frame.into_owned().into()),
                        Found::Skipped(count) => Found::Skipped(count),
                    });
                }
                assert!(!matches!(&between, Between::Inside(held) if held.len() > MAX || held.capacity() > 2 * MAX));
            }
            (all, between.unfinished())
        };
        let whole = found(&[&stream]);
        let flags = stream.iter().filter(|byte| **byte == b'\n').count();
        let count = |found: &Found<'_>| match found {
            Found::Frame(frame) => frame.len(),
            Found::Skipped(count) => *count,
        };
        prop_assert_eq!(whole.0.iter().map(count).sum::<usize>() + whole.1 + flags, stream.len());
        prop_assert_eq!(&found(&cut(&stream, places)), &whole);
        prop_assert_eq!(&found(&stream.chunks(1).collect::<Vec<_>>()), &whole);
    }

    /// What was escaped comes back, and holds nothing that may not stand in a frame; any bytes are read or refused.
    #[test]
    fn escapes(plain in vec(prop_oneof![any::<u8>(), 0x7d..=0x7e_u8, Just(0xc0), Just(0xdb)], 0..60)) {
        for (escapes, flag) in [(Escapes::JT808, 0x7e), (Escapes::HDLC, 0x7e), (Escapes::SLIP, 0xc0)] {
            let mut raw = Vec::new();
            escapes.write(&plain, &mut raw);
            prop_assert!(!raw.contains(&flag));
            prop_assert_eq!(&*escapes.read(&raw).unwrap(), &plain);
            if let Ok(read) = escapes.read(&plain) {
                prop_assert!(read.len() <= plain.len());
            }
        }
    }

    /// A stream of whole frames gives them all, whatever is in them.
    #[test]
    fn lengths(bodies in vec(vec(any::<u8>(), 0..20), 0..8)) {
        let kind = LengthPrefixed { offset: 1, width: Width::Two, order: Order::Little, adjust: 1, max: MAX };
        let frame = |body: &Vec<u8>| [&[9, body.len() as u8, 0][..], body, &[7]].concat();
        let all: Vec<Vec<u8>> = bodies.iter().map(frame).collect();
        prop_assert_eq!(frames(&kind, &[&all.concat()]), (all, Held::default(), None));
    }
}

/// A line may reach the bound and not pass it; its carriage return counts.
#[test]
fn line_max() {
    let lines = Lines { max: 4 };
    assert_eq!(frames(&lines, &[b"four\nfou\r\n\n", b"rest"]).0, [b"four".to_vec(), b"fou".to_vec(), vec![]]);
    let broken = Some(Broken::TooLong { max: 4, found: None });
    assert_eq!(frames(&lines, &[b"12345\n"]).2, broken);
    assert_eq!(frames(&lines, &[b"four\r\n"]).2, broken);
    assert_eq!(frames(&lines, &[b"1234", b"5"]).2, broken);
    assert_eq!(frames(&lines, &[b"1234", b"\n"]).0, [b"1234"]);
}

/// A length is believed up to the bound, and not below what stands before it.
#[test]
fn length_max() {
    let whole = LengthPrefixed { offset: 0, width: Width::Two, order: Order::Big, adjust: -2, max: 8 };
    assert_eq!(frames(&whole, &[b"\0\x08abcdef\0\x02"]).0, [b"\0\x08abcdef".to_vec(), b"\0\x02".to_vec()]);
    assert_eq!(frames(&whole, &[b"\0\x09"]).2, Some(Broken::TooLong { max: 8, found: Some(9) }));
    assert_eq!(frames(&whole, &[b"\0\x01"]).2, Some(Broken::TooShort { min: 2, found: 1 }));
    let impossible = LengthPrefixed { offset: usize::MAX, ..whole };
    assert_eq!(frames(&impossible, &[b"x"]).2, Some(Broken::TooLong { max: 8, found: Some(u64::MAX) }));
}

/// A framing whose frames have no bytes is broken from the start, and does not go round for ever.
#[test]
fn frames_of_nothing() {
    assert_eq!(frames(&Fixed { size: 0 }, &[b"x"]).2, Some(Broken::Empty));
    assert_eq!(frames(&Delimited { delimiter: b"", max: 8 }, &[b"x"]).2, Some(Broken::Empty));
}

/// Each fault has its own words.
#[test]
fn words() {
    for (broken, words) in [
        (Broken::TooLong { max: 8, found: Some(9) }, "expected a frame of at most 8 bytes, found one of 9"),
        (Broken::TooLong { max: 8, found: None }, "expected a frame's end within 8 bytes, found none"),
        (Broken::TooShort { min: 2, found: -1 }, "expected a frame of at least 2 bytes, found one of -1"),
        (Broken::Empty, "expected a frame, found one of no bytes"),
    ] {
        assert_eq!(broken.to_string(), words);
    }
    assert_eq!(
        Escapes::SLIP.read(b"\xdb").unwrap_err().to_string(),
        "expected a code after an escape, found the end of the frame"
    );
    assert_eq!(Escapes::SLIP.read(b"\xdb\x01").unwrap_err().to_string(), "expected a code after an escape, found 01");
}
