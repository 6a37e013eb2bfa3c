use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Uri};
use tonic::{Request, Status, transport};

use super::codec::CallCodec;
use super::failure;
use crate::handler::CallError;

/// How long a connection to a handler may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 pings while a call is in flight; more frequent ones make servers answer `too_many_pings`, and so
/// do pings without calls: servers built on gRPC's C core hang up after four of them by default. A connection
/// that is idle is watched by TCP's own keepalive instead.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// How long a ping may take to be answered before the connection counts as lost.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may be idle before TCP asks whether the other side is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Calls in flight on one HTTP/2 connection; more wait for a place. A server sees thousands of small frames at
/// once as an attack and hangs up, which would end as many devices. With this many, h2's smallest allowance (100
/// frames of 256 bytes, unread) is not used up; most servers bound it to 100 to 250 calls themselves.
const CALLS_IN_FLIGHT_MAX: usize = 150;

/// Window of one call, in bytes: an event with a full read and its answer fit without a wait.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Window of one HTTP/2 connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Which of ExProto's two services a server has. They have the same callbacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Service {
    /// Found out by the first call, and again after a reconnection.
    #[default]
    Auto,
    /// `ConnectionUnaryHandler`.
    Unary,
    /// `ConnectionHandler`, whose callbacks are streams of requests; each of ours carries one.
    Streaming,
}

/// Certificates for a handler on https.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// The authorities that may have signed the handler's certificate, in PEM; the system's when absent.
    pub ca_pem: Option<Vec<u8>>,
    /// Our own certificate chain and its key, in PEM, for a handler that asks for one.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the handler's certificate must have; the url's host when absent.
    pub server_name: Option<String>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The certificates of a handler cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("handler {handler:?}: the tls settings for {url} cannot be used")]
pub struct TlsError {
    handler: Arc<str>,
    url: Uri,
    #[source]
    source: tonic::transport::Error,
}

/// The paths of one callback in both services.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    pub(super) unary: &'static str,
    pub(super) streaming: &'static str,
}

impl Method {
    fn path(self, service: Service) -> &'static str {
        match service {
            Service::Unary | Service::Auto => self.unary,
            Service::Streaming => self.streaming,
        }
    }
}

macro_rules! method {
    ($name:literal) => {
        $crate::handler::grpc::endpoint::Method {
            unary: concat!("/emqx.exproto.v1.ConnectionUnaryHandler/", $name),
            streaming: concat!("/emqx.exproto.v1.ConnectionHandler/", $name),
        }
    };
}
pub(super) use method;

/// One HTTP/2 connection to one server.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    channel: Channel,
    /// How the channel connects; a probe does it by itself, since a channel only says that it would.
    dialled: transport::Endpoint,
    service: Service,
    found: Arc<DetectedService>,
    calls: Arc<Semaphore>,
}

/// What is known of the server at the other end.
#[derive(Debug, Default)]
struct DetectedService {
    /// What `Service::Auto` has found out; forgotten when the server may have become another one.
    service: AtomicU8,
    /// The last attempt to connect failed, and the operator was told.
    unreachable: AtomicBool,
}

impl DetectedService {
    fn get(&self) -> Service {
        match self.service.load(Ordering::Relaxed) {
            1 => Service::Unary,
            2 => Service::Streaming,
            _ => Service::Auto,
        }
    }

    fn set(&self, service: Service) {
        let code = match service {
            Service::Auto => 0,
            Service::Unary => 1,
            Service::Streaming => 2,
        };
        self.service.store(code, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// Prepares a connection; it is opened by the first call.
    pub(super) fn new(
        handler: &Arc<str>,
        url: &Uri,
        service: Service,
        tls: Option<&ClientTls>,
    ) -> Result<Self, TlsError> {
        let mut endpoint = Channel::builder(url.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        if url.scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(tls_config(tls)).map_err(|source| TlsError {
                handler: Arc::clone(handler),
                url: url.clone(),
                source,
            })?;
        }
        let found = Arc::new(DetectedService::default());
        let connector = tower::service_fn({
            let (found, handler) = (Arc::clone(&found), Arc::clone(handler));
            move |url: Uri| {
                found.set(Service::Auto);
                connect(Arc::clone(&handler), Arc::clone(&found), url)
            }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        let calls = Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX));
        Ok(Self { channel, dialled: endpoint, service, found, calls })
    }

    /// Makes one call and waits for its end.
    pub(super) async fn call<M>(&self, method: Method, request: M) -> Result<(), CallError>
    where
        M: Message + Clone + 'static,
    {
        let answer = match self.service {
            Service::Auto => self.detect_service(method, request).await,
            service @ (Service::Unary | Service::Streaming) => self.send(method.path(service), request).await,
        };
        answer.map_err(|status| failure::classify(&status))
    }

    /// Connects once more, TLS included, and hangs up; calls nothing.
    pub(super) async fn probe(&self) -> Result<(), CallError> {
        let connector = tower::service_fn(|url: Uri| async move { dial(&url).await.map(TokioIo::new) });
        let connected = self.dialled.connect_with_connector(connector).await;
        connected.map(drop).map_err(|error| failure::classify(&Status::from_error(Box::new(error))))
    }

    /// Tries the service that was found before, or the unary one, and then the other, and remembers which one did
    /// it. A server without a service has not handled the event, so asking the other one does not repeat it.
    async fn detect_service<M>(&self, method: Method, request: M) -> Result<(), Status>
    where
        M: Message + Clone + 'static,
    {
        let (service, other) = match self.found.get() {
            Service::Streaming => (Service::Streaming, Service::Unary),
            Service::Unary | Service::Auto => (Service::Unary, Service::Streaming),
        };
        let first = self.send(method.path(service), request.clone()).await;
        let (service, answer) = if first.as_ref().is_err_and(failure::lacks_service) {
            let second = self.send(method.path(other), request).await;
            if second.as_ref().is_err_and(failure::lacks_service) {
                // It has neither, or it has the first and this is its answer to the event.
                return first;
            }
            (other, second)
        } else {
            (service, first)
        };
        // A failure tells nothing: a proxy or the transport may have answered in the server's place.
        if answer.is_ok() {
            self.found.set(service);
        }
        answer
    }

    /// One request, one answer. On the wire a stream of one message is the same as a unary call.
    async fn send<M: Message + 'static>(&self, path: &'static str, request: M) -> Result<(), Status> {
        // The semaphore is never closed. Waiting for a place counts as part of the call's time.
        let _place = self.calls.acquire().await.ok();
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let path = PathAndQuery::from_static(path);
        client.unary(Request::new(request), path, CallCodec::<M>::default()).await.map(|_| ())
    }
}

fn tls_config(tls: Option<&ClientTls>) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new();
    let Some(tls) = tls else {
        return config.with_enabled_roots();
    };
    config = match &tls.ca_pem {
        Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
        None => config.with_enabled_roots(),
    };
    if let Some((chain, key)) = &tls.identity_pem {
        config = config.identity(Identity::from_pem(chain, key));
    }
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name.clone());
    }
    config
}

/// Connects to a url's host, which may be a name: all its addresses are tried.
async fn dial(url: &Uri) -> io::Result<TcpStream> {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(PING_TIMEOUT);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// Connects for calls, and tells the operator when that changes.
async fn connect(handler: Arc<str>, found: Arc<DetectedService>, url: Uri) -> io::Result<TokioIo<TcpStream>> {
    match dial(&url).await {
        Ok(stream) => {
            found.unreachable.store(false, Ordering::Relaxed);
            tracing::info!(%handler, %url, "connected to the handler");
            Ok(TokioIo::new(stream))
        }
        Err(error) => {
            // Every device that has something to say tries again: one line tells it.
            if !found.unreachable.swap(true, Ordering::Relaxed) {
                tracing::warn!(%handler, %url, %error, "cannot connect to the handler");
            }
            Err(error)
        }
    }
}
