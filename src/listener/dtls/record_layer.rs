//! DTLS 1.2 record layer of an established session, with keys exported from OpenSSL.
//!
//! An `SSL` keeps some 40 KiB for a next handshake that does not come. A session needs two keys, two salts, a counter
//! and a replay window; so for AEAD suites the keys are exported when the handshake is over, and the `SSL` is freed.
//! The ciphers are OpenSSL's.

use std::fmt;

use bytes::Bytes;
use hmac::Hmac;
use openssl::cipher::{Cipher, CipherRef};
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::ssl::SslRef;
use secrecy::zeroize::{Zeroize, Zeroizing};
use sha2::{Sha256, Sha384};

use super::hello::RECORD_HEADER;
use super::prf;

/// The maximum plaintext of a record (RFC 5246 section 6.2.1).
pub(super) const PLAINTEXT_MAX: usize = 1 << 14;

/// DTLS 1.2 in the header of a record.
pub(super) const VERSION: [u8; 2] = [0xfe, 0xfd];

/// The epoch after the one handshake of a session.
pub(super) const EPOCH: u16 = 1;

/// Length of the longest key block: two keys of 32 bytes and two salts of 12.
const KEY_BLOCK_MAX: usize = 2 * (32 + NONCE);

/// The AEAD of a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suite {
    /// Galois counter mode, with a key of 128 or 256 bits.
    Gcm(Bits),
    /// Counter with CBC-MAC; with a tag of 16 or 8 bytes.
    Ccm(Bits, Tag),
    ChaCha,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bits {
    B128,
    B256,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Whole,
    Half,
}

impl Suite {
    /// The negotiated suite; `None` if it is no AEAD.
    fn of(ssl: &SslRef) -> Option<Self> {
        let cipher = ssl.current_cipher()?;
        let tag = if cipher.name().ends_with("CCM8") { Tag::Half } else { Tag::Whole };
        Some(match cipher.cipher_nid()? {
            Nid::AES_128_GCM => Self::Gcm(Bits::B128),
            Nid::AES_256_GCM => Self::Gcm(Bits::B256),
            Nid::AES_128_CCM => Self::Ccm(Bits::B128, tag),
            Nid::AES_256_CCM => Self::Ccm(Bits::B256, tag),
            Nid::CHACHA20_POLY1305 => Self::ChaCha,
            _ => return None,
        })
    }

    fn cipher(self) -> &'static CipherRef {
        match self {
            Self::Gcm(Bits::B128) => Cipher::aes_128_gcm(),
            Self::Gcm(Bits::B256) => Cipher::aes_256_gcm(),
            Self::Ccm(Bits::B128, _) => Cipher::aes_128_ccm(),
            Self::Ccm(Bits::B256, _) => Cipher::aes_256_ccm(),
            Self::ChaCha => Cipher::chacha20_poly1305(),
        }
    }

    fn key_len(self) -> usize {
        match self {
            Self::Gcm(Bits::B128) | Self::Ccm(Bits::B128, _) => 16,
            Self::Gcm(Bits::B256) | Self::Ccm(Bits::B256, _) | Self::ChaCha => 32,
        }
    }

    /// Bytes of the nonce from the handshake (salt).
    fn salt_len(self) -> usize {
        match self {
            Self::Gcm(_) | Self::Ccm(..) => 4,
            Self::ChaCha => 12,
        }
    }

    /// Bytes of the nonce in each record.
    fn explicit_len(self) -> usize {
        match self {
            Self::Gcm(_) | Self::Ccm(..) => 8,
            Self::ChaCha => 0,
        }
    }

    /// Records that may fail before the keys must no longer be used, because each is a guess at a tag: RFC 9147 section 4.5.3
    /// (2^36 for GCM and ChaCha, 2^23.5 for CCM), and less for the short tag, for which it has no number that is of use.
    fn failures_max(self) -> u64 {
        match self {
            Self::Gcm(_) | Self::ChaCha => 1 << 36,
            Self::Ccm(_, Tag::Whole) => 1 << 23,
            Self::Ccm(_, Tag::Half) => 1 << 20,
        }
    }

    fn tag_len(self) -> usize {
        match self {
            Self::Ccm(_, Tag::Half) => 8,
            Self::Gcm(_) | Self::Ccm(_, Tag::Whole) | Self::ChaCha => 16,
        }
    }
}

impl Suite {
    /// Appends the ciphertext and its tag.
    fn seal(
        self,
        key: &Key,
        explicit: [u8; 8],
        aad: &[u8],
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorStack> {
        let mut context = CipherCtx::new()?;
        context.encrypt_init(Some(self.cipher()), None, None)?;
        // CCM computes with the length of the tag, so it has to be set before the key.
        if let Self::Ccm(..) = self {
            context.set_iv_length(NONCE)?;
            context.set_tag_length(self.tag_len())?;
        }
        context.encrypt_init(None, Some(&key.key), Some(&key.nonce(self, explicit)))?;
        if let Self::Ccm(..) = self {
            context.set_data_len(plaintext.len())?;
        }
        context.cipher_update(aad, None)?;
        context.cipher_update_vec(plaintext, out)?;
        context.cipher_final_vec(out)?;
        let mut tag = [0; 16];
        let tag = &mut tag[..self.tag_len()];
        context.tag(tag)?;
        out.extend_from_slice(tag);
        Ok(())
    }

    /// The plaintext, if the tag is valid.
    fn open(self, key: &Key, explicit: [u8; 8], aad: &[u8], sealed: &[u8], tag: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        let mut context = CipherCtx::new()?;
        context.decrypt_init(Some(self.cipher()), None, None)?;
        if let Self::Ccm(..) = self {
            context.set_iv_length(NONCE)?;
        }
        context.set_tag(tag)?;
        context.decrypt_init(None, Some(&key.key), Some(&key.nonce(self, explicit)))?;
        if let Self::Ccm(..) = self {
            context.set_data_len(sealed.len())?;
        }
        context.cipher_update(aad, None)?;
        let mut plaintext = Vec::with_capacity(sealed.len());
        context.cipher_update_vec(sealed, &mut plaintext)?;
        // CCM has verified the tag already, and has no final step.
        match self {
            Self::Ccm(..) => {}
            Self::Gcm(_) | Self::ChaCha => {
                context.cipher_final_vec(&mut plaintext)?;
            }
        }
        Ok(plaintext)
    }
}

/// Length of a nonce.
const NONCE: usize = 12;

/// The key and the salt of one direction; their lengths are the suite's. Zeroed on drop.
#[derive(Clone)]
struct Key {
    key: [u8; 32],
    salt: [u8; NONCE],
}

impl Key {
    /// RFC 5288 section 3, RFC 6655 section 3: the salt, then the explicit part of the record. RFC 7905 section 2: the
    /// salt XOR the record's number.
    fn nonce(&self, suite: Suite, explicit: [u8; 8]) -> [u8; NONCE] {
        let mut nonce = self.salt;
        match suite {
            Suite::Gcm(_) | Suite::Ccm(..) => nonce[4..].copy_from_slice(&explicit),
            Suite::ChaCha => {
                for (byte, explicit) in nonce[4..].iter_mut().zip(explicit) {
                    *byte ^= explicit;
                }
            }
        }
        nonce
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.key.zeroize();
        self.salt.zeroize();
    }
}

/// Both directions of an established session.
pub(super) struct RecordLayer {
    suite: Suite,
    ours: Key,
    theirs: Key,
    /// The number of our next record.
    next: u64,
    window: ReplayWindow,
    /// Records that may still fail.
    failures_left: u64,
}

/// A decrypted record of the peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Its content type (RFC 5246 section 6.2.1).
    pub(super) content: u8,
    pub(super) plaintext: Bytes,
}

/// No record can be made: the sequence numbers are used up (after 2^48 records, 300 years at 30,000 a second), or
/// OpenSSL has no memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OpenError;

impl RecordLayer {
    /// Exports the keys of a finished handshake; `None` if its suite is no AEAD. `flight` are the last datagrams of the
    /// handshake: the sequence numbers continue from theirs.
    pub(super) fn take_out(ssl: &SslRef, flight: &[Bytes]) -> Option<Self> {
        let suite = Suite::of(ssl)?;
        let mut block = Zeroizing::new([0; KEY_BLOCK_MAX]);
        let block = &mut block[..2 * (suite.key_len() + suite.salt_len())];
        expand_keys(ssl, block)?;
        let last = flight.iter().flat_map(records).filter(|record| record.epoch == EPOCH).map(|record| record.number);
        let next = last.max()? + 1;
        Some(Self::new(suite, block, next))
    }

    /// RFC 5246 section 6.3: the keys of the client and the server, then their salts.
    fn new(suite: Suite, block: &[u8], next: u64) -> Self {
        let (keys, salts) = block.split_at(2 * suite.key_len());
        let one = |keys: &[u8], salts: &[u8]| {
            let mut one = Key { key: [0; 32], salt: [0; NONCE] };
            one.key[..keys.len()].copy_from_slice(keys);
            one.salt[..salts.len()].copy_from_slice(salts);
            one
        };
        let (client_key, server_key) = keys.split_at(suite.key_len());
        let (client_salt, server_salt) = salts.split_at(suite.salt_len());
        let (theirs, ours) = (one(client_key, client_salt), one(server_key, server_salt));
        let failures_left = suite.failures_max();
        Self { suite, ours, theirs, next, window: ReplayWindow::default(), failures_left }
    }

    /// Encrypts one record, in one datagram.
    pub(super) fn seal(&mut self, content: u8, plaintext: &[u8]) -> Result<Bytes, OpenError> {
        if self.next >> 48 != 0 {
            return Err(OpenError);
        }
        let (suite, number) = (self.suite, numbered(EPOCH, self.next));
        let len = suite.explicit_len() + plaintext.len() + suite.tag_len();
        let mut datagram = Vec::with_capacity(RECORD_HEADER + len);
        datagram.push(content);
        datagram.extend_from_slice(&VERSION);
        datagram.extend_from_slice(&number);
        datagram.extend_from_slice(&u16::try_from(len).map_err(|_| OpenError)?.to_be_bytes());
        datagram.extend_from_slice(&number[..suite.explicit_len()]);
        let aad = aad(number, content, plaintext.len());
        suite.seal(&self.ours, number, &aad, plaintext, &mut datagram).map_err(|_| OpenError)?;
        self.next += 1;
        Ok(datagram.into())
    }

    /// Whether so many records have failed that the session must end.
    pub(super) fn is_worn_out(&self) -> bool {
        self.failures_left == 0
    }

    /// Decrypts a record of the peer; `None` if it is not authentic, or replayed.
    pub(super) fn open(&mut self, record: &Record<'_>) -> Option<Opened> {
        let suite = self.suite;
        if record.version != VERSION || record.epoch != EPOCH || !self.window.is_new(record.number) {
            return None;
        }
        let number = numbered(EPOCH, record.number);
        let (explicit, sealed) = record.fragment.split_at_checked(suite.explicit_len())?;
        let explicit = explicit.try_into().unwrap_or(number);
        let (sealed, tag) = sealed.split_at_checked(sealed.len().checked_sub(suite.tag_len())?)?;
        // An empty record is ignored, as in OpenSSL's own sessions.
        if !(1..=PLAINTEXT_MAX).contains(&sealed.len()) {
            return None;
        }
        let aad = aad(number, record.content, sealed.len());
        let Ok(plaintext) = suite.open(&self.theirs, explicit, &aad, sealed, tag) else {
            self.failures_left = self.failures_left.saturating_sub(1);
            return None;
        };
        self.window.take(record.number);
        Some(Opened { content: record.content, plaintext: plaintext.into() })
    }
}

impl fmt::Debug for RecordLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordLayer").field("suite", &self.suite).field("next", &self.next).finish_non_exhaustive()
    }
}

/// Fills `block` with the key block of a finished handshake (RFC 5246 section 6.3); `None` if it is not available.
pub(super) fn expand_keys(ssl: &SslRef, block: &mut [u8]) -> Option<()> {
    let mut master = Zeroizing::new([0; 48]);
    let master_len = ssl.session()?.master_key(&mut master[..]);
    let master = master.get(..master_len)?;
    let (mut client, mut server) = ([0; 32], [0; 32]);
    if ssl.client_random(&mut client) != 32 || ssl.server_random(&mut server) != 32 {
        return None;
    }
    let seed: [&[u8]; 3] = [b"key expansion", &server, &client];
    match ssl.current_cipher()?.handshake_digest()?.type_() {
        // OpenSSL names the digest of earlier versions for suites older than 1.2, where it is SHA-256 too.
        Nid::SHA256 | Nid::MD5_SHA1 => prf::expand::<Hmac<Sha256>>(master, &seed, block),
        Nid::SHA384 => prf::expand::<Hmac<Sha384>>(master, &seed, block),
        _ => return None,
    }
    Some(())
}

/// Epoch and sequence number as in a record: two bytes and six.
pub(super) fn numbered(epoch: u16, number: u64) -> [u8; 8] {
    (u64::from(epoch) << 48 | number).to_be_bytes()
}

/// The additional data (AAD) of the AEAD (RFC 5246 section 6.2.3.3).
pub(super) fn aad(number: [u8; 8], content: u8, len: usize) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&number);
    aad[8] = content;
    aad[9..11].copy_from_slice(&VERSION);
    // A plaintext has at most 2^14 bytes.
    aad[11..].copy_from_slice(&(len as u16).to_be_bytes());
    aad
}

/// A record in a datagram.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(super) content: u8,
    pub(super) version: [u8; 2],
    pub(super) epoch: u16,
    pub(super) number: u64,
    pub(super) fragment: &'a [u8],
    /// Its length, with the header.
    pub(crate) len: usize,
}

impl<'a> Record<'a> {
    /// The record at the beginning of `bytes`, if it is complete.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<RECORD_HEADER>()?;
        let [content, v0, v1, e0, e1, n0, n1, n2, n3, n4, n5, l0, l1] = *header;
        let fragment = rest.get(..usize::from(u16::from_be_bytes([l0, l1])))?;
        Some(Self {
            content,
            version: [v0, v1],
            epoch: u16::from_be_bytes([e0, e1]),
            number: u64::from_be_bytes([0, 0, n0, n1, n2, n3, n4, n5]),
            fragment,
            len: RECORD_HEADER + fragment.len(),
        })
    }
}

/// The records of a datagram.
pub(crate) fn records(datagram: &Bytes) -> impl Iterator<Item = Record<'_>> {
    let mut rest = &datagram[..];
    std::iter::from_fn(move || {
        let record = Record::first(rest)?;
        rest = rest.get(record.len..).unwrap_or_default();
        Some(record)
    })
}

/// Whether a datagram has a record of an epoch after the handshake.
pub(super) fn has_sealed_record(datagram: &Bytes) -> bool {
    records(datagram).any(|record| record.epoch == EPOCH)
}

/// Replay window over the last 64 sequence numbers (RFC 6347 section 4.1.2.6).
#[derive(Debug, Default)]
struct ReplayWindow {
    /// One more than the highest received number.
    end: u64,
    /// The received numbers below `end`, the highest in the lowest bit.
    seen: u64,
}

impl ReplayWindow {
    fn is_new(&self, number: u64) -> bool {
        match self.end.checked_sub(number) {
            None | Some(0) => true,
            Some(behind @ 1..=64) => self.seen >> (behind - 1) & 1 == 0,
            Some(_) => false,
        }
    }

    /// Marks a new number.
    fn take(&mut self, number: u64) {
        match self.end.checked_sub(number) {
            None | Some(0) => {
                let by = number - self.end + 1;
                self.seen = u32::try_from(by).ok().and_then(|by| self.seen.checked_shl(by)).unwrap_or(0) | 1;
                self.end = number + 1;
            }
            Some(behind) => self.seen |= 1 << (behind - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const SUITES: [Suite; 7] = [
        Suite::Gcm(Bits::B128),
        Suite::Gcm(Bits::B256),
        Suite::Ccm(Bits::B128, Tag::Whole),
        Suite::Ccm(Bits::B128, Tag::Half),
        Suite::Ccm(Bits::B256, Tag::Whole),
        Suite::Ccm(Bits::B256, Tag::Half),
        Suite::ChaCha,
    ];

    /// Our side, and the peer's side with the same keys.
    fn both(suite: Suite, next: u64) -> (RecordLayer, RecordLayer) {
        let block: Vec<u8> = (0..2 * (suite.key_len() + suite.salt_len())).map(|byte| byte as u8).collect();
        let ours = RecordLayer::new(suite, &block, next);
        let theirs = RecordLayer {
            ours: ours.theirs.clone(),
            theirs: ours.ours.clone(),
            window: ReplayWindow::default(),
            ..ours
        };
        (ours, theirs)
    }

    /// An empty record is dropped, with a valid tag or a forged one.
    #[test]
    fn empty_records_are_refused() {
        for suite in SUITES {
            let (mut ours, mut theirs) = both(suite, 1);
            let mut datagram = theirs.seal(23, b"").unwrap().to_vec();
            assert_eq!(ours.open(&Record::first(&datagram).unwrap()), None, "{suite:?}");
            let last = datagram.len() - 1;
            datagram[last] ^= 1;
            assert_eq!(ours.open(&Record::first(&datagram).unwrap()), None, "{suite:?}");
            assert_eq!(ours.window.end, 0, "{suite:?}");
        }
    }

    /// Each forged tag counts against the keys; replayed and malformed records do not.
    #[test]
    fn forged_records_wear_the_keys_out() {
        for suite in SUITES {
            let (mut ours, mut theirs) = both(suite, 1);
            ours.failures_left = 2;
            let datagram = theirs.seal(23, b"data").unwrap();
            assert!(ours.open(&Record::first(&datagram).unwrap()).is_some());
            assert!(ours.open(&Record::first(&datagram).unwrap()).is_none(), "replayed");
            for is_worn_out in [false, true] {
                assert!(!ours.is_worn_out());
                let mut forged = theirs.seal(23, b"data").unwrap().to_vec();
                *forged.last_mut().unwrap() ^= 1;
                assert!(ours.open(&Record::first(&forged).unwrap()).is_none());
                assert_eq!(ours.is_worn_out(), is_worn_out, "{suite:?}");
            }
        }
    }

    /// After the last sequence number there is no record, because its nonce would be reused.
    #[test]
    fn numbers_come_to_an_end() {
        for suite in SUITES {
            let (mut ours, mut theirs) = both(suite, (1 << 48) - 1);
            let last = ours.seal(23, b"last").unwrap();
            assert_eq!(theirs.open(&Record::first(&last).unwrap()).unwrap().plaintext, "last");
            assert_eq!(ours.seal(23, b"no more"), Err(OpenError));
        }
    }

    proptest! {
        /// Encrypted records are decrypted to the same content.
        #[test]
        fn records_come_through(suite in 0..SUITES.len(), data in proptest::collection::vec(any::<u8>(), 1..2000), content: u8) {
            let (mut ours, mut theirs) = both(SUITES[suite], 1);
            let datagram = theirs.seal(content, &data).unwrap();
            let opened = ours.open(&Record::first(&datagram).unwrap());
            prop_assert_eq!(opened, Some(Opened { content, plaintext: data.into() }));
            prop_assert_eq!(ours.open(&Record::first(&datagram).unwrap()), None, "twice");
        }

        /// The window accepts each number once, and none that is 64 or more below the highest.
        #[test]
        fn each_number_passes_once(numbers in proptest::collection::vec(prop_oneof![0..200u64, (1u64 << 48) - 70..1 << 48], 0..300)) {
            let (mut window, mut passed) = (ReplayWindow::default(), HashSet::new());
            for number in numbers {
                let highest = passed.iter().max().copied().unwrap_or(0);
                let expected = number + 64 > highest && !passed.contains(&number);
                prop_assert_eq!(window.is_new(number), expected, "{} after {}", number, highest);
                if expected {
                    window.take(number);
                    passed.insert(number);
                }
            }
        }
    }
}
