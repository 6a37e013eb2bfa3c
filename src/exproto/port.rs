//! Accept loop of the adapter port: bounded connections, deadlines for the TLS handshake and the HTTP/2 preface.
//!
//! A connection reaches the HTTP/2 server once it has sent its preface. Those that have not are bounded separately: when one
//! more arrives, the oldest is dropped, so silent sockets do not keep others out.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use super::budget::{ConnectionBudget, RequestBudget};

/// Time limit of the TLS handshake and the preface together.
const OPENING_MAX: Duration = Duration::from_secs(10);

/// Maximum number of connections that have not sent their preface.
const OPENINGS_MAX: usize = 64;

/// The client's connection preface (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pause after a failed accept: descriptors become free when connections close.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection that has sent its preface.
pub(super) struct Connection {
    /// The part of the preface that has not been read from here again.
    preface: &'static [u8],
    transport: Box<dyn Transport>,
    budget: ConnectionBudget,
    _permit: OwnedSemaphorePermit,
}

/// What the openings of all connections share.
struct Port {
    tls: Option<TlsAcceptor>,
    permits: Arc<Semaphore>,
    budget: RequestBudget,
    opened: mpsc::Sender<Connection>,
}

/// Accepts connections until the stream is dropped.
pub(super) fn connections(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let (opened, receiver) = mpsc::channel(1);
    let permits = Arc::new(Semaphore::new(connections_max));
    tokio::spawn(accept(listener, Port { tls, permits, budget: RequestBudget::new(), opened }));
    futures::stream::unfold(receiver, |mut receiver| async move { Some((Ok(receiver.recv().await?), receiver)) })
}

async fn accept(listener: TcpListener, port: Port) {
    let port = Arc::new(port);
    let mut openings: VecDeque<AbortHandle> = VecDeque::with_capacity(OPENINGS_MAX);
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            () = port.opened.closed() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                is_failing = false;
                openings.retain(|opening| !opening.is_finished());
                if openings.len() >= OPENINGS_MAX
                    && let Some(oldest) = openings.pop_front()
                {
                    oldest.abort();
                    tracing::debug!("a silent client of the adapter was dropped for a new one");
                }
                let port = Arc::clone(&port);
                let opening = tokio::spawn(async move {
                    let error = match tokio::time::timeout(OPENING_MAX, port.open(stream)).await {
                        Ok(Ok(connection)) => {
                            if port.opened.send(connection).await.is_err() {
                                tracing::trace!(%peer, "the adapter stopped before it took a client");
                            }
                            return;
                        }
                        Ok(Err(error)) => error,
                        Err(_) => io::ErrorKind::TimedOut.into(),
                    };
                    tracing::debug!(%peer, %error, "a client of the adapter was not accepted");
                });
                openings.push_back(opening.abort_handle());
            }
            Err(error) => {
                if !is_failing {
                    tracing::error!(%error, "the adapter cannot accept connections; retrying");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
    for opening in openings {
        opening.abort();
    }
}

impl Port {
    async fn open(&self, stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let mut transport: Box<dyn Transport> = match &self.tls {
            Some(tls) => Box::new(tls.accept(stream).await?),
            None => Box::new(stream),
        };
        let mut preface = [0; PREFACE.len()];
        transport.read_exact(&mut preface).await?;
        if preface != *PREFACE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak HTTP/2"));
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            tracing::warn!("a client of the adapter was rejected: the adapter has its maximum of connections");
            io::Error::from(io::ErrorKind::QuotaExceeded)
        })?;
        Ok(Connection { preface: PREFACE, transport, budget: self.budget.connection(), _permit: permit })
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionBudget;

    fn connect_info(&self) -> ConnectionBudget {
        self.budget.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.is_empty() {
            return Pin::new(&mut self.transport).poll_read(context, buffer);
        }
        let (now, later) = self.preface.split_at(buffer.remaining().min(self.preface.len()));
        buffer.put_slice(now);
        self.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}
