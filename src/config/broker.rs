//! `[broker]`: the broker that devices publish to and subscribe at.

use std::net::SocketAddr;
use std::time::Duration;

use super::binds::Binds;
use super::diagnostics::ErrorReported;
use super::read::{Table, read_all};
use super::schema::section;
use super::value::{ADDRESS, Choice, count, duration, secs, size};
use crate::pubsub::embedded::Options;

/// The kinds of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Embedded,
}

section! {
    /// The broker that the gateway publishes to and subscribes at.
    "broker", "[broker]", Once;

    /// `embedded`: an MQTT 3.1.1 and 5 broker inside the gateway
    KIND "kind": Kind = Choice(&[("embedded", Kind::Embedded)]), default Kind::Embedded;
    /// the address for MQTT clients; port 0 lets the system choose
    BIND "bind": SocketAddr = ADDRESS, optional "no MQTT port";
    /// largest MQTT packet; the limit of payloads of devices too
    // The upper end is MQTT's own (5.0 §2.1.4), in whole MiB.
    PACKET_MAX "packet_max": usize = size(1 << 10..=255 << 20), default Options::default().packet_bytes_max as usize;
    /// subscriptions of one device or MQTT client
    SUBSCRIPTIONS_MAX "subscriptions_max": usize = count(1..=1_000_000), default Options::default().subscriptions_max;
    /// MQTT clients that are connected or have a stored session; devices do not count
    CLIENTS_MAX "clients_max": usize = count(1..=100_000_000), default Options::default().clients_max;
    /// queued messages of one MQTT client; more are dropped and counted
    CLIENT_QUEUE_MAX "client_queue_max": usize = count(1..=1_000_000), default Options::default().client_queue_max;
    /// how long the session of an MQTT client may outlive its connection
    SESSION_EXPIRY_MAX "session_expiry_max": Duration =
        duration(secs(0)..=secs(30 * 24 * 60 * 60)), default Options::default().session_expiry_max;
    /// retained messages; more are delivered but not retained, and counted
    RETAINED_MAX "retained_max": usize = count(0..=100_000_000), default Options::default().retained_max;
    /// memory of retained messages; more are not retained
    RETAINED_BYTES_MAX "retained_bytes_max": usize = size(0..=64 << 30), default Options::default().retained_bytes_max;
}

/// The options of the broker, without the name of its node.
pub(super) fn read(root: &Table<'_>, binds: &mut Binds) -> Result<Options, ErrorReported> {
    let table = root.section_or_empty(&SECTION)?;
    let kind = table.get(&KIND);
    let embedded = read_all!(Options {
        bind: binds.read_optional(&table, &BIND),
        // Its range ends below u32's.
        packet_bytes_max: table.get(&PACKET_MAX).map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
        subscriptions_max: table.get(&SUBSCRIPTIONS_MAX),
        clients_max: table.get(&CLIENTS_MAX),
        client_queue_max: table.get(&CLIENT_QUEUE_MAX),
        session_expiry_max: table.get(&SESSION_EXPIRY_MAX),
        retained_max: table.get(&RETAINED_MAX),
        retained_bytes_max: table.get(&RETAINED_BYTES_MAX),
        ..Options::default()
    });
    match kind? {
        Kind::Embedded => embedded,
    }
}
