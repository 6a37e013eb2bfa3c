//! `[listeners.NAME]`: bound addresses, and the limits of their connections.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::binds::Binds;
use super::diagnostics::{Advice, ErrorReported};
use super::handler::{Handlers, check_name};
use super::location::{Alternatives, Quoted};
use super::read::{Item, Table, all, read_all};
use super::schema::section;
use super::value::{
    ACCESS_RULE, BIND_ADDRESS, FLAG, List, Located, OrTable, PATH, RATE, count, duration, millis, secs, size, text,
    values,
};
use super::{ExternalFiles, Listener, value};
use crate::conn::SocketKind;
use crate::conn::registry::MessageBounds;
use crate::connection::{self, Idle, Rates, Timeouts};
use crate::listener::access::{Access, Network, Networks, Rule};
use crate::listener::flow::Bounds;
use crate::listener::per_address::Limits;
use crate::listener::proxy::Options as ProxyOptions;
use crate::listener::{self, Admission, Bind, Datagrams, Keepalive, SocketOptions};
use crate::rate::Rate;
use crate::topic::Mountpoint;

pub(super) mod framing;
pub(super) mod tls;

section! {
    /// A bound address that accepts devices.
    "listeners", "[listeners.NAME]", Named;

    /// where it accepts; port 0 lets the system choose
    BIND "bind": Bind = BIND_ADDRESS, required;
    /// names of handlers; the first that is healthy serves, those behind it are its fallback, in order
    HANDLERS "handlers": Vec<Located<String>> =
        List { of: &text("a handler's name", 0..=64), one: "handler" }, required;
    /// put in front of the topics of its devices, and taken off on delivery; ends with `/`; may use `${clientid}`,
    /// `${username}` and `${peerhost}`
    MOUNTPOINT "mountpoint": String =
        text("a mountpoint such as \"trackers/${clientid}/\"", 0..=4096), default String::new();
    /// how long a new peer of tcp or tls may take to send its first byte; over udp and dtls, how long any peer may
    /// be silent, unless its handler has started a keepalive timer
    IDLE_TIMEOUT "idle_timeout": Duration = duration(millis(1)..=TIMEOUT_MAX), default secs(30);
    /// how long bytes may wait for a peer that takes none; then the connection ends
    WRITE_TIMEOUT "write_timeout": Duration = duration(millis(1)..=TIMEOUT_MAX), default secs(15);
    /// how long the handshake of a new peer of tls or dtls may take
    HANDSHAKE_TIMEOUT "handshake_timeout": Duration = duration(millis(1)..=secs(600)), default secs(10);
    /// peers of tls or dtls that may be about their handshake at a time; over tls more wait in the backlog, over
    /// dtls they are shed and counted
    HANDSHAKES_MAX "handshakes_max": usize = count(1..=1_000_000), default 4096;
    /// connections at a time; more peers wait in the backlog (tcp, tls), or are shed and counted (udp, dtls)
    CONNECTIONS_MAX "connections_max": usize = count(1..=100_000_000), default 1_000_000;
    /// peers that the kernel keeps until they are accepted; `net.core.somaxconn` bounds it too
    BACKLOG "backlog": u32 = count(1..=65_535), default 1024;
    /// tcp and tls: whether small pieces are sent at once; without, they may wait 40 ms for more (Nagle's
    /// algorithm)
    NODELAY "nodelay": bool = FLAG, default true;
    /// tcp and tls: the silence after which the kernel asks a device for a sign of life. It wakes the radios of
    /// sleeping devices; handlers that start a keepalive timer do not need it
    TCP_KEEPALIVE "tcp_keepalive": Duration = duration(secs(1)..=secs(32_767)), optional "never";
    /// how long the kernel waits for that sign before it asks again
    TCP_KEEPALIVE_INTERVAL "tcp_keepalive_interval": Duration = duration(secs(1)..=secs(32_767)), default secs(30);
    /// how often it asks before the connection is taken for dead
    TCP_KEEPALIVE_PROBES "tcp_keepalive_probes": u32 = count(1..=127), default 4;
    /// what the kernel keeps of what devices have sent: for each connection of tcp and tls, for each socket of udp
    /// and dtls; `net.core.rmem_max` bounds it too
    RECEIVE_BUFFER "receive_buffer": usize =
        size(4 << 10..=1 << 30), optional "the kernel's choice; `4MiB` for each socket of udp and dtls";
    /// the same of what is sent to devices; `net.core.wmem_max` bounds it too
    SEND_BUFFER "send_buffer": usize = size(4 << 10..=1 << 30), optional "the kernel's choice";
    /// the network device whose peers are served (`SO_BINDTODEVICE`)
    DEVICE "device": String = text("the name of a network device such as \"eth0\"", 1..=15), optional "all";
    /// whether other processes of the same user may bind the same address; the kernel shares the peers among them
    REUSE_PORT "reuse_port": bool = FLAG, default false;
    /// whether `[::]` leaves the peers of IPv4 to others
    IPV6_ONLY "ipv6_only": bool = FLAG, default false;
    /// sockets of a listener for udp or dtls, over which the kernel spreads the peers; one takes about one core
    SOCKETS "sockets": usize = count(1..=64), default 1;
    /// which addresses may connect, before any handshake; the first rule that fits decides, and whom none fits may
    ACCESS "access": Vec<Located<Rule>> = List { of: &ACCESS_RULE, one: "rule" }, optional "everybody may";
    /// a list of addresses and networks that may not connect, whatever `access` says; one a line, `#` begins a
    /// comment; read again at each reload
    DENY_FILE "deny_file": String = PATH, optional "none";
    /// how fast peers are accepted; more wait in the backlog, and new peers of a datagram socket are shed
    CONNECTION_RATE "connection_rate": Rate = RATE, optional "no limit";
    /// how fast one address may connect; more are refused. The whole number may come at once
    CONNECTION_RATE_PER_ADDRESS "connection_rate_per_address": Rate = RATE, optional "no limit";
    /// connections of one address at a time; more are refused. The first 64 bits of an IPv6 address count as one
    CONNECTIONS_PER_ADDRESS_MAX "connections_per_address_max": u32 = count(1..=100_000_000), optional "no limit";
    /// whether each connection begins with a PROXY header (version 1 or 2), in which a load balancer says whose it
    /// is; that address is the device's everywhere: in rules, limits, logs and `peername`
    PROXY_PROTOCOL "proxy_protocol": Option<ProxyOptions> = PROXY, default None;
    /// bytes from one device; over it its socket is not read for a while, and datagrams are shed
    BYTES_RATE "bytes_rate": Rate = value::BYTES_RATE, optional "no limit";
    /// datagrams from one device, or pieces that its stream is read in; over it as with `bytes_rate`
    PACKETS_RATE "packets_rate": Rate = RATE, optional "no limit";
    /// bytes of one connection that may wait for its handler; at this many its socket is not read (tcp, tls), or
    /// its datagrams wait for the connection, as many bytes again, and are shed and counted beyond (udp, dtls)
    INBOUND_MAX "inbound_max": usize = size(1 << 10..=64 << 20), default 64 << 10;
    /// datagrams of one peer of udp or dtls that may wait until its connection takes them; more are shed and
    /// counted
    DATAGRAMS_MAX "datagrams_max": usize = count(1..=65_536), default 256;
    /// bytes of one connection that may wait for its socket; at this many the next `Send` of a gRPC handler waits,
    /// and a guest's is refused
    OUTBOUND_MAX "outbound_max": usize = size(4 << 10..=1 << 30), default 1 << 20;
    /// messages of one connection, from their delivery until its handler takes them; more are shed and counted
    MESSAGES_MAX "messages_max": usize = count(1..=1_000_000), default 1000;
    /// topic and payload bytes of those messages; a message that does not fit is shed and counted
    MESSAGES_BYTES_MAX "messages_bytes_max": usize = size(1 << 10..=1 << 30), default 1 << 20;
    &framing::SECTION;
    &tls::SECTION;
}

/// Longest timeout of a connection: a peer that is silent for a day is gone.
const TIMEOUT_MAX: Duration = secs(24 * 60 * 60);

pub(super) mod proxy {
    use std::time::Duration;

    use crate::config::schema::section;
    use crate::config::value::{List, Located, NETWORK, duration, millis, secs};
    use crate::listener::access::Network;

    section! {
        /// Instead of `true`, the `proxy_protocol` of a listener on tcp or tls may be a table with these keys. A
        /// connection without a header, or with a wrong one, is ended and counted. A header that carries no TCP
        /// connection over IP (`UNKNOWN`, `LOCAL`, a Unix socket) leaves the balancer's own address.
        "", "PROXY headers", Once;

        /// who may connect at all, and so name any address as the device's: the balancers
        TRUSTED "trusted": Vec<Located<Network>> =
            List { of: &NETWORK, one: "address or network" }, optional "everybody";
        /// how long the header may take to come
        TIMEOUT "timeout": Duration = duration(millis(1)..=secs(60)), default TIMEOUT_DEFAULT;
    }

    pub(super) const TIMEOUT_DEFAULT: Duration = secs(3);
}

const PROXY: OrTable<Option<ProxyOptions>> = OrTable {
    name: "boolean or table",
    expected: "true, false or { trusted = [\"10.0.0.0/8\"] }",
    range: || format!("see {}", proxy::SECTION.title),
    scalar: |item| {
        let options = ProxyOptions { trusted: None, timeout: proxy::TIMEOUT_DEFAULT };
        item.value().as_bool().map(|wanted| Ok(wanted.then_some(options)))
    },
    section: &proxy::SECTION,
    table: |table| {
        read_all!(ProxyOptions {
            trusted: table.get(&proxy::TRUSTED).map(|trusted| trusted.map(values)),
            timeout: table.get(&proxy::TIMEOUT),
        })
        .map(Some)
    },
    show: |options| options.is_some().to_string(),
};

/// All listeners, in the order of the file. Without `handlers`, whose table has faults, the names of handlers are not
/// looked up.
pub(super) fn read(
    root: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
    handlers: Option<&Handlers<'_>>,
) -> Result<Vec<Listener>, ErrorReported> {
    let Some(item) = root.item(SECTION.key) else { return Ok(Vec::new()) };
    all(item.table()?.items().iter().map(|(name, item)| read_one(name, item, external, binds, handlers)))
}

fn read_one(
    name: &str,
    item: &Item<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
    handlers: Option<&Handlers<'_>>,
) -> Result<Listener, ErrorReported> {
    let checked = check_name(name, item);
    let table = &item.section(&SECTION)?;
    let name: Arc<str> = name.into();
    let bind = table.get(&BIND);
    if let Ok(bind) = bind {
        binds.add_listener(table.location("bind"), bind);
    }
    let chain = chain(table, handlers);
    let mountpoint = table.get_with(&MOUNTPOINT, |mountpoint| Mountpoint::parse(&mountpoint));
    let connections_max = table.get(&CONNECTIONS_MAX);
    let inbound_bytes_max = table.get(&INBOUND_MAX);
    let framing = framing::read(table, bind.ok());
    let socket = read_all!(listener::Options {
        name: Ok(Arc::clone(&name)),
        bind: bind,
        backlog: table.get(&BACKLOG),
        handshakes_max: table.get(&HANDSHAKES_MAX),
        admission: admission(table, external, bind),
        socket_options: socket_options(table),
        given: Ok(None),
        datagrams: read_all!(Datagrams {
            sockets: table.get(&SOCKETS),
            flows_max: connections_max,
            queue: read_all!(Bounds { datagrams_max: table.get(&DATAGRAMS_MAX), bytes_max: inbound_bytes_max }),
        }),
    });
    let connection = read_all!(connection::Options {
        listener: Ok(name),
        connections_max: connections_max,
        timeouts: read_all!(Timeouts { idle: idle(table, bind), write: table.get(&WRITE_TIMEOUT) }),
        inbound_bytes_max: inbound_bytes_max,
        messages: read_all!(MessageBounds {
            messages_max: table.get(&MESSAGES_MAX),
            bytes_max: table.get(&MESSAGES_BYTES_MAX),
        }),
        outbound_bytes_max: table.get(&OUTBOUND_MAX),
        rates: rates(table, bind),
        framing: framing.map(|framing| framing.map(Arc::new)),
    });
    checked?;
    check_transport(table, bind?.transport)?;
    read_all!(Listener {
        socket: socket,
        connection: connection,
        mountpoint: mountpoint,
        handlers: chain,
        files: Ok(files(table, external)),
    })
}

/// The keys that only some transports have.
const KEYS_OF_SOME: [(&str, &[SocketKind]); 9] = [
    ("backlog", &[SocketKind::Tcp, SocketKind::Tls]),
    ("proxy_protocol", &[SocketKind::Tcp, SocketKind::Tls]),
    ("nodelay", &[SocketKind::Tcp, SocketKind::Tls]),
    ("tcp_keepalive", &[SocketKind::Tcp, SocketKind::Tls]),
    ("tcp_keepalive_interval", &[SocketKind::Tcp, SocketKind::Tls]),
    ("tcp_keepalive_probes", &[SocketKind::Tcp, SocketKind::Tls]),
    ("sockets", &[SocketKind::Udp, SocketKind::Dtls]),
    ("datagrams_max", &[SocketKind::Udp, SocketKind::Dtls]),
    ("tls", &[SocketKind::Tls, SocketKind::Dtls]),
];

/// Records each key that the listener's transport does not have.
fn check_transport(table: &Table<'_>, transport: SocketKind) -> Result<(), ErrorReported> {
    all(KEYS_OF_SOME.into_iter().map(|(key, transports)| {
        // A feature that is switched off is no fault.
        let is_on = table.item(key).is_some_and(|item| item.value().as_bool() != Some(false));
        match is_on && !transports.contains(&transport) {
            true => Err(other_transport(table, key, transports, transport)),
            false => Ok(()),
        }
    }))
}

/// Records that only listeners on other transports have a key.
fn other_transport(table: &Table<'_>, key: &str, transports: &[SocketKind], transport: SocketKind) -> ErrorReported {
    let names: Vec<String> = transports.iter().map(SocketKind::to_string).collect();
    table.fault_at(key, format_args!("is for {}; this listener speaks {transport}", names.join(" and ")))
}

/// The names of a listener's handlers.
fn chain(table: &Table<'_>, handlers: Option<&Handlers<'_>>) -> Result<Vec<Arc<str>>, ErrorReported> {
    let mut chain: Vec<(Arc<str>, String)> = Vec::new();
    let mut result = Ok(());
    for Located { value: name, location } in table.get(&HANDLERS)? {
        if let Some((_, first)) = chain.iter().find(|(known, _)| **known == *name) {
            result = Err(table.duplicate(location, &name, first));
        } else if let Some(handlers) = handlers
            && !handlers.names().any(|known| known == name)
        {
            let known: Vec<&str> = handlers.names().collect();
            let message = format_args!("no handler is named {}; {}", Quoted(&name), Alternatives(&known));
            result = Err(table.fault_in(location, message));
        } else {
            chain.push((name.into(), location.position.to_string()));
        }
    }
    result.map(|()| chain.into_iter().map(|(name, _)| name).collect())
}

/// Access rules, handshake and connection limits. With a faulty `bind`, fewer checks are made.
fn admission(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    bind: Result<Bind, ErrorReported>,
) -> Result<Admission, ErrorReported> {
    let proxy = table.get(&PROXY_PROTOCOL);
    if let (Ok(Some(ProxyOptions { trusted: None, .. })), Ok(bind)) = (&proxy, bind)
        && !bind.address.ip().is_loopback()
    {
        table.warn_at("proxy_protocol", Advice::ProxyOpen);
    }
    let with_burst = |rate: Option<Rate>| rate.map(Rate::with_full_burst);
    let admission = read_all!(Admission {
        handshake_timeout: table.get(&HANDSHAKE_TIMEOUT),
        access: read_all!(Access {
            denied: denied(table, external).map(Arc::new),
            rules: table.get(&ACCESS).map(|rules| values(rules.unwrap_or_default())),
        }),
        // New peers of a datagram socket cannot wait.
        connection_rate: table.get(&CONNECTION_RATE).map(|rate| rate.map(|rate| burst_of_datagrams(rate, bind))),
        addresses: read_all!(Limits {
            connections_max: table.get(&CONNECTIONS_PER_ADDRESS_MAX),
            // Connections over the rate are rejected; those of a burst must not be.
            rate: table.get(&CONNECTION_RATE_PER_ADDRESS).map(with_burst),
        }),
        proxy: proxy,
        ..Admission::default()
    });
    let tls::Contexts { tls, dtls } = bind.and_then(|bind| tls::contexts(table, bind.transport, external))?;
    Ok(Admission { tls, dtls, ..admission? })
}

/// The rate for a listener: a stream waits, but datagrams are dropped, and those of a burst must not be.
fn burst_of_datagrams(rate: Rate, bind: Result<Bind, ErrorReported>) -> Rate {
    if bind.is_ok_and(|bind| bind.transport.has_datagrams()) { rate.with_full_burst() } else { rate }
}

/// The addresses of `deny_file`.
fn denied(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Networks, ErrorReported> {
    let Some(path) = table.get(&DENY_FILE)? else { return Ok(Networks::default()) };
    external
        .networks(&path)
        .or_else(|faults| all(faults.into_iter().map(|fault| Err::<Network, _>(table.fault_at("deny_file", fault)))))
}

fn idle(table: &Table<'_>, bind: Result<Bind, ErrorReported>) -> Result<Idle, ErrorReported> {
    let timeout = table.get(&IDLE_TIMEOUT)?;
    Ok(if bind?.transport.has_datagrams() { Idle::Always(timeout) } else { Idle::BeforeFirst(timeout) })
}

fn rates(table: &Table<'_>, bind: Result<Bind, ErrorReported>) -> Result<Rates, ErrorReported> {
    read_all!(Rates {
        bytes: table.get(&BYTES_RATE).map(|rate| rate.map(|rate| burst_of_datagrams(rate, bind))),
        packets: table.get(&PACKETS_RATE).map(|rate| rate.map(|rate| burst_of_datagrams(rate, bind))),
    })
}

fn socket_options(table: &Table<'_>) -> Result<SocketOptions, ErrorReported> {
    let (interval, probes) = (table.get(&TCP_KEEPALIVE_INTERVAL), table.get(&TCP_KEEPALIVE_PROBES));
    read_all!(SocketOptions {
        receive_buffer_bytes: table.get(&RECEIVE_BUFFER),
        send_buffer_bytes: table.get(&SEND_BUFFER),
        device: table.get(&DEVICE),
        reuse_port: table.get(&REUSE_PORT),
        ipv6_only: table.get(&IPV6_ONLY),
        nodelay: table.get(&NODELAY),
        keepalive: match table.get(&TCP_KEEPALIVE) {
            Ok(Some(idle)) => read_all!(Keepalive { idle: Ok(idle), interval: interval, probes: probes }).map(Some),
            absent => interval.and(probes).and(absent.map(|_| None)),
        },
    })
}

/// The files that a reload reads again: certificates, keys, and the list of addresses.
fn files(table: &Table<'_>, external: ExternalFiles<'_>) -> Vec<PathBuf> {
    let deny_file = table.item(DENY_FILE.name).and_then(|item| item.value().as_str());
    tls::files(table, external).into_iter().chain(deny_file.map(|path| external.path(path))).collect()
}
