//! Encrypt-then-MAC filter (RFC 7366): drops records with a wrong MAC before OpenSSL reads them.
//!
//! With an encrypt-then-MAC suite, OpenSSL 3.0 ends the session at a record with a wrong MAC, where RFC 6347 section
//! 4.1.2.7 has it dropped: one spoofed datagram, or one that was damaged in transit, would end it. So the MACs are
//! verified here first. MAC-then-encrypt suites need no filter: there OpenSSL drops such records.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use openssl::ssl::SslRef;
use secrecy::zeroize::Zeroizing;

use super::record_layer::{EPOCH, Record, VERSION, aad, expand_keys, numbered, records};

/// Passes records with a valid MAC of the peer.
pub(super) struct EtmFilter {
    key: PKey<Private>,
    digest: MessageDigest,
}

impl EtmFilter {
    /// The filter of a finished handshake; `None` for suites without encrypt-then-MAC. OpenSSL does not report it, but
    /// it follows from the last flight, which is among the `early` datagrams and has been verified.
    pub(super) fn of(ssl: &SslRef, early: &VecDeque<Bytes>) -> Option<Self> {
        let name = ssl.current_cipher()?.name();
        let digest = match name.rsplit('-').next()? {
            "SHA" => MessageDigest::sha1(),
            "SHA256" => MessageDigest::sha256(),
            "SHA384" => MessageDigest::sha384(),
            _ => return None,
        };
        // RFC 5246 section 6.3: the MAC key of the client is the first.
        let mut key = Zeroizing::new([0; 48]);
        let key = key.get_mut(..digest.size())?;
        expand_keys(ssl, key)?;
        let etm_filter = Self { key: PKey::hmac(key).ok()?, digest };
        let has_finished =
            early.iter().any(|datagram| records(datagram).any(|record| etm_filter.is_authentic(&record)));
        has_finished.then_some(etm_filter)
    }

    /// The records of a datagram with a valid MAC, and the number of the others.
    pub(super) fn filter(&self, datagram: &Bytes) -> (Bytes, u64) {
        let (mut passed, mut dropped, mut at) = (Vec::new(), 0, 0);
        for record in records(datagram) {
            let end = at + record.len;
            match self.is_authentic(&record) {
                true => passed.extend_from_slice(&datagram[at..end]),
                false => dropped += 1,
            }
            at = end;
        }
        (passed.into(), dropped + u64::from(at < datagram.len()))
    }

    fn is_authentic(&self, record: &Record<'_>) -> bool {
        let Some(len) = record.fragment.len().checked_sub(self.digest.size()) else { return false };
        let (ciphertext, mac) = record.fragment.split_at(len);
        record.version == VERSION
            && record.epoch == EPOCH
            && self.mac(record, ciphertext).is_ok_and(|expected| openssl::memcmp::eq(&expected, mac))
    }

    /// RFC 7366 section 3.1.
    fn mac(&self, record: &Record<'_>, ciphertext: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        let mut signer = Signer::new(self.digest, &self.key)?;
        signer.update(&aad(numbered(EPOCH, record.number), record.content, ciphertext.len()))?;
        signer.update(ciphertext)?;
        signer.sign_to_vec()
    }
}

impl fmt::Debug for EtmFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}
