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
    ACCESS_RULE, BIND_ADDRESS, Choice, FLAG, List, Located, NETWORK, OrTable, PATH, RATE, count, duration, millis,
    secs, size, text, values,
};
use super::{ExternalFiles, Listener, value};
use crate::conn::SocketKind;
use crate::conn::registry::MessageBounds;
use crate::connection::{self, Rates, Timeouts, UnverifiedLimits};
use crate::handler::wasm::SLOTS_MAX;
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

    /// the address to accept connections at; port 0 lets the system choose
    BIND "bind": Bind = BIND_ADDRESS, required;
    /// names of handlers; the first healthy one serves, the next ones are the fallback, in order
    HANDLERS "handlers": Vec<Located<String>> =
        List { of: &text("a handler's name", 0..=64), one: "handler" }, required;
    /// prefix of the topics of the devices, removed on delivery; ends with `/`; may use `${clientid}`, `${username}`
    /// and `${peerhost}`
    MOUNTPOINT "mountpoint": String =
        text("a mountpoint such as \"trackers/${clientid}/\"", 0..=4096), default String::new();
    /// `before-send`: bytes that a handler sends after a message of QoS 1 or 2 leave only when the broker has
    /// acknowledged the message, so a device keeps its record until it is safe
    CONFIRM "confirm": Confirm =
        Choice(&[("off", Confirm::Off), ("before-send", Confirm::BeforeSend)]), default Confirm::Off;
    /// how long that may take; then the connection ends without these bytes, with reason `unconfirmed`
    CONFIRM_TIMEOUT "confirm_timeout": Duration = duration(millis(10)..=secs(600)), default secs(5);
    /// time limit for the first byte of a new connection
    IDLE_TIMEOUT "idle_timeout": Duration = duration(millis(1)..=TIMEOUT_MAX), default secs(30);
    /// time limit for the handler to authenticate a new connection; then it is closed with reason `login_timed_out`.
    /// Recommended beyond loopback: otherwise a peer keeps its place for ever by sending any byte
    LOGIN_TIMEOUT "login_timeout": Duration =
        duration(millis(1)..=TIMEOUT_MAX), optional "none, since some handlers never authenticate";
    /// time without a byte from the device after which its connection is closed, unless its handler has started a
    /// keepalive timer
    SILENCE_TIMEOUT "silence_timeout": Duration = duration(millis(1)..=SILENCE_MAX), optional "none";
    /// the same for udp and dtls, with a default: a datagram peer never closes, so an abandoned flow would stay for ever
    FLOW_TIMEOUT "flow_timeout": Duration =
        duration(millis(1)..=SILENCE_MAX), optional "`\"5m\"` for udp, `\"1d\"` for dtls";
    /// how long bytes may wait for a peer that receives none; then the connection ends
    WRITE_TIMEOUT "write_timeout": Duration = duration(millis(1)..=TIMEOUT_MAX), default secs(15);
    /// how long the handshake of a new peer of tls or dtls may take
    HANDSHAKE_TIMEOUT "handshake_timeout": Duration = duration(millis(1)..=secs(600)), default secs(10);
    /// concurrent handshakes of tls or dtls, shared out among the addresses; over tls more peers wait, over dtls they are
    /// rejected and counted
    HANDSHAKES_MAX "handshakes_max": usize = count(1..=1_000_000), default 4096;
    /// flows of udp whose peers are unverified: they have neither authenticated nor sent a datagram after an answer, so their
    /// addresses may be spoofed. At this many, a new flow ends the oldest of them
    UNVERIFIED_MAX "unverified_max": usize = count(1..=1_000_000), default 4096;
    /// how long a flow of udp may stay unverified; then it ends with reason `unverified`
    UNVERIFIED_TIMEOUT "unverified_timeout": Duration = duration(millis(10)..=TIMEOUT_MAX), default secs(5);
    /// bytes that an unverified peer of udp gets for each byte that it has sent, with the headers of IPv4 and UDP; answers beyond are dropped and counted, so
    /// that the listener does not amplify attacks on spoofed addresses
    UNVERIFIED_ANSWER_FACTOR "unverified_answer_factor": u32 = count(1..=65_536), default 10;
    /// concurrent connections; more peers wait in the backlog (tcp, tls), or are rejected and counted (udp, dtls)
    CONNECTIONS_MAX "connections_max": usize =
        count(1..=100_000_000), optional "1000000; 131072 for udp, half of the instances that guests have";
    /// connections that the kernel queues until they are accepted; `net.core.somaxconn` bounds it too
    BACKLOG "backlog": u32 = count(1..=65_535), default 1024;
    /// tcp and tls: whether small writes are sent at once (`TCP_NODELAY`); otherwise Nagle's algorithm may delay them
    /// by 40 ms
    NODELAY "nodelay": bool = FLAG, default true;
    /// tcp and tls: the silence after which the kernel sends keepalive probes. They wake the radios of sleeping
    /// devices; handlers that start a keepalive timer do not need it
    TCP_KEEPALIVE "tcp_keepalive": Duration = duration(secs(1)..=secs(32_767)), optional "never";
    /// the interval between two keepalive probes
    TCP_KEEPALIVE_INTERVAL "tcp_keepalive_interval": Duration = duration(secs(1)..=secs(32_767)), default secs(30);
    /// unanswered keepalive probes after which the connection is dead
    TCP_KEEPALIVE_PROBES "tcp_keepalive_probes": u32 = count(1..=127), default 4;
    /// the kernel's receive buffer (`SO_RCVBUF`): of each connection of tcp and tls, of each socket of udp and dtls;
    /// `net.core.rmem_max` bounds it too
    RECEIVE_BUFFER "receive_buffer": usize =
        size(4 << 10..=1 << 30), optional "the kernel's choice; `4MiB` for each socket of udp and dtls";
    /// the kernel's send buffer (`SO_SNDBUF`), likewise; `net.core.wmem_max` bounds it too
    SEND_BUFFER "send_buffer": usize = size(4 << 10..=1 << 30), optional "the kernel's choice";
    /// the network device whose peers are served (`SO_BINDTODEVICE`)
    DEVICE "device": String = text("the name of a network device such as \"eth0\"", 1..=15), optional "all";
    /// whether other processes of the same user may bind the same address; the kernel balances the peers
    /// (`SO_REUSEPORT`)
    REUSE_PORT "reuse_port": bool = FLAG, default false;
    /// whether `[::]` accepts IPv6 peers alone (`IPV6_V6ONLY`)
    IPV6_ONLY "ipv6_only": bool = FLAG, default false;
    /// sockets of a listener for udp or dtls, over which the kernel balances the peers; one uses about one core
    SOCKETS "sockets": usize = count(1..=64), default 1;
    /// addresses that may connect, checked before any handshake; the first rule that matches decides, and without a
    /// match the address may connect
    ACCESS "access": Vec<Located<Rule>> = List { of: &ACCESS_RULE, one: "rule" }, optional "all may connect";
    /// a list of addresses and networks that may not connect, whatever `access` says; one a line, `#` begins a comment;
    /// read again at each reload
    DENY_FILE "deny_file": String = PATH, optional "none";
    /// new connections in a time; more wait in the backlog (tcp, tls), or are rejected and counted (udp, dtls)
    CONNECTION_RATE "connection_rate": Rate = RATE, optional "no limit";
    /// new connections of one address in a time; more are rejected. The whole number may come as a burst
    CONNECTION_RATE_PER_ADDRESS "connection_rate_per_address": Rate = RATE, optional "no limit";
    /// concurrent connections of one address; more are rejected. The first 64 bits of an IPv6 address count as one
    CONNECTIONS_PER_ADDRESS_MAX "connections_per_address_max": u32 = count(1..=100_000_000), optional "no limit";
    /// whether each connection begins with a PROXY header (version 1 or 2), in which a load balancer sends the address
    /// of the device; that address is used everywhere: in rules, limits, logs and `peername`
    PROXY_PROTOCOL "proxy_protocol": Option<ProxyOptions> = PROXY, default None;
    /// bytes from one device in a time; above it the socket is not read for a while, and datagrams are dropped
    BYTES_RATE "bytes_rate": Rate = value::BYTES_RATE, optional "no limit";
    /// datagrams from one device in a time, or reads of its stream; above it as with `bytes_rate`
    PACKETS_RATE "packets_rate": Rate = RATE, optional "no limit";
    /// bytes of one connection that may wait for its handler; at this many its socket is not read (tcp, tls), or its
    /// datagrams queue before the connection, as many bytes again, and more are dropped and counted (udp, dtls)
    INBOUND_MAX "inbound_max": usize = size(1 << 10..=64 << 20), default 64 << 10;
    /// queued datagrams of one peer of udp or dtls, before its connection; more are dropped and counted
    DATAGRAMS_MAX "datagrams_max": usize = count(1..=65_536), default 256;
    /// bytes of one connection that may wait for its socket; at this many the next `Send` of a gRPC handler waits, and
    /// that of a guest is rejected
    OUTBOUND_MAX "outbound_max": usize = size(4 << 10..=1 << 30), default 1 << 20;
    /// queued messages for the handler of one connection; more are dropped and counted
    MESSAGES_MAX "messages_max": usize = count(1..=1_000_000), default 1000;
    /// topic and payload bytes of those messages; a message that does not fit is dropped and counted
    MESSAGES_BYTES_MAX "messages_bytes_max": usize = size(1 << 10..=1 << 30), default 1 << 20;
    &framing::SECTION;
    &tls::SECTION;
}

/// When bytes leave that a handler sends after a message of QoS 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Confirm {
    Off,
    BeforeSend,
}

/// Longest timeout of a connection: a peer that is silent for a day is gone.
const TIMEOUT_MAX: Duration = secs(24 * 60 * 60);

/// Longest time of silence: some meters report once a month.
const SILENCE_MAX: Duration = secs(31 * 24 * 60 * 60);

/// Default of `connections_max`.
pub(super) const STREAM_CONNECTIONS_MAX: usize = 1_000_000;

/// The same over udp, where a source address costs nothing: half of the instances, so that the other listeners keep theirs.
const UDP_CONNECTIONS_MAX: usize = SLOTS_MAX / 2;

/// Default of `flow_timeout` over udp, where a new flow costs the device nothing.
const UDP_FLOW_TIMEOUT: Duration = secs(5 * 60);

/// Default of `flow_timeout` over dtls: a meter that reports once an hour must not repeat its handshake each time.
const DTLS_FLOW_TIMEOUT: Duration = secs(24 * 60 * 60);

section! {
    mod proxy;
    /// Instead of `true`, the `proxy_protocol` of a listener on tcp or tls may be a table with these keys. A connection
    /// without a header, or with a malformed one, is closed and counted. A header that carries no TCP connection over
    /// IP (`UNKNOWN`, `LOCAL`, a Unix socket) leaves the balancer's own address.
    "", "PROXY headers", Once;

    /// the balancers: addresses that may connect, and send any address as that of the device
    TRUSTED "trusted": Vec<Located<Network>> =
        List { of: &NETWORK, one: "address or network" }, optional "all";
    /// how long the header may take to arrive
    TIMEOUT "timeout": Duration = duration(millis(1)..=secs(60)), default PROXY_TIMEOUT_DEFAULT;
}

const PROXY_TIMEOUT_DEFAULT: Duration = secs(3);

const PROXY: OrTable<Option<ProxyOptions>> = OrTable {
    name: "boolean or table",
    expected: "true, false or { trusted = [\"10.0.0.0/8\"] }",
    range: || format!("see {}", proxy::SECTION.title),
    scalar: |item| {
        let options = ProxyOptions { trusted: None, timeout: PROXY_TIMEOUT_DEFAULT };
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
    let connections_max = connections_max(table, bind);
    let inbound_bytes_max = table.get(&INBOUND_MAX);
    let framing = framing::read(table, bind.ok());
    let socket = read_all!(listener::Options {
        name: Ok(Arc::clone(&name)),
        bind: bind,
        backlog: table.get(&BACKLOG),
        unverified_max: unverified_max(table, bind),
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
        timeouts: read_all!(Timeouts {
            idle: table.get(&IDLE_TIMEOUT),
            login: table.get(&LOGIN_TIMEOUT),
            silence: silence(table, bind),
            write: table.get(&WRITE_TIMEOUT),
        }),
        unverified: read_all!(UnverifiedLimits {
            timeout: table.get(&UNVERIFIED_TIMEOUT),
            answer_factor: table.get(&UNVERIFIED_ANSWER_FACTOR),
        }),
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
    warn_of_strangers(table, bind?);
    read_all!(Listener {
        socket: socket,
        connection: connection,
        mountpoint: mountpoint,
        handlers: chain,
        confirm_timeout: confirm_timeout(table),
        files: Ok(files(table, external)),
    })
}

/// The keys that only some transports have.
const KEYS_OF_SOME: [(&str, &[SocketKind]); 13] = [
    ("unverified_max", &[SocketKind::Udp]),
    ("unverified_timeout", &[SocketKind::Udp]),
    ("unverified_answer_factor", &[SocketKind::Udp]),
    ("flow_timeout", &[SocketKind::Udp, SocketKind::Dtls]),
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
pub(super) fn other_transport(
    table: &Table<'_>,
    key: &str,
    transports: &[SocketKind],
    transport: SocketKind,
) -> ErrorReported {
    let names: Vec<String> = transports.iter().map(SocketKind::to_string).collect();
    table.fault_at(key, format_args!("is for {}; this listener speaks {transport}", names.join(" and ")))
}

fn confirm_timeout(table: &Table<'_>) -> Result<Option<Duration>, ErrorReported> {
    let (confirm, timeout) = (table.get(&CONFIRM), table.get(&CONFIRM_TIMEOUT));
    Ok(match confirm? {
        Confirm::Off => timeout.map(|_| None)?,
        Confirm::BeforeSend => Some(timeout?),
    })
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
pub(super) fn admission(
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

fn connections_max(table: &Table<'_>, bind: Result<Bind, ErrorReported>) -> Result<usize, ErrorReported> {
    let given = table.get(&CONNECTIONS_MAX)?;
    let is_udp = bind.is_ok_and(|bind| bind.transport == SocketKind::Udp);
    Ok(given.unwrap_or(if is_udp { UDP_CONNECTIONS_MAX } else { STREAM_CONNECTIONS_MAX }))
}

fn unverified_max(table: &Table<'_>, bind: Result<Bind, ErrorReported>) -> Result<usize, ErrorReported> {
    let (handshakes, flows) = (table.get(&HANDSHAKES_MAX), table.get(&UNVERIFIED_MAX));
    match bind?.transport {
        SocketKind::Udp => handshakes.and(flows),
        SocketKind::Tcp | SocketKind::Tls | SocketKind::Dtls => flows.and(handshakes),
    }
}

/// Advice for a listener that strangers can reach.
fn warn_of_strangers(table: &Table<'_>, bind: Bind) {
    if bind.address.ip().is_loopback() {
        return;
    }
    if table.item(LOGIN_TIMEOUT.name).is_none() {
        table.warn_at(LOGIN_TIMEOUT.name, Advice::LoginUnbounded);
    }
    let limits = [CONNECTION_RATE.name, CONNECTION_RATE_PER_ADDRESS.name];
    if bind.transport == SocketKind::Udp && limits.iter().all(|name| table.item(name).is_none()) {
        table.warn_at(CONNECTION_RATE.name, Advice::UdpUnlimited);
    }
}

fn silence(table: &Table<'_>, bind: Result<Bind, ErrorReported>) -> Result<Option<Duration>, ErrorReported> {
    let (silence, flow) = (table.get(&SILENCE_TIMEOUT), table.get(&FLOW_TIMEOUT));
    let default = match bind?.transport {
        SocketKind::Udp => Some(UDP_FLOW_TIMEOUT),
        SocketKind::Dtls => Some(DTLS_FLOW_TIMEOUT),
        SocketKind::Tcp | SocketKind::Tls => None,
    };
    Ok(silence?.into_iter().chain(flow?.or(default)).min())
}

fn rates(table: &Table<'_>, bind: Result<Bind, ErrorReported>) -> Result<Rates, ErrorReported> {
    read_all!(Rates {
        bytes: table.get(&BYTES_RATE).map(|rate| rate.map(|rate| burst_of_datagrams(rate, bind))),
        packets: table.get(&PACKETS_RATE).map(|rate| rate.map(|rate| burst_of_datagrams(rate, bind))),
    })
}

pub(super) fn socket_options(table: &Table<'_>) -> Result<SocketOptions, ErrorReported> {
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
pub(super) fn files(table: &Table<'_>, external: ExternalFiles<'_>) -> Vec<PathBuf> {
    let deny_file = table.item(DENY_FILE.name).and_then(|item| item.value().as_str());
    tls::files(table, external).into_iter().chain(deny_file.map(|path| external.path(path))).collect()
}
