//! What the operating system is told of a listener's sockets.

use crate::config::diagnostics::ErrorReported;
use crate::config::read::Table;
use crate::config::schema::listener as keys;
use crate::listener::{Keepalive, SocketOptions};

/// What a listener's table says.
pub(super) fn read(table: &Table<'_>) -> Result<SocketOptions, ErrorReported> {
    let nodelay = table.get(&keys::NODELAY);
    let idle = table.get(&keys::TCP_KEEPALIVE);
    let interval = table.get(&keys::TCP_KEEPALIVE_INTERVAL);
    let probes = table.get(&keys::TCP_KEEPALIVE_PROBES);
    let receive_buffer_bytes = table.get(&keys::RECEIVE_BUFFER);
    let send_buffer_bytes = table.get(&keys::SEND_BUFFER);
    let device = table.get(&keys::DEVICE);
    let reuse_port = table.get(&keys::REUSE_PORT);
    let ipv6_only = table.get(&keys::IPV6_ONLY);
    let (interval, probes) = (interval?, probes?);
    Ok(SocketOptions {
        receive_buffer_bytes: receive_buffer_bytes?,
        send_buffer_bytes: send_buffer_bytes?,
        device: device?,
        reuse_port: reuse_port?,
        ipv6_only: ipv6_only?,
        nodelay: nodelay?,
        keepalive: idle?.map(|idle| Keepalive { idle, interval, probes }),
    })
}
