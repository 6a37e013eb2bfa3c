//! `[[broker.listeners]]`: where MQTT clients connect.

use std::sync::Arc;

use crate::config::binds::Binds;
use crate::config::diagnostics::{ErrorReported, Fault};
use crate::config::read::{Table, read_all};
use crate::config::schema::section;
use crate::config::value::{MQTT_BIND, text};
use crate::config::{ExternalFiles, listener as keys};
use crate::conn::SocketKind;
use crate::listener::{self, Bind};
use crate::pubsub::embedded::MqttListener;

section! {
    /// A bound address that accepts MQTT clients. The keys of the same name as in `[listeners.NAME]` mean the same.
    "listeners", "[[broker.listeners]]", Rows;

    /// the address to accept MQTT clients at: over TCP, TLS, WebSocket or WebSocket over TLS; port 0 lets the system
    /// choose
    BIND "bind": (Bind, bool) = MQTT_BIND, required;
    /// ws and wss: the path of the WebSocket
    PATH "path": String = text("a path such as \"/mqtt\"", 1..=256), default "/mqtt".to_owned();
    &keys::HANDSHAKE_TIMEOUT;
    &keys::HANDSHAKES_MAX;
    &keys::CONNECTIONS_MAX;
    &keys::BACKLOG;
    &keys::NODELAY;
    &keys::TCP_KEEPALIVE;
    &keys::TCP_KEEPALIVE_INTERVAL;
    &keys::TCP_KEEPALIVE_PROBES;
    &keys::RECEIVE_BUFFER;
    &keys::SEND_BUFFER;
    &keys::DEVICE;
    &keys::REUSE_PORT;
    &keys::IPV6_ONLY;
    &keys::ACCESS;
    &keys::DENY_FILE;
    &keys::CONNECTION_RATE;
    &keys::CONNECTION_RATE_PER_ADDRESS;
    &keys::CONNECTIONS_PER_ADDRESS_MAX;
    &keys::PROXY_PROTOCOL;
    &keys::tls::SECTION;
}

/// All of them, in the order of the file.
pub(super) fn read(
    broker: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<Vec<MqttListener>, ErrorReported> {
    let mut index = 0;
    broker.rows(&SECTION, |row| {
        let name = format!("broker.listeners[{index}]");
        index += 1;
        read_one(name.into(), &row, external, binds)
    })
}

fn read_one(
    name: Arc<str>,
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<MqttListener, ErrorReported> {
    let written = table.get(&BIND);
    if let Ok((bind, _)) = written {
        binds.add_listener(table.location("bind"), bind);
    }
    let bind = written.map(|(bind, _)| bind);
    let path = table.get_with(&PATH, |path| {
        let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        if is_path { Ok(path) } else { Err(Fault::new("expected a path such as \"/mqtt\"")) }
    });
    let socket = read_all!(listener::Options {
        name: Ok(name),
        bind: bind,
        backlog: table.get(&keys::BACKLOG),
        handshakes_max: table.get(&keys::HANDSHAKES_MAX),
        admission: keys::admission(table, external, bind),
        socket_options: keys::socket_options(table),
        given: Ok(None),
        datagrams: bind.map(|bind| MqttListener::tcp(bind.address).socket.datagrams),
    });
    let transport = bind?.transport;
    if table.has("tls") && !transport.is_secure() {
        return Err(keys::other_transport(table, "tls", &[SocketKind::Tls], transport));
    }
    read_all!(MqttListener {
        socket: socket,
        connections_max: table.get(&keys::CONNECTIONS_MAX),
        websocket: written.and_then(|(_, is_websocket)| Ok(is_websocket.then_some(path?.into()))),
        files: Ok(keys::files(table, external)),
    })
}
