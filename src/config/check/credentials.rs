//! `[listeners.NAME.tls]`, for TLS and DTLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::{Fault, Unreadable};
use crate::config::read::Table;
use crate::config::references::{PEM_BYTES_MAX, PSK_BYTES_MAX};
use crate::config::schema::listener::tls::{self, ClientCert, Version, certificate};
use crate::config::warning::Advice;
use crate::conn::SocketKind;
use crate::listener::credentials::{self, Authorities, Clients, Credentials, Identity, MalformedPem, Versions};
use crate::listener::dtls;
use crate::listener::psk::Psks;

/// What a listener's table says; `None` for a transport that has no such thing.
pub(super) fn read(
    listener: &Table<'_>,
    transport: SocketKind,
    external: ExternalFiles<'_>,
) -> Result<Option<Credentials>, ErrorReported> {
    if !transport.is_secure() {
        return Ok(None);
    }
    let Some(table) = listener.section(&tls::SECTION)? else {
        return Err(listener.fault_at("tls", Fault::NoCredentials { transport }));
    };
    let belongs = belong(&table, transport);
    let identities = identities(&table, external);
    let clients = clients(&table, external);
    let versions = versions(&table, transport);
    let psks =
        table.get(&tls::PSK_FILE).and_then(|written| written.map(|file| psks(&table, external, file)).transpose());
    let credentials =
        Credentials { identities: identities?, clients: clients?, versions: versions?, psks: psks?.map(Arc::new) };
    belongs?;
    if credentials.identities.is_empty() && credentials.psks.is_none() {
        return Err(table.fault(Fault::Neither { one: "cert_file", other: "psk_file" }));
    }
    Ok(Some(credentials))
}

/// The files that the table names, as far as it can be read.
pub(super) fn files(listener: &Table<'_>, external: ExternalFiles<'_>) -> Vec<PathBuf> {
    let Some(Ok(table)) = listener.item("tls").map(|item| item.table()) else {
        return Vec::new();
    };
    let rows = table.item("certificates").and_then(|rows| rows.elements("").ok()).unwrap_or_default();
    let rows = rows.iter().filter_map(|row| row.table().ok());
    let of_one = |table: Table<'_>| {
        let names = ["cert_file", "key_file", "client_ca_file", "crl_file", "psk_file"];
        names.map(|name| Some(external.path(table.item(name)?.value().as_str()?)))
    };
    [table.clone()].into_iter().chain(rows).flat_map(of_one).flatten().collect()
}

/// What a handshake over datagrams is, beside its credentials.
pub(super) fn datagrams(listener: &Table<'_>) -> Result<dtls::Options, ErrorReported> {
    let Some(table) = listener.section(&tls::SECTION)? else {
        return Err(listener.fault_at("tls", Fault::NoCredentials { transport: SocketKind::Dtls }));
    };
    let (ciphers, mtu) = (table.get(&tls::CIPHERS), table.get(&tls::MTU));
    let ciphers = ciphers.and_then(|written| {
        let ciphers = written.unwrap_or_else(|| dtls::CIPHERS.to_owned());
        match dtls::check_ciphers(&ciphers) {
            Ok(()) => Ok(ciphers),
            Err(_) => Err(table.fault_at("ciphers", Fault::NoCipher { found: ciphers })),
        }
    });
    Ok(dtls::Options { ciphers: ciphers?, mtu: u16::try_from(mtu?).unwrap_or(u16::MAX) })
}

/// Records each key that means something to DTLS only.
fn belong(table: &Table<'_>, transport: SocketKind) -> Result<(), ErrorReported> {
    let mut result = Ok(());
    for key in ["ciphers", "mtu"] {
        if table.item(key).is_some() && !transport.has_datagrams() {
            result = Err(table.fault_at(key, Fault::OtherTransport { transports: &[SocketKind::Dtls], transport }));
        }
    }
    result
}

/// The listener's certificates, the main one first.
fn identities(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Vec<Identity>, ErrorReported> {
    let main = match (table.get(&tls::CERT_FILE), table.get(&tls::KEY_FILE)) {
        (Ok(Some(certificate)), Ok(Some(key))) => identity(table, external, &certificate, &key).map(Some),
        (Ok(Some(_)), Ok(None)) => Err(table.fault_at("key_file", Fault::Half { given: "cert_file" })),
        (Ok(None), Ok(Some(_))) => Err(table.fault_at("cert_file", Fault::Half { given: "key_file" })),
        (Ok(None), Ok(None)) => Ok(None),
        (Err(told), _) | (_, Err(told)) => Err(told),
    };
    let more = table.rows(&certificate::SECTION).and_then(|rows| {
        let one = |row: &Table<'_>| {
            let (certificate, key) = (row.get(&certificate::CERT_FILE), row.get(&certificate::KEY_FILE));
            identity(row, external, &certificate?, &key?)
        };
        // Each is read before the first fault ends it.
        let all: Vec<_> = rows.iter().map(one).collect();
        all.into_iter().collect::<Result<Vec<_>, ErrorReported>>()
    });
    Ok(main?.into_iter().chain(more?).collect())
}

fn identity(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    certificate: &str,
    key: &str,
) -> Result<Identity, ErrorReported> {
    let chain = pem(table, external, "cert_file", certificate, credentials::certificates);
    let secret = pem(table, external, "key_file", key, credentials::private_key);
    let identity = Identity::new(chain?, secret?)
        .map_err(|why| table.fault_at("key_file", Fault::Pem { path: key.to_owned(), why }))?;
    if identity.expires() < SystemTime::now() {
        table.warn_at("cert_file", Advice::CertificateExpired);
    }
    Ok(identity)
}

fn clients(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Clients, ErrorReported> {
    let roots = table.get(&tls::CLIENT_CA_FILE).and_then(|written| {
        written.map(|file| pem(table, external, "client_ca_file", &file, credentials::certificates)).transpose()
    });
    let revoked = table.get(&tls::CRL_FILE).and_then(|written| {
        written.map(|file| pem(table, external, "crl_file", &file, credentials::revocations)).transpose()
    });
    let asked = table.get(&tls::CLIENT_CERT);
    let (roots, revoked, asked) = (roots?, revoked?, asked?);
    let missing = |given| Err(table.fault_at("client_ca_file", Fault::Half { given }));
    let Some(roots) = roots else {
        return match (asked, revoked) {
            (Some(ClientCert::Optional | ClientCert::Required), _) => missing("client_cert"),
            (Some(ClientCert::None) | None, Some(_)) => missing("crl_file"),
            (Some(ClientCert::None) | None, None) => Ok(Clients::Unasked),
        };
    };
    let (revoked, outdated) = revoked.unwrap_or_default();
    if outdated.is_some_and(|since| since < SystemTime::now()) {
        table.warn_at("crl_file", Advice::RevocationsOutdated);
    }
    let authorities = Authorities { roots, revoked };
    Ok(match asked {
        Some(ClientCert::None) => Clients::Unasked,
        Some(ClientCert::Optional) => Clients::Optional(authorities),
        Some(ClientCert::Required) | None => Clients::Required(authorities),
    })
}

fn versions(table: &Table<'_>, transport: SocketKind) -> Result<Versions, ErrorReported> {
    let written = table.get(&tls::VERSIONS)?;
    let has = |version| written.as_ref().is_some_and(|all| all.iter().any(|placed| placed.value == version));
    if transport.has_datagrams() {
        return match has(Version::V13) {
            true => Err(table.fault_at("versions", Fault::VersionOfTls)),
            false => Ok(Versions::Only12),
        };
    }
    Ok(match (has(Version::V12), has(Version::V13)) {
        (true, false) => Versions::Only12,
        (false, true) => Versions::Only13,
        (true, true) | (false, false) => Versions::Both,
    })
}

fn psks(table: &Table<'_>, external: ExternalFiles<'_>, path: String) -> Result<Psks, ErrorReported> {
    let fault = |fault| table.fault_at("psk_file", fault);
    let bytes = external.file(&path, PSK_BYTES_MAX).map_err(fault)?;
    let psks = match String::from_utf8(bytes) {
        Ok(text) => Psks::parse(&text),
        Err(_) => return Err(fault(Fault::File { path, why: Unreadable::NotText })),
    };
    let psks = psks.map_err(|why| fault(Fault::Psk { path: path.clone(), why }))?;
    if psks.is_empty() {
        return Err(fault(Fault::NoPsk { path }));
    }
    match psks.weak() {
        0 => {}
        count => table.warn_at("psk_file", Advice::WeakKeys(count)),
    }
    Ok(psks)
}

/// What is in a PEM file.
fn pem<T>(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    key: &'static str,
    written: &str,
    parse: fn(&[u8]) -> Result<T, MalformedPem>,
) -> Result<T, ErrorReported> {
    let bytes = external.file(written, PEM_BYTES_MAX).map_err(|fault| table.fault_at(key, fault))?;
    parse(&bytes).map_err(|why| table.fault_at(key, Fault::Pem { path: written.to_owned(), why }))
}
