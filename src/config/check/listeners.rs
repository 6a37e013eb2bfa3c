//! `[listeners.NAME]`.

use std::sync::Arc;
use std::time::Duration;

use super::admission;
use super::binds::Binds;
use super::credentials;
use super::handlers::{Handlers, check_name};
use super::{framing, socket_options};
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::{Named, Table};
use crate::config::schema::listener as keys;
use crate::config::{ExternalFiles, Listener};
use crate::conn::SocketKind;
use crate::conn::registry::MessageBounds;
use crate::connection::{Options, Timeouts};
use crate::listener::flow::Bounds;
use crate::listener::{self, Admission, Datagrams, dtls, tls};
use crate::topic::Mountpoint;

/// All listeners, in the order of the file. Without `handlers`, whose table is at fault, their names are
/// not looked up.
pub(super) fn read(
    root: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
    handlers: Option<&Handlers<'_>>,
) -> Result<Vec<Listener>, ErrorReported> {
    let Some(item) = root.item(keys::SECTION.key) else {
        return Ok(Vec::new());
    };
    let listeners: Vec<_> = item.table()?.items().iter().map(|named| one(named, external, binds, handlers)).collect();
    listeners.into_iter().collect()
}

fn one(
    named: &Named<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
    handlers: Option<&Handlers<'_>>,
) -> Result<Listener, ErrorReported> {
    let checked = check_name(named.key, &named.item);
    let table = named.item.section(&keys::ONE)?;
    let bind = table.get(&keys::BIND);
    if let Ok(bind) = bind {
        binds.add_listener(table.location("bind"), bind);
    }
    let chain = chain(&table, handlers);
    let mountpoint = table.get(&keys::MOUNTPOINT).and_then(|text| {
        Mountpoint::parse(&text).map_err(|error| table.fault_at("mountpoint", Fault::Mountpoint(error)))
    });
    let confirm = table.get(&keys::CONFIRM);
    let confirm_timeout = table.get(&keys::CONFIRM_TIMEOUT);
    let idle = table.get(&keys::IDLE_TIMEOUT);
    let login = table.get(&keys::LOGIN_TIMEOUT);
    let silence = table.get(&keys::SILENCE_TIMEOUT);
    let flow = table.get(&keys::FLOW_TIMEOUT);
    let write = table.get(&keys::WRITE_TIMEOUT);
    let handshakes_max = table.get(&keys::HANDSHAKES_MAX);
    let connections_max = table.get(&keys::CONNECTIONS_MAX);
    let backlog = table.get(&keys::BACKLOG);
    let admission = admission::read(&table, external, bind.ok());
    let rates = admission::rates(&table, bind.ok());
    let socket_options = socket_options::read(&table);
    let sockets = table.get(&keys::SOCKETS);
    let datagrams_max = table.get(&keys::DATAGRAMS_MAX);
    let inbound_bytes_max = table.get(&keys::INBOUND_MAX);
    let outbound_bytes_max = table.get(&keys::OUTBOUND_MAX);
    let messages_max = table.get(&keys::MESSAGES_MAX);
    let messages_bytes_max = table.get(&keys::MESSAGES_BYTES_MAX);
    let framing = framing::read(&table, bind);
    // Without a transport nobody knows what the table should have.
    let secure = bind.and_then(|bind| secure(&table, bind.transport, external));
    checked?;
    let name: Arc<str> = named.key.into();
    let bind = bind?;
    belong(&table, bind.transport)?;
    let (connections_max, inbound_bytes_max) = (connections_max? as usize, inbound_bytes_max?);
    let flow = flow?.or(match bind.transport {
        SocketKind::Udp => Some(UDP_FLOW_TIMEOUT),
        SocketKind::Dtls => Some(DTLS_FLOW_TIMEOUT),
        SocketKind::Tcp | SocketKind::Tls => None,
    });
    let silence = silence?.into_iter().chain(flow).min();
    let Secure { tls, dtls } = secure?;
    Ok(Listener {
        socket: listener::Options {
            name: Arc::clone(&name),
            bind,
            backlog: backlog?,
            handshakes_max: handshakes_max? as usize,
            admission: Admission { tls, dtls, ..admission? },
            socket_options: socket_options?,
            given: None,
            datagrams: Datagrams {
                sockets: sockets? as usize,
                flows_max: connections_max,
                queue: Bounds { datagrams_max: datagrams_max? as usize, bytes_max: inbound_bytes_max },
            },
        },
        connection: Options {
            listener: name,
            connections_max,
            timeouts: Timeouts { idle: idle?, login: login?, silence, write: write? },
            inbound_bytes_max,
            messages: MessageBounds { messages_max: messages_max? as usize, bytes_max: messages_bytes_max? },
            outbound_bytes_max: outbound_bytes_max?,
            rates: rates?,
            framing: framing?.map(Arc::new),
        },
        mountpoint: mountpoint?,
        confirm_timeout: match confirm? {
            keys::Confirm::Off => None,
            keys::Confirm::BeforeSend => Some(confirm_timeout?),
        },
        handlers: chain?,
        files: credentials::files(&table, external).into_iter().chain(admission::file(&table, external)).collect(),
    })
}

/// Default of `flow_timeout`: a UDP flow costs a handshake of no one.
const UDP_FLOW_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Default of `flow_timeout`: a meter that reports once an hour must not repeat its handshake each time.
const DTLS_FLOW_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The keys that mean something to some transports only.
const KEYS_OF_SOME: [(&str, &[SocketKind]); 10] = [
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

/// Records each key that the listener's transport has no use for.
fn belong(table: &Table<'_>, transport: SocketKind) -> Result<(), ErrorReported> {
    let mut result = Ok(());
    for (key, transports) in KEYS_OF_SOME {
        // What is switched off asks for nothing.
        let is_asked = table.item(key).is_some_and(|item| item.value().as_bool() != Some(false));
        if is_asked && !transports.contains(&transport) {
            result = Err(table.fault_at(key, Fault::OtherTransport { transports, transport }));
        }
    }
    result
}

/// What makes TLS or DTLS, on a listener that speaks it.
pub(super) fn secure(
    table: &Table<'_>,
    transport: SocketKind,
    external: ExternalFiles<'_>,
) -> Result<Secure, ErrorReported> {
    let Some(credentials) = credentials::read(table, transport, external)? else { return Ok(Secure::default()) };
    let fault = |error| table.fault_at("tls", Fault::Acceptor(error));
    if transport.has_datagrams() {
        let options = credentials::datagrams(table)?;
        let context = dtls::Context::new(&credentials, &options).map_err(|error| fault(error.into()))?;
        Ok(Secure { tls: None, dtls: Some(context) })
    } else {
        Ok(Secure { tls: Some(tls::Acceptor::new(credentials).map_err(fault)?), dtls: None })
    }
}

/// At most one of the two.
#[derive(Default)]
pub(super) struct Secure {
    pub(super) tls: Option<tls::Acceptor>,
    pub(super) dtls: Option<dtls::Context>,
}

/// The names of a listener's handlers.
fn chain(table: &Table<'_>, handlers: Option<&Handlers<'_>>) -> Result<Vec<Arc<str>>, ErrorReported> {
    let written = table.get(&keys::HANDLERS)?;
    let mut chain: Vec<(Arc<str>, String)> = Vec::new();
    let mut result = Ok(());
    for placed in written {
        let name = placed.value;
        let fault = if let Some((_, first)) = chain.iter().find(|(known, _)| **known == *name) {
            Fault::Twice { found: name, first: first.clone() }
        } else if let Some(handlers) = handlers
            && !handlers.names().any(|known| known == name)
        {
            Fault::NoHandler { name, known: handlers.names().map(str::to_owned).collect() }
        } else {
            chain.push((name.into(), placed.location.position.to_string()));
            continue;
        };
        result = Err(table.fault_in(placed.location, fault));
    }
    result?;
    Ok(chain.into_iter().map(|(name, _)| name).collect())
}
