//! `[listeners.NAME.framing]`: how the stream of a device is cut into frames.

use crate::config::diagnostics::ErrorReported;
use crate::config::read::{Table, read_all};
use crate::config::schema::{Section, section};
use crate::config::value::{Choice, Parsed, Range, Rejected, ValueType, outside, size, string, wrong_length};
use crate::framing::{
    DELIMITER_BYTES_MAX, Delimited, Deliver, Escapes, FRAME_BYTES_MAX, Fixed, Flagged, Framing, LengthPrefixed, Lines,
    Silence, Width,
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
    /// How the stream of a device is cut into frames; the handler gets one whole frame with each event. Without it,
    /// an event has whatever a read gives, cut anywhere. `max` and all other bounds are in bytes on the wire, with
    /// all that belongs to a frame; a longer frame ends the connection as `framing_broken`, where nothing else is
    /// said. What is in no frame is counted. A handler that cuts its stream itself goes on working with `deliver =
    /// "wire"`.
    "framing", "[listeners.NAME.framing]", Once;

    /// how frames are told apart
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

/// Bytes of a frame. That a bound has room for the shortest frame is checked once the other keys are known.
const FRAME_BYTES: Parsed<usize> = size(1..=FRAME_BYTES_MAX);

const DELIVER_AS: Choice<Deliver> = Choice(&[("wire", Deliver::Wire), ("payload", Deliver::Payload)]);

pub(in crate::config) mod length {
    use super::{DELIVER_AS, FRAME_BYTES, KIND, WIDTH_BYTES};
    use crate::config::schema::section;
    use crate::config::value::{Choice, count};
    use crate::framing::{Deliver, FRAME_BYTES_MAX, Order, Width};

    section! {
        /// Frames that say how long they are. On the wire, a frame has `offset + width + VALUE + adjust` bytes, where
        /// VALUE is what its length says. So `adjust` is what VALUE leaves out of all that follows it: `{ kind =
        /// "length", offset = 2, width = 1, adjust = 2 }` for `78 78 0d ..` with a body of 13 bytes and `0d 0a` behind
        /// it, 18 bytes. Where VALUE counts the whole frame, `adjust` is `-(offset + width)`.
        "framing", "[listeners.NAME.framing] of kind \"length\"", Once;

        &KIND;
        /// bytes before the length
        OFFSET "offset": usize = count(0..=65_535), default 0;
        /// bytes of the length
        WIDTH "width": Width = WIDTH_BYTES, required;
        /// which byte of the length comes first: the most significant one, or the least
        ORDER "order": Order = Choice(&[("big", Order::Big), ("little", Order::Little)]), default Order::Big;
        /// bytes behind the length that it does not count; less than 0 where it counts more than these
        ADJUST "adjust": i32 = count(-(FRAME_BYTES_MAX as i32)..=FRAME_BYTES_MAX as i32), default 0;
        /// the longest frame
        MAX "max": usize = FRAME_BYTES, default 64 << 10;
        /// what the handler gets: `wire`: the frame as it came; `payload`: what follows the length
        DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Wire;
    }
}

pub(in crate::config) mod delimiter {
    use super::{DELIMITER_BYTES, DELIVER_AS, FRAME_BYTES, KIND};
    use crate::config::schema::section;
    use crate::framing::Deliver;

    section! {
        /// Frames that end with certain bytes, which stand nowhere else.
        "framing", "[listeners.NAME.framing] of kind \"delimiter\"", Once;

        &KIND;
        /// the bytes, as ASCII text; in single quotes `\r`, `\n`, `\t`, `\\` and `\xHH` may stand in it, as in
        /// `'\x03\r\n'`
        DELIMITER "delimiter": Box<[u8]> = DELIMITER_BYTES, required;
        /// the longest frame
        MAX "max": usize = FRAME_BYTES, default 64 << 10;
        /// what the handler gets: `wire`: the frame as it came; `payload`: the same without the delimiter
        DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Payload;
    }
}

pub(in crate::config) mod fixed {
    use super::{FRAME_BYTES, KIND};
    use crate::config::schema::section;

    section! {
        /// Frames that all have one length.
        "framing", "[listeners.NAME.framing] of kind \"fixed\"", Once;

        &KIND;
        /// that length
        SIZE "size": usize = FRAME_BYTES, required;
    }
}

pub(in crate::config) mod line {
    use super::{DELIVER_AS, FRAME_BYTES, KIND};
    use crate::config::schema::section;
    use crate::framing::Deliver;

    section! {
        /// Lines of text, which end with LF or CR LF.
        "framing", "[listeners.NAME.framing] of kind \"line\"", Once;

        &KIND;
        /// the longest frame
        MAX "max": usize = FRAME_BYTES, default 64 << 10;
        /// what the handler gets: `wire`: the line as it came; `payload`: the same without its end
        DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Payload;
    }
}

pub(in crate::config) mod escape {
    use super::{DELIVER_AS, FRAME_BYTES, KIND};
    use crate::config::schema::section;
    use crate::config::value::Choice;
    use crate::framing::{Deliver, Escapes};

    section! {
        /// Frames between flags of 7E, in which 7D escapes what may not stand there. A flag may end one frame and start
        /// the next. What is before the first flag, and what is longer than `max` between two, is skipped; the
        /// connection goes on.
        "framing", "[listeners.NAME.framing] of kind \"escape\"", Once;

        &KIND;
        /// what an escape stands for: `jt808`: 7D 02 is 7E and 7D 01 is 7D, as in JT/T 808; `hdlc`: the byte behind 7D
        /// has its bit 20 inverted, as in HDLC and PPP
        SCHEME "scheme": Escapes = Choice(&[("jt808", Escapes::Jt808), ("hdlc", Escapes::Hdlc)]), required;
        /// the longest frame
        MAX "max": usize = FRAME_BYTES, default 64 << 10;
        /// what the handler gets: `wire`: the frame as it came, with both flags; `payload`: what is between them, with
        /// the escapes undone; a frame with an escape that stands for nothing is skipped then
        DELIVER "deliver": Deliver = DELIVER_AS, default Deliver::Payload;
    }
}

pub(in crate::config) mod gap {
    use std::time::Duration;

    use super::{FRAME_BYTES, KIND};
    use crate::config::schema::section;
    use crate::config::value::{duration, millis, secs};

    section! {
        /// Frames with silence between them, as those of Modbus RTU behind a serial device server. It is the silence of
        /// the gateway's reads: frames that the network has brought together stay together, so a device should wait for
        /// an answer before it sends the next. What is longer than `max` is skipped up to the next silence; the
        /// connection goes on.
        "framing", "[listeners.NAME.framing] of kind \"gap\"", Once;

        &KIND;
        /// how long nothing may come before a frame is taken as finished; longer than the network's own pauses
        SILENCE "silence": Duration = duration(millis(1)..=secs(60)), required;
        /// the longest frame
        MAX "max": usize = FRAME_BYTES, default 256;
    }
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
        Kind::Delimiter => read_delimiter(&table).map(Framing::Delimiter),
        Kind::Fixed => read_all!(Fixed { size: table.get(&fixed::SIZE) }).map(Framing::Fixed),
        Kind::Line => {
            read_all!(Lines { max: table.get(&line::MAX), deliver: table.get(&line::DELIVER) }).map(Framing::Line)
        }
        Kind::Escape => read_escape(&table).map(Framing::Escape),
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
    check_max(table, framing.max, framing.min())?;
    Ok(framing)
}

fn read_delimiter(table: &Table<'_>) -> Result<Delimited, ErrorReported> {
    let framing = read_all!(Delimited {
        delimiter: table.get(&delimiter::DELIMITER),
        max: table.get(&delimiter::MAX),
        deliver: table.get(&delimiter::DELIVER),
    })?;
    check_max(table, framing.max, framing.delimiter.len())?;
    Ok(framing)
}

fn read_escape(table: &Table<'_>) -> Result<Flagged, ErrorReported> {
    let framing = read_all!(Flagged {
        escapes: table.get(&escape::SCHEME),
        max: table.get(&escape::MAX),
        deliver: table.get(&escape::DELIVER),
    })?;
    check_max(table, framing.max, Escapes::FRAME_BYTES_MIN)?;
    Ok(framing)
}

/// Checks that `max` has room for the shortest frame.
fn check_max(table: &Table<'_>, max: usize, min: usize) -> Result<(), ErrorReported> {
    if max >= min {
        return Ok(());
    }
    Err(table.fault_at("max", outside(FRAME_BYTES.show(&max), size(min..=FRAME_BYTES_MAX).range())))
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
    fn shown_delimiters_are_read_back() {
        let all: Box<[u8]> = (0..=255).collect();
        let shown = DELIMITER_BYTES.show(&all);
        assert_eq!(unescaped(shown.trim_matches('\'')).as_deref(), Some(&*all));
    }
}
