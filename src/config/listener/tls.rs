//! `[listeners.NAME.tls]`: certificates and pre-shared keys, for TLS and DTLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::other_transport;
use crate::config::ExternalFiles;
use crate::config::diagnostics::{Advice, ErrorReported, Fault};
use crate::config::read::{Table, all, read_all};
use crate::config::references::{PEM_BYTES_MAX, PSK_BYTES_MAX, Unreadable, file_fault};
use crate::config::schema::section;
use crate::config::value::{Choice, List, Located, PATH, count, text};
use crate::conn::SocketKind;
use crate::listener::credentials::{self, Authorities, Clients, Credentials, Identity, MalformedPem, Versions};
use crate::listener::psk::Psks;
use crate::listener::{dtls, tls};

section! {
    /// Credentials of a listener on `tls://` or `dtls://`. It has a certificate, or pre-shared keys, or both.
    /// Certificates, keys and revocation lists are in PEM, one or several to a file.
    "tls", "[listeners.NAME.tls]", Once;

    /// the listener's certificate, then its chain; it is also sent to peers that request a name which no certificate
    /// has
    CERT_FILE "cert_file": String = PATH, optional "required, unless there is `certificates` or `psk_file`";
    /// its private key, without a passphrase: PKCS#8, PKCS#1 or SEC1
    KEY_FILE "key_file": String = PATH, optional "required with `cert_file`";
    &certificate::SECTION;
    /// authorities that must have signed the certificate of a peer
    CLIENT_CA_FILE "client_ca_file": String = PATH, optional "no certificate is requested";
    /// whether a peer must have a certificate; an optional one must be valid if it is sent; a pre-shared key replaces a
    /// certificate
    CLIENT_CERT "client_cert": ClientCert =
        CLIENT_CERTS, optional "`\"required\"` with `client_ca_file`, else `\"none\"`";
    /// revocation lists; each authority in the chain of a peer must have one here
    CRL_FILE "crl_file": String = PATH, optional "nothing is revoked";
    /// accepted versions of TLS; 1.3 is for tls alone
    VERSIONS "versions": Vec<Located<Version>> =
        List { of: &VERSION, one: "version" }, optional "both; `1.2` for dtls";
    /// pre-shared keys of peers, one a line: `identity:key`, the key in hexadecimal digits
    PSK_FILE "psk_file": String = PATH, optional "no pre-shared keys";
    /// dtls only: the accepted cipher suites, the best first; suites with 8-byte tags (CCM8) may be among them at any
    /// security level
    CIPHERS "ciphers": String =
        text("cipher suites in OpenSSL's notation", 1..=4096),
        optional "forward secrecy and authenticated encryption first";
    /// dtls only: bytes of the longest datagram of a handshake, without the headers of IP and UDP; later each `Send` is
    /// one datagram, which IP may fragment
    MTU "mtu": u16 = count(256..=16_384), default 1200;
}

/// Whether a peer must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum ClientCert {
    None,
    Optional,
    Required,
}

const CLIENT_CERTS: Choice<ClientCert> =
    Choice(&[("none", ClientCert::None), ("optional", ClientCert::Optional), ("required", ClientCert::Required)]);

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Version {
    V12,
    V13,
}

const VERSION: Choice<Version> = Choice(&[("1.2", Version::V12), ("1.3", Version::V13)]);

section! {
    mod certificate;
    /// More certificates of a listener. A peer gets the first one that has the requested name, wildcards too, and a
    /// kind of key that the peer supports, so one name may have an RSA and an ECDSA certificate.
    "certificates", "[[listeners.NAME.tls.certificates]]", Rows;

    /// a certificate, then its chain
    CERT_FILE "cert_file": String = PATH, required;
    /// its private key, without a passphrase
    KEY_FILE "key_file": String = PATH, required;
}

/// The TLS or DTLS context of a listener; neither for other transports.
#[derive(Default)]
pub(super) struct Contexts {
    pub(super) tls: Option<tls::Acceptor>,
    pub(super) dtls: Option<dtls::Context>,
}

pub(super) fn contexts(
    listener: &Table<'_>,
    transport: SocketKind,
    external: ExternalFiles<'_>,
) -> Result<Contexts, ErrorReported> {
    if !transport.is_secure() {
        return Ok(Contexts::default());
    }
    let Some(table) = listener.section(&SECTION)? else {
        let message =
            format_args!("is missing; a listener on {transport}:// needs cert_file and key_file, or psk_file");
        return Err(listener.fault_at("tls", message));
    };
    let fault = |error: tls::AcceptorError| listener.fault_at("tls", format_args!("cannot be used: {error}"));
    let credentials = read_credentials(&table, transport, external)?;
    if transport.has_datagrams() {
        let options = datagram_options(&table)?;
        let context = dtls::Context::new(&credentials, &options).map_err(|error| fault(error.into()))?;
        Ok(Contexts { tls: None, dtls: Some(context) })
    } else {
        Ok(Contexts { tls: Some(tls::Acceptor::new(credentials).map_err(fault)?), dtls: None })
    }
}

fn read_credentials(
    table: &Table<'_>,
    transport: SocketKind,
    external: ExternalFiles<'_>,
) -> Result<Credentials, ErrorReported> {
    let datagrams_only = all(["ciphers", "mtu"].into_iter().map(|key| match table.has(key) {
        true if !transport.has_datagrams() => Err(other_transport(table, key, &[SocketKind::Dtls], transport)),
        _ => Ok(()),
    }));
    let credentials = read_all!(Credentials {
        identities: identities(table, external),
        clients: clients(table, external),
        versions: versions(table, transport),
        psks: table
            .get(&PSK_FILE)
            .and_then(|file| file.map(|file| psks(table, external, &file).map(Arc::new)).transpose()),
    })?;
    let () = datagrams_only?;
    if credentials.identities.is_empty() && credentials.psks.is_none() {
        return Err(table.has_neither("cert_file", "psk_file"));
    }
    Ok(credentials)
}

/// The files that the table names. A table with faults has them too, as far as it can be read.
pub(super) fn files(listener: &Table<'_>, external: ExternalFiles<'_>) -> Vec<PathBuf> {
    let Some(Ok(table)) = listener.item(SECTION.key).map(|item| item.table()) else { return Vec::new() };
    let rows = table.item(certificate::SECTION.key).and_then(|rows| rows.elements("").ok()).unwrap_or_default();
    let rows = rows.iter().filter_map(|row| row.table().ok());
    let of_one = |table: Table<'_>| {
        let keys = [&CERT_FILE, &KEY_FILE, &CLIENT_CA_FILE, &CRL_FILE, &PSK_FILE];
        keys.map(|key| Some(external.path(table.item(key.name)?.value().as_str()?)))
    };
    [table.clone()].into_iter().chain(rows).flat_map(of_one).flatten().collect()
}

fn datagram_options(table: &Table<'_>) -> Result<dtls::Options, ErrorReported> {
    read_all!(dtls::Options {
        ciphers: table.get_with(&CIPHERS, |ciphers| {
            let ciphers = ciphers.unwrap_or_else(|| dtls::CIPHERS.to_owned());
            match dtls::check_ciphers(&ciphers) {
                Ok(()) => Ok(ciphers),
                Err(_) => Err(format!("{ciphers:?}: none of these cipher suites is known to OpenSSL")),
            }
        }),
        mtu: table.get(&MTU),
    })
}

/// The listener's certificates, the main one first.
fn identities(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Vec<Identity>, ErrorReported> {
    let main = match (table.get(&CERT_FILE), table.get(&KEY_FILE)) {
        (Ok(Some(certificate)), Ok(Some(key))) => identity(table, external, &certificate, &key).map(Some),
        (Ok(Some(_)), Ok(None)) => Err(table.lacks("key_file", "cert_file")),
        (Ok(None), Ok(Some(_))) => Err(table.lacks("cert_file", "key_file")),
        (Ok(None), Ok(None)) => Ok(None),
        (Err(reported), _) | (_, Err(reported)) => Err(reported),
    };
    let more = table.rows(&certificate::SECTION, |row| {
        let (certificate, key) = (row.get(&certificate::CERT_FILE), row.get(&certificate::KEY_FILE));
        identity(&row, external, &certificate?, &key?)
    });
    Ok(main?.into_iter().chain(more?).collect())
}

fn identity(
    table: &Table<'_>,
    external: ExternalFiles<'_>,
    certificate: &str,
    key: &str,
) -> Result<Identity, ErrorReported> {
    let chain =
        pem(external, certificate, credentials::certificates).map_err(|fault| table.fault_at("cert_file", fault));
    let secret = pem(external, key, credentials::private_key).map_err(|fault| table.fault_at("key_file", fault));
    let identity = Identity::new(chain?, secret?).map_err(|why| table.fault_at("key_file", file_fault(key, why)))?;
    warn_if_open(table, external, "key_file", key);
    if identity.expires() < SystemTime::now() {
        table.warn_at("cert_file", Advice::CertificateExpired);
    }
    Ok(identity)
}

fn clients(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Clients, ErrorReported> {
    let roots = table
        .get_with(&CLIENT_CA_FILE, |file| file.map(|file| pem(external, &file, credentials::certificates)).transpose());
    let revoked =
        table.get_with(&CRL_FILE, |file| file.map(|file| pem(external, &file, credentials::revocations)).transpose());
    let requested = table.get(&CLIENT_CERT);
    let (roots, revoked, requested) = (roots?, revoked?, requested?);
    let Some(roots) = roots else {
        return match (requested, revoked) {
            (Some(ClientCert::Optional | ClientCert::Required), _) => Err(table.lacks("client_ca_file", "client_cert")),
            (Some(ClientCert::None) | None, Some(_)) => Err(table.lacks("client_ca_file", "crl_file")),
            (Some(ClientCert::None) | None, None) => Ok(Clients::Unasked),
        };
    };
    let (revoked, outdated) = revoked.unwrap_or_default();
    if outdated.is_some_and(|since| since < SystemTime::now()) {
        table.warn_at("crl_file", Advice::RevocationsOutdated);
    }
    let authorities = Authorities { roots, revoked };
    Ok(match requested {
        Some(ClientCert::None) => Clients::Unasked,
        Some(ClientCert::Optional) => Clients::Optional(authorities),
        Some(ClientCert::Required) | None => Clients::Required(authorities),
    })
}

fn versions(table: &Table<'_>, transport: SocketKind) -> Result<Versions, ErrorReported> {
    let written = table.get(&VERSIONS)?.unwrap_or_default();
    let has = |version| written.iter().any(|located| located.value == version);
    match (has(Version::V12), has(Version::V13)) {
        (_, true) if transport.has_datagrams() => {
            Err(table.fault_at("versions", "has \"1.3\", which is for tls; expected [\"1.2\"]"))
        }
        _ if transport.has_datagrams() => Ok(Versions::Only12),
        (true, false) => Ok(Versions::Only12),
        (false, true) => Ok(Versions::Only13),
        (true, true) | (false, false) => Ok(Versions::Both),
    }
}

fn psks(table: &Table<'_>, external: ExternalFiles<'_>, path: &str) -> Result<Psks, ErrorReported> {
    let parse = |bytes| {
        let text = String::from_utf8(bytes).map_err(|_| file_fault(path, Unreadable::NotText))?;
        let psks = Psks::parse(&text).map_err(|why| file_fault(path, why))?;
        match psks.is_empty() {
            true => Err(file_fault(path, "has no key; expected lines of the form \"identity:key\"")),
            false => Ok(psks),
        }
    };
    let psks = external.file(path, PSK_BYTES_MAX).and_then(parse).map_err(|fault| table.fault_at("psk_file", fault))?;
    warn_if_open(table, external, "psk_file", path);
    match psks.weak() {
        0 => {}
        count => table.warn_at("psk_file", Advice::WeakKeys(count)),
    }
    Ok(psks)
}

/// Warns about a file with keys that every user of the machine can read. A group may: Debian's is `ssl-cert`.
fn warn_if_open(table: &Table<'_>, external: ExternalFiles<'_>, name: &str, path: &str) {
    use std::os::unix::fs::MetadataExt;

    const READABLE_BY_OTHERS: u32 = 0o004;
    if std::fs::metadata(external.path(path)).is_ok_and(|metadata| metadata.mode() & READABLE_BY_OTHERS != 0) {
        table.warn_at(name, Advice::KeysReadable);
    }
}

/// Parses a PEM file.
fn pem<T>(external: ExternalFiles<'_>, path: &str, parse: fn(&[u8]) -> Result<T, MalformedPem>) -> Result<T, Fault> {
    parse(&external.file(path, PEM_BYTES_MAX)?).map_err(|why| file_fault(path, why))
}
