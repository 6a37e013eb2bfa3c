use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use socket2::{Protocol, SockRef, Type};
use tokio::net::{TcpListener as Inner, TcpStream};

use super::arrival::Raw;
use super::inherited;
use super::sources::Sources;
use super::tuning::Tuning;
use super::{Admission, Arrived, Bind, Options};
use crate::conn::room::{Permit, Room};
use crate::conn::{ListenAddr, PeerAddr};
use crate::telemetry::ListenerMetrics;

/// How long an accept that failed for the machine's sake waits: descriptors come back when connections end.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// After this long without a failed accept, the next one is told again.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);

/// Accepts the peers of a TCP socket, whatever they speak over it.
#[derive(Debug)]
pub struct TcpListener {
    name: Arc<str>,
    bind: Bind,
    settings: Arc<Settings>,
    local: ListenAddr,
    metrics: ListenerMetrics,
    /// When an accept failed last.
    failed: Option<Instant>,
}

/// What a reload may change of a listener that goes on accepting, and its socket, which another one may take over.
#[derive(Debug)]
pub(super) struct Settings {
    socket: Inner,
    admission: ArcSwap<Admission>,
    tuning: ArcSwap<Tuning>,
    /// What the socket was made with.
    made: Tuning,
    sources: Arc<Sources>,
    /// The peers that may be about their handshake.
    handshakes: Room,
}

impl Settings {
    /// Follows other options, for the peers that come from now on.
    pub(super) fn follow(&self, options: &Options) -> io::Result<()> {
        self.admission.rcu(|last| options.admission.after(last));
        self.handshakes.resize(options.handshakes_max);
        self.tuning.store(Arc::new(options.tuning.clone()));
        options.tuning.size(SockRef::from(&self.socket))?;
        // To listen once more changes the bound of the backlog, and keeps those who wait in it.
        rustix::net::listen(&self.socket, i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        self.made.followed_by(&options.tuning)
    }

    /// The same socket once more, with the peers that wait in its backlog, for another listener.
    pub(super) fn hand_over(&self, options: &Options, metrics: ListenerMetrics) -> io::Result<TcpListener> {
        if let Err(error) = self.made.followed_by(&options.tuning) {
            tracing::warn!(listener = %options.name, %error, "takes the socket of another listener over");
        }
        let socket = self.socket.as_fd().try_clone_to_owned()?.into();
        TcpListener::adopt(options, socket, self.made.clone(), metrics)
    }
}

impl TcpListener {
    /// A socket that was bound and listens already.
    fn adopt(
        options: &Options,
        socket: std::net::TcpListener,
        made: Tuning,
        metrics: ListenerMetrics,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Self::new(options, Inner::from_std(socket)?, made, metrics)
    }

    pub(super) fn bind(options: &Options, metrics: ListenerMetrics) -> io::Result<Self> {
        if let Some(given) = &options.given {
            let socket = std::net::TcpListener::from(inherited::duplicate(given)?);
            options.tuning.size(SockRef::from(&socket))?;
            return Self::adopt(options, socket, options.tuning.clone(), metrics);
        }
        let address = options.bind.address;
        let socket = options.tuning.open(address, Type::STREAM, Protocol::TCP)?;
        // A restarted gateway binds at once, although connections of its former life linger in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        Self::new(options, Inner::from_std(socket.into())?, options.tuning.clone(), metrics)
    }

    fn new(options: &Options, socket: Inner, made: Tuning, metrics: ListenerMetrics) -> io::Result<Self> {
        let local = ListenAddr(socket.local_addr()?);
        Ok(Self {
            name: Arc::clone(&options.name),
            bind: options.bind,
            settings: Arc::new(Settings {
                socket,
                admission: ArcSwap::from_pointee(options.admission.clone()),
                tuning: ArcSwap::from_pointee(options.tuning.clone()),
                made,
                sources: Sources::new(metrics.clone()),
                handshakes: Room::new(options.handshakes_max),
            }),
            local,
            metrics,
            failed: None,
        })
    }

    pub(super) fn local_addr(&self) -> ListenAddr {
        self.local
    }

    pub(super) fn bind_asked(&self) -> Bind {
        self.bind
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings)
    }

    pub(super) fn admission(&self) -> Arc<Admission> {
        self.settings.admission.load_full()
    }

    pub(super) async fn accept(&mut self) -> Arrived {
        let mut turn = match self.bind.transport.is_secure() {
            true => Some(self.settings.handshakes.permit().await),
            false => None,
        };
        loop {
            match self.settings.socket.accept().await {
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
        if let Err(error) = self.settings.tuning.load().prepare(stream) {
            tracing::debug!(listener = %self.name, %peer, %error, "a peer was gone when it was accepted");
            return false;
        }
        true
    }

    fn arrived(&self, stream: TcpStream, peer: PeerAddr, turn: Option<Permit>) -> Arrived {
        Arrived {
            listener: Arc::clone(&self.name),
            kind: self.bind.transport,
            peer,
            // The address that this peer used: the listener may be bound to a wildcard.
            local: stream.local_addr().map_or(self.local, ListenAddr),
            socket: Raw::Tcp(stream),
            admission: self.admission(),
            sources: Arc::clone(&self.settings.sources),
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
