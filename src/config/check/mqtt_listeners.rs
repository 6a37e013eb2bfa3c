//! `[[broker.listeners]]`.

use std::sync::Arc;

use super::binds::Binds;
use super::{admission, credentials, listeners, socket_options};
use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Table;
use crate::config::schema::broker::listener as mqtt;
use crate::config::schema::listener as keys;
use crate::listener::{self, Admission};
use crate::pubsub::embedded::MqttListener;

/// All of them, in the order of the file.
pub(super) fn read(
    broker: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<Vec<MqttListener>, ErrorReported> {
    let rows = broker.rows(&mqtt::SECTION)?;
    let all: Vec<_> = rows.iter().enumerate().map(|(index, row)| one(index, row, external, binds)).collect();
    all.into_iter().collect()
}

fn one(
    index: usize,
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<MqttListener, ErrorReported> {
    let bind = table.get(&mqtt::BIND);
    if let Ok(bind) = bind {
        binds.add(table.location("bind"), bind.bind.address);
    }
    let path = table.get(&mqtt::PATH).and_then(|path| {
        let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        let expected = "a path such as \"/mqtt\"".to_owned();
        if is_path { Ok(path) } else { Err(table.fault_at("path", Fault::Malformed { found: path, expected })) }
    });
    let handshakes_max = table.get(&keys::HANDSHAKES_MAX);
    let connections_max = table.get(&keys::CONNECTIONS_MAX);
    let backlog = table.get(&keys::BACKLOG);
    let admission = admission::read(table, external, bind.ok().map(|bind| bind.bind));
    let socket_options = socket_options::read(table);
    // Without a transport it is not known what the table should have.
    let secure = bind.and_then(|bind| listeners::secure(table, bind.bind.transport, external));
    let bind = bind?;
    if table.item("tls").is_some() && !bind.bind.transport.is_secure() {
        let (transports, transport) = (&[crate::conn::SocketKind::Tls][..], bind.bind.transport);
        return Err(table.fault_at("tls", Fault::OtherTransport { transports, transport }));
    }
    let default = MqttListener::tcp(bind.bind.address);
    Ok(MqttListener {
        socket: listener::Options {
            name: format!("broker.listeners[{index}]").into(),
            bind: bind.bind,
            backlog: backlog?,
            handshakes_max: handshakes_max? as usize,
            admission: Admission { tls: secure?.tls, ..admission? },
            socket_options: socket_options?,
            ..default.socket
        },
        connections_max: connections_max? as usize,
        websocket: bind.is_websocket.then_some(Arc::from(path?)),
        files: credentials::files(table, external).into_iter().chain(admission::file(table, external)).collect(),
    })
}
