//! `[handlers.NAME]` of kind `grpc`: one or several ExProto servers.

use std::time::Duration;

use tonic::transport::Uri;

use super::{HOLD_TIMEOUT, KIND, ON_FAILURE, ROLLBACK_THRESHOLD, ROLLBACK_WINDOW, SWAP};
use crate::config::ExternalFiles;
use crate::config::diagnostics::{ErrorReported, Fault};
use crate::config::location::Quoted;
use crate::config::read::{Table, read_all};
use crate::config::schema::section;
use crate::config::value::{Choice, List, Located, PATH, Text, count, duration, millis, secs, text};
use crate::handler::grpc::{
    CALL_TIMEOUT_DEFAULT, CHANNELS_DEFAULT, CHANNELS_MAX_DEFAULT, ClientTls, MESSAGES_PER_CALL_DEFAULT, Options,
    Service, Streams,
};

section! {
    /// A gRPC server that speaks ExProto.
    "handlers", "[handlers.NAME] of kind \"grpc\"", Named;

    &KIND;
    /// where the server is: `http://` or `https://`, a host name or IP address, a port
    URL "url": String = ADDRESS, optional "this or `urls`";
    /// several servers, over which connections are balanced
    URLS "urls": Vec<Located<String>> = List { of: &ADDRESS, one: "url" }, optional "this or `url`";
    /// the ExProto service of the servers; `auto` detects it
    SERVICE "service": Service = SERVICES, default Service::Auto;
    /// how long the response to one event may take
    CALL_TIMEOUT "call_timeout": Duration = duration(millis(1)..=secs(600)), default CALL_TIMEOUT_DEFAULT;
    /// HTTP/2 connections for each url, with at most 150 concurrent calls each
    CHANNELS "channels": usize = count(1..=64), default CHANNELS_DEFAULT;
    /// streams of `ConnectionHandler`: one for each callback of a device, as EMQX has them, or one for each event, which
    /// acknowledges it
    STREAMS "streams": Streams =
        Choice(&[("per-connection", Streams::PerConnection), ("per-event", Streams::PerEvent)]),
        optional "detected: `\"per-connection\"` for servers that stream";
    /// limit of HTTP/2 connections for each url, where the open streams of devices need more than `channels`
    CHANNELS_MAX "channels_max": usize = count(1..=10_000), default CHANNELS_MAX_DEFAULT;
    /// messages in one `OnReceivedMessages`; more than 1 is for handlers that iterate over `messages`
    MESSAGES_PER_CALL "messages_per_call": usize = count(1..=1_000), default MESSAGES_PER_CALL_DEFAULT;
    &ON_FAILURE;
    &HOLD_TIMEOUT;
    &SWAP;
    &ROLLBACK_THRESHOLD;
    &ROLLBACK_WINDOW;
    &tls::SECTION;
}

const ADDRESS: Text = text("a url such as \"http://127.0.0.1:9001\"", 1..=2048);
const SERVICES: Choice<Service> = Choice(&[
    ("auto", Service::Auto),
    ("ConnectionUnaryHandler", Service::Unary),
    ("ConnectionHandler", Service::Streaming),
]);

section! {
    mod tls;
    /// Certificates for `https://` urls. All files are PEM.
    "tls", "[handlers.NAME.tls]", Once;

    /// authorities that may have signed the server's certificate
    CA_FILE "ca_file": String = PATH, optional "the system's authorities";
    /// the gateway's own certificate with its chain, for a server that requests one
    CERT_FILE "cert_file": String = PATH, optional "none";
    /// private key of that certificate
    KEY_FILE "key_file": String = PATH, optional "none; needed with `cert_file`";
    /// the name that the server's certificate must have
    SERVER_NAME "server_name": String = text("a host name", 1..=253), optional "the url's host";
}

pub(super) fn read(name: &str, table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Options, ErrorReported> {
    let urls = urls(table);
    let https = |url: &Uri| url.scheme_str() == Some("https");
    let without_tls = urls.as_ref().is_ok_and(|urls| !urls.is_empty() && !urls.iter().any(https));
    let options = read_all!(Options {
        name: Ok(name.into()),
        urls: urls,
        service: table.get(&SERVICE),
        call_timeout: table.get(&CALL_TIMEOUT),
        channels: table.get(&CHANNELS),
        streams: table.get(&STREAMS),
        channels_max: table.get(&CHANNELS_MAX),
        messages_per_call: table.get(&MESSAGES_PER_CALL),
        tls: table.section(&tls::SECTION).and_then(|tls| tls.map(|tls| client_tls(&tls, external)).transpose()),
    });
    if without_tls && table.has("tls") {
        return Err(table.fault_at("tls", "is for https, and no url begins with \"https://\""));
    }
    options
}

fn urls(table: &Table<'_>) -> Result<Vec<Uri>, ErrorReported> {
    match (table.has("url"), table.has("urls")) {
        (true, true) => return Err(table.excludes("url", "urls")),
        (false, false) => return Err(table.has_neither("url", "urls")),
        _ => {}
    }
    let one = table.get(&URL)?.map(|value| Located { value, location: table.location("url") });
    let written = table.get(&URLS)?.unwrap_or_default().into_iter().chain(one);
    let mut urls: Vec<(Uri, String)> = Vec::new();
    let mut result = Ok(());
    for Located { value, location } in written {
        match parse_url(&value) {
            Err(fault) => result = Err(table.fault_in(location, fault)),
            Ok(url) => match urls.iter().find(|(known, _)| *known == url) {
                Some((_, first)) => result = Err(table.duplicate(location, &value, first)),
                None => urls.push((url, location.position.to_string())),
            },
        }
    }
    result.map(|()| urls.into_iter().map(|(url, _)| url).collect())
}

fn parse_url(text: &str) -> Result<Uri, Fault> {
    const EXPECTED: &str = "the form \"http://127.0.0.1:9001\" or \"https://handler.example:9001\"";
    if text.contains('@') {
        // The text is not shown: there may be a password in it.
        let message = format_args!("a url with a user name or a password is not supported; expected {EXPECTED}");
        return Err(Fault::new(message));
    }
    let malformed = || Fault::new(format_args!("{} is not of {EXPECTED}", Quoted(text)));
    crate::handler::grpc::url(text).ok_or_else(malformed)
}

fn client_tls(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<ClientTls, ErrorReported> {
    let cert_pem = table.get_with(&tls::CERT_FILE, |path| external.optional_certificate(path));
    let key_pem = table.get_with(&tls::KEY_FILE, |path| path.map(|path| external.private_key(&path)).transpose());
    let paired = match (table.has("cert_file"), table.has("key_file")) {
        (true, false) => Err(table.lacks("key_file", "cert_file")),
        (false, true) => Err(table.lacks("cert_file", "key_file")),
        _ => Ok(()),
    };
    let tls = read_all!(ClientTls {
        ca_pem: table.get_with(&tls::CA_FILE, |path| external.optional_certificate(path)),
        server_name: table.get(&tls::SERVER_NAME),
        identity_pem: Ok(cert_pem?.zip(key_pem?)),
    });
    paired.and(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_a_scheme_a_host_and_a_port() {
        for text in ["http://127.0.0.1:9001", "http://h", "https://h.example:1/", "http://[::1]:9001", "HTTP://h:1"] {
            assert!(parse_url(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "h",
            "h:1",
            "127.0.0.1:1",
            "ftp://h:1",
            "http://",
            "http://:1",
            "http://h:",
            "http://h:0",
            "http://h:65536",
            "http://h:1/path",
            "http://h:1/?q",
            "http://h:1?q",
            "/path",
            "http://h h",
        ] {
            assert!(parse_url(text).unwrap_err().to_string().contains(" is not of the form "), "{text}");
        }
        let fault = parse_url("http://user:secret@h:1").unwrap_err();
        assert!(!fault.to_string().contains("secret"));
    }
}
