//! MQTT over WebSocket (MQTT 5.0 section 6): the byte stream of binary frames.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::Stream;

/// The largest frame and message. MQTT's packets need not fit into one: they are a stream.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that are sent in one frame.
const FRAME_BYTES: usize = 64 * 1024;

const PROTOCOL: &str = "mqtt";
const PROTOCOL_HEADER: &str = "Sec-WebSocket-Protocol";

/// A stream of the bytes in a WebSocket's binary messages.
pub(crate) struct WebSocket {
    inner: WebSocketStream<Box<dyn Stream>>,
    read: Bytes,
}

/// Answers the peer's handshake. It must ask for `path` and for the subprotocol `mqtt` (MQTT 5.0 section 6).
///
/// # Errors
///
/// What is wrong with it; the peer has been answered.
#[allow(clippy::result_large_err, reason = "the callback's error is the crate's own response")]
pub(crate) async fn accept(stream: Box<dyn Stream>, path: &str) -> Result<WebSocket, tungstenite::Error> {
    let check = |request: &Request, mut response: Response| {
        if request.uri().path() != path {
            return Err(refusal(StatusCode::NOT_FOUND));
        }
        let asked = request.headers().get_all(PROTOCOL_HEADER).iter().filter_map(|value| value.to_str().ok());
        if !asked.flat_map(|value| value.split(',')).any(|protocol| protocol.trim() == PROTOCOL) {
            return Err(refusal(StatusCode::BAD_REQUEST));
        }
        response.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static(PROTOCOL));
        Ok(response)
    };
    let inner = tokio_tungstenite::accept_hdr_async_with_config(stream, check, Some(config())).await?;
    Ok(WebSocket { inner, read: Bytes::new() })
}

/// Asks the peer for `path` with the subprotocol `mqtt`. `host` is for the header and may have a port.
///
/// # Errors
///
/// The stream has failed, or the peer does not speak MQTT over WebSocket there.
pub(crate) async fn connect(stream: Box<dyn Stream>, host: &str, path: &str) -> Result<WebSocket, tungstenite::Error> {
    let mut request = format!("ws://{host}{path}").into_client_request()?;
    request.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static(PROTOCOL));
    let (inner, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config())).await?;
    Ok(WebSocket { inner, read: Bytes::new() })
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * FRAME_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

fn refusal(status: StatusCode) -> ErrorResponse {
    let mut response = ErrorResponse::new(None);
    *response.status_mut() = status;
    response
}

#[allow(clippy::wildcard_enum_match_arm, reason = "all others are the peer's faults")]
fn io_error(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::ErrorKind::ConnectionAborted.into()
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl AsyncRead for WebSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => self.read = bytes,
                Some(Ok(Message::Text(_))) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, "a text frame; MQTT is sent in binary ones");
                    return Poll::Ready(Err(error));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(tungstenite::Error::ConnectionClosed)) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = Pin::new(&mut self.inner);
        ready!(inner.as_mut().poll_ready(cx)).map_err(io_error)?;
        let bytes = &bytes[..bytes.len().min(FRAME_BYTES)];
        inner.as_mut().start_send(Message::Binary(Bytes::copy_from_slice(bytes))).map_err(io_error)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx).map_err(io_error)
    }
}
