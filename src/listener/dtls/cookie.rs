//! DTLS stateless cookie exchange (RFC 6347 section 4.2.1): no state for a peer before it has proved that it receives
//! at its address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit};
use sha2::Sha256;

use super::hello::{self, Hello, MESSAGE_HEADER, RECORD_HEADER};
use super::prf;

/// How long a key issues cookies; it verifies them for as long again.
///
/// The retransmissions of a bad radio link may lie between the two flights of a device: a cookie is valid for
/// at least this long.
const KEY_INTERVAL: Duration = Duration::from_secs(120);

/// Length of a cookie in bytes: too many to guess.
const COOKIE: usize = 16;

/// The MAC of cookies.
type Key = Hmac<Sha256>;

/// Length of a HelloVerifyRequest in bytes; less than any ClientHello, so the exchange cannot be used for amplification
/// attacks.
pub(crate) const ANSWER_BYTES: usize = RECORD_HEADER + MESSAGE_HEADER + 3 + COOKIE;

/// Decides about datagrams that begin with a ClientHello, without keeping any state for them.
///
/// A cookie is a MAC over both addresses; the key is random at start and is rotated every two minutes. The ClientHello
/// is not part of it: a rebooted device may receive the response to the last ClientHello before its reboot, and return
/// that cookie. OpenSSL's client does not recover from a wrong cookie in this state.
pub(crate) struct CookieVerifier {
    secret: Key,
    since: Instant,
    /// The interval of `current`.
    interval: u64,
    current: Key,
    previous: Key,
}

/// The decision about a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CookieCheck {
    /// Not a ClientHello.
    NotClientHello,
    /// A ClientHello without a valid cookie: send this HelloVerifyRequest, and keep no state.
    Answer([u8; ANSWER_BYTES]),
    /// A ClientHello with a valid cookie: its sender receives at its address, and a handshake may begin.
    Enter(HandshakeId),
}

/// Distinguishes successive handshakes of a peer: the same in every retransmission of a ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandshakeId(u64);

/// Random secret from which the verifiers of a listener derive their keys.
pub(crate) struct Secret(Key);

impl Secret {
    /// A new one.
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
    /// A verifier whose first key begins `now`. Verifiers with the same secret and start accept each other's cookies.
    pub(crate) fn new(secret: &Secret, now: Instant) -> Self {
        let secret = secret.0.clone();
        Self { since: now, interval: 0, current: of_interval(&secret, 0), previous: of_interval(&secret, 0), secret }
    }

    /// Decides about one datagram from `peer` that arrived at `local`.
    pub(crate) fn handle(&mut self, now: Instant, peer: SocketAddr, local: SocketAddr, datagram: &[u8]) -> CookieCheck {
        let Some(hello) = hello::read(datagram) else { return CookieCheck::NotClientHello };
        self.rotate_keys(now);
        let cookie = cookie(&self.current, peer, local);
        // OpenSSL can continue from message 1 only; a cookie in another one is invalid.
        let valid = hello.message_sequence == 1
            && (same(&cookie, hello.cookie) || same(&self::cookie(&self.previous, peer, local), hello.cookie));
        if valid { CookieCheck::Enter(HandshakeId::of(&hello)) } else { CookieCheck::Answer(answer(&hello, &cookie)) }
    }

    /// Rotates the keys at the end of their interval.
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
        f.debug_struct("CookieVerifier").field("interval", &self.interval).finish_non_exhaustive()
    }
}

impl HandshakeId {
    /// The handshake of a datagram that begins with a ClientHello.
    pub fn of_datagram(datagram: &[u8]) -> Option<Self> {
        hello::read(datagram).map(|hello| Self::of(&hello))
    }

    /// As a number.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    fn of(hello: &Hello<'_>) -> Self {
        // The end of the random: some devices begin it with their clock.
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

/// A fixed-length encoding of an address, so that no two pairs of addresses have the same bytes.
fn bytes_of(address: SocketAddr) -> ([u8; 16], [u8; 2]) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    (ip.octets(), address.port().to_be_bytes())
}

/// Compares in constant time.
fn same(cookie: &[u8; COOKIE], presented: &[u8]) -> bool {
    presented.len() == COOKIE && openssl::memcmp::eq(cookie, presented)
}

/// A HelloVerifyRequest (RFC 6347 section 4.2.1), in DTLS 1.0 as the RFC requires.
fn answer(hello: &Hello<'_>, cookie: &[u8; COOKIE]) -> [u8; ANSWER_BYTES] {
    const BODY: u8 = 3 + COOKIE as u8;
    let mut answer = [0; ANSWER_BYTES];
    let mut rest = &mut answer[..];
    let mut put = |bytes: &[u8]| {
        let (place, behind) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        place.copy_from_slice(bytes);
        rest = behind;
    };
    // The record: epoch 0, and the sequence number of the ClientHello, because there is no state for an own one.
    put(&[hello::HANDSHAKE, 0xfe, 0xff, 0, 0]);
    put(&hello.record_sequence);
    put(&[0, MESSAGE_HEADER as u8 + BODY]);
    // The message: type 3, the first of its handshake, in one fragment.
    put(&[3, 0, 0, BODY, 0, 0, 0, 0, 0, 0, 0, BODY]);
    put(&[0xfe, 0xff, COOKIE as u8]);
    put(cookie);
    answer
}
