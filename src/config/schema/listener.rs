//! `[listeners.NAME]`.

use std::time::Duration;

use crate::config::schema::{Section, Shape, framing};
use crate::config::value::{
    AccessForm, BindForm, Choice, Count, DefaultTo, FilePath, Flag, Key, List, Optional, ProxyForm, RateForm, Required,
    Size, Span, Text,
};
use crate::listener::proxy::Options as ProxyOptions;

pub(in crate::config) static SECTION: Section =
    Section { key: "listeners", title: "[listeners.NAME]", about: "", shape: Shape::Named, entries: &[] };

/// One of them.
pub(in crate::config) static ONE: Section = Section {
    key: "listeners",
    title: "[listeners.NAME]",
    about: "A bound address that accepts devices.",
    shape: Shape::Named,
    entries: &[
        &BIND,
        &HANDLERS,
        &MOUNTPOINT,
        &CONFIRM,
        &CONFIRM_TIMEOUT,
        &IDLE_TIMEOUT,
        &LOGIN_TIMEOUT,
        &SILENCE_TIMEOUT,
        &FLOW_TIMEOUT,
        &WRITE_TIMEOUT,
        &HANDSHAKE_TIMEOUT,
        &HANDSHAKES_MAX,
        &CONNECTIONS_MAX,
        &BACKLOG,
        &NODELAY,
        &TCP_KEEPALIVE,
        &TCP_KEEPALIVE_INTERVAL,
        &TCP_KEEPALIVE_PROBES,
        &RECEIVE_BUFFER,
        &SEND_BUFFER,
        &DEVICE,
        &REUSE_PORT,
        &IPV6_ONLY,
        &SOCKETS,
        &ACCESS,
        &DENY_FILE,
        &CONNECTION_RATE,
        &CONNECTION_RATE_PER_ADDRESS,
        &CONNECTIONS_PER_ADDRESS_MAX,
        &PROXY_PROTOCOL,
        &BYTES_RATE,
        &PACKETS_RATE,
        &INBOUND_MAX,
        &DATAGRAMS_MAX,
        &OUTBOUND_MAX,
        &MESSAGES_MAX,
        &MESSAGES_BYTES_MAX,
        &framing::SECTION,
        &tls::SECTION,
    ],
};

/// Longest timeout of a connection: a peer that is silent for a day is gone.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const SILENCE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

pub(in crate::config) static BIND: Key<BindForm, Required> =
    Key { name: "bind", form: BindForm, presence: Required, about: "where it accepts; port 0 lets the system choose" };

pub(in crate::config) static HANDLERS: Key<List<Text>, Required> = Key {
    name: "handlers",
    form: List { of: Text { expected: "a handler's name", bytes: 0..=64 }, one: "handler" },
    presence: Required,
    about: "names of handlers; the first that is healthy serves, those behind it are its fallback, in order",
};

pub(in crate::config) static MOUNTPOINT: Key<Text, DefaultTo<String>> = Key {
    name: "mountpoint",
    form: Text { expected: "a mountpoint such as \"trackers/${clientid}/\"", bytes: 0..=4096 },
    presence: DefaultTo(String::new),
    about: "put in front of the topics of its devices, and taken off on delivery; ends with `/`; may use `${clientid}`, \
            `${username}` and `${peerhost}`",
};

/// When bytes leave that a handler sends after a message of QoS 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Confirm {
    Off,
    BeforeSend,
}

pub(in crate::config) static CONFIRM: Key<Choice<Confirm>, DefaultTo<Confirm>> = Key {
    name: "confirm",
    form: Choice(&[("off", Confirm::Off), ("before-send", Confirm::BeforeSend)]),
    presence: DefaultTo(|| Confirm::Off),
    about: "`before-send`: bytes that a handler sends after a message of QoS 1 or 2 leave only when the broker has \
            acknowledged it, so a device keeps its record until it is safe",
};

pub(in crate::config) static CONFIRM_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
    name: "confirm_timeout",
    form: Span(Duration::from_millis(10)..=Duration::from_secs(600)),
    presence: DefaultTo(|| Duration::from_secs(5)),
    about: "how long that may take; then the connection ends without these bytes, and is counted as `unconfirmed`",
};

pub(in crate::config) static IDLE_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
    name: "idle_timeout",
    form: Span(Duration::from_millis(1)..=TIMEOUT_MAX),
    presence: DefaultTo(|| Duration::from_secs(30)),
    about: "time limit for the first byte of a new connection",
};

pub(in crate::config) static LOGIN_TIMEOUT: Key<Span, Optional> = Key {
    name: "login_timeout",
    form: Span(Duration::from_millis(1)..=TIMEOUT_MAX),
    presence: Optional("none, since some handlers never authenticate"),
    about: "time limit for the handler to authenticate a new connection; then it is closed with reason `login_timed_out`. \
            Recommended beyond loopback: otherwise a peer keeps its place for ever by sending any byte",
};

pub(in crate::config) static SILENCE_TIMEOUT: Key<Span, Optional> = Key {
    name: "silence_timeout",
    form: Span(Duration::from_millis(1)..=SILENCE_MAX),
    presence: Optional("none"),
    about: "time without a byte from the device after which its connection is closed, unless its handler has started a keepalive \
            timer",
};

pub(in crate::config) static FLOW_TIMEOUT: Key<Span, Optional> = Key {
    name: "flow_timeout",
    form: Span(Duration::from_millis(1)..=SILENCE_MAX),
    presence: Optional("`\"5m\"` for udp, `\"1d\"` for dtls"),
    about: "the same for udp and dtls, with a default: a datagram peer never closes, so an abandoned flow would stay for ever",
};

pub(in crate::config) static WRITE_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
    name: "write_timeout",
    form: Span(Duration::from_millis(1)..=TIMEOUT_MAX),
    presence: DefaultTo(|| Duration::from_secs(15)),
    about: "how long bytes may wait for a peer that takes none; then the connection ends",
};

pub(in crate::config) static HANDSHAKE_TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
    name: "handshake_timeout",
    form: Span(Duration::from_millis(1)..=Duration::from_secs(600)),
    presence: DefaultTo(|| Duration::from_secs(10)),
    about: "how long the handshake of a new peer of tls or dtls may take",
};

pub(in crate::config) static HANDSHAKES_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "handshakes_max",
    form: Count(1..=1_000_000),
    presence: DefaultTo(|| 4096),
    about: "peers of tls or dtls that may be about their handshake at a time; over tls more wait in the backlog, over dtls \
            they are shed and counted",
};

pub(in crate::config) static CONNECTIONS_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "connections_max",
    form: Count(1..=100_000_000),
    presence: DefaultTo(|| 1_000_000),
    about: "connections at a time; more peers wait in the backlog (tcp, tls), or are shed and counted (udp, dtls)",
};

pub(in crate::config) static BACKLOG: Key<Count, DefaultTo<u32>> = Key {
    name: "backlog",
    form: Count(1..=65_535),
    presence: DefaultTo(|| 1024),
    about: "peers that the kernel keeps until they are accepted; `net.core.somaxconn` bounds it too",
};

pub(in crate::config) static SOCKETS: Key<Count, DefaultTo<u32>> = Key {
    name: "sockets",
    form: Count(1..=64),
    presence: DefaultTo(|| 1),
    about: "sockets of a listener for udp or dtls, over which the kernel spreads the peers; one takes about one core",
};

pub(in crate::config) static ACCESS: Key<List<AccessForm>, Optional> = Key {
    name: "access",
    form: List { of: AccessForm, one: "rule" },
    presence: Optional("everybody may"),
    about: "which addresses may connect, before any handshake; the first rule that fits decides, and whom none fits may",
};

pub(in crate::config) static DENY_FILE: Key<FilePath, Optional> = Key {
    name: "deny_file",
    form: FilePath,
    presence: Optional("none"),
    about: "a list of addresses and networks that may not connect, whatever `access` says; one a line, `#` begins a \
            comment; read again at each reload",
};

pub(in crate::config) static CONNECTION_RATE: Key<RateForm, Optional> = Key {
    name: "connection_rate",
    form: RateForm::Count(RATE),
    presence: Optional("no limit"),
    about: "how fast peers are accepted; more wait in the backlog, and new peers of a datagram socket are shed",
};

pub(in crate::config) static CONNECTION_RATE_PER_ADDRESS: Key<RateForm, Optional> = Key {
    name: "connection_rate_per_address",
    form: RateForm::Count(RATE),
    presence: Optional("no limit"),
    about: "how fast one address may connect; more are refused. The whole number may come at once",
};

pub(in crate::config) static CONNECTIONS_PER_ADDRESS_MAX: Key<Count, Optional> = Key {
    name: "connections_per_address_max",
    form: Count(1..=100_000_000),
    presence: Optional("no limit"),
    about: "connections of one address at a time; more are refused. The first 64 bits of an IPv6 address count as one",
};

pub(in crate::config) static PROXY_PROTOCOL: Key<ProxyForm, DefaultTo<Option<ProxyOptions>>> = Key {
    name: "proxy_protocol",
    form: ProxyForm,
    presence: DefaultTo(|| None),
    about: "whether each connection begins with a PROXY header (version 1 or 2), in which a load balancer says whose it is; \
            that address is the device's everywhere: in rules, limits, logs and `peername`",
};

pub(in crate::config) static BYTES_RATE: Key<RateForm, Optional> = Key {
    name: "bytes_rate",
    form: RateForm::Size(1..=1 << 40),
    presence: Optional("no limit"),
    about: "bytes from one device; over it its socket is not read for a while, and datagrams are shed",
};

pub(in crate::config) static PACKETS_RATE: Key<RateForm, Optional> = Key {
    name: "packets_rate",
    form: RateForm::Count(RATE),
    presence: Optional("no limit"),
    about: "datagrams from one device, or pieces that its stream is read in; over it as with `bytes_rate`",
};

/// Numbers of a rate: ten million are one every 100 ns.
const RATE: std::ops::RangeInclusive<u64> = 1..=10_000_000;

pub(in crate::config) static NODELAY: Key<Flag, DefaultTo<bool>> = Key {
    name: "nodelay",
    form: Flag,
    presence: DefaultTo(|| true),
    about: "tcp and tls: whether small pieces are sent at once; without, they may wait 40 ms for more (Nagle's algorithm)",
};

pub(in crate::config) static TCP_KEEPALIVE: Key<Span, Optional> = Key {
    name: "tcp_keepalive",
    form: Span(Duration::from_secs(1)..=Duration::from_secs(32_767)),
    presence: Optional("never"),
    about: "tcp and tls: the silence after which the kernel asks a device for a sign of life. It wakes the radios of sleeping \
            devices; handlers that start a keepalive timer do not need it",
};

pub(in crate::config) static TCP_KEEPALIVE_INTERVAL: Key<Span, DefaultTo<Duration>> = Key {
    name: "tcp_keepalive_interval",
    form: Span(Duration::from_secs(1)..=Duration::from_secs(32_767)),
    presence: DefaultTo(|| Duration::from_secs(30)),
    about: "how long the kernel waits for that sign before it asks again",
};

pub(in crate::config) static TCP_KEEPALIVE_PROBES: Key<Count, DefaultTo<u32>> = Key {
    name: "tcp_keepalive_probes",
    form: Count(1..=127),
    presence: DefaultTo(|| 4),
    about: "how often it asks before the connection is taken for dead",
};

pub(in crate::config) static RECEIVE_BUFFER: Key<Size, Optional> = Key {
    name: "receive_buffer",
    form: Size(4 << 10..=1 << 30),
    presence: Optional("the kernel's choice; `4MiB` for each socket of udp and dtls"),
    about: "what the kernel keeps of what devices have sent: for each connection of tcp and tls, for each socket of udp and dtls; \
            `net.core.rmem_max` bounds it too",
};

pub(in crate::config) static SEND_BUFFER: Key<Size, Optional> = Key {
    name: "send_buffer",
    form: Size(4 << 10..=1 << 30),
    presence: Optional("the kernel's choice"),
    about: "the same of what is sent to devices; `net.core.wmem_max` bounds it too",
};

pub(in crate::config) static DEVICE: Key<Text, Optional> = Key {
    name: "device",
    form: Text { expected: "the name of a network device such as \"eth0\"", bytes: 1..=15 },
    presence: Optional("all"),
    about: "the network device whose peers are served (`SO_BINDTODEVICE`)",
};

pub(in crate::config) static REUSE_PORT: Key<Flag, DefaultTo<bool>> = Key {
    name: "reuse_port",
    form: Flag,
    presence: DefaultTo(|| false),
    about: "whether other processes of the same user may bind the same address; the kernel shares the peers among them",
};

pub(in crate::config) static IPV6_ONLY: Key<Flag, DefaultTo<bool>> = Key {
    name: "ipv6_only",
    form: Flag,
    presence: DefaultTo(|| false),
    about: "whether `[::]` leaves the peers of IPv4 to others",
};

pub(in crate::config) static INBOUND_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "inbound_max",
    form: Size(1 << 10..=64 << 20),
    presence: DefaultTo(|| 64 << 10),
    about: "bytes of one connection that may wait for its handler; at this many its socket is not read (tcp, tls), or its \
            datagrams wait for the connection, as many bytes again, and are shed and counted beyond (udp, dtls)",
};

pub(in crate::config) static DATAGRAMS_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "datagrams_max",
    form: Count(1..=65_536),
    presence: DefaultTo(|| 256),
    about: "datagrams of one peer of udp or dtls that may wait until its connection takes them; more are shed and counted",
};

pub(in crate::config) static OUTBOUND_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "outbound_max",
    form: Size(4 << 10..=1 << 30),
    presence: DefaultTo(|| 1 << 20),
    about: "bytes of one connection that may wait for its socket; at this many the next `Send` of a gRPC handler waits, and a guest's is refused",
};

pub(in crate::config) static MESSAGES_MAX: Key<Count, DefaultTo<u32>> = Key {
    name: "messages_max",
    form: Count(1..=1_000_000),
    presence: DefaultTo(|| 1000),
    about: "messages of one connection, from their delivery until its handler takes them; more are shed and counted",
};

pub(in crate::config) static MESSAGES_BYTES_MAX: Key<Size, DefaultTo<usize>> = Key {
    name: "messages_bytes_max",
    form: Size(1 << 10..=1 << 30),
    presence: DefaultTo(|| 1 << 20),
    about: "topic and payload bytes of those messages; a message that does not fit is shed and counted",
};

/// More about PROXY headers.
pub(in crate::config) mod proxy {
    use std::time::Duration;

    use crate::config::schema::{Section, Shape};
    use crate::config::value::{DefaultTo, Key, List, NetworkForm, Optional, Span};

    pub(in crate::config) static SECTION: Section = Section {
        key: "",
        title: "PROXY headers",
        about: "Instead of `true`, the `proxy_protocol` of a listener on tcp or tls may be a table with these keys. A \
                connection without a header, or with a wrong one, is ended and counted. A header that carries no TCP connection over \
                IP (`UNKNOWN`, `LOCAL`, a Unix socket) leaves the balancer's own address.",
        shape: Shape::Once,
        entries: &[&TRUSTED, &TIMEOUT],
    };

    pub(in crate::config) static TRUSTED: Key<List<NetworkForm>, Optional> = Key {
        name: "trusted",
        form: List { of: NetworkForm, one: "address or network" },
        presence: Optional("everybody"),
        about: "who may connect at all, and so name any address as the device's: the balancers",
    };

    pub(in crate::config) static TIMEOUT: Key<Span, DefaultTo<Duration>> = Key {
        name: "timeout",
        form: Span(Duration::from_millis(1)..=Duration::from_secs(60)),
        presence: DefaultTo(|| Duration::from_secs(3)),
        about: "how long the header may take to come",
    };
}

/// What a listener on `tls://` or `dtls://` shows and asks of its peers.
pub(in crate::config) mod tls {
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Choice, Count, DefaultTo, FilePath, Key, List, Optional, Text};

    pub(in crate::config) static SECTION: Section = Section {
        key: "tls",
        title: "[listeners.NAME.tls]",
        about: "What a listener on `tls://` or `dtls://` shows its peers and asks of them. It has a certificate, or pre-shared \
                keys, or both. Certificates, keys and revocation lists are in PEM, one or several to a file.",
        shape: Shape::Once,
        entries: &[
            &CERT_FILE,
            &KEY_FILE,
            &certificate::SECTION,
            &CLIENT_CA_FILE,
            &CLIENT_CERT,
            &CRL_FILE,
            &VERSIONS,
            &PSK_FILE,
            &CIPHERS,
            &MTU,
        ],
    };

    pub(in crate::config) static CERT_FILE: Key<FilePath, Optional> = Key {
        name: "cert_file",
        form: FilePath,
        presence: Optional("required, unless there is `certificates` or `psk_file`"),
        about: "the listener's certificate, then its chain; peers that ask for a name which no certificate has get this one",
    };

    pub(in crate::config) static KEY_FILE: Key<FilePath, Optional> = Key {
        name: "key_file",
        form: FilePath,
        presence: Optional("required with `cert_file`"),
        about: "its private key, without a passphrase: PKCS#8, PKCS#1 or SEC1",
    };

    pub(in crate::config) static CLIENT_CA_FILE: Key<FilePath, Optional> = Key {
        name: "client_ca_file",
        form: FilePath,
        presence: Optional("no certificate is asked for"),
        about: "authorities that must have signed the certificate of a peer",
    };

    pub(in crate::config) static CLIENT_CERT: Key<Choice<ClientCert>, Optional> = Key {
        name: "client_cert",
        form: Choice(&[
            ("none", ClientCert::None),
            ("optional", ClientCert::Optional),
            ("required", ClientCert::Required),
        ]),
        presence: Optional("`\"required\"` with `client_ca_file`, else `\"none\"`"),
        about: "whether a peer must have a certificate; an optional one must be good if it is there; a pre-shared key stands \
                for a certificate",
    };

    /// Whether a peer must have a certificate.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::config) enum ClientCert {
        /// It is not asked for.
        None,
        /// It is asked for.
        Optional,
        /// It must be there.
        Required,
    }

    pub(in crate::config) static CRL_FILE: Key<FilePath, Optional> = Key {
        name: "crl_file",
        form: FilePath,
        presence: Optional("nothing is revoked"),
        about: "revocation lists; each authority in the chain of a peer must have one here",
    };

    pub(in crate::config) static VERSIONS: Key<List<Choice<Version>>, Optional> = Key {
        name: "versions",
        form: List { of: Choice(&[("1.2", Version::V12), ("1.3", Version::V13)]), one: "version" },
        presence: Optional("both; `1.2` for dtls"),
        about: "versions of TLS that are spoken; 1.3 is for tls alone",
    };

    /// A version of TLS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::config) enum Version {
        /// 1.2
        V12,
        /// 1.3
        V13,
    }

    pub(in crate::config) static PSK_FILE: Key<FilePath, Optional> = Key {
        name: "psk_file",
        form: FilePath,
        presence: Optional("no pre-shared keys"),
        about: "pre-shared keys of peers, one a line: `identity:key`, the key in hexadecimal digits",
    };

    pub(in crate::config) static CIPHERS: Key<Text, Optional> = Key {
        name: "ciphers",
        form: Text { expected: "cipher suites in OpenSSL's notation", bytes: 1..=4096 },
        presence: Optional("forward secrecy and authenticated encryption first"),
        about: "dtls only: the suites that are offered, the best first; those of 8-byte tags (CCM8) may be among them at any \
                security level",
    };

    pub(in crate::config) static MTU: Key<Count, DefaultTo<u32>> = Key {
        name: "mtu",
        form: Count(256..=16_384),
        presence: DefaultTo(|| 1200),
        about: "dtls only: bytes of the longest datagram of a handshake, without the headers of IP and UDP; what is sent \
                afterwards is one datagram each, and left to IP to cut",
    };

    /// More certificates.
    pub(in crate::config) mod certificate {
        use crate::config::schema::{Section, Shape};
        use crate::config::value::{FilePath, Key, Required};

        pub(in crate::config) static SECTION: Section = Section {
            key: "certificates",
            title: "[[listeners.NAME.tls.certificates]]",
            about: "More certificates of a listener. A peer gets the first one that has the name it asks for, wildcards too, and \
                    a kind of key that it knows, so one name may have an RSA and an ECDSA certificate.",
            shape: Shape::Rows,
            entries: &[&CERT_FILE, &KEY_FILE],
        };

        pub(in crate::config) static CERT_FILE: Key<FilePath, Required> =
            Key { name: "cert_file", form: FilePath, presence: Required, about: "a certificate, then its chain" };

        pub(in crate::config) static KEY_FILE: Key<FilePath, Required> = Key {
            name: "key_file",
            form: FilePath,
            presence: Required,
            about: "its private key, without a passphrase",
        };
    }
}
