//! PROXY protocol: the header in which a load balancer passes on the address of its client.
//!
//! Both versions are read, as specified (haproxy.org/download/3.0/doc/proxy-protocol.txt): a line of at most 107
//! bytes, or a signature of 12 bytes, 4 more, and as many as those say. The bytes after the header stay in the socket.
//! TLVs are ignored.
//!
//! A header for anything but a TCP connection over IP carries no address for a peer: `UNKNOWN`, `LOCAL` (the balancer's
//! own health checks), an unspecified family, datagrams, and a Unix socket, whose client is on the balancer's machine.
//! Then the addresses of the socket are kept.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ppp::{v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::access::Networks;

/// Longest accepted header of version 2, in bytes. Its addresses take at most 232; the rest are TLVs, of which the
/// largest that balancers send are a certificate's names.
pub const BYTES_MAX: usize = 4096;

/// Longest header of version 1, in bytes, by the specification.
const LINE_BYTES_MAX: usize = 107;

/// Length of the fixed part of a header of version 2.
const FIXED_BYTES: usize = 16;

/// PROXY headers of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The trusted senders; `None` is all: then only the balancer should be able to reach the listener.
    pub trusted: Option<Networks>,
    /// Deadline of the header.
    pub timeout: Duration,
}

impl Options {
    /// Whether a header from this address is trusted.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.as_ref().is_none_or(|trusted| trusted.contains(address))
    }
}

/// The addresses that a header carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The client of the balancer.
    pub peer: SocketAddr,
    /// The address of the balancer that it connected to.
    pub local: SocketAddr,
}

/// The result of a scan of the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// The beginning of a header.
    Partial,
    /// A header, and perhaps more bytes.
    Whole {
        /// In bytes.
        len: usize,
        /// Its addresses; `None` keeps those of the socket.
        carried: Option<Carried>,
    },
}

/// Bytes in an error: quoted, escaped, truncated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found(Box<[u8]>);

impl Found {
    fn new(bytes: &[u8]) -> Self {
        Self(bytes[..bytes.len().min(LINE_BYTES_MAX)].into())
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// The bytes are not a PROXY header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They begin differently: most likely the sender is no balancer.
    #[error("expected a PROXY header, found {found}")]
    Beginning {
        /// The first bytes.
        found: Found,
    },
    /// A malformed line of version 1.
    #[error("expected {expected} in the line of a PROXY header, found {found}")]
    Line {
        /// The expected field.
        expected: &'static str,
        /// The line, as far as received.
        found: Found,
    },
    /// A header of version 2 with a malformed fixed part.
    #[error("expected {expected} in a PROXY header, found {found:#04x}")]
    Byte {
        /// The expected value.
        expected: &'static str,
        /// The received byte.
        found: u8,
    },
    /// A length that is too short for its addresses.
    #[error("expected at least {expected} bytes of addresses in a PROXY header, found {found}")]
    Short {
        /// The length of the addresses.
        expected: usize,
        /// The length in the header.
        found: usize,
    },
    /// Longer than headers of balancers are.
    #[error("expected a PROXY header of at most {bytes_max} bytes, found {found}")]
    Long {
        /// The bound.
        bytes_max: usize,
        /// The length in the header.
        found: usize,
    },
}

/// Why no PROXY header could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection begins with other bytes.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The peer has closed before the header was complete.
    #[error("expected a PROXY header, found the end after {bytes} bytes")]
    Ended {
        /// The number of received bytes.
        bytes: usize,
    },
    /// The socket failed.
    #[error("the PROXY header could not be read")]
    Socket(#[from] io::Error),
}

/// Reads exactly the header at the beginning of a connection. Has no deadline of its own.
///
/// # Errors
///
/// [`ReadError`]; the received bytes are lost then, and so is the connection. Not cancel safe, for the same reason.
pub(crate) async fn read(stream: &mut TcpStream) -> Result<Option<Carried>, ReadError> {
    // The usual header arrives at once and is scanned in one piece; only bytes that belong to it are taken out of the
    // socket.
    const CHUNK: usize = 256;
    let mut header = Vec::with_capacity(CHUNK);
    loop {
        let before = header.len();
        header.resize(before + CHUNK, 0);
        let seen = stream.peek(&mut header[before..]).await?;
        header.truncate(before + seen);
        if seen == 0 {
            return Err(ReadError::Ended { bytes: before });
        }
        let scan = scan(&header)?;
        let end = match scan {
            Scan::Partial => header.len(),
            Scan::Whole { len, .. } => len,
        };
        stream.read_exact(&mut header[before..end]).await?;
        if let Scan::Whole { carried, .. } = scan {
            return Ok(carried);
        }
    }
}

/// Scans the header at the beginning of these bytes.
///
/// # Errors
///
/// [`Malformed`], as soon as no continuation could make it a header.
pub fn scan(bytes: &[u8]) -> Result<Scan, Malformed> {
    const LINE: &[u8] = b"PROXY ";
    if begins(bytes, v2::PROTOCOL_PREFIX) {
        scan_fields(bytes)
    } else if begins(bytes, LINE) {
        scan_line(bytes)
    } else {
        Err(Malformed::Beginning { found: Found::new(&bytes[..bytes.len().min(FIXED_BYTES)]) })
    }
}

/// Whether the bytes are a prefix of `with`, or begin with it.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    let common = bytes.len().min(with.len());
    bytes[..common] == with[..common]
}

/// Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443` and CR LF.
fn scan_line(bytes: &[u8]) -> Result<Scan, Malformed> {
    let wrong = |expected, found: &[u8]| Err(Malformed::Line { expected, found: Found::new(found) });
    let longest = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let end = match longest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        None if bytes.len() < LINE_BYTES_MAX - 1 => return Ok(Scan::Partial),
        None => return wrong("CR LF within 107 bytes", bytes),
        Some(at) if bytes[at] == b'\n' => return wrong("CR LF at the end", &bytes[..=at]),
        Some(at) if at + 1 == LINE_BYTES_MAX => return wrong("CR LF within 107 bytes", bytes),
        Some(at) if at + 1 == bytes.len() => return Ok(Scan::Partial),
        Some(at) if bytes[at + 1] != b'\n' => return wrong("CR LF at the end", &bytes[..at + 2]),
        Some(at) => at,
    };
    let (line, len) = (&bytes[..end], end + 2);
    // The rest of this line is ignored, but the library requires four words.
    if line == b"PROXY UNKNOWN" || line.starts_with(b"PROXY UNKNOWN ") {
        return Ok(Scan::Whole { len, carried: None });
    }
    // The library accepts numbers with a sign.
    if line.contains(&b'+') {
        return wrong("a port without a sign", line);
    }
    let carried = match v1::Header::try_from(&bytes[..len]) {
        Ok(header) => match header.addresses {
            v1::Addresses::Unknown => None,
            v1::Addresses::Tcp4(ip) => Some(carried(
                (ip.source_address, ip.source_port).into(),
                (ip.destination_address, ip.destination_port).into(),
            )),
            v1::Addresses::Tcp6(ip) => Some(carried(
                (ip.source_address, ip.source_port).into(),
                (ip.destination_address, ip.destination_port).into(),
            )),
        },
        Err(error) => return wrong(expected_in_line(&error), line),
    };
    Ok(Scan::Whole { len, carried })
}

/// The expected field.
fn expected_in_line(error: &v1::BinaryParseError) -> &'static str {
    use v1::ParseError::{
        HeaderTooLong, InvalidDestinationAddress, InvalidDestinationPort, InvalidPrefix, InvalidProtocol,
        InvalidSourceAddress, InvalidSourcePort, InvalidSuffix, MissingDestinationAddress, MissingDestinationPort,
        MissingNewLine, MissingPrefix, MissingProtocol, MissingSourceAddress, MissingSourcePort, Partial,
    };
    match error {
        v1::BinaryParseError::InvalidUtf8(_) => "ASCII",
        v1::BinaryParseError::Parse(error) => match error {
            InvalidPrefix | MissingPrefix => "the word PROXY",
            Partial | MissingProtocol | InvalidProtocol => "TCP4, TCP6 or UNKNOWN",
            MissingSourceAddress | InvalidSourceAddress(_) => "the peer's address, of the family it says",
            MissingDestinationAddress | InvalidDestinationAddress(_) => "the local address, of the family it says",
            MissingSourcePort | InvalidSourcePort(_) => "the peer's port",
            MissingDestinationPort | InvalidDestinationPort(_) => "the local port",
            MissingNewLine | InvalidSuffix | HeaderTooLong => "CR LF behind the local port",
        },
    }
}

/// Version 2: the signature, version and command, family and transport, a length in two bytes, addresses, TLVs.
fn scan_fields(bytes: &[u8]) -> Result<Scan, Malformed> {
    const VERSION_AND_LOCAL: u8 = 0x20;
    let Some(fixed) = bytes.get(..FIXED_BYTES) else {
        return Ok(Scan::Partial);
    };
    let len = FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if len > BYTES_MAX {
        return Err(Malformed::Long { bytes_max: BYTES_MAX, found: len });
    }
    // With this command the family is ignored, but the library requires a known one.
    if fixed[12] == VERSION_AND_LOCAL {
        return Ok(if bytes.len() < len { Scan::Partial } else { Scan::Whole { len, carried: None } });
    }
    let header = match v2::Header::try_from(bytes) {
        Ok(header) => header,
        Err(v2::ParseError::Incomplete(_) | v2::ParseError::Partial(..)) => return Ok(Scan::Partial),
        Err(v2::ParseError::Prefix | v2::ParseError::InvalidTLV(..) | v2::ParseError::Leftovers(_)) => {
            return Err(Malformed::Beginning { found: Found::new(fixed) });
        }
        Err(v2::ParseError::Version(_)) => {
            return Err(Malformed::Byte { expected: "version 2 in the upper half of a byte", found: fixed[12] });
        }
        Err(v2::ParseError::Command(_)) => {
            return Err(Malformed::Byte {
                expected: "LOCAL (0) or PROXY (1) in the lower half of a byte",
                found: fixed[12],
            });
        }
        Err(v2::ParseError::AddressFamily(_)) => {
            return Err(Malformed::Byte {
                expected: "a family of 0 to 3 in the upper half of a byte",
                found: fixed[13],
            });
        }
        Err(v2::ParseError::Protocol(_)) => {
            return Err(Malformed::Byte {
                expected: "a transport of 0 to 2 in the lower half of a byte",
                found: fixed[13],
            });
        }
        Err(v2::ParseError::InvalidAddresses(found, expected)) => return Err(Malformed::Short { expected, found }),
    };
    let carried = match (header.protocol, header.addresses) {
        (v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => Some(carried(
            (ip.source_address, ip.source_port).into(),
            (ip.destination_address, ip.destination_port).into(),
        )),
        (v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => Some(carried(
            (ip.source_address, ip.source_port).into(),
            (ip.destination_address, ip.destination_port).into(),
        )),
        (v2::Protocol::Stream, v2::Addresses::Unspecified | v2::Addresses::Unix(_))
        | (v2::Protocol::Unspecified | v2::Protocol::Datagram, _) => None,
    };
    Ok(Scan::Whole { len, carried })
}

fn carried(peer: SocketAddr, local: SocketAddr) -> Carried {
    Carried { peer, local }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    fn whole(bytes: &[u8]) -> Option<Carried> {
        match scan(bytes) {
            Ok(Scan::Whole { len, carried }) if len == bytes.len() => carried,
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    fn refused(bytes: &[u8]) -> String {
        scan(bytes).unwrap_err().to_string()
    }

    fn pair(peer: &str, local: &str) -> Carried {
        Carried { peer: peer.parse().unwrap(), local: local.parse().unwrap() }
    }

    /// A header of version 2 with these bytes after the signature, and `rest`.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &len, rest].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

    /// The examples of the specification, and the longest possible line.
    #[test]
    fn lines_are_read() {
        let v4 = pair("192.168.0.1:56324", "192.168.0.11:443");
        assert_eq!(whole(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"), Some(v4));
        let v6 = pair("[2001:db8::1]:65535", "[2001:db8::2]:0");
        assert_eq!(whole(b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 0\r\n"), Some(v6));
        let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let longest = format!("PROXY UNKNOWN {all} {all} 65535 65535\r\n");
        assert_eq!(longest.len(), LINE_BYTES_MAX);
        for unknown in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN \r\n", "PROXY UNKNOWN a b c d e f g\r\n", &longest] {
            assert_eq!(whole(unknown.as_bytes()), None);
        }
        assert_eq!(whole(b"PROXY UNKNOWN \xff\r\n"), None);
    }

    #[test]
    fn fields_are_read() {
        let v4 = pair("192.0.2.1:56324", "198.51.100.1:443");
        assert_eq!(whole(&binary(0x21, 0x11, &IPV4)), Some(v4));
        // A TLV after the addresses, and a malformed one.
        assert_eq!(whole(&binary(0x21, 0x11, &[&IPV4[..], &[4, 0, 1, 42], &[1, 255, 255]].concat())), Some(v4));
        let mut v6 = [0; 36];
        (v6[0], v6[15], v6[16], v6[31], v6[33], v6[35]) = (0x20, 1, 0x20, 2, 80, 81);
        assert_eq!(whole(&binary(0x21, 0x21, &v6)), Some(pair("[2000::1]:80", "[2000::2]:81")));
    }

    /// The addresses of the socket are kept for anything but a TCP connection over IP.
    #[test]
    fn other_senders_carry_no_address() {
        for (command, family, rest) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &IPV4),
            (0x20, 0x11, &[]),
            (0x20, 0xff, &[1, 2, 3]),
            (0x21, 0x00, &[]),
            (0x21, 0x00, &IPV4),
            (0x21, 0x10, &IPV4),
            (0x21, 0x12, &IPV4),
            (0x21, 0x31, &[b'/'; 216]),
        ] {
            assert_eq!(whole(&binary(command, family, rest)), None, "{command:#x} {family:#x}");
        }
    }

    /// Malformed headers are refused as early as possible, with a description.
    #[test]
    fn malformed_headers_are_refused() {
        assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a"), r#"expected a PROXY header, found "GET / HTTP/1.1\r\n""#);
        assert_eq!(refused(b"\x16\x03"), r#"expected a PROXY header, found "\x16\x03""#);
        assert_eq!(refused(b"PROXYX"), r#"expected a PROXY header, found "PROXYX""#);
        let line = |expected: &str, found: &str| {
            format!("expected {expected} in the line of a PROXY header, found \"{}\"", found.escape_default())
        };
        for (expected, text) in [
            ("CR LF at the end", "PROXY UNKNOWN\n"),
            ("CR LF at the end", "PROXY UNKNOWN\r\r"),
            ("TCP4, TCP6 or UNKNOWN", "PROXY TCP5 1.2.3.4 1.2.3.5 1 2"),
            ("TCP4, TCP6 or UNKNOWN", "PROXY tcp4 1.2.3.4 1.2.3.5 1 2"),
            ("TCP4, TCP6 or UNKNOWN", "PROXY  TCP4 1.2.3.4 1.2.3.5 1 2"),
            ("the peer's address, of the family it says", "PROXY TCP4 ::1 1.2.3.5 1 2"),
            ("the peer's address, of the family it says", "PROXY TCP6 1.2.3.4 ::1 1 2"),
            ("the peer's address, of the family it says", "PROXY TCP4 1.2.3 1.2.3.5 1 2"),
            ("the local address, of the family it says", "PROXY TCP4 1.2.3.4 ::1 1 2"),
            ("the peer's port", "PROXY TCP4 1.2.3.4 1.2.3.5 65536 2"),
            ("the peer's port", "PROXY TCP4 1.2.3.4 1.2.3.5 01 2"),
            ("a port without a sign", "PROXY TCP4 1.2.3.4 1.2.3.5 +1 2"),
            ("the local port", "PROXY TCP4 1.2.3.4 1.2.3.5 1 -2"),
            ("CR LF behind the local port", "PROXY TCP4 1.2.3.4 1.2.3.5 1 2 "),
            ("CR LF behind the local port", "PROXY TCP4 1.2.3.4 1.2.3.5 1 2 3"),
        ] {
            let whole = if text.ends_with(['\n', '\r']) { text.to_owned() } else { format!("{text}\r\n") };
            assert_eq!(refused(whole.as_bytes()), line(expected, text));
        }
        for text in [format!("PROXY UNKNOWN {}", "x".repeat(92)), format!("PROXY UNKNOWN {}\r\n", "x".repeat(92))] {
            assert!(refused(text.as_bytes()).starts_with("expected CR LF within 107 bytes"), "{text:?}");
        }
        for (wanted, command, family, rest) in [
            ("expected version 2 in the upper half of a byte in a PROXY header, found 0x11", 0x11, 0x11, &IPV4[..]),
            ("expected version 2 in the upper half of a byte in a PROXY header, found 0x10", 0x10, 0x11, &IPV4),
            (
                "expected LOCAL (0) or PROXY (1) in the lower half of a byte in a PROXY header, found 0x22",
                0x22,
                0x11,
                &IPV4,
            ),
            (
                "expected a family of 0 to 3 in the upper half of a byte in a PROXY header, found 0x41",
                0x21,
                0x41,
                &IPV4,
            ),
            (
                "expected a transport of 0 to 2 in the lower half of a byte in a PROXY header, found 0x13",
                0x21,
                0x13,
                &IPV4,
            ),
            ("expected at least 12 bytes of addresses in a PROXY header, found 11", 0x21, 0x11, &IPV4[..11]),
            ("expected at least 36 bytes of addresses in a PROXY header, found 12", 0x21, 0x21, &IPV4),
            ("expected a PROXY header of at most 4096 bytes, found 4097", 0x20, 0x00, &[0; 4081]),
        ] {
            assert_eq!(refused(&binary(command, family, rest)), wanted);
        }
    }

    /// Random bytes, some close to a header.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let line = "PROXY (TCP4|TCP6|UNKNOWN|TCP)( [0-9.:a-f+]{1,12}){0,5}(\r\n|\n|\r|)".prop_map(String::into_bytes);
        let fields =
            (prop::sample::select(vec![0x20, 0x21, 0x11]), any::<u8>(), prop::collection::vec(any::<u8>(), 0..60))
                .prop_map(|(command, family, rest)| binary(command, family, &rest));
        let good = Just(binary(0x21, 0x11, &IPV4));
        prop_oneof![line, fields, good, prop::collection::vec(any::<u8>(), 0..40)]
    }

    proptest! {
        /// However the bytes are split, the result is the same, and bytes after the header are never counted in.
        #[test]
        fn cutting_changes_nothing(bytes in bytes(), behind in prop::collection::vec(any::<u8>(), 0..20)) {
            let all = [&bytes[..], &behind].concat();
            let verdict = scan(&all);
            for cut in 0..all.len() {
                match (scan(&all[..cut]), &verdict) {
                    // A longer prefix may have a more specific result.
                    (Ok(Scan::Partial), _) | (Err(_), Err(_)) => {}
                    (Ok(whole), verdict) => prop_assert_eq!(Ok(&whole), verdict.as_ref()),
                    (Err(error), Ok(verdict)) => prop_assert!(false, "{} is no error: {:?}", error, verdict),
                }
            }
            if let Ok(Scan::Whole { len, .. }) = verdict {
                prop_assert!(len <= all.len());
                prop_assert_eq!(scan(&all[..len]), verdict);
                prop_assert_eq!(scan(&all[..len - 1]), Ok(Scan::Partial));
            }
        }

        /// A header written by a balancer is read back.
        #[test]
        fn addresses_come_through(v4 in any::<(u32, u32)>(), v6 in any::<(u128, u128)>(), ports in any::<(u16, u16)>()) {
            let v4 = (SocketAddr::from((v4.0.to_be_bytes(), ports.0)), SocketAddr::from((v4.1.to_be_bytes(), ports.1)));
            let v6 = (SocketAddr::from((v6.0.to_be_bytes(), ports.0)), SocketAddr::from((v6.1.to_be_bytes(), ports.1)));
            for (peer, local) in [v4, v6] {
                let line = v1::Addresses::from((peer, local)).to_string().into_bytes();
                let fields = v2::Builder::with_addresses(v2::Version::Two | v2::Command::Proxy, v2::Protocol::Stream, (peer, local));
                for header in [line, fields.build().unwrap()] {
                    prop_assert_eq!(whole(&header), Some(Carried { peer, local }));
                }
            }
        }
    }

    /// Byte by byte or at once: the header is taken out of the socket, and the following bytes stay there.
    #[tokio::test]
    async fn not_a_byte_too_much() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let v4 = Some(pair("192.0.2.1:56324", "198.51.100.1:443"));
        let long = binary(0x21, 0x11, &[&IPV4[..], &[4, 8, 0], &[0; 2048]].concat());
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec();
        for header in [binary(0x21, 0x11, &IPV4), line, long] {
            for piece in [1, 7, usize::MAX] {
                let mut device = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (mut accepted, _) = listener.accept().await.unwrap();
                device.set_nodelay(true).unwrap();
                let sent = [&header[..], b"hello"].concat();
                let send = async {
                    for piece in sent.chunks(piece.min(sent.len())) {
                        device.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    device.shutdown().await.unwrap();
                };
                let (carried, ()) = tokio::join!(read(&mut accepted), send);
                assert_eq!(carried.unwrap(), v4);
                let mut rest = Vec::new();
                accepted.read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, b"hello");
            }
        }
        let mut device = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        device.write_all(b"PROXY TCP4").await.unwrap();
        device.shutdown().await.unwrap();
        let error = read(&mut accepted).await.unwrap_err();
        assert_eq!(error.to_string(), "expected a PROXY header, found the end after 10 bytes");
    }
}
