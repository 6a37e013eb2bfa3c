//! `[broker]`: the broker that devices publish to and subscribe at, of either kind.

use std::net::SocketAddr;
use std::time::Duration;

use super::ExternalFiles;
use super::binds::Binds;
use super::diagnostics::ErrorReported;
use super::read::{Table, read_all};
use super::schema::section;
use super::value::{ADDRESS, Choice, count, duration, millis, secs, size, text};
use crate::pubsub::embedded::Durability;
use crate::pubsub::{embedded, external};

pub(super) mod listener;
pub(super) mod mqtt;

/// The kinds of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Embedded,
    Mqtt,
}

/// What the file says of brokers. The embedded one is not started when there is an external one.
pub(super) struct Brokers {
    /// Without the name of its node.
    pub(super) embedded: embedded::Options,
    /// Without the name of its node.
    pub(super) external: Option<external::Options>,
}

section! {
    /// The broker that the gateway publishes to and subscribes at: the embedded one.
    "broker", "[broker] of kind \"embedded\"", Once;

    /// `embedded`: an MQTT 3.1.1 and 5 broker inside the gateway; `mqtt`: an existing broker or cluster
    KIND "kind": Kind = Choice(&[("embedded", Kind::Embedded), ("mqtt", Kind::Mqtt)]), default Kind::Embedded;
    /// the address for MQTT clients over TCP, without limits of its own; short for one of `[[broker.listeners]]`; port 0
    /// lets the system choose
    BIND "bind": SocketAddr = ADDRESS, optional "no MQTT port";
    &listener::SECTION;
    /// time limit for CONNECT, from the connection of an MQTT client; for `mqtt`: for CONNACK, from the first packet of
    /// TCP
    CONNECT_TIMEOUT "connect_timeout": Duration =
        duration(millis(1)..=secs(600)), default embedded::Options::default().connect_timeout;
    /// shortest keep alive, in whole seconds: an MQTT 5.0 client that asks for less gets this one (Server Keep Alive)
    KEEPALIVE_MIN "keepalive_min": Duration =
        duration(secs(0)..=secs(65_535)), default embedded::Options::default().keepalive_min;
    /// largest MQTT packet; the limit of payloads of devices too
    // The upper end is MQTT's own (5.0 §2.1.4), in whole MiB.
    PACKET_MAX "packet_max": usize =
        size(1 << 10..=255 << 20), default embedded::Options::default().packet_bytes_max as usize;
    /// messages of QoS 1 and 2 in flight to one MQTT client and from one: the Receive Maximum
    INFLIGHT_MAX "inflight_max": u16 = count(1..=65_534), default embedded::Options::default().inflight_max;
    /// subscriptions of one device or MQTT client
    SUBSCRIPTIONS_MAX "subscriptions_max": usize =
        count(1..=1_000_000), default embedded::Options::default().subscriptions_max;
    /// longest topic filter of an MQTT client
    FILTER_MAX "filter_max": usize = size(1..=65_535), default embedded::Options::default().filter_bytes_max;
    /// memory of the subscriptions of one MQTT client: each filter, and 256 bytes for each
    SUBSCRIPTION_BYTES_MAX "subscription_bytes_max": usize =
        size(1 << 10..=64 << 30), default embedded::Options::default().subscription_bytes_max;
    /// memory of the subscriptions of all MQTT clients together
    ALL_SUBSCRIPTION_BYTES_MAX "all_subscription_bytes_max": usize =
        size(1 << 10..=1 << 40), default embedded::Options::default().all_subscription_bytes_max;
    /// MQTT clients that are connected or have a stored session; devices do not count
    CLIENTS_MAX "clients_max": usize = count(1..=100_000_000), default embedded::Options::default().clients_max;
    /// sessions of MQTT clients with one user name
    SESSIONS_PER_USER_MAX "sessions_per_user_max": usize =
        count(1..=100_000_000), optional "no limit but `clients_max`";
    /// queued messages of one MQTT client; more are dropped and counted
    CLIENT_QUEUE_MAX "client_queue_max": usize =
        count(1..=1_000_000), default embedded::Options::default().client_queue_max;
    /// memory of the queued messages of one MQTT client, with those in flight to it
    CLIENT_QUEUE_BYTES_MAX "client_queue_bytes_max": usize =
        size(1 << 10..=64 << 30), default embedded::Options::default().client_queue_bytes_max;
    /// memory of the queued messages of all MQTT clients together; a message counts once for each client
    QUEUED_BYTES_MAX "queued_bytes_max": usize =
        size(1 << 10..=1 << 40), default embedded::Options::default().queued_bytes_max;
    /// how long the session of an MQTT client may outlive its connection
    SESSION_EXPIRY_MAX "session_expiry_max": Duration =
        duration(secs(0)..=secs(30 * 24 * 60 * 60)), default embedded::Options::default().session_expiry_max;
    /// the same for MQTT clients without a user name
    ANONYMOUS_SESSION_EXPIRY_MAX "anonymous_session_expiry_max": Duration =
        duration(secs(0)..=secs(30 * 24 * 60 * 60)), default embedded::Options::default().anonymous_session_expiry_max;
    /// retained messages; more are delivered but not retained, and counted
    RETAINED_MAX "retained_max": usize = count(0..=100_000_000), default embedded::Options::default().retained_max;
    /// memory of retained messages; more are not retained
    RETAINED_BYTES_MAX "retained_bytes_max": usize =
        size(0..=64 << 30), default embedded::Options::default().retained_bytes_max;
    /// what survives a crash of retained messages, sessions, queued messages and wills: `none`, nothing; `periodic`,
    /// everything up to 100 ms before; `every-message`, everything that was acknowledged, since acknowledgements wait for
    /// the disk
    DURABILITY "durability": Durability = Choice(&[
        ("none", Durability::None),
        ("periodic", Durability::Periodic),
        ("every-message", Durability::EveryMessage),
    ]), default embedded::Options::default().durability;
    /// Response Information for MQTT 5.0 clients that ask for it; `${clientid}` is the client id
    RESPONSE_INFORMATION "response_information": String =
        text("a topic such as \"replies/${clientid}/\"", 1..=1024), optional "none";
}

pub(super) fn read(root: &Table<'_>, external: ExternalFiles<'_>, binds: &mut Binds) -> Result<Brokers, ErrorReported> {
    let Some(item) = root.item(SECTION.key) else {
        return Ok(Brokers { embedded: embedded::Options::default(), external: None });
    };
    let table = item.table()?;
    match table.get(&KIND)? {
        Kind::Embedded => {
            let _recorded = table.admit(SECTION.title, &[&SECTION], &[&mqtt::SECTION]);
            Ok(Brokers { embedded: read_embedded(&table, external, binds)?, external: None })
        }
        Kind::Mqtt => {
            let _recorded = table.admit(mqtt::SECTION.title, &[&mqtt::SECTION], &[&SECTION]);
            Ok(Brokers { embedded: embedded::Options::default(), external: Some(mqtt::read(&table, external)?) })
        }
    }
}

fn read_embedded(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<embedded::Options, ErrorReported> {
    read_all!(embedded::Options {
        bind: binds.read_optional(table, &BIND),
        listeners: listener::read(table, external, binds),
        connect_timeout: table.get(&CONNECT_TIMEOUT),
        keepalive_min: table.get(&KEEPALIVE_MIN),
        packet_bytes_max: packet_bytes_max(table),
        inflight_max: table.get(&INFLIGHT_MAX),
        subscriptions_max: table.get(&SUBSCRIPTIONS_MAX),
        filter_bytes_max: table.get(&FILTER_MAX),
        subscription_bytes_max: table.get(&SUBSCRIPTION_BYTES_MAX),
        all_subscription_bytes_max: table.get(&ALL_SUBSCRIPTION_BYTES_MAX),
        clients_max: table.get(&CLIENTS_MAX),
        sessions_per_user_max: table.get(&SESSIONS_PER_USER_MAX).map(|max| max.unwrap_or(usize::MAX)),
        client_queue_max: table.get(&CLIENT_QUEUE_MAX),
        client_queue_bytes_max: table.get(&CLIENT_QUEUE_BYTES_MAX),
        queued_bytes_max: table.get(&QUEUED_BYTES_MAX),
        session_expiry_max: table.get(&SESSION_EXPIRY_MAX),
        anonymous_session_expiry_max: table.get(&ANONYMOUS_SESSION_EXPIRY_MAX),
        retained_max: table.get(&RETAINED_MAX),
        retained_bytes_max: table.get(&RETAINED_BYTES_MAX),
        durability: table.get(&DURABILITY),
        response_information: table.get(&RESPONSE_INFORMATION).map(|text| text.map(Into::into)),
        ..embedded::Options::default()
    })
}

fn packet_bytes_max(table: &Table<'_>) -> Result<u32, ErrorReported> {
    // The range of the key ends below that of u32.
    table.get(&PACKET_MAX).map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX))
}
