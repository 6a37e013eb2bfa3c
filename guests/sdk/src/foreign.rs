//! Peers that speak another protocol: when to end them, and what the log says of them. Pure, and part of a connection's state.
//!
//! ```
//! use polygate_guest::foreign::Foreign;
//!
//! let mut foreign = Foreign::default();
//! foreign.stray(0, 4_000, b"GET / HTTP/1.1\r\n");
//! assert!(!foreign.ends(0, 0));
//! assert!(foreign.ends(0, 96));
//! assert_eq!(
//!     foreign.line("JT/T 808"),
//!     "4000 bytes that are no frame of JT/T 808, beginning with 474554202f20485454502f312e310d0a; they look like HTTP"
//! );
//! ```

use core::fmt::Write;

use serde::{Deserialize, Serialize};

/// So many bytes in no frame, one after the other, end a peer.
pub const BYTES_MAX: usize = 4096;
/// And for so long they may come, in milliseconds.
pub const AGE_MAX_MS: u64 = 60_000;
/// For the keepalive timer before the first frame, in milliseconds: it runs out after 60 s.
pub const KEEPALIVE_MS: u32 = 40_000;
/// Bytes that the log shows.
const FIRST_MAX: usize = 16;

/// Bytes since the latest frame that are in none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    first: Vec<u8>,
    bytes: usize,
    since_ms: Option<u64>,
    framed: bool,
}

impl Foreign {
    /// `count` bytes are in no frame; `sample` are those that they begin with, as far as they are known.
    pub fn stray(&mut self, now_ms: u64, count: usize, sample: &[u8]) {
        self.since_ms.get_or_insert(now_ms);
        self.bytes = self.bytes.saturating_add(count);
        self.first.extend(sample.iter().take(FIRST_MAX.saturating_sub(self.first.len())));
    }

    /// A frame was seen: all begins anew.
    pub fn frame(&mut self) {
        *self = Self { framed: true, ..Self::default() };
    }

    /// Whether a frame was ever seen.
    #[must_use]
    pub const fn framed(&self) -> bool {
        self.framed
    }

    /// How many bytes are in no frame.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the peer is to be ended. `pending` more bytes are in no frame, and not counted yet.
    #[must_use]
    pub fn ends(&self, now_ms: u64, pending: usize) -> bool {
        let old = self.since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= AGE_MAX_MS);
        self.bytes + pending >= BYTES_MAX || old
    }

    /// What came, for the log. `protocol` is the handler's own.
    #[must_use]
    pub fn line(&self, protocol: &str) -> String {
        let mut line = format!("{} bytes that are no frame of {protocol}, beginning with ", self.bytes);
        for byte in &self.first {
            // Writing to a String cannot fail.
            let _ = write!(line, "{byte:02x}");
        }
        if let Some(name) = name(&self.first) {
            let _ = write!(line, "; they look like {name}");
        }
        line
    }
}

/// Which protocol begins like this; none when it is not known here.
#[must_use]
pub fn name(first: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 26] = [
        (b"\x78\x78", "GT06"),
        (b"\x79\x79", "GT06"),
        (b"##,imei:", "GPS103"),
        (b"imei:", "GPS103"),
        (b"##", "GB/T 32960"),
        (b"\x7e", "JT/T 808"),
        (b"\x00\x0f", "Teltonika"),
        (b"\x00\x00\x00\x00", "Teltonika"),
        (b"$$", "Meitrack"),
        (b"!AIVD", "AIS (NMEA 0183)"),
        (b"LOGIN ", "NMEA 0183"),
        (b"+RESP:", "Queclink"),
        (b"+BUFF:", "Queclink"),
        (b"+ACK:", "Queclink"),
        (b"\x16\x03", "TLS"),
        (b"GET ", "HTTP"),
        (b"POST ", "HTTP"),
        (b"PUT ", "HTTP"),
        (b"HEAD ", "HTTP"),
        (b"OPTIONS ", "HTTP"),
        (b"CONNECT ", "HTTP"),
        (b"PRI * HTTP/2", "HTTP/2"),
        (b"SSH-", "SSH"),
        (b"PROXY ", "a PROXY header"),
        (b"\r\n\r\n\x00\r\nQUIT\n", "a PROXY header"),
        (b"\x03\x00", "RDP"),
    ];
    let known = KNOWN.iter().find(|(begins, _)| first.starts_with(begins)).map(|(_, name)| *name);
    known.or(match first {
        [b'*', _, _, b',', ..] => Some("H02"),
        [b'$', b'A'..=b'Z', ..] => Some("NMEA 0183"),
        [b'$', second, ..] if !second.is_ascii_digit() => Some("H02"),
        [b'(', b'0'..=b'9', ..] => Some("TK103"),
        [b'[', _, b'A'..=b'Z', ..] => Some("Watch (3G)"),
        [0x10, _, _, _, b'M', b'Q', b'T', b'T', ..] => Some("MQTT"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both bounds, and that a frame begins all anew.
    #[test]
    fn bounds() {
        let mut foreign = Foreign::default();
        assert!(!foreign.ends(1_000_000, 0));
        foreign.stray(5, 1, b"x");
        assert!(!foreign.ends(5 + AGE_MAX_MS - 1, BYTES_MAX - 2));
        assert!(foreign.ends(5 + AGE_MAX_MS, 0));
        assert!(foreign.ends(5, BYTES_MAX - 1));
        foreign.frame();
        assert!(foreign.framed() && !foreign.ends(5 + AGE_MAX_MS, 0));
    }

    /// The log shows sixteen bytes, also when they came in pieces.
    #[test]
    fn first_bytes() {
        let mut foreign = Foreign::default();
        for piece in b"*HQ,861234500000017,V1".chunks(3) {
            foreign.stray(0, piece.len(), piece);
        }
        assert_eq!(
            foreign.line("GT06"),
            "22 bytes that are no frame of GT06, beginning with 2a48512c383631323334353030303030; they look like H02"
        );
    }

    /// What begins like nothing that is known has no name.
    #[test]
    fn names() {
        assert_eq!(name(b""), None);
        assert_eq!(name(b"\x68\x31\x00"), None);
        assert_eq!(name(b"\x10\x0c\x00\x04MQTT"), Some("MQTT"));
        assert_eq!(name(b"$GPRMC,"), Some("NMEA 0183"));
    }
}
