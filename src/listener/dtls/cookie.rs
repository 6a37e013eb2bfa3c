//! Stateless cookies: nothing is kept of a peer until it has shown that it receives at its address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit};
use sha2::Sha256;

use super::hello::{self, Hello, MESSAGE_HEADER, RECORD_HEADER};
use super::prf;

/// How long a key makes cookies; it verifies them for as long again.
///
/// Between the two flights of a device there may lie the retransmissions of a bad radio link: a cookie is good for
/// at least this long.
const KEY_INTERVAL: Duration = Duration::from_secs(120);

/// Bytes of a cookie: as many as cannot be guessed.
const COOKIE: usize = 16;

/// What makes cookies.
type Key = Hmac<Sha256>;

/// Bytes of a HelloVerifyRequest with a cookie of ours; fewer than those of any ClientHello, so nobody can use
/// the door to send a third party more than they send themselves.
pub(crate) const ANSWER_BYTES: usize = RECORD_HEADER + MESSAGE_HEADER + 3 + COOKIE;

/// Decides about datagrams that begin with a ClientHello, without keeping anything of them.
///
/// A cookie is a keyed digest of both addresses; the key is random at start and changes every two minutes. The hello is
/// no part of it: a device that was rebooted may hear the answer to its last hello of before, and take the cookie for
/// its own. openssl does not get out of that if the cookie is wrong then.
pub(crate) struct CookieVerifier {
    secret: Key,
    since: Instant,
    /// The interval that `current` belongs to.
    interval: u64,
    current: Key,
    previous: Key,
}

/// What becomes of a datagram at the door.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CookieCheck {
    /// It is no ClientHello.
    NotClientHello,
    /// It is one without a valid cookie: this HelloVerifyRequest is to be sent back, and nothing to be kept.
    Answer([u8; ANSWER_BYTES]),
    /// It is one with a valid cookie: its sender receives at its address, and a handshake may begin with it.
    Enter(HandshakeId),
}

/// Tells one handshake of a peer from its next one: the same in every retransmission of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandshakeId(u64);

/// What the doors of a listener make their keys from; random, and kept by nobody.
pub(crate) struct Secret(Key);

impl Secret {
    /// Draws one.
    ///
    /// # Errors
    ///
    /// The operating system's random generator failed.
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self(keyed(&key)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl CookieVerifier {
    /// A door whose first key begins `now`. Doors of one secret and one beginning accept each other's cookies.
    pub(crate) fn new(secret: &Secret, now: Instant) -> Self {
        let secret = secret.0.clone();
        Self { since: now, interval: 0, current: of_interval(&secret, 0), previous: of_interval(&secret, 0), secret }
    }

    /// Decides about one datagram from `peer` that arrived at `local`.
    pub(crate) fn handle(&mut self, now: Instant, peer: SocketAddr, local: SocketAddr, datagram: &[u8]) -> CookieCheck {
        let Some(hello) = hello::read(datagram) else { return CookieCheck::NotClientHello };
        self.rotate_keys(now);
        let cookie = cookie(&self.current, peer, local);
        // Message 1 is the only one that openssl can go on from; a cookie in another one is worth nothing.
        let valid = hello.message_sequence == 1
            && (same(&cookie, hello.cookie) || same(&self::cookie(&self.previous, peer, local), hello.cookie));
        if valid { CookieCheck::Enter(HandshakeId::of(&hello)) } else { CookieCheck::Answer(answer(&hello, &cookie)) }
    }

    /// Changes the keys when their interval is over.
    fn rotate_keys(&mut self, now: Instant) {
        let interval = now.saturating_duration_since(self.since).as_secs() / KEY_INTERVAL.as_secs();
        if interval != self.interval {
            self.interval = interval;
            self.current = of_interval(&self.secret, interval);
            self.previous = of_interval(&self.secret, interval.saturating_sub(1));
        }
    }
}

impl fmt::Debug for CookieVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("interval", &self.interval).finish_non_exhaustive()
    }
}

impl HandshakeId {
    /// The attempt that a datagram belongs to, if it begins with a ClientHello.
    pub fn of_datagram(datagram: &[u8]) -> Option<Self> {
        hello::read(datagram).map(|hello| Self::of(&hello))
    }

    /// As a number.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    fn of(hello: &Hello<'_>) -> Self {
        // The end of the random: some devices put their clock at its beginning.
        let [.., a, b, c, d, e, f, g, h] = hello.random.0;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

fn keyed(key: &[u8; 32]) -> Key {
    let mut block = hmac::digest::Key::<Key>::default();
    block[..key.len()].copy_from_slice(key);
    Key::new(&block)
}

/// The key of an interval; derived, because a random generator may fail later.
fn of_interval(secret: &Key, interval: u64) -> Key {
    keyed(&prf::mac(secret, &[&interval.to_be_bytes()]).into())
}

fn cookie(key: &Key, peer: SocketAddr, local: SocketAddr) -> [u8; COOKIE] {
    let (peer_ip, peer_port) = bytes_of(peer);
    let (local_ip, local_port) = bytes_of(local);
    let digest = prf::mac(key, &[&peer_ip[..], &peer_port, &local_ip, &local_port]);
    let mut cookie = [0; COOKIE];
    cookie.copy_from_slice(&digest[..COOKIE]);
    cookie
}

/// An address in a fixed number of bytes, so that no two pairs of addresses look alike.
fn bytes_of(address: SocketAddr) -> ([u8; 16], [u8; 2]) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    (ip.octets(), address.port().to_be_bytes())
}

/// Compares without telling by the time it takes how much was right.
fn same(cookie: &[u8; COOKIE], presented: &[u8]) -> bool {
    presented.len() == COOKIE && openssl::memcmp::eq(cookie, presented)
}

/// A HelloVerifyRequest (RFC 6347 section 4.2.1), in DTLS 1.0 as the RFC asks.
fn answer(hello: &Hello<'_>, cookie: &[u8; COOKIE]) -> [u8; ANSWER_BYTES] {
    const BODY: u8 = 3 + COOKIE as u8;
    let mut answer = [0; ANSWER_BYTES];
    let mut rest = &mut answer[..];
    let mut put = |bytes: &[u8]| {
        let (place, behind) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        place.copy_from_slice(bytes);
        rest = behind;
    };
    // The record: epoch 0, and the sequence number of the hello, for we keep none of our own.
    put(&[hello::HANDSHAKE, 0xfe, 0xff, 0, 0]);
    put(&hello.record_sequence);
    put(&[0, MESSAGE_HEADER as u8 + BODY]);
    // The message: of type 3, the first of its handshake, in one fragment.
    put(&[3, 0, 0, BODY, 0, 0, 0, 0, 0, 0, 0, BODY]);
    put(&[0xfe, 0xff, COOKIE as u8]);
    put(cookie);
    answer
}
