//! `[broker]` of kind `mqtt`: the user's own broker or cluster.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::{CONNECT_TIMEOUT, INFLIGHT_MAX, KIND, PACKET_MAX};
use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::handler::grpc::tls::{CA_FILE, CERT_FILE, KEY_FILE};
use crate::config::location::Quoted;
use crate::config::read::{Table, read_all};
use crate::config::schema::section;
use crate::config::value::{
    Choice, FLAG, List, Located, Parsed, RATE, Range, Rejected, SECRET, SecretSource, duration, quoted, secs, size,
    string, text, values,
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
    /// An existing MQTT broker or cluster. Each device that authenticates is a client of its own there, with its client
    /// id, user name and password, and the broker decides: `Authenticate` waits for CONNACK, `Publish` and `Subscribe`
    /// for their acknowledgements. The users of `[auth]` do not apply; its rules do, before those of the broker.
    "broker", "[broker] of kind \"mqtt\"", Once;

    &KIND;
    /// addresses of the broker: `mqtt`, `mqtts`, `ws` or `wss`; devices are balanced over them, and the next one is
    /// tried when one fails
    URLS "urls": Vec<Located<ServerUrl>> = List { of: &SERVER_URL, one: "url" }, required;
    /// the version of MQTT
    PROTOCOL "protocol": Version = Choice(&[("5", Version::V5), ("3.1.1", Version::V311)]), default Version::V5;
    /// `per-client`: each device is a client of its own
    CONNECTIONS "connections": Connections =
        Choice(&[("per-client", Connections::PerClient)]), default Connections::PerClient;
    /// the client id of a device at the broker; may use `${clientid}`, which it must have, and `${node}`
    CLIENT_ID "client_id": String =
        text("a client id such as \"${clientid}\"", 1..=1024), default "${clientid}".to_owned();
    /// local addresses over which the connections to the broker are balanced; each has 28,000 ports by default
    SOURCE_ADDRESSES "source_addresses": Vec<Located<IpAddr>> =
        List { of: &IP_ADDRESS, one: "address" }, optional "the system chooses";
    /// new connections to the broker in a time; at most 64 of them are concurrent
    CONNECT_RATE "connect_rate": Rate = RATE, default connect_rate_default();
    &CONNECT_TIMEOUT;
    /// MQTT 5.0: how long the broker keeps the session of a device whose connection is lost
    SESSION_EXPIRY "session_expiry": Duration = duration(secs(0)..=secs(7 * 24 * 60 * 60)), default secs(60 * 60);
    /// keep alive of the connections; the broker may choose another one (Server Keep Alive)
    KEEPALIVE "keepalive": Duration = duration(secs(5)..=secs(65_535)), default secs(60);
    &INFLIGHT_MAX;
    /// memory of unacknowledged messages of QoS 1 and 2, of all devices together; more are rejected
    OUTAGE_BUFFER "outage_buffer": usize = size(1 << 10..=64 << 30), default 64 << 20;
    &PACKET_MAX;
    /// MQTT 5.0: whether a device connects to another broker when its broker names one (Server Reference), up to 3 times
    /// in a row
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

    &CA_FILE;
    &CERT_FILE;
    &KEY_FILE;
}

fn connect_rate_default() -> Rate {
    const PER_SECOND: NonZeroU64 = NonZeroU64::new(500).expect("500 is not 0");
    Rate::smooth(PER_SECOND, secs(1))
}

const SERVER_URL: Parsed<ServerUrl> = Parsed {
    name: "`mqtt://`, `mqtts://`, `ws://` or `wss://`, host and port",
    expected: "a url such as \"mqtts://broker.example:8883\"; the schemes are mqtt, mqtts, ws and wss",
    range: Range::Any,
    parse: |value| match string(value)? {
        // The text is not shown: there may be a password in it.
        text if text.contains('@') => Err(Rejected::Because(
            "a url with a user name or a password is not supported; expected the form \"mqtts://broker.example:8883\""
                .to_owned(),
        )),
        text => text.parse().map_err(|_| Rejected::Form),
    },
    show: quoted,
};

const IP_ADDRESS: Parsed<IpAddr> = Parsed {
    name: "IP address",
    expected: "an IP address such as \"10.0.0.5\"",
    range: Range::Any,
    parse: |value| string(value)?.parse().map_err(|_| Rejected::Form),
    show: quoted,
};

/// The options, without the name of the node.
pub(super) fn read(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Options, ErrorReported> {
    let connections = table.get(&CONNECTIONS);
    let options = read_all!(Options {
        node: Ok(String::new()),
        urls: table.get(&URLS).map(values),
        version: table.get(&PROTOCOL),
        client_id: table.get_with(&CLIENT_ID, |text| match text.contains("${clientid}") {
            true => Ok(text),
            false => Err(format!("{} lacks ${{clientid}}, without which devices do not differ", Quoted(&text))),
        }),
        source_addresses: table.get(&SOURCE_ADDRESSES).map(|all| values(all.unwrap_or_default())),
        connect_rate: table.get(&CONNECT_RATE),
        connect_timeout: table.get(&CONNECT_TIMEOUT),
        session_expiry: table.get(&SESSION_EXPIRY),
        keepalive: table.get(&KEEPALIVE),
        inflight_max: table.get(&INFLIGHT_MAX),
        outage_buffer_bytes: table.get(&OUTAGE_BUFFER),
        packet_bytes_max: super::packet_bytes_max(table),
        follow_server_reference: table.get(&FOLLOW_SERVER_REFERENCE),
        tls: table
            .section(&tls::SECTION)
            .and_then(|tls| Ok(tls.map(|tls| client_tls(&tls, external)).transpose()?.unwrap_or_default())),
        login: login(table, external),
    });
    let Connections::PerClient = connections?;
    options
}

/// User name and password of the gateway.
fn login(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Option<(String, Password)>, ErrorReported> {
    let username = table.get(&USERNAME);
    let password = table.get_with(&PASSWORD, |source| source.map(|source| external.secret(source)).transpose());
    match (username?, password?) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(table.lacks(USERNAME.name, PASSWORD.name)),
        (Some(username), password) => {
            let bytes = password.map(|secret| secret.expose_secret().as_bytes().to_vec());
            Ok(Some((username, Password::new(bytes.unwrap_or_default()))))
        }
    }
}

fn client_tls(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<ClientTls, ErrorReported> {
    let cert_pem = table.get_with(&CERT_FILE, |path| external.optional_certificate(path));
    let key_pem = table.get_with(&KEY_FILE, |path| path.map(|path| external.private_key(&path)).transpose());
    let paired = match (table.has(CERT_FILE.name), table.has(KEY_FILE.name)) {
        (true, false) => Err(table.lacks(KEY_FILE.name, CERT_FILE.name)),
        (false, true) => Err(table.lacks(CERT_FILE.name, KEY_FILE.name)),
        _ => Ok(()),
    };
    let tls = read_all!(ClientTls {
        ca_pem: table.get_with(&CA_FILE, |path| external.optional_certificate(path)),
        identity_pem: Ok(cert_pem?.zip(key_pem?.map(Into::into))),
    });
    paired.and(tls)
}
