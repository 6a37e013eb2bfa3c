//! Sentences (`*HQ,<id>,V1,...#`) and records (`$` and binary-coded decimals) in a stream. Pure.
//!
//! Nothing says how long a record is: 32 bytes with an id of five bytes, 42 with an IMEI, and trackers add more. So a record
//! is what is known of it, and what follows up to the next beginning is skipped, as far as a record can reach.

/// The longest sentence, in bytes.
pub const SENTENCE_MAX: usize = 1024;
/// A record with an id of five bytes.
pub const RECORD: usize = 32;
/// A record with an IMEI.
pub const LONG_RECORD: usize = 42;
/// How many bytes may follow a record before the next beginning.
pub const TAIL_MAX: usize = 32;

/// What stands at the beginning of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// From `*` to `#`, both included.
    Sentence(&'a [u8]),
    /// From `$`.
    Record(&'a [u8]),
    /// So many bytes between frames: ends of lines, and the tail of a record.
    Between(usize),
    /// So many bytes are in no frame.
    Stray(usize),
    /// More bytes will tell.
    Unfinished,
}

/// Looks at the beginning of `stream`. `tail` is how many bytes may still belong to the record before.
#[must_use]
pub fn next(stream: &[u8], tail: usize) -> Found<'_> {
    match stream {
        [] => Found::Unfinished,
        [b'\r' | b'\n', ..] => Found::Between(1),
        [b'*', rest @ ..] => match rest.iter().position(|byte| matches!(byte, b'#' | b'*')) {
            // Another beginning: the end of this one was lost.
            Some(at) if rest.get(at) == Some(&b'*') => Found::Stray(at + 1),
            Some(at) if at + 2 <= SENTENCE_MAX => Found::Sentence(stream.get(..at + 2).unwrap_or_default()),
            None if stream.len() < SENTENCE_MAX && rest.iter().take(2).all(u8::is_ascii_graphic) => Found::Unfinished,
            _ if tail > 0 => Found::Between(1),
            _ => Found::Stray(1),
        },
        [b'$', ..] => record(stream, tail),
        _ if tail > 0 => Found::Between(1),
        _ => Found::Stray(1),
    }
}

fn record(stream: &[u8], tail: usize) -> Found<'_> {
    const SHORT_ID: usize = 5;
    const LONG_ID: usize = 8;
    for (id, length) in [(SHORT_ID, RECORD), (LONG_ID, LONG_RECORD)] {
        // Id, time and date are decimal digits, and a time that exists.
        let Some(head) = stream.get(1..1 + id + 6) else {
            let digits = stream.iter().skip(1).take(SHORT_ID).all(|byte| is_bcd(*byte));
            return if digits { Found::Unfinished } else { not_a_record(tail) };
        };
        if head.iter().all(|byte| is_bcd(*byte)) && is_time(head.get(id..).unwrap_or_default()) {
            return stream.get(..length).map_or(Found::Unfinished, Found::Record);
        }
    }
    not_a_record(tail)
}

const fn not_a_record(tail: usize) -> Found<'static> {
    if tail > 0 { Found::Between(1) } else { Found::Stray(1) }
}

const fn is_bcd(byte: u8) -> bool {
    byte >> 4 <= 9 && byte & 0x0f <= 9
}

const fn is_time(bcd: &[u8]) -> bool {
    match bcd {
        [hour, minute, second, day, month, _] => {
            *hour <= 0x23 && *minute <= 0x59 && *second <= 0x59 && *day <= 0x31 && *month <= 0x12
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What begins like a frame waits for its end, and what is none is skipped byte by byte.
    #[test]
    fn beginnings() {
        assert_eq!(next(b"", 0), Found::Unfinished);
        assert_eq!(next(b"\r\n*", 0), Found::Between(1));
        assert_eq!(next(b"*HQ,1,V1#*", 0), Found::Sentence(b"*HQ,1,V1#"));
        assert_eq!(next(b"*HQ,1,V1", 0), Found::Unfinished);
        assert_eq!(next(b"*HQ,1*HQ", 0), Found::Stray(5));
        assert_eq!(next(b"\x16\x03", 0), Found::Stray(1));
        assert_eq!(next(b"\x16\x03", 1), Found::Between(1));
        assert_eq!(next(&[b'*'; 1], 0), Found::Unfinished);
        let long = [b"*", &[b'x'; SENTENCE_MAX][..]].concat();
        assert_eq!(next(&long, 0), Found::Stray(1));
        assert_eq!(next(b"$GPRMC,", 0), Found::Stray(1));
        assert_eq!(next(&[0x24, 0x41, 0x06], 0), Found::Unfinished);
    }
}
