//! TLS handshakes and streams of listeners.
//!
//! rustls serves peers with certificates. It does not support pre-shared keys, so OpenSSL serves a listener that has
//! some.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use openssl::error::ErrorStack;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslOptions};
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion, version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;
use tokio_rustls::server::TlsStream;

use super::credentials::{Clients, Credentials, Versions, is_name, is_wildcard_of};
use super::handshake::HandshakeError;
use super::openssl as backend;
use super::psk::Psk;
use crate::conn::Certificate;

pub(in crate::listener) mod name;

/// Bytes that a stream may hold for a peer that reads nothing, beside the queue of its connection: two records.
const HELD_BYTES_MAX: usize = 32 * 1024;

/// A ticket is valid for one resumption, which issues the next; a device has one connection at a time.
const TICKETS: usize = 1;

/// Accepts TLS sessions on streams; cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    backend: Backend,
    credentials: Arc<Credentials>,
}

#[derive(Clone)]
enum Backend {
    Rustls(Arc<ServerConfig>),
    OpenSsl(SslContext),
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

/// Why parsed credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AcceptorError {
    /// An error of rustls.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// An error of rustls about the authorities or their revocation lists.
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// An error of OpenSSL.
    #[error(transparent)]
    OpenSsl(#[from] ErrorStack),
}

impl Acceptor {
    /// Prepares for handshakes. Sessions of another acceptor cannot be resumed, so that a peer whose certificate has
    /// been revoked since is verified again.
    ///
    /// # Errors
    ///
    /// [`AcceptorError`]: a library refuses a credential.
    pub fn new(credentials: Credentials) -> Result<Self, AcceptorError> {
        let backend = match credentials.psks {
            Some(_) => Backend::OpenSsl(backend::context(SslMethod::tls_server, &credentials, |context| {
                // There is no renegotiation, and no TLS 1.0 and 1.1.
                context.set_options(match credentials.versions {
                    Versions::Both => SslOptions::empty(),
                    Versions::Only12 => SslOptions::NO_TLSV1_3,
                    Versions::Only13 => SslOptions::NO_TLSV1_2,
                });
                context.set_min_proto_version(Some(openssl::ssl::SslVersion::TLS1_2))?;
                context.set_num_tickets(0)
            })?),
            None => Backend::Rustls(Arc::new(server_config(&credentials)?)),
        };
        Ok(Self { backend, credentials: Arc::new(credentials) })
    }

    /// The successor of `last`: with the same credentials it is `last`, whose sessions can be resumed.
    pub(super) fn after(self, last: Option<&Self>) -> Self {
        match last {
            Some(last) if last.credentials == self.credentials => last.clone(),
            Some(_) | None => self,
        }
    }

    /// Performs the handshake. Dropping it ends the connection.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`].
    pub async fn accept(&self, stream: TcpStream) -> Result<(Stream, Option<Certificate>), HandshakeError> {
        match &self.backend {
            Backend::Rustls(config) => {
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(config));
                let limit = |connection: &mut ServerConnection| connection.set_buffer_limit(Some(HELD_BYTES_MAX));
                let stream = Box::pin(acceptor.accept_with(stream, limit)).await?;
                let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let certificate = leaf.map(|leaf| subject(leaf)).transpose()?;
                Ok((Stream(Inner::Rustls(Box::new(stream))), certificate))
            }
            Backend::OpenSsl(context) => {
                let ours = |error: ErrorStack| HandshakeError::Ours(error.to_string());
                let mut stream = SslStream::new(Ssl::new(context).map_err(ours)?, stream).map_err(ours)?;
                if let Err(error) = Pin::new(&mut stream).accept().await {
                    return Err(backend::failure(&error, stream.ssl()));
                }
                let leaf = stream.ssl().peer_certificate().map(|leaf| leaf.to_der()).transpose().map_err(ours)?;
                let certificate = leaf.map(|leaf| subject(&leaf)).transpose()?;
                if let Some(psk) = Psk::of(stream.ssl()).filter(|psk| psk.is_known && certificate.is_none()) {
                    tracing::debug!(identity = %psk.identity, "peer authenticated with a pre-shared key");
                }
                Ok((Stream(Inner::OpenSsl(Box::new(stream))), certificate))
            }
        }
    }
}

fn subject(leaf: &[u8]) -> Result<Certificate, HandshakeError> {
    name::subject(leaf).map_err(|error| HandshakeError::BadCertificate(error.to_string()))
}

fn server_config(credentials: &Credentials) -> Result<ServerConfig, AcceptorError> {
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
    let versions = match credentials.versions {
        Versions::Both => rustls::ALL_VERSIONS,
        Versions::Only12 => &ONLY_12,
        Versions::Only13 => &ONLY_13,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
    let builder = match credentials.clients.authorities() {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for root in &authorities.roots {
                roots.add(root.clone())?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.with_crls(authorities.revoked.iter().cloned());
            let verifier = match credentials.clients {
                Clients::Required(_) => verifier,
                Clients::Optional(_) | Clients::Unasked => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let identities = credentials.identities.iter();
    let identities = identities.map(|identity| (identity.names().to_vec(), Arc::clone(identity.certified()))).collect();
    let mut config = builder.with_cert_resolver(Arc::new(Resolver { identities }));
    // The session state, with the peer's certificate, is in its ticket: the listener keeps nothing for disconnected
    // peers.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = TICKETS;
    Ok(config)
}

/// Selects the certificate for a peer.
#[derive(Debug)]
struct Resolver {
    /// Names and certificates; the first is the default for unknown names.
    identities: Vec<(Vec<String>, Arc<CertifiedKey>)>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let signs = |key: &CertifiedKey| key.key.choose_scheme(hello.signature_schemes()).is_some();
        self.choose(name.as_deref(), signs).map(Arc::clone)
    }
}

impl Resolver {
    /// The first certificate with this name whose key has a signature scheme of the peer; an exact name before a
    /// wildcard, and any certificate if none has the name.
    fn choose(&self, name: Option<&str>, signs: impl Fn(&CertifiedKey) -> bool) -> Option<&Arc<CertifiedKey>> {
        let with = |fits: &dyn Fn(&str) -> bool| -> Vec<&Arc<CertifiedKey>> {
            let has = |(names, _): &&(Vec<String>, _)| names.iter().any(|of| fits(of));
            self.identities.iter().filter(has).map(|(_, key)| key).collect()
        };
        let mut fitting = Vec::new();
        if let Some(name) = name {
            fitting = with(&|of| is_name(of, name));
            if fitting.is_empty() {
                fitting = with(&|of| is_wildcard_of(of, name));
            }
        }
        if fitting.is_empty() {
            fitting = self.identities.iter().map(|(_, key)| key).collect();
        }
        fitting.into_iter().find(|key| signs(key))
    }
}

/// A TLS stream after its handshake.
pub struct Stream(Inner);

enum Inner {
    Rustls(Box<TlsStream<TcpStream>>),
    OpenSsl(Box<SslStream<TcpStream>>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    /// Whether it may hold accepted bytes that are not written yet.
    pub(super) fn holds_bytes(&self) -> bool {
        match &self.0 {
            Inner::Rustls(stream) => stream.get_ref().1.wants_write(),
            // OpenSSL accepts bytes when the socket has accepted their record.
            Inner::OpenSsl(_) => false,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.0 {
            Inner::Rustls(stream) => {
                let read = Pin::new(&mut *stream).poll_read(cx, buffer);
                if stream.get_ref().1.wants_write() && Pin::new(stream).poll_flush(cx)?.is_ready() {
                    tracing::trace!("TLS answered the peer itself (key update or alert)");
                }
                read
            }
            Inner::OpenSsl(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        match ready!(read) {
            Ok(()) => Poll::Ready(Ok(())),
            // Many devices close without close_notify. The bytes before are complete, record by record; whether a frame
            // is complete is for the handler to see.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && buffer.filled().len() == before => {
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Rustls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Inner::OpenSsl(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Rustls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Inner::OpenSsl(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Inner::Rustls(stream) => stream.is_write_vectored(),
            Inner::OpenSsl(_) => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Rustls(stream) => Pin::new(stream).poll_flush(cx),
            Inner::OpenSsl(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Rustls(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::OpenSsl(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
