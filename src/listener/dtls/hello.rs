//! The part of a ClientHello that is read before anything is known of its sender.
//!
//! Pure, and written for hostile bytes: every field is taken with a bound, and what does not fit is no hello.

/// The random of a ClientHello, by which one attempt of a peer is told from its next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Random(pub(super) [u8; 32]);

/// What the door needs of a ClientHello.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello<'a> {
    /// The sequence number of its record, which the answer repeats.
    pub(super) record_sequence: [u8; 6],
    /// The number of the message in its handshake: 0 without a cookie, 1 with one.
    pub(super) message_sequence: u16,
    pub(super) random: Random,
    pub(super) cookie: &'a [u8],
    /// Bytes of the datagram that belong to the record of the hello.
    pub(super) record_len: usize,
}

/// Bytes of a record's header.
pub(super) const RECORD_HEADER: usize = 13;
/// Bytes of the header of a handshake message.
pub(super) const MESSAGE_HEADER: usize = 12;

/// Content type of handshake messages.
pub(super) const HANDSHAKE: u8 = 22;
/// The handshake message that begins everything.
const CLIENT_HELLO: u8 = 1;
/// First byte of every version of DTLS.
const VERSION_MAJOR: u8 = 0xfe;

/// Reads a datagram that begins with a ClientHello, or with the first fragment of one that reaches past its cookie.
///
/// `None` for everything else. What follows the cookie is not looked at.
pub(super) fn read(datagram: &[u8]) -> Option<Hello<'_>> {
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

/// The next bytes, behind one byte that says how many.
fn variable<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [len] = take(rest)?;
    let (taken, behind) = rest.split_at_checked(usize::from(len))?;
    *rest = behind;
    Some(taken)
}

fn number(bytes: [u8; 3]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}
