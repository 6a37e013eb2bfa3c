//! gRPC handlers: the user's servers that speak ExProto.
//!
//! A [`Handler`] owns a small pool of HTTP/2 connections to each of its urls. They are opened by the first
//! call and opened anew by the next call after a loss. A device's connection stays with one of them, so its
//! events take one way; the events' order itself comes from there being only one in flight.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tonic::transport::Uri;

use self::endpoint::Endpoint;
use super::CallError;
use crate::conn::{ConnId, ConnInfo, Event};
use crate::exproto::{self, proto};

mod codec;
mod endpoint;
mod failure;

pub use endpoint::Service;
pub(crate) use endpoint::{ClientTls, TlsError};

/// How long a call may take where nobody says another bound.
pub(crate) const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// HTTP/2 connections for each url where nobody says another number.
pub(crate) const CHANNELS_DEFAULT: usize = 2;

/// Where a gRPC handler is and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The handler's name in the configuration, in logs and metrics.
    pub name: Arc<str>,
    /// One or more `http://` or `https://` addresses; devices are spread over them.
    pub urls: Vec<Uri>,
    /// Which of ExProto's two services the servers have.
    pub service: Service,
    /// How long a call may take.
    pub call_timeout: Duration,
    /// HTTP/2 connections for each url, `1..`.
    pub channels: usize,
    /// For `https://` urls.
    pub tls: Option<ClientTls>,
}

impl Options {
    /// Servers of which only the addresses are known.
    pub fn new(name: Arc<str>, urls: Vec<Uri>) -> Self {
        Self {
            name,
            urls,
            service: Service::Auto,
            call_timeout: CALL_TIMEOUT_DEFAULT,
            channels: CHANNELS_DEFAULT,
            tls: None,
        }
    }
}

/// Reads a server's address: `http://` or `https://`, a host, a port, and nothing else. `None` for any other text.
pub(crate) fn url(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let scheme = matches!(url.scheme_str(), Some("http" | "https"));
    let host = url.host().is_some_and(|host| !host.is_empty());
    // A port that is no number of 16 bits, or zero, is taken for none by the parser. A user name stands before the host.
    let after_host = url.authority().and_then(|whole| whole.as_str().strip_prefix(url.host().unwrap_or_default()));
    let port = after_host == Some("") || (after_host.is_some() && url.port_u16().is_some_and(|port| port != 0));
    // The path is ExProto's.
    let path = matches!(url.path_and_query().map(|path| path.as_str()), None | Some("/"));
    (scheme && host && port && path).then_some(url)
}

/// A gRPC handler, shared by all its connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handler(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    call_timeout: Duration,
    /// `channels` of each url, the urls taking turns.
    endpoints: Vec<Endpoint>,
    /// The first so many of them are of different urls.
    urls: usize,
    next: AtomicUsize,
}

impl Handler {
    /// Prepares the pool; nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`TlsError`], when the certificates of `tls` cannot be used.
    pub fn new(options: Options) -> Result<Self, TlsError> {
        let mut endpoints = Vec::with_capacity(options.channels * options.urls.len());
        for _ in 0..options.channels {
            for url in &options.urls {
                endpoints.push(Endpoint::new(&options.name, url, options.service, options.tls.as_ref())?);
            }
        }
        Ok(Self(Arc::new(Shared {
            name: options.name,
            call_timeout: options.call_timeout,
            endpoints,
            urls: options.urls.len(),
            next: AtomicUsize::new(0),
        })))
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// How long a call may take.
    pub fn call_timeout(&self) -> Duration {
        self.0.call_timeout
    }

    /// Gives a connection its place in the pool.
    pub fn attach(&self, conn: ConnId, info: &Arc<ConnInfo>) -> GrpcClient {
        let turn = self.0.next.fetch_add(1, Ordering::Relaxed);
        GrpcClient {
            handler: self.clone(),
            endpoint: turn % self.0.endpoints.len().max(1),
            conn: conn.to_string().into(),
            info: Arc::clone(info),
        }
    }

    /// Whether one of the servers can be reached.
    ///
    /// # Errors
    ///
    /// [`CallError::Unavailable`] with the last one's reason; [`CallError::Timeout`].
    pub async fn probe(&self) -> Result<(), CallError> {
        let mut result = Err(CallError::Unavailable("the handler has no url".to_owned()));
        for endpoint in self.0.endpoints.iter().take(self.0.urls) {
            result = tokio::time::timeout(self.0.call_timeout, endpoint.probe())
                .await
                .unwrap_or(Err(CallError::Timeout(self.0.call_timeout)));
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// A call in flight. It borrows nothing, so the connection goes on with its socket meanwhile.
pub(crate) type Call = Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>;

/// One connection's side of a gRPC handler.
#[derive(Debug)]
pub struct GrpcClient {
    handler: Handler,
    endpoint: usize,
    conn: Arc<str>,
    info: Arc<ConnInfo>,
}

impl GrpcClient {
    /// How long a call may take; whoever drives the call ends it then.
    pub fn call_timeout(&self) -> Duration {
        self.handler.call_timeout()
    }

    /// Takes a server at another url, if there is one. It does not know the connection.
    pub fn next_endpoint(&mut self) -> bool {
        let shared = &self.handler.0;
        self.endpoint = (self.endpoint + 1) % shared.endpoints.len().max(1);
        shared.urls > 1
    }

    /// Starts the callback for an event.
    ///
    /// # Errors
    ///
    /// The call gives every [`CallError`] but the timeout.
    pub fn call(&self, event: &Event) -> Call {
        let handler = self.handler.clone();
        let index = self.endpoint;
        let conn = self.conn.as_ref().to_owned();
        macro_rules! call {
            ($method:literal, $request:expr) => {{
                let request = $request;
                Box::pin(async move { handler.endpoint(index)?.call(endpoint::method!($method), request).await })
            }};
        }
        match event {
            Event::SocketCreated(info) => call!(
                "OnSocketCreated",
                proto::SocketCreatedRequest { conn, conninfo: Some(proto::ConnInfo::from(info.as_ref())) }
            ),
            Event::ReceivedBytes(bytes) => {
                call!("OnReceivedBytes", proto::ReceivedBytesRequest { conn, bytes: bytes.clone() })
            }
            Event::TimerTimeout(timer) => call!(
                "OnTimerTimeout",
                proto::TimerTimeoutRequest { conn, r#type: proto::TimerType::from(*timer).into() }
            ),
            Event::ReceivedMessages(messages) => call!(
                "OnReceivedMessages",
                proto::ReceivedMessagesRequest { conn, messages: messages.iter().cloned().map(Into::into).collect() }
            ),
            Event::SocketClosed(reason) => call!(
                "OnSocketClosed",
                proto::SocketClosedRequest { conn, reason: exproto::close_reason(reason, self.info.kind) }
            ),
        }
    }
}

impl Handler {
    fn endpoint(&self, index: usize) -> Result<&Endpoint, CallError> {
        self.0.endpoints.get(index).ok_or_else(|| CallError::Unavailable("the handler has no url".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A probe finds out whether somebody listens, without a call.
    #[tokio::test]
    async fn a_probe_finds_a_server_that_is_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let handler = handler(listener.local_addr().unwrap().port());
        handler.probe().await.unwrap();
        drop(listener);
        let away = handler.probe().await.unwrap_err();
        assert_eq!(away.kind(), "unavailable", "{away}");
    }

    fn handler(port: u16) -> Handler {
        Handler::new(Options {
            name: "h".into(),
            urls: vec![format!("http://127.0.0.1:{port}").parse().unwrap()],
            service: Service::Auto,
            call_timeout: Duration::from_secs(5),
            channels: 1,
            tls: None,
        })
        .unwrap()
    }
}
