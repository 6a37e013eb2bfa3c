//! `[listeners.NAME.framing]`: how the stream of a device is cut into frames.

use std::time::Duration;

use crate::config::diagnostics::ErrorReported;
use crate::config::read::{Table, read_all};
use crate::config::schema::{Section, section};
use crate::config::value::{
    Choice, Parsed, Range, Rejected, ValueType, count, duration, millis, outside, secs, size, string, wrong_length,
};
use crate::framing::{
    DELIMITER_BYTES_MAX, Delimited, Deliver, Escapes, FRAME_BYTES_MAX, Fixed, Flagged, Framing, LengthPrefixed, Lines,
    Order, Silence, Width,
};
use crate::listener::Bind;

/// The kinds of framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    Length,
    Delimiter,
    Fixed,
    Line,
    Escape,
    Gap,
}

section! {
    /// How the stream of a device is cut into frames; the handler gets one whole frame with each event. Without it, an
    /// event has the bytes of one read, cut anywhere. `max` and `size` are in bytes on the wire, with the length field
    /// and the escapes, without the delimiter, the line feed and the flags; they mean the same in the guests' SDK. A
    /// longer frame ends the connection as `framing_broken`, unless the kind says otherwise. Bytes outside of frames
    /// are counted. A handler that cuts its stream itself goes on working with `deliver = "wire"`.
    "framing", "[listeners.NAME.framing]", Once;

    /// how frames are found
    KIND "kind": Kind = KINDS, required;
}

const KINDS: Choice<Kind> = Choice(&[
    ("length", Kind::Length),
    ("delimiter", Kind::Delimiter),
    ("fixed", Kind::Fixed),
    ("line", Kind::Line),
    ("escape", Kind::Escape),
    ("gap", Kind::Gap),
]);

/// Bytes of a frame.
const FRAME_BYTES: Parsed<usize> = size(1..=FRAME_BYTES_MAX);

const DELIVER_AS: Choice<Deliver> = Choice(&[("wire", Deliver::Wire), ("payload", Deliver::Payload)]);

section! {
    mod length;
    /// Frames with a length field. On the wire, a frame has `offset + width + VALUE + adjust` bytes, where VALUE is the
    /// content of the field. So `adjust` is the number of bytes behind the field that VALUE does not count: `{ kind =
    /// "length", offset = 2, width = 1, adjust = 2 }` for `78 78 0d ..` with a body of 13 bytes and `0d 0a` behind it,
    /// 18 bytes. Where VALUE counts the whole frame, `adjust` is `-(offset + width)`.
    "framing", "[listeners.NAME.framing] of kind \"length\"", Once;

    &KIND;
    /// bytes before the length field
    OFFSET "offset": usize = count(0..=65_535), default 0;
    /// bytes of the length field
    WIDTH "width": Width = WIDTH_BYTES, required;
    /// byte order of the length field: the most significant byte first, or the least
    ORDER "order": Order = Choice(&[("big", Order::Big), ("little", Order::Little)]), default Order::Big;
    /// bytes behind the length field that it does not count; negative where it counts more than the bytes behind it
    ADJUST "adjust": i32 = count(-(FRAME_BYTES_MAX as i32)..=FRAME_BYTES_MAX as i32), default 0;
    /// the longest frame, with all its bytes
    MAX "max": usize = FRAME_BYTES, default 64 << 10;
    /// what the handler gets: `wire`: the frame as it was received; `payload`: the bytes behind the length field
    DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Wire;
}

section! {
    mod delimiter;
    /// Frames that end with a delimiter, which cannot be part of a frame.
    "framing", "[listeners.NAME.framing] of kind \"delimiter\"", Once;

    &KIND;
    /// the bytes, as ASCII text; in single quotes `\r`, `\n`, `\t`, `\\` and `\xHH` may be used, as in `'\x03\r\n'`
    DELIMITER "delimiter": Box<[u8]> = DELIMITER_BYTES, required;
    /// the longest frame, without the delimiter
    MAX "max": usize = FRAME_BYTES, default 64 << 10;
    /// what the handler gets: `wire`: the frame as it was received; `payload`: the same without the delimiter
    DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Payload;
}

section! {
    mod fixed;
    /// Frames of one fixed length.
    "framing", "[listeners.NAME.framing] of kind \"fixed\"", Once;

    &KIND;
    /// the length of each frame
    SIZE "size": usize = FRAME_BYTES, required;
}

section! {
    mod line;
    /// Lines of text, which end with LF or CR LF.
    "framing", "[listeners.NAME.framing] of kind \"line\"", Once;

    &KIND;
    /// the longest line, without the line feed
    MAX "max": usize = FRAME_BYTES, default 64 << 10;
    /// what the handler gets: `wire`: the line as it was received; `payload`: the same without its end
    DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Payload;
}

section! {
    mod escape;
    /// Frames between flags of 7E, with 7D as the escape byte. A flag may end one frame and start the next. Bytes
    /// before the first flag, and frames longer than `max`, are skipped; the connection goes on.
    "framing", "[listeners.NAME.framing] of kind \"escape\"", Once;

    &KIND;
    /// how bytes are escaped: `jt808`: 7D 02 is 7E and 7D 01 is 7D, as in JT/T 808; `hdlc`: the byte behind 7D has its
    /// bit 20 inverted, as in HDLC and PPP
    SCHEME "scheme": Escapes = Choice(&[("jt808", Escapes::Jt808), ("hdlc", Escapes::Hdlc)]), required;
    /// the longest frame, with the escapes and without the flags
    MAX "max": usize = FRAME_BYTES, default 64 << 10;
    /// what the handler gets: `wire`: the frame as it was received, with both flags; `payload`: the bytes between them,
    /// unescaped; a frame with an invalid escape is skipped then
    DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Payload;
}

section! {
    mod gap;
    /// Frames with silence between them, as those of Modbus RTU behind a serial device server. The silence is measured
    /// between the gateway's reads: frames that the network delivers together stay together, so a device should wait
    /// for a response before it sends the next. A frame longer than `max` is skipped up to the next silence; the
    /// connection goes on.
    "framing", "[listeners.NAME.framing] of kind \"gap\"", Once;

    &KIND;
    /// the silence that ends a frame; longer than the pauses of the network
    SILENCE "silence": Duration = duration(millis(1)..=secs(60)), required;
    /// the longest frame
    MAX "max": usize = FRAME_BYTES, default 256;
}

/// Bytes of a length field.
const WIDTH_BYTES: Parsed<Width> = Parsed {
    name: "integer",
    expected: "a number of bytes",
    range: Range::Words("1, 2, 3, 4 or 8"),
    parse: |value| {
        let integer = value.as_integer().ok_or(Rejected::Type)?;
        let bytes = u8::from_str_radix(integer.as_str(), integer.radix());
        let known = [Width::One, Width::Two, Width::Three, Width::Four, Width::Eight];
        known.into_iter().find(|width| bytes == Ok(*width as u8)).ok_or(Rejected::Range)
    },
    show: |width| (*width as u8).to_string(),
};

/// Bytes at the end of a frame.
///
/// TOML's own escapes are characters, and a character over 7F is several bytes; so the text is ASCII, and the escapes
/// for bytes are parsed here.
const DELIMITER_BYTES: Parsed<Box<[u8]>> = Parsed {
    name: "string",
    expected: r"ASCII text with \r, \n, \t, \\ or \xHH, such as '\r\n'",
    range: Range::Words("1..=16 bytes"),
    parse: |value| {
        let bytes = unescaped(string(value)?).ok_or(Rejected::Form)?;
        match bytes.len() {
            1..=DELIMITER_BYTES_MAX => Ok(bytes.into()),
            len => Err(Rejected::Because(wrong_length(len, &(1..=DELIMITER_BYTES_MAX)))),
        }
    },
    show: |bytes| {
        let escaped = bytes.iter().map(|byte| match byte {
            b'\'' | b'\\' => format!("\\x{byte:02x}"),
            b' '..=b'~' => char::from(*byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        });
        format!("'{}'", escaped.collect::<String>())
    },
};

/// The framing of a listener, if it has one. Its keys are read for streams only.
pub(super) fn read(listener: &Table<'_>, bind: Option<Bind>) -> Result<Option<Framing>, ErrorReported> {
    let Some(item) = listener.item(SECTION.key) else { return Ok(None) };
    if let Some(Bind { transport, .. }) = bind.filter(|bind| bind.transport.has_datagrams()) {
        let message = format_args!("is for streams; over {transport} each datagram is a frame already");
        return Err(item.fault(message));
    }
    let table = item.table()?;
    let all: [&Section; 6] =
        [&length::SECTION, &delimiter::SECTION, &fixed::SECTION, &line::SECTION, &escape::SECTION, &gap::SECTION];
    let kind = table.get(&KIND).inspect_err(|_| {
        let _recorded = table.admit(SECTION.title, &all, &[]);
    })?;
    let own = all[kind as usize];
    let admitted = table.admit(own.title, &[own], &all);
    let framing = match kind {
        Kind::Length => read_length(&table).map(Framing::Length),
        Kind::Delimiter => read_all!(Delimited {
            delimiter: table.get(&delimiter::DELIMITER),
            max: table.get(&delimiter::MAX),
            deliver: table.get(&delimiter::DELIVER),
        })
        .map(Framing::Delimiter),
        Kind::Fixed => read_all!(Fixed { size: table.get(&fixed::SIZE) }).map(Framing::Fixed),
        Kind::Line => {
            read_all!(Lines { max: table.get(&line::MAX), deliver: table.get(&line::DELIVER) }).map(Framing::Line)
        }
        Kind::Escape => read_all!(Flagged {
            escapes: table.get(&escape::SCHEME),
            max: table.get(&escape::MAX),
            deliver: table.get(&escape::DELIVER),
        })
        .map(Framing::Escape),
        Kind::Gap => {
            read_all!(Silence { silence: table.get(&gap::SILENCE), max: table.get(&gap::MAX) }).map(Framing::Gap)
        }
    };
    admitted.and(framing.map(Some))
}

fn read_length(table: &Table<'_>) -> Result<LengthPrefixed, ErrorReported> {
    let framing = read_all!(LengthPrefixed {
        offset: table.get(&length::OFFSET),
        width: table.get(&length::WIDTH),
        order: table.get(&length::ORDER),
        adjust: table.get(&length::ADJUST),
        max: table.get(&length::MAX),
        deliver: table.get(&length::DELIVER),
    })?;
    match (framing.max, framing.min()) {
        (max, min) if max < min => {
            let range = size(min..=FRAME_BYTES_MAX).form().range;
            Err(table.fault_at("max", outside(FRAME_BYTES.show(&max), range)))
        }
        _ => Ok(framing),
    }
}

/// The bytes that a text stands for.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        bytes.push(match char {
            '\\' => match chars.next()? {
                'r' => b'\r',
                'n' => b'\n',
                't' => b'\t',
                '\\' => b'\\',
                'x' => {
                    let digits = [chars.next()?, chars.next()?].map(|digit| digit.to_digit(16));
                    let [Some(high), Some(low)] = digits else { return None };
                    (high << 4 | low) as u8
                }
                _ => return None,
            },
            _ => u8::try_from(char).ok().filter(u8::is_ascii)?,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_bytes() {
        for (text, bytes) in [
            (r"\r\n", &b"\r\n"[..]),
            ("\r\n", b"\r\n"),
            ("##", b"##"),
            (r"\xfF\x00", b"\xff\x00"),
            (r"\\x\t", b"\\x\t"),
            ("", b""),
        ] {
            assert_eq!(unescaped(text).as_deref(), Some(bytes), "{text:?}");
        }
        for text in ["ÿ", r"\", r"\x", r"\x0", r"\x0g", r"\x+1", r"\q", "\\xÿÿ"] {
            assert_eq!(unescaped(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_range_of_delimiters_is_the_bound() {
        assert_eq!(DELIMITER_BYTES.form().range, format!("1..={DELIMITER_BYTES_MAX} bytes"));
    }

    #[test]
    fn shown_delimiters_are_read_back() {
        let all: Box<[u8]> = (0..=255).collect();
        let shown = DELIMITER_BYTES.show(&all);
        assert_eq!(unescaped(shown.trim_matches('\'')).as_deref(), Some(&*all));
    }
}
