//! `[broker]` with `kind = "mqtt"`.

use std::fmt;

use secrecy::ExposeSecret;

use super::services::optional_pem;
use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Table;
use crate::config::references::Pem;
use crate::config::schema::broker::{self, Kind, mqtt};
use crate::config::schema::handler::grpc::tls;
use crate::config::value::Located;
use crate::conn::Password;
use crate::pubsub::external::{ClientTls, Options};

/// The kind of broker, as far as it can be read.
pub(super) fn kind(root: &Table<'_>) -> Result<Kind, ErrorReported> {
    match root.item(broker::SECTION.key) {
        None => Ok(Kind::Embedded),
        Some(item) => {
            let is_mqtt =
                item.table()?.item(broker::KIND.name).and_then(|kind| kind.value().as_str().map(str::to_owned));
            Ok(if is_mqtt.as_deref() == Some("mqtt") { Kind::Mqtt } else { Kind::Embedded })
        }
    }
}

/// The external broker, if there is one; its node's name is not filled in.
pub(super) fn read(root: &Table<'_>, external: ExternalFiles<'_>) -> Result<Option<Options>, ErrorReported> {
    if kind(root)? == Kind::Embedded {
        return Ok(None);
    }
    let table = root.section_or_empty(&mqtt::SECTION)?;
    let connections = table.get(&mqtt::CONNECTIONS);
    let urls = table.get(&mqtt::URLS).and_then(|urls| {
        parsed(&table, urls, "a url such as \"mqtts://broker.example:8883\"; the schemes are mqtt, mqtts, ws and wss")
    });
    let version = table.get(&mqtt::PROTOCOL);
    let client_id = table.get(&mqtt::CLIENT_ID).and_then(|text| {
        let expected = "a text with ${clientid}, so that devices differ".to_owned();
        if text.contains("${clientid}") {
            Ok(text)
        } else {
            Err(table.fault_at("client_id", Fault::Malformed { found: text, expected }))
        }
    });
    let source_addresses = table
        .get(&mqtt::SOURCE_ADDRESSES)
        .and_then(|addresses| parsed(&table, addresses.unwrap_or_default(), "an IP address such as \"10.0.0.5\""));
    let connect_rate = table.get(&mqtt::CONNECT_RATE);
    let connect_timeout = table.get(&broker::CONNECT_TIMEOUT);
    let session_expiry = table.get(&mqtt::SESSION_EXPIRY);
    let keepalive = table.get(&mqtt::KEEPALIVE);
    let inflight_max = table.get(&broker::INFLIGHT_MAX);
    let outage_buffer_bytes = table.get(&mqtt::OUTAGE_BUFFER);
    let packet_bytes_max = table.get(&broker::PACKET_MAX);
    let follow_server_reference = table.get(&mqtt::FOLLOW_SERVER_REFERENCE);
    let username = table.get(&mqtt::USERNAME);
    let password = table.get(&mqtt::PASSWORD).and_then(|source| {
        let secret = source.map(|source| external.secret(source)).transpose();
        secret.map_err(|fault| table.fault_at("password", fault))
    });
    let tls = client_tls(&table, external);
    let mqtt::Connections::PerClient = connections?;
    let password = password?.map(|secret| Password::new(secret.expose_secret().as_bytes().to_vec()));
    Ok(Some(Options {
        node: String::new(),
        urls: urls?,
        version: version?,
        client_id: client_id?,
        source_addresses: source_addresses?,
        connect_rate: connect_rate?,
        connect_timeout: connect_timeout?,
        session_expiry: session_expiry?,
        keepalive: keepalive?,
        // Both ranges end below those of the types.
        inflight_max: u16::try_from(inflight_max?).unwrap_or(u16::MAX - 1),
        outage_buffer_bytes: outage_buffer_bytes?,
        packet_bytes_max: u32::try_from(packet_bytes_max?).unwrap_or(u32::MAX),
        follow_server_reference: follow_server_reference?,
        tls: tls?,
        login: username?.map(|username| (username, password.unwrap_or_else(|| Password::new(Vec::new())))),
    }))
}

/// Each value alone, so that one that is wrong does not hide the next.
fn parsed<T>(table: &Table<'_>, texts: Vec<Located<String>>, expected: &str) -> Result<Vec<T>, ErrorReported>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    let all: Vec<_> = texts
        .into_iter()
        .map(|text| {
            text.value.parse().map_err(|_| {
                let fault = Fault::Malformed { found: text.value.clone(), expected: expected.to_owned() };
                table.fault_in(text.location, fault)
            })
        })
        .collect();
    all.into_iter().collect()
}

fn client_tls(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<ClientTls, ErrorReported> {
    let Some(table) = table.section(&mqtt::TLS)? else { return Ok(ClientTls::default()) };
    let ca_pem = optional_pem(&table, external, &tls::CA_FILE, Pem::Certificate);
    let cert_pem = optional_pem(&table, external, &tls::CERT_FILE, Pem::Certificate);
    let key_pem = optional_pem(&table, external, &tls::KEY_FILE, Pem::PrivateKey);
    match (table.item("cert_file").is_some(), table.item("key_file").is_some()) {
        (true, false) => return Err(table.fault_at("key_file", Fault::Half { given: "cert_file" })),
        (false, true) => return Err(table.fault_at("cert_file", Fault::Half { given: "key_file" })),
        _ => {}
    }
    Ok(ClientTls { ca_pem: ca_pem?, identity_pem: cert_pem?.zip(key_pem?.map(Into::into)) })
}
