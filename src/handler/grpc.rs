//! gRPC handlers: the user's servers that speak ExProto.
//!
//! A [`Handler`] owns the HTTP/2 connections to each of its urls (`server.rs`, `channel.rs`). A device stays with one of them. The
//! order of its events comes from there being one at a time in flight; on streams (`device_streams.rs`) it is the order of one
//! stream.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use prost::Message;

use self::channel::Failure;
use self::device_streams::{Delivered, DeviceStreams};
use self::server::{Callback, Detected, Manner, Server};
use super::CallError;
use crate::conn::{ConnId, ConnInfo, Event};
use crate::exproto::{self, proto};

mod channel;
mod device_streams;
mod failure;
mod server;
mod tls;

pub use server::Service;
pub(crate) use server::Streams;
pub(crate) use tls::{ClientTls, TlsError};

/// Default time limit of a call.
pub(crate) const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Default number of HTTP/2 connections for each url.
pub(crate) const CHANNELS_DEFAULT: usize = 2;

/// Default limit of HTTP/2 connections for each url, where streams of devices need more.
pub(crate) const CHANNELS_MAX_DEFAULT: usize = 1_000;

/// Default number of messages in one call: EMQX sends each delivery by itself, and handlers read only the first of a batch.
pub(crate) const MESSAGES_PER_CALL_DEFAULT: usize = 1;

/// Where a gRPC handler is and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The handler's name in the configuration, in logs and metrics.
    pub name: Arc<str>,
    /// One or more `http://` or `https://` addresses; devices are distributed over them.
    pub urls: Vec<Uri>,
    pub service: Service,
    /// Of a server of `ConnectionHandler`; `None`: detected.
    pub streams: Option<Streams>,
    pub call_timeout: Duration,
    /// HTTP/2 connections for each url, `1..`.
    pub channels: usize,
    /// Limit of them where open streams need more, `channels..`.
    pub channels_max: usize,
    /// Messages in one OnReceivedMessages, `1..=1000`.
    pub messages_per_call: usize,
    /// For `https://` urls.
    pub tls: Option<ClientTls>,
}

impl Options {
    /// Default options for servers at these addresses.
    pub fn new(name: Arc<str>, urls: Vec<Uri>) -> Self {
        Self {
            name,
            urls,
            service: Service::Auto,
            streams: None,
            call_timeout: CALL_TIMEOUT_DEFAULT,
            channels: CHANNELS_DEFAULT,
            channels_max: CHANNELS_MAX_DEFAULT,
            messages_per_call: MESSAGES_PER_CALL_DEFAULT,
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
    messages_per_call: usize,
    servers: Vec<Server>,
    next: AtomicUsize,
}

impl Handler {
    /// Prepares the connections; none is made yet.
    ///
    /// # Errors
    ///
    /// [`TlsError`], when the certificates of `tls` cannot be used.
    pub fn new(options: Options) -> Result<Self, TlsError> {
        let manner = (options.service, options.streams);
        let channels = (options.channels, options.channels_max);
        let servers =
            options.urls.iter().map(|url| Server::new(&options.name, url, options.tls.as_ref(), manner, channels));
        Ok(Self(Arc::new(Shared {
            servers: servers.collect::<Result<_, _>>()?,
            name: options.name,
            call_timeout: options.call_timeout,
            messages_per_call: options.messages_per_call.max(1),
            next: AtomicUsize::new(0),
        })))
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Assigns a connection to a server.
    pub fn attach(&self, conn: ConnId, info: &Arc<ConnInfo>) -> GrpcClient {
        GrpcClient {
            handler: self.clone(),
            device: self.0.next.fetch_add(1, Ordering::Relaxed),
            conn: conn.to_string().into(),
            info: Arc::clone(info),
            streams: Arc::default(),
        }
    }

    /// Whether one of the servers can be reached.
    ///
    /// # Errors
    ///
    /// [`CallError::Unavailable`] with the last one's reason; [`CallError::Timeout`].
    pub async fn probe(&self) -> Result<(), CallError> {
        let mut result = Err(no_url());
        for server in &self.0.servers {
            result = match tokio::time::timeout(self.0.call_timeout, server.probe()).await {
                Ok(result) => result.map_err(CallError::from),
                Err(_) => Err(CallError::Timeout(self.0.call_timeout)),
            };
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The server of a device, and the device's number there.
    fn server(&self, device: usize) -> Result<(&Server, usize), CallError> {
        let servers = &self.0.servers;
        let server = device.checked_rem(servers.len()).and_then(|index| servers.get(index));
        server.map(|server| (server, device / servers.len())).ok_or_else(no_url)
    }

    async fn deliver<M: Message>(
        &self,
        device: usize,
        streams: &Mutex<Option<DeviceStreams>>,
        callback: Callback,
        message: &M,
    ) -> Result<(), CallError> {
        let (server, device) = self.server(device)?;
        let mut manner = server.manner();
        loop {
            match manner {
                None => match server.detect(&server.channel(device), callback, message).await? {
                    Detected::Delivered => return Ok(()),
                    Detected::Manner(detected) => manner = Some(detected),
                },
                Some(known @ (Manner::Unary | Manner::StreamPerEvent)) => {
                    match server.channel(device).call(callback.path(known), Some(message)).await {
                        // Another server answers at the same address now.
                        Err(Failure::Server(status)) if server.forget(&status) => manner = None,
                        called => return called.map_err(CallError::from),
                    }
                }
                Some(Manner::StreamPerConnection) => {
                    // One event of a device is in flight at a time. A call that is dropped loses the streams with it.
                    let mut open = streams.lock().take().unwrap_or_default();
                    if callback == Callback::SocketClosed {
                        return Ok(open.close(server, device, message).await?);
                    }
                    let delivered = open.deliver(server, device, callback, message).await?;
                    if delivered == Delivered::Sent {
                        *streams.lock() = Some(open);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Whether the server of a device answers at all, after a call timed out.
    async fn is_alive(&self, device: usize) -> bool {
        match self.server(device) {
            Ok((server, device)) => server.channel(device).is_alive().await,
            Err(_) => false,
        }
    }
}

fn no_url() -> CallError {
    CallError::Unavailable("the handler has no url".to_owned())
}

/// A call in flight. It borrows nothing, so the connection serves its socket meanwhile.
pub(crate) type Call = Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>;

/// One connection's side of a gRPC handler.
#[derive(Debug)]
pub struct GrpcClient {
    handler: Handler,
    device: usize,
    conn: Arc<str>,
    info: Arc<ConnInfo>,
    /// Of a device at a streaming server; allocated by its first event.
    streams: Arc<Mutex<Option<DeviceStreams>>>,
}

impl GrpcClient {
    /// Time limit of a call; the driver of the call enforces it.
    pub fn call_timeout(&self) -> Duration {
        self.handler.0.call_timeout
    }

    /// Most messages in one call.
    pub fn messages_per_call(&self) -> usize {
        self.handler.0.messages_per_call
    }

    /// Selects the server at the next url, if there is one. It does not know the connection.
    pub fn next_endpoint(&mut self) -> bool {
        self.device = self.device.wrapping_add(1);
        *self.streams.lock() = None;
        self.handler.0.servers.len() > 1
    }

    /// Whether the server still answers HTTP/2 pings: a call that timed out at a server that does not was cut off by its transport.
    pub fn is_alive(&self) -> impl Future<Output = bool> + Send + 'static {
        let (handler, device) = (self.handler.clone(), self.device);
        async move { handler.is_alive(device).await }
    }

    /// Starts the callback for an event.
    ///
    /// # Errors
    ///
    /// The call gives every [`CallError`] but the timeout.
    pub fn call(&self, event: &Event) -> Call {
        let conn = self.conn.as_ref().to_owned();
        match event {
            Event::SocketCreated(info) => {
                let conninfo = Some(proto::ConnInfo::from(info.as_ref()));
                self.start(Callback::SocketCreated, proto::SocketCreatedRequest { conn, conninfo })
            }
            Event::ReceivedBytes(bytes) => {
                self.start(Callback::ReceivedBytes, proto::ReceivedBytesRequest { conn, bytes: bytes.clone() })
            }
            Event::TimerTimeout(timer) => {
                let r#type = proto::TimerType::from(*timer).into();
                self.start(Callback::TimerTimeout, proto::TimerTimeoutRequest { conn, r#type })
            }
            Event::ReceivedMessages(messages) => {
                // An event of a handler before in the chain may hold more than this one takes in a call.
                let calls: Vec<_> = messages
                    .chunks(self.messages_per_call())
                    .map(|messages| proto::ReceivedMessagesRequest {
                        conn: conn.clone(),
                        messages: messages.iter().cloned().map(Into::into).collect(),
                    })
                    .collect();
                let (handler, device, streams) = (self.handler.clone(), self.device, Arc::clone(&self.streams));
                Box::pin(async move {
                    for request in calls {
                        handler.deliver(device, &streams, Callback::ReceivedMessages, &request).await?;
                    }
                    Ok(())
                })
            }
            Event::SocketClosed(reason) => {
                let reason = exproto::close_reason(reason, self.info.kind);
                self.start(Callback::SocketClosed, proto::SocketClosedRequest { conn, reason })
            }
        }
    }

    fn start<M: Message + 'static>(&self, callback: Callback, request: M) -> Call {
        let (handler, device, streams) = (self.handler.clone(), self.device, Arc::clone(&self.streams));
        Box::pin(async move { handler.deliver(device, &streams, callback, &request).await })
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
        Handler::new(Options::new("h".into(), vec![format!("http://127.0.0.1:{port}").parse().unwrap()])).unwrap()
    }
}
