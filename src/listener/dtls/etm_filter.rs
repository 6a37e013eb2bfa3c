//! What keeps strangers' records from a session that openssl goes on with.
//!
//! Of a suite whose MAC stands behind the ciphertext (RFC 7366), openssl 3.0 takes a record with a wrong MAC for the end
//! of the session, where RFC 6347 section 4.1.2.7 has it dropped: one datagram of somebody who knows the peer's address, or
//! one that was damaged on its way, would end it. So its MACs are looked at here first. The older order, in which the MAC
//! is encrypted too, needs no guard: there openssl drops such records.

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

/// Lets records with the peer's MAC through.
pub(super) struct EtmFilter {
    key: PKey<Private>,
    digest: MessageDigest,
}

impl EtmFilter {
    /// One for a handshake that is over; `None` when its suite has no MAC behind the ciphertext. openssl does not tell, but
    /// the last flight does, which is among the datagrams that came `early` and has been verified.
    pub(super) fn of(ssl: &SslRef, early: &VecDeque<Bytes>) -> Option<Self> {
        let name = ssl.current_cipher()?.name();
        let digest = match name.rsplit('-').next()? {
            "SHA" => MessageDigest::sha1(),
            "SHA256" => MessageDigest::sha256(),
            "SHA384" => MessageDigest::sha384(),
            _ => return None,
        };
        // RFC 5246 section 6.3: the MAC key of the client is the first of all.
        let mut key = Zeroizing::new([0; 48]);
        let key = key.get_mut(..digest.size())?;
        expand_keys(ssl, key)?;
        let etm_filter = Self { key: PKey::hmac(key).ok()?, digest };
        let has_finished =
            early.iter().any(|datagram| records(datagram).any(|record| etm_filter.is_authentic(&record)));
        has_finished.then_some(etm_filter)
    }

    /// What of a datagram may be read, and how many records may not.
    pub(super) fn establish_inner(&self, datagram: &Bytes) -> (Bytes, u64) {
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
