//! `[gateway]`, `[adapter]`, `[admin]` and `[broker]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::binds::Binds;
use super::{external_broker, mqtt_listeners};
use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Table;
use crate::config::references::Pem;
use crate::config::schema::{adapter, admin, broker, gateway};
use crate::config::value::FilePath;
use crate::config::value::{Key, Presence, ValueType};
use crate::config::warning::Advice;
use crate::exproto::service;
use crate::pubsub::embedded;

/// Lengths of the admin token, in bytes: long enough that nobody guesses it, short enough for a header.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;

/// What `[gateway]` says.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) node: Arc<str>,
    pub(super) data_dir: PathBuf,
    pub(super) drain_timeout: Duration,
    pub(super) connections_max: Option<usize>,
}

pub(super) fn gateway(root: &Table<'_>, external: ExternalFiles<'_>) -> Result<Gateway, ErrorReported> {
    let table = root.section_or_empty(&gateway::SECTION)?;
    let node = table.get(&gateway::NODE);
    let data_dir = table.get(&gateway::DATA_DIR).and_then(|written| {
        external.check_dir(&written).map_err(|fault| table.fault_at("data_dir", fault))?;
        Ok(external.path(&written))
    });
    let drain_timeout = table.get(&gateway::DRAIN_TIMEOUT);
    let connections_max = table.get(&gateway::CONNECTIONS_MAX);
    Ok(Gateway {
        node: node?.unwrap_or_else(host_name).into(),
        data_dir: data_dir?,
        drain_timeout: drain_timeout?,
        connections_max: connections_max?.map(|max| max as usize),
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The adapter, if the file has its table or a handler needs it.
pub(super) fn adapter(
    root: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
    needed: bool,
) -> Result<Option<service::Options>, ErrorReported> {
    if root.item("adapter").is_none() && !needed {
        return Ok(None);
    }
    let table = root.section_or_empty(&adapter::SECTION)?;
    let bind = address(&table, &adapter::BIND, binds);
    let tls = match table.section(&adapter::tls::SECTION) {
        Ok(None) => Ok(None),
        Ok(Some(tls)) => server_tls(&tls, external).map(Some),
        Err(told) => Err(told),
    };
    let (bind, tls) = (bind?, tls?);
    if !bind.ip().is_loopback() && tls.as_ref().is_none_or(|tls| tls.client_ca_pem.is_none()) {
        table.warn_at("bind", Advice::AdapterOpen);
    }
    Ok(Some(service::Options { bind, tls }))
}

fn server_tls(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<service::ServerTls, ErrorReported> {
    let cert = pem(table, external, &adapter::tls::CERT_FILE, Pem::Certificate);
    let key = pem(table, external, &adapter::tls::KEY_FILE, Pem::PrivateKey);
    let client_ca = optional_pem(table, external, &adapter::tls::CLIENT_CA_FILE, Pem::Certificate);
    Ok(service::ServerTls { identity_pem: (cert?, key?), client_ca_pem: client_ca? })
}

pub(super) fn pem<P>(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    key: &Key<FilePath, P>,
    kind: Pem,
) -> Result<Vec<u8>, ErrorReported>
where
    P: Presence<FilePath, Value = String>,
{
    let written = table.get(key)?;
    external.pem(&written, kind).map_err(|fault| table.fault_at(key.name, fault))
}

pub(super) fn optional_pem<P>(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    key: &Key<FilePath, P>,
    kind: Pem,
) -> Result<Option<Vec<u8>>, ErrorReported>
where
    P: Presence<FilePath, Value = Option<String>>,
{
    let written = table.get(key)?;
    written.map(|written| external.pem(&written, kind).map_err(|fault| table.fault_at(key.name, fault))).transpose()
}

/// The admin port, if the file has its table.
pub(super) fn admin(
    root: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<Option<crate::admin::Options>, ErrorReported> {
    let Some(table) = root.section(&admin::SECTION)? else {
        return Ok(None);
    };
    let bind = address(&table, &admin::BIND, binds);
    let token = table.get(&admin::TOKEN).and_then(|source| {
        let Some(source) = source else {
            return Ok(None);
        };
        let secret = external.secret(source).map_err(|fault| table.fault_at("token", fault))?;
        let text = secret.expose_secret();
        if TOKEN_BYTES.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Some(secret))
        } else {
            let expected = "16 to 1024 visible ASCII characters, without spaces";
            Err(table.fault_at("token", Fault::Secret { expected }))
        }
    });
    let (bind, token) = (bind?, token?);
    if token.is_none() && !bind.ip().is_loopback() {
        return Err(table.fault_at("token", Fault::TokenRequired { bind }));
    }
    Ok(Some(crate::admin::Options { bind, token }))
}

/// The broker, but for its node's name.
pub(super) fn broker(
    root: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
) -> Result<embedded::Options, ErrorReported> {
    let table = match external_broker::kind(root) {
        // Its keys are read elsewhere.
        Ok(broker::Kind::Mqtt) => return Ok(embedded::Options::default()),
        Ok(broker::Kind::Embedded) | Err(_) => root.section_or_empty(&broker::SECTION)?,
    };
    let kind = table.get(&broker::KIND);
    let bind = table.get(&broker::BIND);
    if let Ok(Some(bind)) = bind {
        binds.add(table.location("bind"), bind);
    }
    let listeners = mqtt_listeners::read(&table, external, binds);
    let connect_timeout = table.get(&broker::CONNECT_TIMEOUT);
    let keepalive_min = table.get(&broker::KEEPALIVE_MIN);
    let packet_bytes_max = table.get(&broker::PACKET_MAX);
    let inflight_max = table.get(&broker::INFLIGHT_MAX);
    let subscriptions_max = table.get(&broker::SUBSCRIPTIONS_MAX);
    let filter_bytes_max = table.get(&broker::FILTER_MAX);
    let subscription_bytes_max = table.get(&broker::SUBSCRIPTION_BYTES_MAX);
    let all_subscription_bytes_max = table.get(&broker::ALL_SUBSCRIPTION_BYTES_MAX);
    let clients_max = table.get(&broker::CLIENTS_MAX);
    let sessions_per_user_max = table.get(&broker::SESSIONS_PER_USER_MAX);
    let client_queue_max = table.get(&broker::CLIENT_QUEUE_MAX);
    let client_queue_bytes_max = table.get(&broker::CLIENT_QUEUE_BYTES_MAX);
    let queued_bytes_max = table.get(&broker::QUEUED_BYTES_MAX);
    let session_expiry_max = table.get(&broker::SESSION_EXPIRY_MAX);
    let anonymous_session_expiry_max = table.get(&broker::ANONYMOUS_SESSION_EXPIRY_MAX);
    let retained_max = table.get(&broker::RETAINED_MAX);
    let retained_bytes_max = table.get(&broker::RETAINED_BYTES_MAX);
    let response_information = table.get(&broker::RESPONSE_INFORMATION);
    match kind? {
        broker::Kind::Mqtt => Ok(embedded::Options::default()),
        broker::Kind::Embedded => Ok(embedded::Options {
            bind: bind?,
            listeners: listeners?,
            connect_timeout: connect_timeout?,
            keepalive_min: keepalive_min?,
            // Both ranges end below those of the types.
            packet_bytes_max: u32::try_from(packet_bytes_max?).unwrap_or(u32::MAX),
            inflight_max: u16::try_from(inflight_max?).unwrap_or(u16::MAX - 1),
            subscriptions_max: subscriptions_max? as usize,
            filter_bytes_max: filter_bytes_max?,
            subscription_bytes_max: subscription_bytes_max?,
            all_subscription_bytes_max: all_subscription_bytes_max?,
            clients_max: clients_max? as usize,
            sessions_per_user_max: sessions_per_user_max?.map_or(usize::MAX, |max| max as usize),
            client_queue_max: client_queue_max? as usize,
            client_queue_bytes_max: client_queue_bytes_max?,
            queued_bytes_max: queued_bytes_max?,
            session_expiry_max: session_expiry_max?,
            anonymous_session_expiry_max: anonymous_session_expiry_max?,
            retained_max: retained_max? as usize,
            retained_bytes_max: retained_bytes_max?,
            response_information: response_information?.map(Into::into),
            ..embedded::Options::default()
        }),
    }
}

/// An address that is to be bound.
fn address<F, P>(table: &Table<'_>, key: &Key<F, P>, binds: &mut Binds) -> Result<SocketAddr, ErrorReported>
where
    F: ValueType,
    P: Presence<F, Value = SocketAddr>,
{
    let bind = table.get(key)?;
    binds.add(table.location(key.name), bind);
    Ok(bind)
}
