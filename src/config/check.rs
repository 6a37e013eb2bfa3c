//! From the file to a [`Config`]: finds every fault, with its line and its key.
//!
//! All parts are read before any is asked for its value, so a fault in one hides none in another; what
//! depends on two parts is looked at as soon as those two are there.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use toml::de::DeTable;

use super::diagnostics::{Diagnostics, ErrorReported};
use super::fault::{Fault, Faults};
use super::read::Table;
use super::schema;
use super::warning::{Advice, Warning};
use super::{Config, ConfigDiff, ExternalFiles};

mod access;
mod admission;
mod binds;
mod credentials;
mod external_broker;
mod framing;
mod grpc;
mod guest;
mod handlers;
mod listeners;
mod mqtt_listeners;
mod services;
mod socket_options;

use binds::Binds;

/// Checks the text of a configuration file.
pub(super) fn check(
    text: &str,
    file_name: &str,
    external: ExternalFiles<'_>,
) -> Result<(Config, Vec<Warning>), Faults> {
    let diagnostics = Diagnostics::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let config = match syntax(&diagnostics, &errors) {
        Ok(()) => config(&Table::root(&diagnostics, document.get_ref()), external, text),
        // What was understood of a broken file is not what its writer meant.
        Err(told) => Err(told),
    };
    diagnostics.conclude(file_name, config)
}

/// Records what is no TOML: the first of each line, because the others mostly follow from it.
fn syntax(diagnostics: &Diagnostics<'_>, errors: &[toml::de::Error]) -> Result<(), ErrorReported> {
    let mut lines = BTreeSet::new();
    let mut result = Ok(());
    for error in errors {
        let location = diagnostics.column(error.span().map_or(0, |span| span.start));
        if lines.insert(location.line) {
            // Not the error's whole text, which quotes the line: a secret may stand in it.
            result = Err(diagnostics.fault(location, Fault::Syntax(error.message().to_owned())));
        }
    }
    result
}

fn config(root: &Table<'_>, external: ExternalFiles<'_>, text: &str) -> Result<Config, ErrorReported> {
    root.admit(&[&schema::ROOT], &[]);
    let mut binds = Binds::default();

    let handlers = handlers::read(root, external);
    let gateway = services::gateway(root, external);
    let adapter = services::adapter(root, external, &mut binds, handlers.as_ref().is_ok_and(|all| all.need_adapter()));
    let admin = services::admin(root, external, &mut binds);
    let broker = services::broker(root, external, &mut binds);
    let external_broker = external_broker::read(root, external);
    let auth = access::read(root, external);
    let listeners = listeners::read(root, external, &mut binds, handlers.as_ref().ok());
    binds.check(root);

    if let (Ok(broker), Ok(auth)) = (&broker, &auth)
        && auth.anonymous_by_default()
    {
        let is_open = |address: SocketAddr| !address.ip().is_loopback();
        if broker.bind.is_some_and(is_open) {
            warn_of_open_broker(root, "bind");
        }
        if broker.listeners.iter().any(|listener| is_open(listener.socket.bind.address)) {
            warn_of_open_broker(root, "listeners");
        }
    }
    let (gateway, adapter, admin, broker, auth) = (gateway?, adapter?, admin?, broker?, auth?);
    let (handlers, listeners, external_broker) = (handlers?, listeners?, external_broker?);
    if listeners.is_empty() {
        root.warn_at("listeners", Advice::NoListener);
    }
    handlers.warn_of_unused(&listeners);
    Ok(Config {
        broker: crate::pubsub::embedded::Options { node: gateway.node.to_string(), ..broker },
        external_broker: external_broker
            .map(|broker| crate::pubsub::external::Options { node: gateway.node.to_string(), ..broker }),
        node: gateway.node,
        data_dir: gateway.data_dir,
        drain_timeout: gateway.drain_timeout,
        connections_max: gateway.connections_max,
        adapter,
        admin,
        auth: auth.into_options(),
        handlers: handlers.into_options()?,
        listeners,
        written: ConfigDiff::read(text),
    })
}

fn warn_of_open_broker(root: &Table<'_>, key: &'static str) {
    if let Some(Ok(broker)) = root.item("broker").map(|broker| broker.table()) {
        broker.warn_at(key, Advice::BrokerOpen);
    }
}
