//! `[broker]`.

use std::time::Duration;

use crate::config::schema::{Section, Shape};
use crate::config::value::{Address, Choice, Count, DefaultTo, Key, Optional, Size, Span};
use crate::pubsub::embedded::Options;

/// The kinds of broker there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    Embedded,
}

pub(in crate::config) static SECTION: Section = Section {
    key: "broker",
    title: "[broker]",
    about: "Where devices' messages go and come from.",
    shape: Shape::Once,
    entries: &[
        &KIND,
        &BIND,
        &PACKET_MAX,
        &SUBSCRIPTIONS_MAX,
        &CLIENTS_MAX,
        &CLIENT_QUEUE_MAX,
        &SESSION_EXPIRY_MAX,
        &RETAINED_MAX,
        &RETAINED_BYTES_MAX,
    ],
};

pub(in crate::config) static KIND: Key<Choice<Kind>, DefaultTo<Kind>> = Key {
    name: "kind",
    form: Choice(&[("embedded", Kind::Embedded)]),
    presence: DefaultTo(|| Kind::Embedded),
    about: "`embedded`: an MQTT 3.1.1 and 5 broker inside the gateway",
};

pub(in crate::config) static BIND: Key<Address, Optional> = Key {
    name: "bind",
    form: Address,
    presence: Optional("no MQTT port"),
    about: "where MQTT clients connect; port 0 lets the system choose",
};

pub(in crate::config) static PACKET_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "packet_max",
    // The upper end is MQTT's own (5.0 §2.1.4), in whole MiB.
    form: Size(1 << 10..=255 << 20),
    presence: DefaultTo(|| Options::default().packet_bytes_max as usize),
    about: "largest MQTT packet; payloads of devices are held to it too",
};

pub(in crate::config) static SUBSCRIPTIONS_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "subscriptions_max",
    form: Count(1..=1_000_000),
    presence: DefaultTo(|| count(Options::default().subscriptions_max)),
    about: "subscriptions of one device or MQTT client",
};

pub(in crate::config) static CLIENTS_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "clients_max",
    form: Count(1..=100_000_000),
    presence: DefaultTo(|| count(Options::default().clients_max)),
    about: "MQTT clients that are connected or have a session that waits for them; devices do not count",
};

pub(in crate::config) static CLIENT_QUEUE_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "client_queue_max",
    form: Count(1..=1_000_000),
    presence: DefaultTo(|| count(Options::default().client_queue_max)),
    about: "messages that wait for one MQTT client; more are shed and counted",
};

pub(in crate::config) static SESSION_EXPIRY_MAX: Key<Span, DefaultTo<Duration>> = Key {
    name: "session_expiry_max",
    form: Span(Duration::ZERO..=Duration::from_secs(30 * 24 * 60 * 60)),
    presence: DefaultTo(|| Options::default().session_expiry_max),
    about: "how long the session of an MQTT client may outlive its connection",
};

pub(in crate::config) static RETAINED_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "retained_max",
    form: Count(0..=100_000_000),
    presence: DefaultTo(|| count(Options::default().retained_max)),
    about: "retained messages; more are passed on but not kept, and counted",
};

pub(in crate::config) static RETAINED_BYTES_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "retained_bytes_max",
    form: Size(0..=64 << 30),
    presence: DefaultTo(|| Options::default().retained_bytes_max),
    about: "memory of retained messages; more are not kept",
};

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
