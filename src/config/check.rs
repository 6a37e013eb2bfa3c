//! Checks the text of a configuration file: records every fault, or builds the [`Config`].
//!
//! All tables are read before the first error returns, so a fault in one hides none in another. A check of two tables
//! runs as soon as both are valid.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeTable;

use super::binds::Binds;
use super::diagnostics::{Advice, Diagnostics, ErrorReported, Faults, Warning};
use super::read::Table;
use super::{Config, ConfigSnapshot, ExternalFiles, adapter, admin, auth, broker, gateway, handler, listener, schema};
use crate::pubsub::{embedded, external};

/// Checks the text of a configuration file.
pub(super) fn check(
    text: &str,
    file_name: &str,
    external: ExternalFiles<'_>,
) -> Result<(Config, Vec<Warning>), Faults> {
    check_with(text, file_name, |root| config(root, external, text))
}

/// Checks the tables that a client of the admin port needs: the data directory and the port.
pub(super) fn check_admin(
    text: &str,
    file_name: &str,
    external: ExternalFiles<'_>,
) -> Result<(PathBuf, Option<crate::admin::Options>), Faults> {
    let read = check_with(text, file_name, |root| {
        let (gateway, admin) = (gateway::read(root, external), admin::read(root, external, &mut Binds::default()));
        Ok((gateway?.data_dir, admin?))
    });
    read.map(|(read, _warnings)| read)
}

fn check_with<T>(
    text: &str,
    file_name: &str,
    read: impl FnOnce(&Table<'_>) -> Result<T, ErrorReported>,
) -> Result<(T, Vec<Warning>), Faults> {
    let diagnostics = Diagnostics::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let read = match syntax(&diagnostics, &errors) {
        Ok(()) => read(&Table::root(&diagnostics, document.get_ref())),
        // The parsed part of a broken file is not what its author meant.
        Err(reported) => Err(reported),
    };
    diagnostics.conclude(file_name, read)
}

/// Records the syntax errors: the first of each line, because the others mostly follow from it.
fn syntax(diagnostics: &Diagnostics<'_>, errors: &[toml::de::Error]) -> Result<(), ErrorReported> {
    let mut lines = BTreeSet::new();
    let mut result = Ok(());
    for error in errors {
        let location = diagnostics.column(error.span().map_or(0, |span| span.start));
        if lines.insert(location.line) {
            // Not the error's whole text, which quotes the line: there may be a secret in it.
            result = Err(diagnostics.fault(location, error.message()));
        }
    }
    result
}

fn config(root: &Table<'_>, external: ExternalFiles<'_>, text: &str) -> Result<Config, ErrorReported> {
    // The tables are read all the same.
    let _recorded = root.admit(schema::root::SECTION.title, &[&schema::root::SECTION], &[]);
    let mut binds = Binds::default();

    let handlers = handler::read(root, external);
    let gateway = gateway::read(root, external);
    let adapter = adapter::read(root, external, &mut binds, handlers.as_ref().is_ok_and(|all| all.need_adapter()));
    let admin = admin::read(root, external, &mut binds);
    let brokers = broker::read(root, external, &mut binds);
    let auth = auth::read(root, external);
    let listeners = listener::read(root, external, &mut binds, handlers.as_ref().ok());
    binds.check(root);

    if let (Ok(brokers), Ok(auth)) = (&brokers, &auth)
        && auth.anonymous_by_default()
    {
        warn_of_open_broker(root, &brokers.embedded);
    }
    let (gateway, adapter, admin, brokers, auth) = (gateway?, adapter?, admin?, brokers?, auth?);
    let (handlers, listeners) = (handlers?, listeners?);
    if listeners.is_empty() {
        root.warn_at("listeners", Advice::NoListener);
    }
    handlers.warn_of_unused(&listeners);
    Ok(Config {
        broker: embedded::Options { node: gateway.node.to_string(), ..brokers.embedded },
        external_broker: brokers.external.map(|broker| external::Options { node: gateway.node.to_string(), ..broker }),
        node: gateway.node,
        data_dir: gateway.data_dir,
        drain_timeout: gateway.drain_timeout,
        connections_max: gateway.connections_max,
        queued_bytes_max: gateway.queued_bytes_max,
        adapter,
        admin,
        auth: auth.into_options(),
        handlers: handlers.into_options()?,
        listeners,
        written: ConfigSnapshot::read(text),
    })
}

/// Warns of ports of the embedded broker that accept any peer.
fn warn_of_open_broker(root: &Table<'_>, options: &embedded::Options) {
    let Some(Ok(table)) = root.item("broker").map(|broker| broker.table()) else { return };
    let is_open = |address: SocketAddr| !address.ip().is_loopback();
    if options.bind.is_some_and(is_open) {
        table.warn_at("bind", Advice::BrokerOpen);
    }
    if options.listeners.iter().any(|listener| is_open(listener.socket.bind.address)) {
        table.warn_at("listeners", Advice::BrokerOpen);
    }
}
