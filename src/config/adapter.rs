//! `[adapter]`: the gRPC service that handlers call.

use std::net::{Ipv4Addr, SocketAddr};

use super::ExternalFiles;
use super::binds::Binds;
use super::diagnostics::ErrorReported;
use super::read::{Table, read_all};
use super::schema::section;
use super::value::{ADDRESS, FLAG, PATH, count};
use crate::exproto::service::{Options, ServerTls};

section! {
    /// The `ConnectionAdapter` service, which gRPC handlers call. It is there when a handler is of the kind `grpc`, or
    /// when this table is.
    "adapter", "[adapter]", Once;

    /// the address to listen at; port 0 lets the system choose
    BIND "bind": SocketAddr = ADDRESS, default SocketAddr::from((Ipv4Addr::LOCALHOST, 9100));
    /// accepts a `bind` beyond loopback without `tls.client_ca_file`: then any peer that reaches the port can publish
    /// to every topic
    INSECURE "insecure": bool = FLAG, default false;
    /// maximum number of connections to the port; further ones are closed
    CONNECTIONS_MAX "connections_max": usize = count(1..=65_536), default 256;
    &tls::SECTION;
}

section! {
    mod tls;
    /// Makes the adapter's port speak TLS. All files are PEM.
    "tls", "[adapter.tls]", Once;

    /// certificate of the adapter, with its chain
    CERT_FILE "cert_file": String = PATH, required;
    /// private key of the certificate
    KEY_FILE "key_file": String = PATH, required;
    /// authorities that must have signed the certificate of a client
    CLIENT_CA_FILE "client_ca_file": String = PATH, optional "no certificate is requested";
}

/// The options of the service, if the file has its table or a handler needs it.
pub(super) fn read(
    root: &Table<'_>,
    external: ExternalFiles<'_>,
    binds: &mut Binds,
    needed: bool,
) -> Result<Option<Options>, ErrorReported> {
    if !root.has(SECTION.key) && !needed {
        return Ok(None);
    }
    let table = root.section_or_empty(&SECTION)?;
    let insecure = table.get(&INSECURE);
    let options = read_all!(Options {
        bind: binds.read(&table, &BIND),
        connections_max: table.get(&CONNECTIONS_MAX),
        tls: table.section(&tls::SECTION).and_then(|tls| tls.map(|tls| server_tls(&tls, external)).transpose()),
    })?;
    let is_open =
        !options.bind.ip().is_loopback() && options.tls.as_ref().is_none_or(|tls| tls.client_ca_pem.is_none());
    if is_open && !insecure? {
        return Err(table.fault_at(
            "bind",
            format_args!(
                "{} is not a loopback address: any peer that reaches it can publish to every topic; expected \
                 tls.client_ca_file, which demands a certificate, or insecure = true",
                options.bind
            ),
        ));
    }
    Ok(Some(options))
}

fn server_tls(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<ServerTls, ErrorReported> {
    let cert = table.get_with(&tls::CERT_FILE, |path| external.certificate(&path));
    let key = table.get_with(&tls::KEY_FILE, |path| external.private_key(&path));
    read_all!(ServerTls {
        client_ca_pem: table.get_with(&tls::CLIENT_CA_FILE, |path| external.optional_certificate(path)),
        identity_pem: Ok((cert?, key?)),
    })
}
