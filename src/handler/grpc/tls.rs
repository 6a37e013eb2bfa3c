//! TLS to a handler's server.

use std::fmt;
use std::io;
use std::sync::Arc;

use http::Uri;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::listener::credentials::{MalformedPem, certificates, private_key};

/// TLS options of a handler on https.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Authorities of the server's certificate, in PEM; the system's when absent.
    pub ca_pem: Option<Vec<u8>>,
    /// The gateway's certificate chain and its key, in PEM, for a server that asks for a client certificate.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
    /// Name that the server's certificate must have; the url's host when absent.
    pub server_name: Option<String>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The TLS options of a handler cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("handler {handler:?}: the tls settings for {url} cannot be used")]
pub struct TlsError {
    handler: Arc<str>,
    url: Uri,
    #[source]
    source: TlsFault,
}

#[derive(Debug, thiserror::Error)]
enum TlsFault {
    #[error(transparent)]
    Pem(#[from] MalformedPem),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    #[error("the system's authorities cannot be read: {0}")]
    NoAuthorities(String),
    #[error("{0:?} is not a host name or an IP address")]
    Name(String),
}

/// A TLS client for one url.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn new(handler: &Arc<str>, url: &Uri, options: Option<&ClientTls>) -> Result<Self, TlsError> {
        Self::of(options).map_err(|source| TlsError { handler: Arc::clone(handler), url: url.clone(), source })
    }

    fn of(options: Option<&ClientTls>) -> Result<Self, TlsFault> {
        let mut roots = RootCertStore::empty();
        match options.and_then(|options| options.ca_pem.as_ref()) {
            Some(pem) => {
                for certificate in certificates(pem)? {
                    roots.add(certificate)?;
                }
            }
            None => {
                let native = rustls_native_certs::load_native_certs();
                let (added, _) = roots.add_parsable_certificates(native.certs);
                if let (0, Some(error)) = (added, native.errors.first()) {
                    return Err(TlsFault::NoAuthorities(error.to_string()));
                }
            }
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match options.and_then(|options| options.identity_pem.as_ref()) {
            Some((chain, key)) => config.with_client_auth_cert(certificates(chain)?, private_key(key)?)?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = options.and_then(|options| options.server_name.clone());
        let name = name.map(|name| ServerName::try_from(name.clone()).map_err(|_| TlsFault::Name(name))).transpose()?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        let stream = self.connector.connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol().is_some_and(|protocol| protocol != b"h2") {
            return Err(io::Error::other("the server does not speak HTTP/2 (ALPN h2)"));
        }
        Ok(stream)
    }
}
