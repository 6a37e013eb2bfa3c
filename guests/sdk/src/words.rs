//! The vocabulary of `wit/handler.wit` as plain Rust: what an event carries, and what an answer needs.
//!
//! The binding to the generated types matches on every variant, so the two cannot drift apart unseen.

use core::fmt;

/// How a peer reached the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketKind {
    /// A plain TCP stream.
    #[default]
    Tcp,
    /// A TCP stream under TLS.
    Tls,
    /// Datagrams: each event carries exactly one, each `send` is one.
    Udp,
    /// Datagrams under DTLS.
    Dtls,
    /// The messages of a WebSocket.
    Websocket,
}

/// A host and a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// An IP address in its usual text form.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Identity read from a verified peer certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name.
    pub cn: String,
    /// The subject as in RFC 4514, for example `CN=client,O=Example`.
    pub dn: String,
}

/// What is known of a connection before its first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnInfo {
    /// How the peer came.
    pub kind: SocketKind,
    /// The device's address, or the one that a PROXY header carried.
    pub peer: Address,
    /// The address of the listener that accepted it.
    pub local: Address,
    /// Present only when the device showed a certificate.
    pub peer_cert: Option<Certificate>,
}

/// Who the peer says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    /// The protocol's name, for people who look at a list of clients.
    pub proto_name: &'a str,
    /// The protocol's version.
    pub proto_ver: &'a str,
    /// Not empty. The newest connection with the same id ends the older one.
    pub client_id: &'a str,
    /// The name that the gateway's authentication looks up, if there is one.
    pub username: Option<&'a str>,
}

impl<'a> ClientInfo<'a> {
    /// A client of which nothing but its id is known.
    #[must_use]
    pub const fn named(client_id: &'a str) -> Self {
        Self { proto_name: "", proto_ver: "", client_id, username: None }
    }
}

/// Quality of service, as in MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// 0: may be lost.
    AtMostOnce,
    /// 1: may come twice.
    AtLeastOnce,
    /// 2: comes once.
    ExactlyOnce,
}

impl Qos {
    /// The number that MQTT writes for it.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::AtMostOnce => 0,
            Self::AtLeastOnce => 1,
            Self::ExactlyOnce => 2,
        }
    }

    /// The level that MQTT writes as `number`; none for a number over 2.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// A message of one of the connection's subscriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The gateway or broker node that took it in.
    pub node: String,
    /// The broker's id of the message.
    pub id: String,
    /// The topic name, without the listener's mountpoint.
    pub topic: String,
    /// The payload as published.
    pub payload: Vec<u8>,
    /// The publisher's.
    pub qos: Qos,
    /// The publisher's client id.
    pub sender: String,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: u64,
}

/// The timers that a handler can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Runs out when the peer has been silent for 1.5 times the interval.
    Keepalive,
}

/// Why the host did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The host could not do it, for example because the broker is unreachable.
    Unknown,
    /// The connection is not this instance's, or has ended.
    ConnGone,
    /// An argument is malformed or out of its range; the gateway's log says which.
    BadParams,
    /// Refused by the authentication, or by a rule.
    PermissionDenied,
    /// Asked before a successful `authenticate`.
    NotAuthenticated,
    /// A bounded queue is full; trying again in a later event may succeed.
    Overloaded,
    /// No answer came in time.
    Timeout,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Unknown => "the gateway could not do it",
            Self::ConnGone => "the connection has ended",
            Self::BadParams => "an argument is malformed",
            Self::PermissionDenied => "permission denied",
            Self::NotAuthenticated => "not authenticated",
            Self::Overloaded => "a queue is full",
            Self::Timeout => "no answer in time",
        })
    }
}

impl std::error::Error for ErrorCode {}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed or reset the socket.
    Peer,
    /// The handler asked for it.
    Handler,
    /// The keepalive timer ran out.
    KeepaliveTimeout,
    /// The peer sent no byte within the listener's idle timeout.
    IdleTimeout,
    /// Another connection authenticated with the same client id.
    Replaced,
    /// The operator ended it.
    Kicked,
    /// The authentication's validity ended.
    Expired,
    /// The gateway is stopping, or moves the connection away.
    Host,
    /// Anything else, in words.
    Error(String),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Peer => "the peer closed",
            Self::Handler => "the handler closed",
            Self::KeepaliveTimeout => "the keepalive ran out",
            Self::IdleTimeout => "the peer was idle",
            Self::Replaced => "replaced by another connection of the same client",
            Self::Kicked => "ended by the operator",
            Self::Expired => "the authentication expired",
            Self::Host => "the gateway is stopping",
            Self::Error(words) => words,
        })
    }
}

/// How much a line in the gateway's log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For one who follows every byte.
    Trace,
    /// For one who follows every step.
    Debug,
    /// What an operator likes to see.
    Info,
    /// What an operator should see.
    Warn,
    /// What an operator must see.
    Error,
}
