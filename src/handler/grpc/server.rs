//! One server of a gRPC handler: its HTTP/2 connections, and which of ExProto's services it serves in which manner.
//!
//! Three kinds of servers exist behind two services: unary `ConnectionUnaryHandler`, streaming `ConnectionHandler`, and
//! `ConnectionHandler` whose methods are unary (EMQX enterprise 4.2) or read one message and end their stream. With
//! `service = "auto"`:
//!
//! 1. The event is sent to `ConnectionUnaryHandler`; a server without it answers UNIMPLEMENTED or NOT_FOUND.
//! 2. A call of `ConnectionHandler` without any message distinguishes the two without an event: a method that iterates its
//!    stream ends it with OK, a unary method cannot be called without a message.
//! 3. The first stream of bytes or messages is watched for a moment: a method that answers after one message is called once for
//!    each event from then on.
//!
//! What was found holds until the server is connected to again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;

use super::channel::{Channel, Failure, Stream, Target};
use super::failure;
use super::tls::{ClientTls, Tls, TlsError};

/// Time limit of the call without a message. A method that does not return then is one that streams.
const DETECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Which of ExProto's two services a server has. They have the same callbacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Service {
    /// Detected by the first call, and again after a reconnection.
    #[default]
    Auto,
    /// `ConnectionUnaryHandler`.
    Unary,
    /// `ConnectionHandler`, whose callbacks are streams of requests.
    Streaming,
}

/// How the streams of `ConnectionHandler` are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// One stream for each callback of a device, for the life of its connection, as EMQX does: a handler may keep state in the
    /// scope of the stream. Events are not acknowledged.
    PerConnection,
    /// One stream for each event: each is acknowledged and can be repeated.
    PerEvent,
}

/// How events reach a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Unary,
    StreamPerEvent,
    StreamPerConnection,
}

impl Manner {
    const fn code(self) -> u8 {
        match self {
            Self::Unary => 1,
            Self::StreamPerEvent => 2,
            Self::StreamPerConnection => 3,
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Unary),
            2 => Some(Self::StreamPerEvent),
            3 => Some(Self::StreamPerConnection),
            _ => None,
        }
    }
}

/// A callback of the handler services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callback {
    SocketCreated,
    ReceivedBytes,
    TimerTimeout,
    ReceivedMessages,
    SocketClosed,
}

macro_rules! path {
    ($manner:expr, $name:literal) => {
        match $manner {
            Manner::Unary => concat!("/emqx.exproto.v1.ConnectionUnaryHandler/", $name),
            Manner::StreamPerEvent | Manner::StreamPerConnection => {
                concat!("/emqx.exproto.v1.ConnectionHandler/", $name)
            }
        }
    };
}

impl Callback {
    pub(super) const COUNT: usize = 5;

    pub(super) fn path(self, manner: Manner) -> &'static str {
        match self {
            Self::SocketCreated => path!(manner, "OnSocketCreated"),
            Self::ReceivedBytes => path!(manner, "OnReceivedBytes"),
            Self::TimerTimeout => path!(manner, "OnTimerTimeout"),
            Self::ReceivedMessages => path!(manner, "OnReceivedMessages"),
            Self::SocketClosed => path!(manner, "OnSocketClosed"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Server {
    target: Arc<Target>,
    service: Service,
    streams: Option<Streams>,
    /// Grows where streams of devices need more connections than unary calls do.
    channels: ArcSwap<Vec<Arc<Channel>>>,
    growth: Mutex<()>,
    channels_max: usize,
    /// The detected manner and the number of reconnects that it was detected after.
    detected: AtomicU8,
    detected_at: AtomicUsize,
    /// The detected manner is certain: a first stream was watched.
    is_settled: AtomicU8,
}

impl Server {
    pub(super) fn new(
        handler: &Arc<str>,
        url: &Uri,
        tls: Option<&ClientTls>,
        (service, streams): (Service, Option<Streams>),
        (channels, channels_max): (usize, usize),
    ) -> Result<Self, TlsError> {
        let tls = match url.scheme_str() {
            Some("https") => Some(Tls::new(handler, url, tls)?),
            _ => None,
        };
        let target = Arc::new(Target::new(Arc::clone(handler), url.clone(), tls));
        let channels: Vec<_> = (0..channels.max(1)).map(|_| Arc::new(Channel::new(Arc::clone(&target)))).collect();
        Ok(Self {
            target,
            service,
            streams,
            channels_max: channels_max.max(channels.len()),
            channels: ArcSwap::from_pointee(channels),
            growth: Mutex::new(()),
            detected: AtomicU8::new(0),
            detected_at: AtomicUsize::new(0),
            is_settled: AtomicU8::new(0),
        })
    }

    /// The channel of a device; its calls and streams use it as long as there is room.
    pub(super) fn channel(&self, device: usize) -> Arc<Channel> {
        let channels = self.channels.load();
        Arc::clone(&channels[device % channels.len()])
    }

    /// Connects and hangs up; calls nothing.
    pub(super) async fn probe(&self) -> Result<(), Failure> {
        self.target.dial().await.map(drop).map_err(|error| Failure::Transport(error.to_string()))
    }

    /// The manner of events, if it is configured or known.
    pub(super) fn manner(&self) -> Option<Manner> {
        match (self.service, self.streams) {
            (Service::Unary, _) => Some(Manner::Unary),
            (Service::Streaming, Some(Streams::PerEvent)) => Some(Manner::StreamPerEvent),
            (Service::Streaming, Some(Streams::PerConnection)) => Some(Manner::StreamPerConnection),
            (Service::Streaming, None) | (Service::Auto, _) => {
                let is_current = self.detected_at.load(Ordering::Acquire) == self.reconnects();
                Manner::of_code(self.detected.load(Ordering::Acquire)).filter(|_| is_current)
            }
        }
    }

    /// Whether it is not known yet if the server ends a stream after one message.
    pub(super) fn is_unsettled(&self) -> bool {
        self.streams.is_none() && self.is_settled.load(Ordering::Relaxed) == 0
    }

    pub(super) fn settle(&self) {
        self.is_settled.store(1, Ordering::Relaxed);
    }

    pub(super) fn remember(&self, manner: Manner) {
        let connects = self.reconnects();
        self.is_settled.store(0, Ordering::Relaxed);
        let known = self.detected.swap(manner.code(), Ordering::AcqRel);
        self.detected_at.store(connects, Ordering::Release);
        if known != manner.code() {
            let service = if manner == Manner::Unary { "ConnectionUnaryHandler" } else { "ConnectionHandler" };
            let streams = match manner {
                Manner::Unary => "none",
                Manner::StreamPerEvent => "per-event",
                Manner::StreamPerConnection => "per-connection",
            };
            tracing::info!(handler = %self.target.handler, url = %self.target.url, service, streams, "handler service detected");
        }
    }

    fn reconnects(&self) -> usize {
        self.channels.load().iter().map(|channel| channel.generation().saturating_sub(1)).sum()
    }

    /// Forgets the detected manner when the server says that it does not have the service any more; `false` where nothing was detected.
    pub(super) fn forget(&self, status: &Status) -> bool {
        failure::lacks_service(status) && self.detected.swap(0, Ordering::AcqRel) != 0
    }

    /// Sends an event to a server of an unknown manner.
    ///
    /// # Errors
    ///
    /// As a call. Nothing is remembered then: a proxy may have answered in the server's place.
    pub(super) async fn detect<M: Message>(
        &self,
        channel: &Channel,
        callback: Callback,
        message: &M,
    ) -> Result<Detected, Failure> {
        if self.service == Service::Auto {
            let unary = channel.call(callback.path(Manner::Unary), Some(message)).await;
            match unary {
                Ok(()) => {
                    self.remember(Manner::Unary);
                    return Ok(Detected::Delivered);
                }
                // A server without the service has not handled the event, so the other one does not repeat it.
                Err(Failure::Server(status)) if failure::lacks_service(&status) => {
                    let manner = match self.streams {
                        Some(Streams::PerEvent) => Manner::StreamPerEvent,
                        Some(Streams::PerConnection) => Manner::StreamPerConnection,
                        None => match detect_streaming(channel).await {
                            Ok(manner) => manner,
                            // It has neither service, or it has the first and this was its answer to the event.
                            Err(Failure::Server(other)) if failure::lacks_service(&other) => {
                                return Err(Failure::Server(status));
                            }
                            Err(failure) => return Err(failure),
                        },
                    };
                    self.remember(manner);
                    return Ok(Detected::Manner(manner));
                }
                Err(failure) => return Err(failure),
            }
        }
        let manner = detect_streaming(channel).await?;
        self.remember(manner);
        Ok(Detected::Manner(manner))
    }

    /// Opens a stream, on the device's channel or on any other with room; more channels are made as needed.
    pub(super) async fn stream(&self, device: usize, path: &'static str) -> Result<Stream, Failure> {
        let preferred = self.channel(device);
        if let Some(stream) = preferred.stream(path).await? {
            return Ok(stream);
        }
        loop {
            let channels = self.channels.load_full();
            // The newest have room most likely.
            for channel in channels.iter().rev() {
                if let Some(stream) = channel.stream(path).await? {
                    return Ok(stream);
                }
            }
            if !self.grow(channels.len()) {
                return Err(Failure::Full);
            }
        }
    }

    /// Adds a channel to the `seen` ones, unless another device did it meanwhile; `false` at the limit.
    fn grow(&self, seen: usize) -> bool {
        let _growth = self.growth.lock();
        let channels = self.channels.load();
        if channels.len() > seen {
            return true;
        }
        if channels.len() >= self.channels_max {
            return false;
        }
        let mut more = Vec::clone(&channels);
        more.push(Arc::new(Channel::new(Arc::clone(&self.target))));
        tracing::debug!(handler = %self.target.handler, url = %self.target.url, channels = more.len(), "one more connection to the handler for its streams");
        self.channels.store(Arc::new(more));
        true
    }
}

/// What came of an event to a server of an unknown manner.
pub(super) enum Detected {
    /// The event was handled.
    Delivered,
    /// The event is still to be sent, in this manner.
    Manner(Manner),
}

/// Calls `ConnectionHandler` without a message.
async fn detect_streaming(channel: &Channel) -> Result<Manner, Failure> {
    let path = Callback::TimerTimeout.path(Manner::StreamPerConnection);
    let call = channel.call::<crate::exproto::proto::TimerTimeoutRequest>(path, None);
    match tokio::time::timeout(DETECTION_TIMEOUT, call).await {
        Ok(Ok(())) | Err(_) => Ok(Manner::StreamPerConnection),
        Ok(Err(Failure::Server(status))) if failure::lacks_service(&status) => Err(Failure::Server(status)),
        Ok(Err(Failure::Server(_))) => Ok(Manner::StreamPerEvent),
        Ok(Err(failure)) => Err(failure),
    }
}
