//! Types of a connection: ids, addresses, [`Event`], [`Command`], messages, close reasons; the connection registry and
//! limit.
//!
//! This file is plain data without tokio, clock or lock; its submodules [`registry`] (mailboxes) and [`limit`]
//! (semaphore) are not. An [`Event`] goes up from a connection to its handler, a [`Command`] comes down from the
//! handler to its connection, and nothing else passes between the two.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

mod close_reason;
pub(crate) mod limit;
mod refused;
pub(crate) mod registry;

pub use close_reason::CloseReason;
pub(crate) use refused::{Denied, Refused};

/// One accepted peer: a TCP connection or the flow of a datagram peer.
///
/// Never reused while the process lives, and not guessable: one id reveals nothing about the others (see
/// [`ConnIds`]). An id that a handler kept from an earlier run of the gateway, or got from another gateway, is most
/// likely unknown here. Below 2^53, because the numbers of JavaScript guests are inexact beyond. Displayed and sent as
/// 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

impl ConnId {
    /// The id as a number, as guests get it.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// The id with this number; no such connection may exist.
    pub const fn from_u64(id: u64) -> Self {
        Self(id)
    }

    /// Parses the form that [`Display`](fmt::Display) writes; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !canonical {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bits of each half of an id.
const HALF_BITS: u32 = 26;

/// Rounds of the Feistel network; FF1 of NIST SP 800-38G, the standard format-preserving cipher, has as many.
const ROUNDS: u8 = 10;

/// Generator of [`ConnId`]s: a counter, encrypted with a random key of the process.
///
/// The cipher is a Feistel network over 52 bits with HMAC-SHA-256 as its round function. A permutation never repeats an
/// id, and without the key no id can be derived from other ids: an id is what a
/// gRPC handler shows to command a connection.
pub struct ConnIds {
    counter: AtomicU64,
    /// The MAC with its key, before any input.
    mac: Hmac<Sha256>,
}

impl fmt::Debug for ConnIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnIds").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl ConnIds {
    /// Draws a key.
    ///
    /// # Errors
    ///
    /// The operating system's random generator failed.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut key = hmac::digest::Key::<Hmac<Sha256>>::default();
        getrandom::fill(&mut key)?;
        Ok(Self { counter: AtomicU64::new(0), mac: Hmac::new(&key) })
    }

    pub fn next(&self) -> ConnId {
        ConnId(self.permute(self.counter.fetch_add(1, Ordering::Relaxed)))
    }

    /// The number that stands for `count`; the counter wraps at 2^52.
    fn permute(&self, count: u64) -> u64 {
        let mask = (1 << HALF_BITS) - 1;
        let (mut left, mut right) = ((count >> HALF_BITS) & mask, count & mask);
        for round in 0..ROUNDS {
            let mut mac = self.mac.clone();
            mac.update(&[round]);
            mac.update(&right.to_be_bytes());
            let digest: [u8; 32] = mac.finalize().into_bytes().into();
            let [a, b, c, d, ..] = digest;
            (left, right) = (right, left ^ (u64::from(u32::from_be_bytes([a, b, c, d])) & mask));
        }
        left << HALF_BITS | right
    }
}

/// Address of the device, or the one from a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

impl PeerAddr {
    /// The address without the port, for `${peerhost}` and ExProto's `peername.host`.
    ///
    /// An IPv4 peer of a dual-stack socket is shown as IPv4.
    pub fn host(&self) -> IpAddr {
        self.0.ip().to_canonical()
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SocketAddr::new(self.host(), self.port()), f)
    }
}

/// The bound address of the listener that accepted a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddr(pub SocketAddr);

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Transport of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketKind {
    Tcp,
    Tls,
    Udp,
    Dtls,
}

impl SocketKind {
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Udp, Self::Dtls];

    /// Name in addresses, conversations and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Udp => "udp",
            Self::Dtls => "dtls",
        }
    }

    /// Whether the peer sends datagrams instead of a stream of bytes.
    pub const fn has_datagrams(self) -> bool {
        match self {
            Self::Tcp | Self::Tls => false,
            Self::Udp | Self::Dtls => true,
        }
    }

    /// Maximum size of one datagram to the peer; `None` for a stream.
    pub const fn datagram_bytes_max(self) -> Option<usize> {
        match self {
            Self::Tcp | Self::Tls => None,
            // An IPv4 packet (RFC 791 §3.1) without the headers of IP, 20 bytes, and UDP, 8.
            Self::Udp => Some(65_535 - 20 - 8),
            // The plaintext of one record (RFC 6347 §4.1).
            Self::Dtls => Some(1 << 14),
        }
    }

    /// Whether the transport is encrypted.
    pub const fn is_secure(self) -> bool {
        match self {
            Self::Tcp | Self::Udp => false,
            Self::Tls | Self::Dtls => true,
        }
    }
}

impl fmt::Display for SocketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Identity read from a verified peer certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name; empty when it has none.
    pub cn: String,
    /// The subject in the form of RFC 4514, for example `CN=client,O=Example`.
    pub dn: String,
}

/// Properties of a connection from its accept on.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    pub kind: SocketKind,
    pub peer: PeerAddr,
    /// The listener's bound address.
    pub local: ListenAddr,
    /// Present only if the device presented a certificate that was verified.
    pub certificate: Option<Certificate>,
}

/// Client identity of a peer, as given to `authenticate`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo {
    /// Name of the device's protocol; may be empty.
    pub proto_name: String,
    /// Version of the device's protocol; may be empty.
    pub proto_ver: String,
    /// Not empty; unique among the clients of the broker: the newest connection wins.
    pub client_id: String,
    /// Empty if the device has none.
    pub username: String,
}

impl ClientInfo {
    /// Bytes that count against a limit.
    pub fn weight(&self) -> usize {
        self.proto_name.len() + self.proto_ver.len() + self.client_id.len() + self.username.len()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    #[default]
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl TryFrom<u32> for QoS {
    type Error = u32;

    /// Returns the number as error if it is not 0, 1 or 2.
    fn try_from(number: u32) -> Result<Self, u32> {
        match number {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            other => Err(other),
        }
    }
}

/// A published message, as delivered to a subscriber.
#[derive(Clone, Debug)]
pub struct Message {
    /// Gateway or broker node that received it.
    pub node: Arc<str>,
    /// Unique per message; 32 hexadecimal digits.
    pub id: String,
    pub qos: QoS,
    /// Client id of the publisher.
    pub from: String,
    pub topic: String,
    pub payload: Bytes,
    /// Time of its receipt, in milliseconds since the Unix epoch.
    pub timestamp_ms: u64,
}

impl Message {
    /// Bytes that count against a limit: topic and payload.
    pub fn weight(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// Event that a connection reports to its handler.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first event, before any byte is read.
    SocketCreated(Arc<ConnInfo>),
    /// The next bytes of the stream, or one whole datagram.
    ReceivedBytes(Bytes),
    /// The keepalive interval expired.
    TimerTimeout(Timer),
    /// Messages of this connection's subscriptions, in order, at least one.
    ReceivedMessages(Vec<Message>),
    /// The last event.
    SocketClosed(CloseReason),
}

impl Event {
    /// The event's name in logs and metrics; ExProto's, in snake case.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SocketCreated(_) => "on_socket_created",
            Self::ReceivedBytes(_) => "on_received_bytes",
            Self::TimerTimeout(_) => "on_timer_timeout",
            Self::ReceivedMessages(_) => "on_received_messages",
            Self::SocketClosed(_) => "on_socket_closed",
        }
    }

    /// Bytes of the device in it. Messages count by themselves, until a handler takes them.
    pub fn received_bytes(&self) -> usize {
        match self {
            Self::ReceivedBytes(bytes) => bytes.len(),
            Self::SocketCreated(_) | Self::TimerTimeout(_) | Self::ReceivedMessages(_) | Self::SocketClosed(_) => 0,
        }
    }
}

/// Timers of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Closes the connection after silence of the peer.
    Keepalive,
}

/// Operation that a handler requests: the one type for live calls, dry runs, logs and comparisons.
///
/// A new operation is added here, in [`Adapter::apply`](crate::adapter::Adapter::apply), in the strict rules of
/// `adapter/dry_run.rs`, in `tap.rs`, in `local_replay/device.rs`, and in the two interfaces: `exproto/service.rs` and
/// `handler/wasm/imports.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Queue bytes for the peer.
    Send(Bytes),
    /// Flush, then close.
    Close,
    /// Authenticate the peer as this client.
    Authenticate {
        client: ClientInfo,
        /// `None` also where the command is logged: see [`Command::without_password`].
        password: Option<Password>,
    },
    /// Start or restart a timer.
    StartTimer {
        timer: Timer,
        /// Not zero.
        interval: Duration,
    },
    /// Stop a timer; no error when it does not run.
    StopTimer(Timer),
    /// Publish as this client.
    Publish {
        /// Topic name without the mountpoint.
        topic: String,
        qos: QoS,
        payload: Bytes,
    },
    /// Subscribe as this client.
    Subscribe {
        /// Topic filter without the mountpoint; may be `$share/group/filter`.
        filter: String,
        qos: QoS,
    },
    /// End a subscription; no error when there is none.
    Unsubscribe {
        /// Topic filter as it was subscribed.
        filter: String,
    },
    /// Publish without a client: no mountpoint, no rules. Needs no connection.
    RawPublish { topic: String, qos: QoS, payload: Bytes },
}

impl Command {
    /// Bytes that count against a limit: the parts that the caller sizes.
    pub fn weight(&self) -> usize {
        match self {
            Self::Send(bytes) => bytes.len(),
            Self::Authenticate { client, .. } => client.weight(),
            Self::Publish { topic, payload, .. } | Self::RawPublish { topic, payload, .. } => {
                topic.len() + payload.len()
            }
            Self::Subscribe { filter, .. } | Self::Unsubscribe { filter } => filter.len(),
            Self::Close | Self::StartTimer { .. } | Self::StopTimer(_) => 0,
        }
    }

    /// The operation's name in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Send(_) => "send",
            Self::Close => "close",
            Self::Authenticate { .. } => "authenticate",
            Self::StartTimer { .. } => "start_timer",
            Self::StopTimer(_) => "stop_timer",
            Self::Publish { .. } => "publish",
            Self::Subscribe { .. } => "subscribe",
            Self::Unsubscribe { .. } => "unsubscribe",
            Self::RawPublish { .. } => "raw_publish",
        }
    }

    /// A copy for logs and comparisons.
    #[must_use]
    pub fn without_password(&self) -> Self {
        match self {
            Self::Authenticate { client, password: _ } => Self::Authenticate { client: client.clone(), password: None },
            Self::Send(_)
            | Self::Close
            | Self::StartTimer { .. }
            | Self::StopTimer(_)
            | Self::Publish { .. }
            | Self::Subscribe { .. }
            | Self::Unsubscribe { .. }
            | Self::RawPublish { .. } => self.clone(),
        }
    }
}

/// Password of a client; any bytes, as in MQTT. Never printed; zeroed when dropped; compared in constant time.
#[derive(Clone)]
pub struct Password(SecretSlice<u8>);

impl Password {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(SecretSlice::from(bytes.into()))
    }

    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.expose().len() == other.expose().len() && openssl::memcmp::eq(self.expose(), other.expose())
    }
}

impl Eq for Password {}

#[cfg(test)]
mod tests {
    use super::*;

    /// An id round-trips through its text form, and no other text parses.
    #[test]
    fn conn_id_has_one_written_form() {
        let ids = ConnIds::new().unwrap();
        let (first, second) = (ids.next(), ids.next());
        assert_ne!(first, second);
        assert_eq!(ConnId::parse(&first.to_string()), Some(first));
        for text in ["", "0", "00000000000000001", "000000000000000G", "00000000000000AB", "+000000000000001"] {
            assert_eq!(ConnId::parse(text), None, "{text:?}");
        }
    }

    /// Ids are exact in guests with floating-point numbers only.
    #[test]
    fn conn_ids_are_exact_as_floating_point_numbers() {
        for _ in 0..100 {
            let id = ConnIds::new().unwrap().next();
            assert!(id.to_u64() < 1 << 53, "{id}");
        }
    }

    /// No id is given twice, and the distance from one id to the next says nothing about the one after it.
    #[test]
    fn conn_ids_are_unique_and_not_consecutive() {
        let ids = ConnIds::new().unwrap();
        let given: Vec<u64> = (0..10_000).map(|_| ids.next().to_u64()).collect();
        let distinct: std::collections::HashSet<u64> = given.iter().copied().collect();
        assert_eq!(distinct.len(), given.len());
        let distances: std::collections::HashSet<u64> =
            given.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(distances.len() > given.len() * 99 / 100, "{} distances", distances.len());
        // Each of the 52 bits is set in about half of the ids; 40 % is twenty standard deviations away.
        for bit in 0..2 * HALF_BITS {
            let set = given.iter().filter(|id| *id >> bit & 1 == 1).count();
            assert!((4_000..6_000).contains(&set), "bit {bit} is set in {set} of 10000");
        }
    }
}
