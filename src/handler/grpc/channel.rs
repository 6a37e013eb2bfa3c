//! One HTTP/2 connection to a handler's server: connected by the first call, reconnected by the next call after a loss.
//!
//! gRPC over h2 without a client stack between: an event is one small message on one stream, so that the cost of a call is
//! that of its frames. The wire is that of the gRPC specification ("gRPC over HTTP2"): `POST`, a message with a prefix of five
//! bytes, the status in the trailers.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::poll_fn;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, header};
use parking_lot::Mutex;
use prost::Message;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::{Code, Status};

use super::failure;
use super::tls::Tls;
use crate::handler::CallError;

/// Time limit of a TCP connect and a TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of HTTP/2 pings while unary calls are in flight. More frequent pings, and pings while nothing is sent, also with open
/// streams, make servers built on gRPC's C core hang up with `too_many_pings`; an idle connection is watched by TCP's keepalive.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// A connection counts as lost when a ping is not answered within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The same for a ping that was sent because a call timed out.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Idle time after which TCP sends keepalive probes, and time after which unacknowledged data ends the connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Unary calls in flight on one HTTP/2 connection; more wait. A server takes thousands of small frames at once for an attack and
/// hangs up, which would end as many calls. With this many, h2's smallest allowance (100 frames of 256 bytes, unread) is not used
/// up; most servers limit a connection to 100 to 250 streams themselves.
const CALLS_IN_FLIGHT_MAX: usize = 150;

/// Flow-control window of one stream, in bytes: an event with a full read and its answer fit.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Flow-control window of one HTTP/2 connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// The gRPC message prefix: compressed-flag and length.
const PREFIX_BYTES: usize = 5;

type Io = Either<TcpStream, TlsStream<TcpStream>>;

/// Where the channels of one server lead, and what is logged about them.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) handler: Arc<str>,
    pub(super) url: Uri,
    pub(super) tls: Option<Tls>,
    /// The last attempt to connect failed, and that was logged.
    unreachable: AtomicBool,
}

impl Target {
    pub(super) fn new(handler: Arc<str>, url: Uri, tls: Option<Tls>) -> Self {
        Self { handler, url, tls, unreachable: AtomicBool::new(false) }
    }

    /// Opens a TCP connection, with a TLS handshake for https.
    pub(super) async fn dial(&self) -> io::Result<Io> {
        let host = self.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let default_port = if self.tls.is_some() { 443 } else { 80 };
        let connecting = async {
            // A host name is tried with all its addresses.
            let stream = TcpStream::connect((host, self.url.port_u16().unwrap_or(default_port))).await?;
            stream.set_nodelay(true)?;
            let socket = SockRef::from(&stream);
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(PING_TIMEOUT))?;
            socket.set_tcp_user_timeout(Some(TCP_KEEPALIVE))?;
            match &self.tls {
                None => Ok(Either::Left(stream)),
                Some(tls) => tls.connect(host, stream).await.map(Either::Right),
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
            ))
        })
    }

    async fn connect(&self) -> io::Result<Io> {
        let connected = self.dial().await;
        match &connected {
            Ok(_) => {
                self.unreachable.store(false, Ordering::Relaxed);
                tracing::info!(handler = %self.handler, url = %self.url, "connected to the handler");
            }
            // Every device with an event tries again: one line says it.
            Err(error) => {
                if !self.unreachable.swap(true, Ordering::Relaxed) {
                    tracing::warn!(handler = %self.handler, url = %self.url, %error, "cannot connect to the handler");
                }
            }
        }
        connected
    }
}

#[derive(Debug)]
pub(super) struct Channel {
    target: Arc<Target>,
    link: Mutex<Option<Link>>,
    /// One connect at a time.
    connecting: Semaphore,
    calls: Semaphore,
    /// Open streams of devices.
    streams: AtomicUsize,
    /// Counts connects, so that what was learnt of the server before is known to be old.
    generation: AtomicUsize,
}

/// An established HTTP/2 connection.
#[derive(Clone, Debug)]
struct Link {
    sender: SendRequest<Bytes>,
    health: Arc<Health>,
}

/// Whether the other end of a connection still answers.
#[derive(Debug, Default)]
struct Health {
    /// Unary calls in flight.
    in_flight: AtomicUsize,
    probe: Notify,
    /// Answered pings; and whether the connection has ended.
    answers: tokio::sync::watch::Sender<(usize, bool)>,
}

/// A request whose messages are still to be written.
struct Opened {
    response: ResponseFuture,
    send: SendStream<Bytes>,
    _counted: InFlight,
}

/// Counts a call while it lasts.
#[derive(Debug)]
struct InFlight(Arc<Health>);

impl InFlight {
    fn of(health: &Arc<Health>) -> Self {
        health.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(health))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Channel {
    /// Nothing is connected before the first call.
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self {
            target,
            link: Mutex::new(None),
            connecting: Semaphore::new(1),
            calls: Semaphore::new(CALLS_IN_FLIGHT_MAX),
            streams: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
        }
    }

    /// The number of connections made so far.
    pub(super) fn generation(&self) -> usize {
        self.generation.load(Ordering::Relaxed)
    }

    /// Makes one unary call. On the wire it is the same as a client stream of one message.
    ///
    /// # Errors
    ///
    /// Every [`CallError`] but the timeout, which is the caller's.
    pub(super) async fn call<M: Message>(&self, path: &'static str, message: Option<&M>) -> Result<(), Failure> {
        // The semaphore is never closed.
        let _permit = self.calls.acquire().await.ok();
        let Opened { response, send: mut stream, _counted, .. } = self.open(path, |_| Some(())).await?.0;
        let mut bytes = message.map(framed).transpose()?.unwrap_or_default();
        let mut answer = std::pin::pin!(answer(response));
        // A server may answer before it has read the message. One that has not read it resets the stream behind its answer, which is
        // no failure then.
        let sent = poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending => poll_write(&mut stream, &mut bytes, End::Yes, cx).map(|_sent| None),
        });
        match sent.await {
            Some(answered) => answered,
            None => answer.await,
        }
    }

    /// Opens a stream for a device, if the server allows one more on this connection (`SETTINGS_MAX_CONCURRENT_STREAMS`).
    ///
    /// # Errors
    ///
    /// Every [`CallError`] but the timeout.
    pub(super) async fn stream(self: &Arc<Self>, path: &'static str) -> Result<Option<Stream>, Failure> {
        let opened = self.open(path, |link| self.reserve(link.sender.current_max_send_streams())).await;
        match opened {
            Ok((Opened { response, send, .. }, permit)) => {
                Ok(Some(Stream { send, answer: Box::pin(answer(response)), written: 0, _permit: permit }))
            }
            Err(Failure::Full) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn reserve(self: &Arc<Self>, max: usize) -> Option<StreamPermit> {
        // Some are left for unary calls to the same server.
        let max = max.saturating_sub(max / 16).max(1);
        let taken =
            self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < max).then_some(open + 1));
        taken.is_ok().then(|| StreamPermit(Arc::clone(self)))
    }

    /// Begins a request, with what `permit` gives for the connection. A connection that the server is about to close takes no more
    /// requests: then a new one is made, once.
    async fn open<P>(&self, path: &str, permit: impl Fn(&Link) -> Option<P>) -> Result<(Opened, P), Failure> {
        let mut is_retry = false;
        loop {
            let link = self.link().await?;
            let permit = permit(&link).ok_or(Failure::Full)?;
            let health = Arc::clone(&link.health);
            match self.request(link, path).await {
                Ok((response, send)) => {
                    return Ok((Opened { response, send, _counted: InFlight::of(&health) }, permit));
                }
                Err(failure) => {
                    self.link.lock().take_if(|link| Arc::ptr_eq(&link.health, &health));
                    if std::mem::replace(&mut is_retry, true) {
                        return Err(failure);
                    }
                }
            }
        }
    }

    async fn request(&self, link: Link, path: &str) -> Result<(ResponseFuture, SendStream<Bytes>), Failure> {
        let mut sender = link.sender.ready().await.map_err(Failure::transport)?;
        let authority = self.target.url.authority().map_or("", |authority| authority.as_str());
        let scheme = if self.target.tls.is_some() { "https" } else { "http" };
        let invalid = |error: http::Error| Failure::Server(Status::internal(error.to_string()));
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().map_err(invalid)?;
        let request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, concat!("polygate/", env!("CARGO_PKG_VERSION")))
            .body(())
            .map_err(invalid)?;
        sender.send_request(request, false).map_err(Failure::transport)
    }

    /// The established connection, or a new one. Callers that come together share one connect.
    async fn link(&self) -> Result<Link, Failure> {
        if let Some(link) = self.established() {
            return Ok(link);
        }
        // The semaphore is never closed.
        let _permit = self.connecting.acquire().await.ok();
        if let Some(link) = self.established() {
            return Ok(link);
        }
        let io = self.target.connect().await.map_err(|error| Failure::Transport(error.to_string()))?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            // Until the server's SETTINGS arrive; the HTTP/2 specification recommends no smaller limit.
            .initial_max_send_streams(100);
        let handshake = tokio::time::timeout(CONNECT_TIMEOUT, builder.handshake::<_, Bytes>(io)).await;
        let (sender, mut connection) = handshake
            .map_err(|_| Failure::Transport("no HTTP/2 connection within the time limit".to_owned()))?
            .map_err(Failure::transport)?;
        let health = Arc::new(Health::default());
        if let Some(ping_pong) = connection.ping_pong() {
            let health = Arc::clone(&health);
            tokio::spawn(async move {
                tokio::select! {
                    _ended = connection => {}
                    () = watch(ping_pong, &health) => tracing::debug!("an HTTP/2 connection to a handler did not answer a ping"),
                }
                health.answers.send_modify(|(_, ended)| *ended = true);
            });
        }
        self.generation.fetch_add(1, Ordering::Relaxed);
        let link = Link { sender, health };
        *self.link.lock() = Some(link.clone());
        Ok(link)
    }

    fn established(&self) -> Option<Link> {
        let mut link = self.link.lock();
        link.take_if(|link| link.health.answers.borrow().1);
        link.clone()
    }

    /// Whether the server's HTTP/2 layer answers a ping within three seconds; `false` also when there is no connection. A
    /// connection that does not answer is dropped, with all its calls.
    pub(super) async fn is_alive(&self) -> bool {
        let Some(link) = self.established() else { return false };
        let mut answers = link.health.answers.subscribe();
        let seen = answers.borrow().0;
        link.health.probe.notify_one();
        let answered = answers.wait_for(|(answers, ended)| *ended || *answers > seen);
        match tokio::time::timeout(2 * PROBE_TIMEOUT, answered).await {
            Ok(Ok(state)) => !state.1,
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

/// Returns when the connection does not answer a ping any more.
async fn watch(mut ping_pong: PingPong, health: &Health) {
    loop {
        let timeout = tokio::select! {
            () = health.probe.notified() => PROBE_TIMEOUT,
            () = tokio::time::sleep(PING_INTERVAL) => PING_TIMEOUT,
        };
        if timeout == PING_TIMEOUT && health.in_flight.load(Ordering::Relaxed) == 0 {
            continue;
        }
        match tokio::time::timeout(timeout, ping_pong.ping(Ping::opaque())).await {
            Ok(Ok(_)) => health.answers.send_modify(|(answers, _)| *answers += 1),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered with this status.
    Server(Status),
    /// The server could not be reached, or the connection was lost.
    Transport(String),
    /// As many streams are open as the server allows.
    Full,
}

impl Failure {
    fn transport(error: h2::Error) -> Self {
        Self::Transport(error.to_string())
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Server(status) => failure::classify(&status),
            Failure::Transport(why) => Self::Unavailable(why),
            Failure::Full => Self::Unavailable(
                "as many streams are open as the server allows on so many connections (channels_max)".to_owned(),
            ),
        }
    }
}

/// The right to one open stream of a channel.
#[derive(Debug)]
struct StreamPermit(Arc<Channel>);

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open client stream: messages go out one by one; one answer ends it.
pub(super) struct Stream {
    send: SendStream<Bytes>,
    answer: Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>,
    written: u64,
    _permit: StreamPermit,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("written", &self.written).finish_non_exhaustive()
    }
}

/// What became of a message.
#[derive(Debug)]
pub(super) enum Written {
    /// It was handed to the connection, within the server's flow-control window.
    Sent,
    /// The server had ended the stream before, with this answer; nothing was sent.
    Ended(Result<(), Failure>),
}

impl Stream {
    /// Messages written so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Writes one message; waits while the server's window is full.
    pub(super) async fn write<M: Message>(&mut self, message: &M) -> Written {
        let mut bytes = match framed(message) {
            Ok(bytes) => bytes,
            Err(failure) => return Written::Ended(Err(failure)),
        };
        poll_fn(|cx| {
            if let Poll::Ready(answered) = self.answer.as_mut().poll(cx) {
                return Poll::Ready(Written::Ended(answered));
            }
            match poll_write(&mut self.send, &mut bytes, End::No, cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) => {
                    self.written += 1;
                    Poll::Ready(Written::Sent)
                }
                Poll::Ready(Err(error)) => Poll::Ready(Written::Ended(Err(Failure::transport(error)))),
            }
        })
        .await
    }

    /// Ends the gateway's side of the stream.
    pub(super) fn end(&mut self) {
        if let Err(error) = self.send.send_data(Bytes::new(), true) {
            tracing::trace!(%error, "the server had ended the stream before");
        }
    }

    /// Waits for the server's answer.
    pub(super) async fn answer(&mut self) -> Result<(), Failure> {
        self.answer.as_mut().await
    }
}

/// Whether a message is the last of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Yes,
    No,
}

/// A gRPC message with its prefix.
fn framed<M: Message>(message: &M) -> Result<Bytes, Failure> {
    let len = message.encoded_len();
    let too_long = || Failure::Server(Status::internal(format!("a message of {len} bytes is too long for gRPC")));
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + len);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).map_err(|_| too_long())?);
    message.encode(&mut bytes).map_err(|_| too_long())?;
    Ok(bytes.freeze())
}

/// Writes what the server's flow-control window admits, until `bytes` is empty.
fn poll_write(
    stream: &mut SendStream<Bytes>,
    bytes: &mut Bytes,
    end: End,
    cx: &mut Context<'_>,
) -> Poll<Result<(), h2::Error>> {
    if bytes.is_empty() {
        return Poll::Ready(if end == End::Yes { stream.send_data(Bytes::new(), true) } else { Ok(()) });
    }
    loop {
        stream.reserve_capacity(bytes.len());
        let capacity = match stream.capacity() {
            0 => match stream.poll_capacity(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(capacity))) => capacity,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                // The stream was reset; the answer says why.
                Poll::Ready(None) => return Poll::Ready(stream.send_data(Bytes::new(), true)),
            },
            capacity => capacity,
        };
        if capacity == 0 {
            continue;
        }
        let piece = bytes.split_to(capacity.min(bytes.len()));
        let is_last = bytes.is_empty();
        stream.send_data(piece, is_last && end == End::Yes)?;
        if is_last {
            return Poll::Ready(Ok(()));
        }
    }
}

/// Reads an answer to its end. `EmptySuccess` has no fields, so the messages are skipped: published handlers answer with none
/// (`return nil` in Go), and some with a message of another type; both are success.
async fn answer(response: ResponseFuture) -> Result<(), Failure> {
    let (head, mut body) = response.await.map_err(Failure::transport)?.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return result(status);
    }
    if head.status != StatusCode::OK {
        return result(of_http(head.status));
    }
    while let Some(chunk) = body.data().await {
        let len = chunk.map_err(Failure::transport)?.len();
        body.flow_control().release_capacity(len).map_err(Failure::transport)?;
    }
    let trailers: Option<HeaderMap> = body.trailers().await.map_err(Failure::transport)?;
    match trailers.as_ref().and_then(Status::from_header_map) {
        Some(status) => result(status),
        None => Err(Failure::Transport("the answer ended without a grpc-status".to_owned())),
    }
}

fn result(status: Status) -> Result<(), Failure> {
    if status.code() == Code::Ok { Ok(()) } else { Err(Failure::Server(status)) }
}

/// The status of an answer without one, mostly of a proxy (gRPC's "HTTP to gRPC status code mapping").
fn of_http(status: StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("HTTP status {status} and no grpc-status"))
}
