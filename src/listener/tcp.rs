use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Type};
use tokio::net::{TcpListener as Inner, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::arrival::Raw;
use super::{Admission, Arrived, Options};
use crate::conn::{ListenAddr, PeerAddr, SocketKind};
use crate::telemetry::ListenerMetrics;

/// How long an accept that failed for the machine's sake waits: descriptors come back when connections end.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// After this long without a failed accept, the next one is told again.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);

/// Accepts the peers of a TCP socket, whatever they speak over it.
#[derive(Debug)]
pub struct TcpListener {
    name: Arc<str>,
    kind: SocketKind,
    admission: Arc<ArcSwap<Admission>>,
    /// The peers that may be about their handshake.
    turns: Arc<Semaphore>,
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
        Ok(Self {
            name: Arc::clone(&options.name),
            kind: options.bind.transport,
            admission: Arc::new(ArcSwap::from_pointee(options.admission.clone())),
            turns: Arc::new(Semaphore::new(options.handshakes_max.min(Semaphore::MAX_PERMITS))),
            socket,
            local,
            metrics,
            failed: None,
        })
    }

    pub(super) fn local_addr(&self) -> ListenAddr {
        self.local
    }

    pub(super) fn admission(&self) -> Arc<ArcSwap<Admission>> {
        Arc::clone(&self.admission)
    }

    pub(super) async fn accept(&mut self) -> Arrived {
        let mut turn = match self.kind.is_secure() {
            // The semaphore is never closed.
            true => Arc::clone(&self.turns).acquire_owned().await.ok(),
            false => None,
        };
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    if self.prepare(&stream, PeerAddr(peer)) {
                        return self.arrived(stream, PeerAddr(peer), turn.take());
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

    /// Sets the options of an accepted socket; not if its peer is gone.
    fn prepare(&self, stream: &TcpStream, peer: PeerAddr) -> bool {
        // Device protocols are made of small frames that wait for an answer: Nagle's delay would add 40 ms to each.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(listener = %self.name, %peer, %error, "a peer was gone when it was accepted");
            return false;
        }
        true
    }

    fn arrived(&self, stream: TcpStream, peer: PeerAddr, turn: Option<OwnedSemaphorePermit>) -> Arrived {
        Arrived {
            listener: Arc::clone(&self.name),
            kind: self.kind,
            peer,
            // The address that this peer used: the listener may be bound to a wildcard.
            local: stream.local_addr().map_or(self.local, ListenAddr),
            socket: Raw::Tcp(stream),
            admission: self.admission.load_full(),
            metrics: self.metrics.clone(),
            _turn: turn,
        }
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
