use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::dtls::SecureFlow;
use super::{Flow, tls};

/// The socket of an accepted peer, of any transport.
#[derive(Debug)]
pub enum Socket {
    /// Plain TCP.
    Tcp(TcpStream),
    /// Plain UDP.
    Udp(Flow),
    /// DTLS over UDP.
    Dtls(Box<SecureFlow>),
    /// TLS over TCP.
    Tls(tls::Stream),
}

/// What has come from a peer.
#[derive(Debug)]
pub enum Received<'b> {
    /// The next bytes of the stream, at least one.
    Bytes(&'b [u8]),
    /// One datagram, perhaps an empty one.
    Datagram(Bytes),
    /// The peer has ended its side.
    End,
}

impl Socket {
    /// What comes next from the peer. Bytes of a stream are read into `buffer`.
    ///
    /// # Errors
    ///
    /// The socket's; nothing more comes after one.
    pub fn poll_receive<'b>(&mut self, cx: &mut Context<'_>, buffer: &'b mut [u8]) -> Poll<io::Result<Received<'b>>> {
        match self {
            Self::Tcp(stream) => poll_read(stream, cx, buffer),
            Self::Udp(flow) => {
                flow.poll_receive(cx).map(|datagram| Ok(datagram.map_or(Received::End, Received::Datagram)))
            }
            Self::Dtls(flow) => flow.poll_receive(cx),
            Self::Tls(stream) => poll_read(stream, cx, buffer),
        }
    }

    /// Offers bytes: the next ones of the stream, or one datagram, which is taken whole.
    ///
    /// # Errors
    ///
    /// The socket's; it takes nothing more after one.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Udp(flow) => flow.poll_send(cx, bytes).map_ok(|()| bytes.len()),
            Self::Dtls(flow) => flow.poll_send(cx, bytes).map_ok(|()| bytes.len()),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// As [`poll_send`](Self::poll_send), for bytes of a stream that lie in several places.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn poll_send_vectored(&mut self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Self::Udp(flow) => {
                let first = bytes.first().map_or(&[][..], |first| first);
                flow.poll_send(cx, first).map_ok(|()| first.len())
            }
            Self::Dtls(flow) => {
                let first = bytes.first().map_or(&[][..], |first| first);
                flow.poll_send(cx, first).map_ok(|()| first.len())
            }
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    /// Whether it may hold bytes that it took and has not written; [`poll_flush`](Self::poll_flush) writes them.
    pub fn holds_bytes(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Udp(_) => false,
            Self::Dtls(flow) => flow.holds_bytes(),
            Self::Tls(stream) => stream.holds_bytes(),
        }
    }

    /// Writes what it holds.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Udp(_) => Poll::Ready(Ok(())),
            Self::Dtls(flow) => flow.poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Tells the peer that nothing more is sent to it, as far as the transport has words for that.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Udp(flow) => {
                // Nothing tells the peer, so what it sends while the handler hears of the end must not be lost on it.
                flow.close();
                Poll::Ready(Ok(()))
            }
            Self::Dtls(flow) => flow.poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// One read of a stream.
fn poll_read<'b>(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buffer: &'b mut [u8],
) -> Poll<io::Result<Received<'b>>> {
    let mut read = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut read))?;
    let count = read.filled().len();
    let bytes = buffer.get(..count).unwrap_or_default();
    Poll::Ready(Ok(if bytes.is_empty() { Received::End } else { Received::Bytes(bytes) }))
}
