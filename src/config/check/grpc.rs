//! Handlers of kind `grpc`.

use tonic::transport::Uri;

use super::services::optional_pem;
use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Table;
use crate::config::references::Pem;
use crate::config::schema::handler::grpc::{self, tls};
use crate::config::value::Located;
use crate::handler::grpc::{ClientTls, Options};

/// What a url should be.
const EXPECTED: &str = "the form \"http://127.0.0.1:9001\" or \"https://handler.example:9001\"";

pub(super) fn read(name: &str, table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Options, ErrorReported> {
    let urls = urls(table);
    let service = table.get(&grpc::SERVICE);
    let call_timeout = table.get(&grpc::CALL_TIMEOUT);
    let channels = table.get(&grpc::CHANNELS);
    let streams = table.get(&grpc::STREAMS);
    let channels_max = table.get(&grpc::CHANNELS_MAX);
    let messages_per_call = table.get(&grpc::MESSAGES_PER_CALL);
    let tls = match table.section(&tls::SECTION) {
        Ok(None) => Ok(None),
        Ok(Some(tls)) => client_tls(&tls, external).map(Some),
        Err(told) => Err(told),
    };
    if let Ok(urls) = &urls
        && !urls.is_empty()
        && table.item("tls").is_some()
        && urls.iter().all(|url| url.scheme_str() != Some("https"))
    {
        return Err(table.fault_at("tls", Fault::TlsUnused));
    }
    Ok(Options {
        name: name.into(),
        urls: urls?,
        service: service?,
        call_timeout: call_timeout?,
        channels: channels? as usize,
        streams: streams?,
        channels_max: channels_max? as usize,
        messages_per_call: messages_per_call? as usize,
        tls: tls?,
    })
}

fn urls(table: &Table<'_>) -> Result<Vec<Uri>, ErrorReported> {
    match (table.item("url").is_some(), table.item("urls").is_some()) {
        (true, true) => return Err(table.fault_at("url", Fault::Both { other: "urls" })),
        (false, false) => return Err(table.fault(Fault::Neither { one: "url", other: "urls" })),
        _ => {}
    }
    let one = table.get(&grpc::URL)?.map(|value| Located { value, location: table.location("url") });
    let written = table.get(&grpc::URLS)?.unwrap_or_default().into_iter().chain(one);
    let mut urls: Vec<(Uri, String)> = Vec::new();
    let mut result = Ok(());
    for Located { value, location } in written {
        let fault = match url(&value) {
            Err(fault) => fault,
            Ok(url) => match urls.iter().find(|(known, _)| *known == url) {
                Some((_, first)) => Fault::Twice { found: value, first: first.clone() },
                None => {
                    urls.push((url, location.position.to_string()));
                    continue;
                }
            },
        };
        result = Err(table.fault_in(location, fault));
    }
    result.map(|()| urls.into_iter().map(|(url, _)| url).collect())
}

fn url(text: &str) -> Result<Uri, Fault> {
    if text.contains('@') {
        return Err(Fault::UserInfo { expected: EXPECTED });
    }
    let malformed = || Fault::Malformed { found: text.to_owned(), expected: format!("of {EXPECTED}") };
    crate::handler::grpc::url(text).ok_or_else(malformed)
}

fn client_tls(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<ClientTls, ErrorReported> {
    let ca_pem = optional_pem(table, external, &tls::CA_FILE, Pem::Certificate);
    let cert_pem = optional_pem(table, external, &tls::CERT_FILE, Pem::Certificate);
    let key_pem = optional_pem(table, external, &tls::KEY_FILE, Pem::PrivateKey);
    let server_name = table.get(&tls::SERVER_NAME);
    let identity_pem = match (table.item("cert_file").is_some(), table.item("key_file").is_some()) {
        (true, false) => Err(table.fault_at("key_file", Fault::Half { given: "cert_file" })),
        (false, true) => Err(table.fault_at("cert_file", Fault::Half { given: "key_file" })),
        _ => Ok(()),
    };
    identity_pem?;
    Ok(ClientTls { ca_pem: ca_pem?, identity_pem: cert_pem?.zip(key_pem?), server_name: server_name? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_a_scheme_a_host_and_a_port() {
        for text in ["http://127.0.0.1:9001", "http://h", "https://h.example:1/", "http://[::1]:9001", "HTTP://h:1"] {
            assert!(url(text).is_ok(), "{text}");
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
            assert!(matches!(url(text), Err(Fault::Malformed { .. })), "{text}");
        }
        let fault = url("http://user:secret@h:1").unwrap_err();
        assert!(!fault.to_string().contains("secret"));
    }
}
