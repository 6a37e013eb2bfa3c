use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Type};
use tokio::net::{TcpListener as Inner, TcpStream};

use super::{Accepted, Options, Socket};
use crate::conn::{ConnInfo, ListenAddr, PeerAddr, SocketKind};
use crate::telemetry::ListenerMetrics;

/// How long an accept that failed for the machine's sake waits: descriptors come back when connections end.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// After this long without a failed accept, the next one is told again.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);

/// Accepts TCP peers.
#[derive(Debug)]
pub struct TcpListener {
    name: Arc<str>,
    socket: Inner,
    local: ListenAddr,
    metrics: ListenerMetrics,
    /// When an accept failed last.
    failed: Option<Instant>,
}

impl TcpListener {
    pub(super) fn bind(options: &Options, metrics: ListenerMetrics) -> io::Result<Self> {
        let address = options.bind.address;
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted gateway binds at once, although connections of its former life linger in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        let socket = Inner::from_std(socket.into())?;
        let local = ListenAddr(socket.local_addr()?);
        Ok(Self { name: Arc::clone(&options.name), socket, local, metrics, failed: None })
    }

    pub(super) fn local_addr(&self) -> ListenAddr {
        self.local
    }

    pub(super) async fn accept(&mut self) -> Accepted {
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    if let Some(accepted) = self.accepted(stream, PeerAddr(peer)) {
                        return accepted;
                    }
                }
                Err(error) if is_the_peers(&error) => {
                    tracing::debug!(listener = %self.name, %error, "a peer was gone before it was accepted");
                }
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    // While descriptors come back one by one, some accepts succeed and others fail: told once.
                    if self.failed.replace(Instant::now()).is_none_or(|failed| failed.elapsed() > RECOVERED_AFTER) {
                        tracing::error!(listener = %self.name, %error, "cannot accept peers; trying again");
                    }
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    fn accepted(&self, stream: TcpStream, peer: PeerAddr) -> Option<Accepted> {
        // Device protocols are made of small frames that wait for an answer: Nagle's delay would add 40 ms to each.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(listener = %self.name, %peer, %error, "a peer was gone when it was accepted");
            return None;
        }
        // The address that this peer used: the listener may be bound to a wildcard.
        let local = stream.local_addr().map_or(self.local, ListenAddr);
        let info = ConnInfo { kind: SocketKind::Tcp, peer, local, certificate: None };
        Some(Accepted { info, socket: Socket::Tcp(stream) })
    }
}

/// Errors of accept(2) that tell of one peer and not of the listener.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable
    )
}
