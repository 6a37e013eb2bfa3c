//! `[[broker.listeners]]`: bound addresses for MQTT clients.

use std::sync::Arc;

use crate::config::ExternalFiles;
use crate::config::binds::Binds;
use crate::config::diagnostics::ErrorReported;
use crate::config::listener::{
    self as keys, ACCESS, BACKLOG, CONNECTION_RATE, CONNECTION_RATE_PER_ADDRESS, CONNECTIONS_MAX,
    CONNECTIONS_PER_ADDRESS_MAX, DENY_FILE, DEVICE, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, IPV6_ONLY, NODELAY,
    PROXY_PROTOCOL, RECEIVE_BUFFER, REUSE_PORT, SEND_BUFFER, TCP_KEEPALIVE, TCP_KEEPALIVE_INTERVAL,
    TCP_KEEPALIVE_PROBES,
};
use crate::config::location::Quoted;
use crate::config::read::{Table, read_all};
use crate::config::schema::section;
use crate::config::value::{Parsed, Range, Rejected, quoted, string, text};
use crate::conn::SocketKind;
use crate::listener::{self, Bind};
use crate::pubsub::embedded::MqttListener;

section! {
    /// A bound address for MQTT clients. Keys that `[listeners.NAME]` has too mean the same.
    "listeners", "[[broker.listeners]]", Rows;

    /// the address for MQTT clients: MQTT over TCP, TLS, WebSocket or WebSocket over TLS; port 0 lets the system choose
    BIND "bind": MqttBind = MQTT_BIND, required;
    /// ws and wss: the path of the WebSocket
    PATH "path": String = text("a path such as \"/mqtt\"", 1..=256), default "/mqtt".to_owned();
    &HANDSHAKE_TIMEOUT;
    &HANDSHAKES_MAX;
    &CONNECTIONS_MAX;
    &BACKLOG;
    &NODELAY;
    &TCP_KEEPALIVE;
    &TCP_KEEPALIVE_INTERVAL;
    &TCP_KEEPALIVE_PROBES;
    &RECEIVE_BUFFER;
    &SEND_BUFFER;
    &DEVICE;
    &REUSE_PORT;
    &IPV6_ONLY;
    &ACCESS;
    &DENY_FILE;
    &CONNECTION_RATE;
    &CONNECTION_RATE_PER_ADDRESS;
    &CONNECTIONS_PER_ADDRESS_MAX;
    &PROXY_PROTOCOL;
    &keys::tls::SECTION;
}

/// The address of a listener for MQTT clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct MqttBind {
    /// TCP or TLS.
    bind: Bind,
    is_websocket: bool,
}

/// The schemes, each with its transport and whether it is a WebSocket.
const SCHEMES: [(&str, SocketKind, bool); 4] = [
    ("tcp", SocketKind::Tcp, false),
    ("tls", SocketKind::Tls, false),
    ("ws", SocketKind::Tcp, true),
    ("wss", SocketKind::Tls, true),
];

const MQTT_BIND: Parsed<MqttBind> = Parsed {
    name: "`tcp://`, `tls://`, `ws://` or `wss://`, IP address and port",
    expected: "an address such as \"tls://0.0.0.0:8883\" or \"ws://127.0.0.1:8083\"; the transports are tcp, tls, ws and \
               wss",
    range: Range::Any,
    parse: |value| {
        let (scheme, address) = string(value)?.split_once("://").ok_or(Rejected::Form)?;
        let mut schemes = SCHEMES.into_iter();
        let (_, transport, is_websocket) = schemes.find(|(known, ..)| *known == scheme).ok_or(Rejected::Form)?;
        let address = address.parse().map_err(|_| Rejected::Form)?;
        Ok(MqttBind { bind: Bind { transport, address }, is_websocket })
    },
    show: |MqttBind { bind, is_websocket }| {
        let mut schemes = SCHEMES.into_iter();
        let scheme = schemes.find(|(_, kind, websocket)| (kind, websocket) == (&bind.transport, is_websocket));
        quoted(&format_args!("{}://{}", scheme.map_or("tcp", |(scheme, ..)| scheme), bind.address))
    },
};

/// The listeners, in the order of the file.
pub(super) fn read(
    broker: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<Vec<MqttListener>, ErrorReported> {
    let mut index = 0..;
    broker.rows(&SECTION, |row| read_one(index.next().unwrap_or(0), &row, external, binds))
}

fn read_one(
    index: usize,
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<MqttListener, ErrorReported> {
    let written = table.get(&BIND);
    if let Ok(written) = written {
        binds.add_listener(table.location(BIND.name), written.bind);
    }
    let bind = written.map(|written| written.bind);
    let path =
        table.get_with(&PATH, |path| match path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(path),
            false => Err(format!("{} is not a path such as \"/mqtt\"", Quoted(&path))),
        });
    let tls = match bind {
        Ok(bind) if table.has("tls") && !bind.transport.is_secure() => {
            Err(keys::other_transport(table, "tls", &[SocketKind::Tls], bind.transport))
        }
        _ => Ok(()),
    };
    let socket = read_all!(listener::Options {
        name: Ok(format!("broker.listeners[{index}]").into()),
        bind: bind,
        backlog: table.get(&BACKLOG),
        unverified_max: table.get(&HANDSHAKES_MAX),
        admission: keys::admission(table, external, bind),
        socket_options: keys::socket_options(table),
        given: Ok(None),
        // For none: its transports are streams.
        datagrams: bind.map(|bind| MqttListener::tcp(bind.address).socket.datagrams),
    });
    let listener = read_all!(MqttListener {
        socket: socket,
        connections_max: table.get(&CONNECTIONS_MAX).map(|max| max.unwrap_or(keys::STREAM_CONNECTIONS_MAX)),
        websocket: path.and_then(|path| written.map(|written| written.is_websocket.then_some(Arc::from(path)))),
        files: Ok(keys::files(table, external)),
    });
    tls.and(listener)
}
