//! gRPC service `ConnectionAdapter`: gRPC handlers call it, also from inside a callback.
//!
//! It decodes a request, sends it to the connection's mailbox and encodes the result. A refusal is a response with a
//! code; the gRPC status is always OK.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::budget::Charged;
use super::proto::connection_adapter_server::{ConnectionAdapter, ConnectionAdapterServer};
use super::{port, proto};
use crate::adapter;
use crate::conn::registry::Registry;
use crate::conn::{Command, ConnId, Password, QoS, Refused, Timer};
use crate::drain::Drain;
use crate::listener::credentials::{MalformedPem, certificates, private_key};
use crate::pubsub::PubSub;
use crate::telemetry::Telemetry;

/// Interval of HTTP/2 pings to connected handlers.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of concurrent calls of one HTTP/2 connection; its client queues the others. Without a limit, the
/// HTTP/2 library takes thousands of concurrent small frames for an attack, and closes the connection.
const CALLS_IN_FLIGHT_MAX: u32 = 500;

/// Window of one HTTP/2 connection, in bytes; the library's allowance for small frames is half of it.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Maximum size of a request, in bytes: some handlers send a few megabytes in one `Send`.
pub(super) const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Payloads of at least this size stay in the buffer of their request, which has at least 8 KiB.
const SHARED_FROM: usize = 8 << 10;

/// Options of the adapter service.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// TLS; `None`: plain HTTP/2.
    pub tls: Option<ServerTls>,
    /// Maximum number of connections, `1..`; further ones are closed.
    pub connections_max: usize,
}

/// Certificates of the adapter.
#[derive(Clone)]
pub struct ServerTls {
    /// Certificate chain and key, in PEM.
    pub identity_pem: (Vec<u8>, Vec<u8>),
    /// CAs of client certificates, in PEM; `None`: no client certificate is required.
    pub client_ca_pem: Option<Vec<u8>>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("asks_for_clients", &self.client_ca_pem.is_some()).finish_non_exhaustive()
    }
}

/// The adapter service could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be bound.
    #[error("cannot bind the adapter on {bind}")]
    Bind { bind: SocketAddr, source: std::io::Error },
    /// The certificates are not usable.
    #[error("the adapter's tls settings cannot be used")]
    Tls(#[source] TlsFault),
    /// The reflection service could not be built.
    #[error("the adapter's reflection service could not be built")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Certificates or keys of the adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    #[error(transparent)]
    Pem(#[from] MalformedPem),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
}

/// Implementation of the service.
#[derive(Clone, Debug)]
pub struct Adapter {
    registry: Registry,
    pubsub: PubSub,
    telemetry: Telemetry,
}

impl Adapter {
    /// Serves the connections of this registry, and publishes to this broker.
    pub fn new(registry: Registry, pubsub: PubSub, telemetry: Telemetry) -> Self {
        Self { registry, pubsub, telemetry }
    }

    /// Binds the address and serves the adapter, health and reflection in a task that ends with `drain`.
    ///
    /// Returns the bound address.
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub async fn serve(self, options: &Options, drain: Drain) -> Result<SocketAddr, BindError> {
        let bind = options.bind;
        let failed = |source| BindError::Bind { bind, source };
        let listener = TcpListener::bind(bind).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ConnectionAdapterServer<Self>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(BindError::Reflection)?;
        let tls = options.tls.as_ref().map(tls_acceptor).transpose().map_err(BindError::Tls)?;
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .max_concurrent_streams(CALLS_IN_FLIGHT_MAX)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .layer(Charged);
        let router = server
            .add_service(ConnectionAdapterServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX))
            .add_service(health_service)
            .add_service(reflection);
        let connections = port::connections(listener, tls, options.connections_max);
        tokio::spawn(async move {
            // Handlers need the adapter until the last OnSocketClosed has returned.
            let stopped = async move { drain.ended().await };
            if let Err(error) = router.serve_with_incoming_shutdown(connections, stopped).await {
                tracing::error!(%error, "the adapter service has stopped");
            }
        });
        Ok(bound)
    }

    /// Sends a command to the connection `conn`.
    async fn ask(&self, conn: &str, command: Result<Command, Refused>) -> Result<(), Refused> {
        let id = ConnId::parse(conn).ok_or_else(|| Refused::Malformed {
            what: "conn",
            why: format!("expected 16 hexadecimal digits as the gateway gave them, got {:?}", beginning(conn)),
        })?;
        let mailbox = self.registry.get_for_handler(id).ok_or(Refused::Gone)?;
        mailbox.ask(id, command?).await
    }

    fn answer(
        &self,
        operation: &'static str,
        result: Result<(), Refused>,
    ) -> Result<Response<proto::CodeResponse>, Status> {
        let code = result.as_ref().map_or_else(proto::ResultCode::from, |()| proto::ResultCode::Success);
        self.telemetry.adapter_called(operation, code.as_str_name());
        if let Err(refused) = &result {
            tracing::debug!(operation, "refused: {refused}");
        }
        Ok(Response::new(result.into()))
    }
}

/// The start of a caller's text, for an error; the whole may have megabytes.
fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(40)]
}

/// Copies small payloads, because they would keep the whole request's buffer: published payloads may live long, in
/// queues and as retained messages.
fn owned(bytes: Bytes) -> Bytes {
    if bytes.len() < SHARED_FROM { Bytes::copy_from_slice(&bytes) } else { bytes }
}

fn tls_acceptor(tls: &ServerTls) -> Result<TlsAcceptor, TlsFault> {
    let (chain, key) = &tls.identity_pem;
    let builder = ServerConfig::builder();
    let builder = match &tls.client_ca_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut authorities = RootCertStore::empty();
            for authority in certificates(pem)? {
                authorities.add(authority)?;
            }
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(authorities.into()).build()?)
        }
    };
    let mut config = builder.with_single_cert(certificates(chain)?, private_key(key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn qos(number: u32) -> Result<QoS, Refused> {
    QoS::try_from(number)
        .map_err(|number| Refused::Malformed { what: "qos", why: format!("expected 0, 1 or 2, got {number}") })
}

fn timer(request: &proto::TimerRequest) -> Result<Command, Refused> {
    let timer = proto::TimerType::try_from(request.r#type).map(Timer::from).map_err(|_| Refused::Malformed {
        what: "type",
        why: format!("expected 0 (KEEPALIVE), got {}", request.r#type),
    })?;
    Ok(Command::StartTimer { timer, interval: Duration::from_secs(request.interval.into()) })
}

type Answer = Result<Response<proto::CodeResponse>, Status>;

#[tonic::async_trait]
impl ConnectionAdapter for Adapter {
    async fn send(&self, request: Request<proto::SendBytesRequest>) -> Answer {
        let request = request.into_inner();
        let result = self.ask(&request.conn, Ok(Command::Send(request.bytes))).await;
        self.answer("Send", result)
    }

    async fn close(&self, request: Request<proto::CloseSocketRequest>) -> Answer {
        let result = self.ask(&request.into_inner().conn, Ok(Command::Close)).await;
        self.answer("Close", result)
    }

    async fn authenticate(&self, request: Request<proto::AuthenticateRequest>) -> Answer {
        let request = request.into_inner();
        let command = request.clientinfo.ok_or(Refused::Missing { what: "clientinfo" }).map(|client| {
            // proto3 cannot tell an empty password from none.
            let password = (!request.password.is_empty()).then(|| Password::new(request.password));
            Command::Authenticate { client: client.into(), password }
        });
        let result = self.ask(&request.conn, command).await;
        self.answer("Authenticate", result)
    }

    async fn start_timer(&self, request: Request<proto::TimerRequest>) -> Answer {
        let request = request.into_inner();
        let result = self.ask(&request.conn, timer(&request)).await;
        self.answer("StartTimer", result)
    }

    async fn publish(&self, request: Request<proto::PublishRequest>) -> Answer {
        let proto::PublishRequest { conn, topic, qos: number, payload } = request.into_inner();
        let command = qos(number).map(|qos| Command::Publish { topic, qos, payload: owned(payload) });
        let result = self.ask(&conn, command).await;
        self.answer("Publish", result)
    }

    async fn subscribe(&self, request: Request<proto::SubscribeRequest>) -> Answer {
        let proto::SubscribeRequest { conn, topic, qos: number } = request.into_inner();
        let command = qos(number).map(|qos| Command::Subscribe { filter: topic, qos });
        let result = self.ask(&conn, command).await;
        self.answer("Subscribe", result)
    }

    async fn unsubscribe(&self, request: Request<proto::UnsubscribeRequest>) -> Answer {
        let proto::UnsubscribeRequest { conn, topic } = request.into_inner();
        let result = self.ask(&conn, Ok(Command::Unsubscribe { filter: topic })).await;
        self.answer("Unsubscribe", result)
    }

    async fn raw_publish(&self, request: Request<proto::RawPublishRequest>) -> Answer {
        let proto::RawPublishRequest { topic, qos: number, payload } = request.into_inner();
        let result = match qos(number) {
            Ok(qos) => adapter::raw_publish(&self.pubsub, &topic, qos, owned(payload)).await,
            Err(refused) => Err(refused),
        };
        self.answer("RawPublish", result)
    }
}
