//! Pre-shared keys of devices for TLS and DTLS.

use std::collections::HashMap;
use std::fmt;

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{Ssl, SslContextBuilder, SslRef};
use secrecy::{ExposeSecret, SecretSlice};
use std::sync::{Arc, OnceLock};

/// Maximum length of an identity, in bytes. RFC 4279 section 5.3 requires support for 128.
const IDENTITY_BYTES_MAX: usize = 128;

/// Maximum length of a key, in bytes. RFC 4279 section 5.3 requires support for 64; OpenSSL supports 256.
const KEY_BYTES_MAX: usize = 256;

/// A shorter key can be found by brute force.
const KEY_BYTES_STRONG: usize = 16;

/// Keys by identity. `Debug` shows neither.
#[derive(Default)]
pub struct Psks(HashMap<Box<str>, SecretSlice<u8>>);

impl PartialEq for Psks {
    fn eq(&self, other: &Self) -> bool {
        let has = |of: &SecretSlice<u8>, identity: &str| {
            other.0.get(identity).is_some_and(|key| key.expose_secret() == of.expose_secret())
        };
        self.0.len() == other.0.len() && self.0.iter().all(|(identity, of)| has(of, identity))
    }
}

impl fmt::Debug for Psks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Psks").field("identities", &self.0.len()).finish_non_exhaustive()
    }
}

/// A malformed line of a key file. It does not quote the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct MalformedPsk {
    /// From 1.
    pub line: usize,
    /// The error.
    pub what: PskFault,
}

/// The error of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PskFault {
    /// Malformed.
    #[error("expected \"identity:key\", with the key in hexadecimal digits")]
    Form,
    /// The identity is too long or empty.
    #[error("the identity has {0} bytes, which is outside 1..=128")]
    Identity(usize),
    /// The key is too short or too long.
    #[error("the key has {0} bytes, which is outside 1..=256")]
    Key(usize),
    /// The identity is duplicated.
    #[error("the identity is there already")]
    Twice,
}

impl Psks {
    /// Parses the lines of a file: `identity:key`, the key in hexadecimal digits. The identity ends at the last colon,
    /// so it may contain colons. Empty lines and lines that begin with `#` are ignored.
    ///
    /// # Errors
    ///
    /// The first malformed line.
    pub fn parse(text: &str) -> Result<Self, MalformedPsk> {
        let mut psks = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = |what| MalformedPsk { line: index + 1, what };
            let (identity, digits) = line.rsplit_once(':').ok_or_else(|| malformed(PskFault::Form))?;
            if !(1..=IDENTITY_BYTES_MAX).contains(&identity.len()) {
                return Err(malformed(PskFault::Identity(identity.len())));
            }
            let key = decode(digits).ok_or_else(|| malformed(PskFault::Form))?;
            if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
                return Err(malformed(PskFault::Key(key.len())));
            }
            if psks.insert(identity.into(), SecretSlice::from(key)).is_some() {
                return Err(malformed(PskFault::Twice));
            }
        }
        Ok(Self(psks))
    }

    /// The number of identities.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no identity.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of keys that are short enough for brute force.
    pub fn weak(&self) -> usize {
        self.0.values().filter(|key| key.expose_secret().len() < KEY_BYTES_STRONG).count()
    }

    /// Writes the key of an identity to `out` and returns its length, 0 for no key at all.
    ///
    /// An unknown identity gets a random key, so that its handshake fails like one with a wrong key and identities
    /// cannot be enumerated. An impossible identity, such as a session ticket of another server, gets none: the
    /// handshake continues without it, if it can.
    fn answer(&self, identity: &[u8], out: &mut [u8]) -> (usize, Psk) {
        let Ok(identity) = std::str::from_utf8(identity) else {
            return (0, Psk::default());
        };
        if identity.len() > IDENTITY_BYTES_MAX {
            return (0, Psk::default());
        }
        let known = self.0.get(identity).map(ExposeSecret::expose_secret);
        let psk = Psk { identity: identity.into(), is_known: known.is_some() };
        let room = match known {
            Some(key) => out.get_mut(..key.len()).map(|room| {
                room.copy_from_slice(key);
                key.len()
            }),
            None => out.get_mut(..KEY_BYTES_STRONG).and_then(|room| {
                getrandom::fill(room).ok()?;
                Some(KEY_BYTES_STRONG)
            }),
        };
        (room.unwrap_or(0), psk)
    }
}

/// The pre-shared key of a handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::listener) struct Psk {
    /// The identity that the peer has sent.
    pub(in crate::listener) identity: Box<str>,
    /// Whether it has a key.
    pub(in crate::listener) is_known: bool,
}

impl Psk {
    /// The identity of this handshake, if the peer has sent one.
    pub(in crate::listener) fn of(ssl: &SslRef) -> Option<&Self> {
        ssl.ex_data(*INDEX.get()?)
    }
}

/// The slot of [`Psk`] in an `Ssl`.
static INDEX: OnceLock<Index<Ssl, Psk>> = OnceLock::new();

/// Registers the keys with a TLS or DTLS context of OpenSSL.
pub(in crate::listener) fn serve(context: &mut SslContextBuilder, psks: Arc<Psks>) -> Result<(), ErrorStack> {
    let index = match INDEX.get() {
        Some(index) => *index,
        None => {
            let index = Ssl::new_ex_index()?;
            *INDEX.get_or_init(|| index)
        }
    };
    context.set_psk_server_callback(move |ssl, identity, out| {
        let (length, psk) = psks.answer(identity.unwrap_or_default(), out);
        if length > 0 {
            ssl.set_ex_data(index, psk);
        }
        Ok(length)
    });
    Ok(())
}

/// Decodes hexadecimal digits.
fn decode(digits: &str) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    pairs.iter().map(|&[high, low]| u8::try_from(nibble(high)? << 4 | nibble(low)?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of an identity, and whether it is known.
    fn ask(psks: &Psks, identity: &[u8]) -> (Vec<u8>, bool) {
        let mut out = [0; KEY_BYTES_MAX];
        let (length, psk) = psks.answer(identity, &mut out);
        (out[..length].to_vec(), psk.is_known)
    }

    #[test]
    fn lines_are_identities_and_keys() {
        let psks = Psks::parse("# devices\n\nmeter-1:0a0B\n 00:1a:2b : ff \r\nключ:01\n").unwrap_err();
        assert_eq!(psks, MalformedPsk { line: 4, what: PskFault::Form }, "a space is part of neither");
        let psks = Psks::parse("# devices\n\nmeter-1:0a0B\n00:1a:2b:ff\r\n  ключ:01  \n").unwrap();
        assert_eq!(psks.len(), 3);
        assert_eq!(ask(&psks, b"meter-1"), (vec![0x0a, 0x0b], true));
        assert_eq!(ask(&psks, b"00:1a:2b"), (vec![0xff], true));
        assert_eq!(ask(&psks, "ключ".as_bytes()), (vec![1], true));
        assert_eq!(psks.weak(), 3);
        assert!(Psks::parse("# none\n").unwrap().is_empty());
    }

    /// An error names its line and quotes nothing of it.
    #[test]
    fn lines_that_cannot_be_used() {
        for (text, line, what) in [
            ("device", 1, PskFault::Form),
            ("a:00\ndevice:0", 2, PskFault::Form),
            ("device:0g", 1, PskFault::Form),
            ("device:+1", 1, PskFault::Form),
            ("device:é", 1, PskFault::Form),
            ("device:", 1, PskFault::Key(0)),
            (&format!("device:{}", "00".repeat(257)), 1, PskFault::Key(257)),
            (":00", 1, PskFault::Identity(0)),
            (&format!("{}:00", "i".repeat(129)), 1, PskFault::Identity(129)),
            ("a:00\n\na:01", 3, PskFault::Twice),
        ] {
            assert_eq!(Psks::parse(text).unwrap_err(), MalformedPsk { line, what }, "{text:?}");
        }
    }

    /// An unknown identity gets a different key each time; an impossible identity gets none.
    #[test]
    fn identities_that_are_not_known() {
        let psks = Psks::parse("device:00112233445566778899aabbccddeeff").unwrap();
        let (first, known) = ask(&psks, b"devicf");
        assert!(!known);
        assert_eq!(first.len(), 16);
        assert_ne!(first, ask(&psks, b"devicf").0);
        assert_eq!(ask(&psks, &[0xff; 16]).0, Vec::<u8>::new());
        assert_eq!(ask(&psks, &[b'a'; 129]).0, Vec::<u8>::new());
        assert_eq!(psks.weak(), 0);
    }

    #[test]
    fn nothing_is_shown() {
        assert_eq!(format!("{:?}", Psks::parse("device:c0ffee").unwrap()), "Psks { identities: 1, .. }");
    }
}
