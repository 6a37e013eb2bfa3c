//! ClientHello parser for the cookie exchange.
//!
//! Pure, and for hostile bytes: every field is bounded, and malformed bytes are no ClientHello.

/// The random of a ClientHello, which differs in each handshake of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Random(pub(super) [u8; 32]);

/// The fields of a ClientHello for the cookie exchange.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hello<'a> {
    /// The sequence number of its record, which the response repeats.
    pub(super) record_sequence: [u8; 6],
    /// Its message number in the handshake: 0 without a cookie, 1 with one.
    pub(super) message_sequence: u16,
    pub(super) random: Random,
    pub(crate) cookie: &'a [u8],
    /// Length of the ClientHello's record in the datagram.
    pub(crate) record_len: usize,
}

/// Bytes of a record's header.
pub(super) const RECORD_HEADER: usize = 13;
/// Bytes of the header of a handshake message.
pub(super) const MESSAGE_HEADER: usize = 12;

/// Content type of handshake messages.
pub(super) const HANDSHAKE: u8 = 22;
/// The type of a ClientHello message.
const CLIENT_HELLO: u8 = 1;
/// First byte of every version of DTLS.
const VERSION_MAJOR: u8 = 0xfe;

/// Parses a datagram that begins with a ClientHello, or with its first fragment if that contains the whole cookie.
///
/// `None` for everything else. The bytes after the cookie are ignored.
pub(crate) fn read(datagram: &[u8]) -> Option<Hello<'_>> {
    let mut rest = datagram;
    let [HANDSHAKE, VERSION_MAJOR, _] = take(&mut rest)? else { return None };
    let [0, 0] = take(&mut rest)? else { return None };
    let record_sequence = take(&mut rest)?;
    let record_len = usize::from(u16::from_be_bytes(take(&mut rest)?));
    let mut message = rest.get(..record_len)?;

    let [CLIENT_HELLO] = take(&mut message)? else { return None };
    let message_len = number(take(&mut message)?);
    let message_sequence = u16::from_be_bytes(take(&mut message)?);
    let fragment_offset = number(take(&mut message)?);
    let fragment_len = number(take(&mut message)?);
    if fragment_offset != 0 || fragment_len > message_len || fragment_len != message.len() {
        return None;
    }

    let _version: [u8; 2] = take(&mut message)?;
    let random = Random(take(&mut message)?);
    let session = variable(&mut message)?;
    if session.len() > 32 {
        return None;
    }
    let cookie = variable(&mut message)?;
    let record_len = RECORD_HEADER + record_len;
    Some(Hello { record_sequence, message_sequence, random, cookie, record_len })
}

/// The next `N` bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*taken)
}

/// The next bytes, after a length of one byte.
fn variable<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [len] = take(rest)?;
    let (taken, behind) = rest.split_at_checked(usize::from(len))?;
    *rest = behind;
    Some(taken)
}

fn number(bytes: [u8; 3]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}
