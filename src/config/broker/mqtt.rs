//! `[broker]` of kind `mqtt`: the user's own broker.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::{CONNECT_TIMEOUT, INFLIGHT_MAX, KIND, PACKET_MAX, is_external};
use crate::config::ExternalFiles;
use crate::config::diagnostics::{ErrorReported, Fault};
use crate::config::handler::grpc::tls as keys;
use crate::config::read::{Table, read_all};
use crate::config::schema::section;
use crate::config::value::{
    Choice, FLAG, IP_ADDRESS, List, Located, RATE, SECRET, SERVER_URL, SecretSource, duration, secs, size, text, values,
};
use crate::conn::Password;
use crate::mqtt::Version;
use crate::pubsub::external::{ClientTls, Options, ServerUrl};
use crate::rate::Rate;

/// How devices are connected to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Connections {
    PerClient,
}

section! {
    /// An existing MQTT broker or cluster. Each device that authenticates is a client of it, with its own client id,
    /// user name and password, and the broker decides: `Authenticate` waits for CONNACK, `Publish` and `Subscribe` for
    /// their acknowledgements. The users of `[auth]` are not used; its rules apply besides.
    "broker", "[broker] of kind \"mqtt\"", Once;

    &KIND;
    /// addresses of the broker: `mqtt`, `mqtts`, `ws` or `wss`; devices are balanced over them, and try the next one when
    /// one fails
    URLS "urls": Vec<Located<ServerUrl>> = List { of: &SERVER_URL, one: "url" }, required;
    /// the version of MQTT
    PROTOCOL "protocol": Version = Choice(&[("5", Version::V5), ("3.1.1", Version::V311)]), default Version::V5;
    /// `per-client`: each device is a client of its own
    CONNECTIONS "connections": Connections =
        Choice(&[("per-client", Connections::PerClient)]), default Connections::PerClient;
    /// the client id of a device at the broker; may use `${clientid}` and `${node}`
    CLIENT_ID "client_id": String =
        text("a client id such as \"${clientid}\"", 1..=1024), default "${clientid}".to_owned();
    /// local addresses, over which connections to the broker are balanced; each has as many connections as there are ports
    SOURCE_ADDRESSES "source_addresses": Vec<Located<IpAddr>> =
        List { of: &IP_ADDRESS, one: "address" }, optional "the system chooses";
    /// new connections to the broker in a time, at most 64 at once
    CONNECT_RATE "connect_rate": Rate = RATE, default Rate::smooth(NonZeroU64::MIN.saturating_add(499), secs(1));
    &CONNECT_TIMEOUT;
    /// MQTT 5.0: how long the broker keeps the session of a device whose connection to the broker is lost
    SESSION_EXPIRY "session_expiry": Duration = duration(secs(0)..=secs(7 * 24 * 60 * 60)), default secs(60 * 60);
    /// keep alive towards the broker, which may request another one
    KEEPALIVE "keepalive": Duration = duration(secs(5)..=secs(65_535)), default secs(60);
    &INFLIGHT_MAX;
    /// memory of messages of QoS 1 and 2 that wait for the broker, of all devices; more are rejected
    OUTAGE_BUFFER "outage_buffer": usize = size(1 << 10..=64 << 30), default 64 << 20;
    &PACKET_MAX;
    /// MQTT 5.0: whether a device follows a Server Reference to another broker, up to 3 times in a row
    FOLLOW_SERVER_REFERENCE "follow_server_reference": bool = FLAG, default false;
    /// user name of the gateway, for messages that no device publishes
    USERNAME "username": String = text("a user name", 1..=1024), optional "none";
    /// its password
    PASSWORD "password": SecretSource = SECRET, optional "none";
    &tls::SECTION;
}

section! {
    mod tls;
    /// Certificates for `mqtts://` and `wss://` urls. All files are PEM.
    "tls", "[broker.tls]", Once;

    &keys::CA_FILE;
    &keys::CERT_FILE;
    &keys::KEY_FILE;
}

/// The options of the external broker, without the name of its node; `None` when the broker is embedded.
pub(in crate::config) fn read(root: &Table<'_>, external: ExternalFiles<'_>) -> Result<Option<Options>, ErrorReported> {
    if !is_external(root) {
        return Ok(None);
    }
    let table = &root.section_or_empty(&SECTION)?;
    let connections = table.get(&CONNECTIONS);
    let options = read_all!(Options {
        node: Ok(String::new()),
        urls: table.get(&URLS).map(values),
        version: table.get(&PROTOCOL),
        client_id: table.get_with(&CLIENT_ID, |text| match text.contains("${clientid}") {
            true => Ok(text),
            false => Err(Fault::new("expected a text with ${clientid}, so that devices differ")),
        }),
        source_addresses: table.get(&SOURCE_ADDRESSES).map(|addresses| values(addresses.unwrap_or_default())),
        connect_rate: table.get(&CONNECT_RATE),
        connect_timeout: table.get(&CONNECT_TIMEOUT),
        session_expiry: table.get(&SESSION_EXPIRY),
        keepalive: table.get(&KEEPALIVE),
        inflight_max: table.get(&INFLIGHT_MAX),
        outage_buffer_bytes: table.get(&OUTAGE_BUFFER),
        // Its range ends below u32's.
        packet_bytes_max: table.get(&PACKET_MAX).map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
        follow_server_reference: table.get(&FOLLOW_SERVER_REFERENCE),
        tls: client_tls(table, external),
        login: login(table, external),
    });
    let Connections::PerClient = connections?;
    options.map(Some)
}

fn login(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Option<(String, Password)>, ErrorReported> {
    let username = table.get(&USERNAME);
    let password = table.get_with(&PASSWORD, |source| source.map(|source| external.secret(source)).transpose());
    let password = password?.map(|secret| secret.expose_secret().as_bytes().to_vec()).unwrap_or_default();
    Ok(username?.map(|username| (username, Password::new(password))))
}

fn client_tls(broker: &Table<'_>, external: ExternalFiles<'_>) -> Result<ClientTls, ErrorReported> {
    let Some(table) = broker.section(&tls::SECTION)? else { return Ok(ClientTls::default()) };
    let cert_pem = table.get_with(&keys::CERT_FILE, |path| external.optional_certificate(path));
    let key_pem = table.get_with(&keys::KEY_FILE, |path| path.map(|path| external.private_key(&path)).transpose());
    let paired = match (table.has("cert_file"), table.has("key_file")) {
        (true, false) => Err(table.lacks("key_file", "cert_file")),
        (false, true) => Err(table.lacks("cert_file", "key_file")),
        _ => Ok(()),
    };
    let tls = read_all!(ClientTls {
        ca_pem: table.get_with(&keys::CA_FILE, |path| external.optional_certificate(path)),
        identity_pem: Ok(cert_pem?.zip(key_pem?.map(Into::into))),
    });
    paired.and(tls)
}
