//! `[broker]`.

use std::time::Duration;

use crate::config::schema::{Section, Shape};
use crate::config::value::{Address, Choice, Count, DefaultTo, Key, Optional, Size, Span, Text};
use crate::pubsub::embedded::Options;

/// The kinds of broker there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    Embedded,
    Mqtt,
}

pub(in crate::config) static SECTION: Section = Section {
    key: "broker",
    title: "[broker]",
    about: "Where devices' messages go and come from: the embedded broker.",
    shape: Shape::Once,
    entries: &[
        &KIND,
        &BIND,
        &listener::SECTION,
        &CONNECT_TIMEOUT,
        &KEEPALIVE_MIN,
        &PACKET_MAX,
        &INFLIGHT_MAX,
        &SUBSCRIPTIONS_MAX,
        &FILTER_MAX,
        &SUBSCRIPTION_BYTES_MAX,
        &ALL_SUBSCRIPTION_BYTES_MAX,
        &CLIENTS_MAX,
        &SESSIONS_PER_USER_MAX,
        &CLIENT_QUEUE_MAX,
        &CLIENT_QUEUE_BYTES_MAX,
        &QUEUED_BYTES_MAX,
        &SESSION_EXPIRY_MAX,
        &ANONYMOUS_SESSION_EXPIRY_MAX,
        &RETAINED_MAX,
        &RETAINED_BYTES_MAX,
        &RESPONSE_INFORMATION,
    ],
};

pub(in crate::config) static KIND: Key<Choice<Kind>, DefaultTo<Kind>> = Key {
    name: "kind",
    form: Choice(&[("embedded", Kind::Embedded), ("mqtt", Kind::Mqtt)]),
    presence: DefaultTo(|| Kind::Embedded),
    about: "`embedded`: an MQTT 3.1.1 and 5 broker inside the gateway; `mqtt`: an existing broker or cluster",
};

pub(in crate::config) static BIND: Key<Address, Optional> = Key {
    name: "bind",
    form: Address,
    presence: Optional("no MQTT port"),
    about: "where MQTT clients connect over TCP, without conditions; short for one of `[[broker.listeners]]`; port 0 lets \
            the system choose",
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

pub(in crate::config) static CONNECT_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
    name: "connect_timeout",
    form: Span(Duration::from_millis(1)..=Duration::from_secs(600)),
    presence: DefaultTo(|| Options::default().connect_timeout),
    about: "how long an MQTT client may take from its arrival to its CONNECT",
};

pub(in crate::config) static KEEPALIVE_MIN: Key<Span, DefaultTo<Duration>> = Key {
    name: "keepalive_min",
    form: Span(Duration::ZERO..=Duration::from_secs(65_535)),
    presence: DefaultTo(|| Options::default().keepalive_min),
    about: "shortest keep alive, in whole seconds: an MQTT 5.0 client that asks for less gets this one (Server Keep Alive)",
};

pub(in crate::config) static INFLIGHT_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "inflight_max",
    form: Count(1..=65_534),
    presence: DefaultTo(|| Options::default().inflight_max.into()),
    about: "messages of QoS 1 and 2 in flight to one MQTT client and from one, the Receive Maximum of the broker",
};

pub(in crate::config) static FILTER_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "filter_max",
    form: Size(1..=65_535),
    presence: DefaultTo(|| Options::default().filter_bytes_max),
    about: "longest topic filter of an MQTT client",
};

pub(in crate::config) static SUBSCRIPTION_BYTES_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "subscription_bytes_max",
    form: Size(1 << 10..=64 << 30),
    presence: DefaultTo(|| Options::default().subscription_bytes_max),
    about: "memory of the subscriptions of one MQTT client: each filter, and 256 bytes for each",
};

pub(in crate::config) static ALL_SUBSCRIPTION_BYTES_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "all_subscription_bytes_max",
    form: Size(1 << 10..=1 << 40),
    presence: DefaultTo(|| Options::default().all_subscription_bytes_max),
    about: "memory of the subscriptions of all MQTT clients together",
};

pub(in crate::config) static SESSIONS_PER_USER_MAX: Key<Count, Optional> = Key {
    name: "sessions_per_user_max",
    form: Count(1..=100_000_000),
    presence: Optional("no bound but `clients_max`"),
    about: "sessions of MQTT clients with one user name",
};

pub(in crate::config) static CLIENT_QUEUE_BYTES_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "client_queue_bytes_max",
    form: Size(1 << 10..=64 << 30),
    presence: DefaultTo(|| Options::default().client_queue_bytes_max),
    about: "memory of the messages that wait for one MQTT client or are in flight to it",
};

pub(in crate::config) static QUEUED_BYTES_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "queued_bytes_max",
    form: Size(1 << 10..=1 << 40),
    presence: DefaultTo(|| Options::default().queued_bytes_max),
    about: "memory of the messages that wait for all MQTT clients together; a message counts once for each client",
};

pub(in crate::config) static ANONYMOUS_SESSION_EXPIRY_MAX: Key<Span, DefaultTo<Duration>> = Key {
    name: "anonymous_session_expiry_max",
    form: Span(Duration::ZERO..=Duration::from_secs(30 * 24 * 60 * 60)),
    presence: DefaultTo(|| Options::default().anonymous_session_expiry_max),
    about: "the same for MQTT clients without a user name",
};

pub(in crate::config) static RESPONSE_INFORMATION: Key<Text, Optional> = Key {
    name: "response_information",
    form: Text { expected: "a topic such as \"replies/${clientid}/\"", bytes: 1..=1024 },
    presence: Optional("none"),
    about: "Response Information for MQTT 5.0 clients that ask for it; `${clientid}` is the client id",
};

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// One of the places where MQTT clients connect.
pub(in crate::config) mod listener {
    use crate::config::schema::listener as keys;
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{DefaultTo, Key, MqttBindForm, Required, Text};

    pub(in crate::config) static SECTION: Section = Section {
        key: "listeners",
        title: "[[broker.listeners]]",
        about: "A bound address where MQTT clients connect. They pass what devices pass at `[listeners.NAME]`; the keys of \
                the same name mean the same.",
        shape: Shape::Rows,
        entries: &[
            &BIND,
            &PATH,
            &keys::HANDSHAKE_TIMEOUT,
            &keys::HANDSHAKES_MAX,
            &keys::CONNECTIONS_MAX,
            &keys::BACKLOG,
            &keys::NODELAY,
            &keys::TCP_KEEPALIVE,
            &keys::TCP_KEEPALIVE_INTERVAL,
            &keys::TCP_KEEPALIVE_PROBES,
            &keys::RECEIVE_BUFFER,
            &keys::SEND_BUFFER,
            &keys::DEVICE,
            &keys::REUSE_PORT,
            &keys::IPV6_ONLY,
            &keys::ACCESS,
            &keys::DENY_FILE,
            &keys::CONNECTION_RATE,
            &keys::CONNECTION_RATE_PER_ADDRESS,
            &keys::CONNECTIONS_PER_ADDRESS_MAX,
            &keys::PROXY_PROTOCOL,
            &keys::tls::SECTION,
        ],
    };

    pub(in crate::config) static BIND: Key<MqttBindForm, Required> = Key {
        name: "bind",
        form: MqttBindForm,
        presence: Required,
        about: "where MQTT clients connect: MQTT over TCP, TLS, WebSocket or WebSocket over TLS; port 0 lets the system choose",
    };

    pub(in crate::config) static PATH: Key<Text, DefaultTo<String>> = Key {
        name: "path",
        form: Text { expected: "a path such as \"/mqtt\"", bytes: 1..=256 },
        presence: DefaultTo(|| "/mqtt".to_owned()),
        about: "ws and wss: the path of the WebSocket",
    };
}

/// An existing broker.
pub(in crate::config) mod mqtt {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use crate::config::schema::handler::grpc::tls;
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{
        Choice, DefaultTo, Flag, Key, List, Optional, RateForm, Required, Secret, Size, Span, Text,
    };
    use crate::mqtt::Version;
    use crate::rate::Rate;

    pub(in crate::config) static SECTION: Section = Section {
        key: "broker",
        title: "[broker] of kind \"mqtt\"",
        about: "An existing MQTT broker or cluster. Each device that authenticates is a client of its own there, with its \
                client id, user name and password, and the broker decides: `Authenticate` waits for CONNACK, `Publish` and \
                `Subscribe` for their acknowledgements. The users of `[auth]` have no say; its rules hold besides.",
        shape: Shape::Once,
        entries: &[
            &super::KIND,
            &URLS,
            &PROTOCOL,
            &CONNECTIONS,
            &CLIENT_ID,
            &SOURCE_ADDRESSES,
            &CONNECT_RATE,
            &super::CONNECT_TIMEOUT,
            &SESSION_EXPIRY,
            &KEEPALIVE,
            &super::INFLIGHT_MAX,
            &OUTAGE_BUFFER,
            &super::PACKET_MAX,
            &FOLLOW_SERVER_REFERENCE,
            &USERNAME,
            &PASSWORD,
            &TLS,
        ],
    };

    /// How devices are connected.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::config) enum Connections {
        PerClient,
    }

    pub(in crate::config) static URLS: Key<List<Text>, Required> = Key {
        name: "urls",
        form: List {
            of: Text { expected: "a url such as \"mqtts://broker.example:8883\"", bytes: 1..=2048 },
            one: "url",
        },
        presence: Required,
        about: "addresses of the broker: `mqtt`, `mqtts`, `ws` or `wss`; devices are spread over them, and go on to the next \
                when one fails",
    };

    pub(in crate::config) static PROTOCOL: Key<Choice<Version>, DefaultTo<Version>> = Key {
        name: "protocol",
        form: Choice(&[("5", Version::V5), ("3.1.1", Version::V311)]),
        presence: DefaultTo(|| Version::V5),
        about: "the version of MQTT",
    };

    pub(in crate::config) static CONNECTIONS: Key<Choice<Connections>, DefaultTo<Connections>> = Key {
        name: "connections",
        form: Choice(&[("per-client", Connections::PerClient)]),
        presence: DefaultTo(|| Connections::PerClient),
        about: "`per-client`: each device is a client of its own",
    };

    pub(in crate::config) static CLIENT_ID: Key<Text, DefaultTo<String>> = Key {
        name: "client_id",
        form: Text { expected: "a client id such as \"${clientid}\"", bytes: 1..=1024 },
        presence: DefaultTo(|| "${clientid}".to_owned()),
        about: "what the broker sees as the client id of a device; may use `${clientid}` and `${node}`",
    };

    pub(in crate::config) static SOURCE_ADDRESSES: Key<List<Text>, Optional> = Key {
        name: "source_addresses",
        form: List { of: Text { expected: "an IP address of this machine", bytes: 1..=64 }, one: "address" },
        presence: Optional("the system chooses"),
        about: "local addresses that connections to the broker are spread over; each is good for as many as there are ports",
    };

    pub(in crate::config) static CONNECT_RATE: Key<RateForm, DefaultTo<Rate>> = Key {
        name: "connect_rate",
        form: RateForm::Count(1..=1_000_000),
        presence: DefaultTo(|| Rate::smooth(NonZeroU64::MIN.saturating_add(499), Duration::from_secs(1))),
        about: "how fast connections to the broker are made, at most 64 at a time",
    };

    pub(in crate::config) static SESSION_EXPIRY: Key<Span, DefaultTo<Duration>> = Key {
        name: "session_expiry",
        form: Span(Duration::ZERO..=Duration::from_secs(7 * 24 * 60 * 60)),
        presence: DefaultTo(|| Duration::from_secs(60 * 60)),
        about: "MQTT 5.0: how long the broker keeps a device's session when the connection to it is lost",
    };

    pub(in crate::config) static KEEPALIVE: Key<Span, DefaultTo<Duration>> = Key {
        name: "keepalive",
        form: Span(Duration::from_secs(5)..=Duration::from_secs(65_535)),
        presence: DefaultTo(|| Duration::from_secs(60)),
        about: "how often a silent client shows the broker that it lives; the broker may ask for another one",
    };

    pub(in crate::config) static OUTAGE_BUFFER: Key<Size, DefaultTo<usize>> = Key {
        name: "outage_buffer",
        form: Size(1 << 10..=64 << 30),
        presence: DefaultTo(|| 64 << 20),
        about: "messages of QoS 1 and 2 that wait for the broker, of all devices together; more are refused",
    };

    pub(in crate::config) static FOLLOW_SERVER_REFERENCE: Key<Flag, DefaultTo<bool>> = Key {
        name: "follow_server_reference",
        form: Flag,
        presence: DefaultTo(|| false),
        about: "MQTT 5.0: whether a device goes to another broker when its broker says so, up to 3 times in a row",
    };

    pub(in crate::config) static USERNAME: Key<Text, Optional> = Key {
        name: "username",
        form: Text { expected: "a user name", bytes: 1..=1024 },
        presence: Optional("none"),
        about: "the gateway's own user name, for messages that no device publishes",
    };

    pub(in crate::config) static PASSWORD: Key<Secret, Optional> =
        Key { name: "password", form: Secret, presence: Optional("none"), about: "its password" };

    /// The keys of a handler's TLS.
    pub(in crate::config) static TLS: Section = Section {
        key: "tls",
        title: "[broker.tls]",
        about: "Certificates for `mqtts://` and `wss://` urls. All files are PEM.",
        shape: Shape::Once,
        entries: &[&tls::CA_FILE, &tls::CERT_FILE, &tls::KEY_FILE],
    };
}
