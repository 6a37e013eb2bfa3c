//! Who may connect to a listener, how fast, and as whom.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Table;
use crate::config::schema::listener as keys;
use crate::config::warning::Advice;
use crate::connection::Rates;
use crate::listener::access::{Access, Networks};
use crate::listener::per_address::Limits;
use crate::listener::{Admission, Bind};
use crate::rate::Rate;

/// What a listener's table says; without `bind`, which is at fault, less is looked at.
pub(super) fn read(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    bind: Option<Bind>,
) -> Result<Admission, ErrorReported> {
    let handshake_timeout = table.get(&keys::HANDSHAKE_TIMEOUT);
    let rules = table.get(&keys::ACCESS);
    let denied = denied(table, external);
    let connection_rate = table.get(&keys::CONNECTION_RATE);
    let rate_per_address = table.get(&keys::CONNECTION_RATE_PER_ADDRESS);
    let connections_per_address_max = table.get(&keys::CONNECTIONS_PER_ADDRESS_MAX);
    let proxy = table.get(&keys::PROXY_PROTOCOL);
    let proxy = match (proxy, bind) {
        (Ok(Some(proxy)), Some(bind)) => {
            if proxy.trusted.is_none() && !bind.address.ip().is_loopback() {
                table.warn_at("proxy_protocol", Advice::ProxyOpen);
            }
            Ok(Some(proxy))
        }
        (proxy, _) => proxy,
    };
    let rules = rules?.unwrap_or_default().into_iter().map(|placed| placed.value).collect();
    let with_full_burst = bind.is_some_and(|bind| bind.transport.has_datagrams());
    Ok(Admission {
        handshake_timeout: handshake_timeout?,
        access: Access { denied: Arc::new(denied?), rules },
        // New peers of a datagram socket cannot wait.
        connection_rate: connection_rate?.map(|rate| if with_full_burst { rate.with_full_burst() } else { rate }),
        addresses: Limits {
            connections_max: connections_per_address_max?,
            // Who is over it is refused, so what comes in a cluster must not be.
            rate: rate_per_address?.map(Rate::with_full_burst),
        },
        proxy: proxy?,
        ..Admission::default()
    })
}

/// The list of addresses that the table names, as far as it can be read.
pub(super) fn file(table: &Table<'_>, external: ExternalFiles<'_>) -> Option<PathBuf> {
    Some(external.path(table.item(keys::DENY_FILE.name)?.value().as_str()?))
}

/// How fast a device may send.
pub(super) fn rates(table: &Table<'_>, bind: Option<Bind>) -> Result<Rates, ErrorReported> {
    let (bytes, packets) = (table.get(&keys::BYTES_RATE), table.get(&keys::PACKETS_RATE));
    // A stream waits; datagrams are shed, and those that a device sends in one go must not be.
    let with_full_burst = bind.is_some_and(|bind| bind.transport.has_datagrams());
    let of = |rate: Rate| if with_full_burst { rate.with_full_burst() } else { rate };
    Ok(Rates { bytes: bytes?.map(of), packets: packets?.map(of) })
}

/// The addresses that may not, from their file.
fn denied(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Networks, ErrorReported> {
    let Some(path) = table.get(&keys::DENY_FILE)? else {
        return Ok(Networks::default());
    };
    let told = |faults: Vec<Fault>| faults.into_iter().map(|fault| table.fault_at("deny_file", fault)).last();
    match external.networks(&path) {
        Ok(networks) => Ok(networks),
        // There is at least one.
        Err(faults) => told(faults).map_or_else(|| Ok(Networks::default()), Err),
    }
}
