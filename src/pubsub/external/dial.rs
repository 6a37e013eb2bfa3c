//! Sockets to an external broker: TCP, TLS, WebSocket.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretSlice};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::ServerUrl;
use crate::mqtt_stream::{ReadError, Stream, websocket};

/// TLS towards the broker.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// Authorities, in PEM; without them those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// Certificate chain and private key, in PEM.
    pub identity_pem: Option<(Vec<u8>, SecretSlice<u8>)>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("has_identity", &self.identity_pem.is_some()).finish_non_exhaustive()
    }
}

/// The TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the broker's tls settings cannot be used: {0}")]
pub struct TlsError(String);

/// Makes sockets. All share one TLS configuration, and with it the sessions that are resumed.
pub(super) struct Dialer {
    tls: TlsConnector,
    sources: Vec<IpAddr>,
    next_source: AtomicUsize,
}

impl Dialer {
    pub(super) fn new(tls: &ClientTls, sources: Vec<IpAddr>) -> Result<Self, TlsError> {
        let fault = |error: &dyn fmt::Display| TlsError(error.to_string());
        let mut roots = RootCertStore::empty();
        match &tls.ca_pem {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    roots.add(certificate.map_err(|error| fault(&error))?).map_err(|error| fault(&error))?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                let (_, _) = roots.add_parsable_certificates(found.certs);
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| fault(&error))?
            .with_root_certificates(roots);
        let config = match &tls.identity_pem {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>();
                let key = PrivateKeyDer::from_pem_slice(key.expose_secret()).map_err(|error| fault(&error))?;
                builder
                    .with_client_auth_cert(chain.map_err(|error| fault(&error))?, key)
                    .map_err(|error| fault(&error))?
            }
        };
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), sources, next_source: AtomicUsize::new(0) })
    }

    /// Connects to the first address of the host that answers.
    pub(super) async fn dial(&self, url: &ServerUrl) -> Result<Box<dyn Stream>, ReadError> {
        let mut last = None;
        let mut socket = None;
        for address in lookup_host((url.host.as_str(), url.port)).await? {
            match self.connect(address).await {
                Ok(connected) => {
                    socket = Some(connected);
                    break;
                }
                Err(error) => last = Some(error),
            }
        }
        let Some(socket) = socket else {
            return Err(last.unwrap_or_else(|| io::Error::other("the host has no address")).into());
        };
        socket.set_nodelay(true)?;
        let stream: Box<dyn Stream> = if url.is_secure {
            let name = ServerName::try_from(url.host.clone())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            Box::new(self.tls.connect(name, socket).await?)
        } else {
            Box::new(socket)
        };
        match &url.path {
            None => Ok(stream),
            Some(path) => {
                let upgraded = websocket::connect(stream, &url.authority(), path).await;
                Ok(Box::new(upgraded.map_err(|error| io::Error::other(error.to_string()))?))
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let fitting = self.sources.iter().filter(|source| source.is_ipv4() == address.is_ipv4()).count();
        if fitting == 0 {
            return TcpStream::connect(address).await;
        }
        let turn = self.next_source.fetch_add(1, Ordering::Relaxed) % fitting;
        let source = self.sources.iter().filter(|source| source.is_ipv4() == address.is_ipv4()).nth(turn);
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // The port is chosen at connect, by source and destination: one source address is good for as many connections
        // to each destination.
        bind_address_no_port(&socket)?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(*source, 0))?;
        }
        socket.connect(address).await
    }
}

/// Sets IP_BIND_ADDRESS_NO_PORT (ip(7)).
fn bind_address_no_port(socket: &TcpSocket) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option's value is an int of the given size.
    #[allow(unsafe_code, reason = "no crate of this program has the option")]
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
