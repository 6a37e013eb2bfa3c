//! MQTT 3.1.1 and 5.0 without I/O: packets, and the state of a session at either end.
//!
//! The embedded broker, the client of an external broker and the tools are built on this module. Nothing here owns a
//! socket, a task or a clock; where time matters, `now` is an argument.
//!
//! [`packet`] holds the packets in a form that both protocol versions share; [`decode`] and [`encode`] lead to and
//! from their bytes. The codec is the crate mqtt-protocol-core, and it appears in these two modules only. What it
//! does not check or cannot express is added there, each with a test:
//!
//! - wildcards in a topic name or response topic, U+0000 in a string, packet identifier 0, a publisher's subscription
//!   identifier, reserved flags, a will QoS of 3, No Local on a shared subscription: rejected after the crate's parser;
//! - a password without a user name, which MQTT 5.0 section 3.1.2.9 allows and the crate refuses;
//! - the crate refuses a SUBSCRIBE as a whole for the group name of one share;
//! - the crate reserves the announced size of a packet when the first five bytes have come: [`decode::Decoder`] grows
//!   with what has arrived;
//! - PUBLISH is written by [`encode::publish`] into the caller's buffer, because a fan-out writes it once for each
//!   subscriber and the crate's builder allocates for each field.
//!
//! The crate's connection type is not used. It stores in-flight messages without a bound, it keeps a session's state
//! in the connection although a session outlives it, and it forgets a packet identifier whose PUBREC has failed only
//! after PUBREL. [`outbound`] and [`inbound`] are this state, for both roles: each side sends messages and receives
//! them by the same rules (MQTT 5.0 section 4.3).

pub(crate) mod alias;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod packet;
pub(crate) mod reason;

pub use packet::Packet;
pub use reason::Reason;

/// The protocol version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5.0, protocol level 5.
    V5,
}

/// The largest packet that MQTT can express, in bytes: fixed header of 5 and 268,435,455 behind it.
pub(crate) const PACKET_BYTES_MAX: u32 = 268_435_460;

#[cfg(test)]
mod tests;
