//! Any framing, any stream: however the stream is split, the frames are the same, no byte is lost, and the buffer is
//! bounded by one frame.

#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use polygate::testing::framing::{
    Broken, Delimited, Deliver, Escapes, Fixed, Flagged, Framer, Framing, LengthPrefixed, Lines, Order, Silence, Width,
};

fuzz_target!(|input: &[u8]| {
    let Some((head, stream)) = input.split_first_chunk::<10>() else { return };
    let framing = Arc::new(framing(*head));
    if let Framing::Gap(_) = *framing {
        in_time(&framing, stream);
        return;
    }
    let whole = story(&framing, stream, usize::MAX);
    for size in [1, 2, 3, 7, 64] {
        assert_eq!(story(&framing, stream, size), whole, "{framing:?} cut every {size} bytes");
    }
});

/// Any framing of a configuration file, and some that none can have.
fn framing([kind, a, b, c, d, max_high, max_low, deliver, x, y]: [u8; 10]) -> Framing {
    let max = usize::from(u16::from_be_bytes([max_high, max_low]));
    let deliver = if deliver & 1 == 0 { Deliver::Wire } else { Deliver::Payload };
    match kind % 6 {
        0 => Framing::Length(LengthPrefixed {
            offset: usize::from(a),
            width: [Width::One, Width::Two, Width::Three, Width::Four, Width::Eight][usize::from(b % 5)],
            order: if b & 0x80 == 0 { Order::Big } else { Order::Little },
            adjust: i32::from(i16::from_be_bytes([c, d])),
            max,
            deliver,
        }),
        1 => Framing::Delimiter(Delimited { delimiter: [c, d, x, y][..usize::from(a % 5)].into(), max, deliver }),
        2 => Framing::Fixed(Fixed { size: max }),
        3 => Framing::Line(Lines { max, deliver }),
        4 => {
            let escapes = if a & 1 == 0 { Escapes::Jt808 } else { Escapes::Hdlc };
            Framing::Escape(Flagged { escapes, max, deliver })
        }
        _ => Framing::Gap(Silence { silence: Duration::from_millis(u64::from(a)), max }),
    }
}

/// The result of a stream: its frames, the remaining bytes, the skipped ones, and the error.
type Story = (Vec<Bytes>, usize, u64, Option<Broken>);

fn story(framing: &Arc<Framing>, stream: &[u8], size: usize) -> Story {
    let mut framer = Framer::new(Arc::clone(framing));
    let now = Instant::now();
    let (mut frames, mut broken) = (Vec::new(), None);
    for piece in stream.chunks(size) {
        framer.push(now, Bytes::copy_from_slice(piece));
        loop {
            match framer.poll_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => assert_eq!(broken.replace(error), None, "it breaks once"),
            }
        }
        assert_eq!(framer.arrived(), 0);
        assert!(framer.unfinished() <= framing.wire_max());
    }
    assert_eq!((framer.poll_timeout(), framer.end()), (None, None));
    let skipped = framer.take_skipped();
    // A frame on the wire has both its flags, which it may share.
    let flags = if let Framing::Escape(Flagged { deliver: Deliver::Wire, .. }) = **framing { 2 } else { 0 };
    let framed: usize = frames.iter().map(|frame| frame.len() - flags).sum();
    assert!(frames.iter().all(|frame| frame.len() <= framing.wire_max()));
    assert!(framed + framer.unfinished() + skipped as usize <= stream.len());
    (frames, framer.unfinished(), skipped, broken)
}

/// Each byte of the stream is also the pause of the device after the next few of them.
fn in_time(framing: &Arc<Framing>, stream: &[u8]) {
    let mut framer = Framer::new(Arc::clone(framing));
    let mut now = Instant::now();
    let mut framed = 0;
    for piece in stream.chunks(5) {
        framer.push(now, Bytes::copy_from_slice(piece));
        assert_eq!(framer.poll_frame(), Ok(None));
        assert!(framer.unfinished() <= framing.wire_max());
        now += Duration::from_millis(piece.first().copied().unwrap_or_default().into());
        if let Some(frame) = framer.handle_timeout(now) {
            assert!((1..=framing.wire_max()).contains(&frame.len()));
            assert_eq!((framer.unfinished(), framer.poll_timeout()), (0, None));
            framed += frame.len();
        }
    }
    framed += framer.end().map_or(0, |frame| frame.len());
    assert_eq!(framed + framer.take_skipped() as usize, stream.len());
}
