//! Cache of verified passwords: a device that reconnects within minutes costs no password hash.
//!
//! It holds digests under a random key of the process, never a password. The digest covers the configured hash, so an
//! entry ends with the password it was verified against. Pure, `now` is an argument.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Age at which a generation of entries is replaced; an entry lives once to twice as long.
const GENERATION: Duration = Duration::from_secs(5 * 60);

/// Maximum number of entries in one of the two generations; about 8 MiB each.
const ENTRIES_MAX: usize = 131_072;

/// Digest of a user with its hash and a password.
pub(super) type Digest = [u8; 32];

pub(super) struct Verified {
    recent: HashSet<Digest>,
    old: HashSet<Digest>,
    began: Instant,
}

/// Key of the digests.
pub(super) struct DigestKey(Hmac<Sha256>);

impl DigestKey {
    /// # Errors
    ///
    /// The operating system's random generator failed.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut key = hmac::digest::Key::<Hmac<Sha256>>::default();
        getrandom::fill(&mut key)?;
        Ok(Self(Hmac::new(&key)))
    }

    pub(super) fn digest(&self, username: &str, hash: &str, password: &[u8]) -> Digest {
        let mut mac = self.0.clone();
        for part in [username.as_bytes(), hash.as_bytes(), password] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl Verified {
    pub(super) fn new(now: Instant) -> Self {
        Self { recent: HashSet::new(), old: HashSet::new(), began: now }
    }

    pub(super) fn contains(&mut self, digest: &Digest, now: Instant) -> bool {
        self.rotate(now);
        self.recent.contains(digest) || self.old.contains(digest)
    }

    pub(super) fn insert(&mut self, digest: Digest, now: Instant) {
        self.rotate(now);
        if self.recent.len() >= ENTRIES_MAX {
            self.begin_generation(now);
        }
        self.recent.insert(digest);
    }

    fn rotate(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age >= GENERATION {
            self.begin_generation(now);
        }
        if age >= 2 * GENERATION {
            self.old.clear();
        }
    }

    fn begin_generation(&mut self, now: Instant) {
        self.old = std::mem::take(&mut self.recent);
        self.began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_for_minutes() {
        let now = Instant::now();
        for (pause, expected) in [(GENERATION, true), (2 * GENERATION, false), (100 * GENERATION, false)] {
            let mut verified = Verified::new(now);
            verified.insert([1; 32], now);
            assert!(!verified.contains(&[2; 32], now));
            assert_eq!(verified.contains(&[1; 32], now + pause), expected, "{pause:?}");
        }
    }

    /// A lookup does not prolong an entry.
    #[test]
    fn an_entry_in_use_ends_too() {
        let mut now = Instant::now();
        let mut verified = Verified::new(now);
        verified.insert([1; 32], now);
        let mut lives = 0;
        while verified.contains(&[1; 32], now) {
            now += GENERATION / 4;
            lives += 1;
        }
        assert!(lives <= 8);
    }

    #[test]
    fn entries_are_bounded() {
        let now = Instant::now();
        let mut verified = Verified::new(now);
        for number in 0..3 * ENTRIES_MAX as u64 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            verified.insert(digest, now);
        }
        assert!(verified.recent.len() + verified.old.len() <= 2 * ENTRIES_MAX);
    }

    /// User name, hash and password do not run into each other.
    #[test]
    fn each_part_counts() {
        let key = DigestKey::new().unwrap();
        let digests = [("u", "h", "p"), ("uh", "", "p"), ("u", "hp", ""), ("v", "h", "p"), ("u", "i", "p")]
            .map(|(username, hash, password)| key.digest(username, hash, password.as_bytes()));
        assert_eq!(digests.iter().collect::<HashSet<_>>().len(), digests.len());
        assert_eq!(digests[0], key.digest("u", "h", b"p"));
        assert_ne!(digests[0], DigestKey::new().unwrap().digest("u", "h", b"p"));
    }
}
