//! TCP listener: accepts connections, retries when descriptors run out, and hands its socket over at a reload.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use socket2::{Protocol, SockRef, Type};
use tokio::net::{TcpListener as Inner, TcpStream};

use super::establish::RawSocket;
use super::per_address::SharedAddressLimits;
use super::socket_activation;
use super::socket_options::SocketOptions;
use super::unverified_places::{Place, UnverifiedPlaces};
use super::{Admission, Bind, Options, Pending};
use crate::conn::{ListenAddr, PeerAddr};
use crate::telemetry::ListenerMetrics;

/// Pause after an accept that failed for lack of resources: descriptors are freed when connections end.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// After this long without a failed accept, the next one is logged again.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);

/// Accepted peers that wait for the place of a handshake; the backlog of the socket comes on top. When more wait, the newest
/// of the address with the most waiting peers is rejected, so that the accept loop reaches the peers of other addresses.
const WAITING_MAX: usize = 1024;

/// Accepts TCP connections, plain or for TLS.
#[derive(Debug)]
pub struct TcpListener {
    name: Arc<str>,
    bind: Bind,
    settings: Arc<Settings>,
    local: ListenAddr,
    metrics: ListenerMetrics,
    /// The time of the last failed accept.
    failed: Option<Instant>,
    /// Accepted peers that wait for a free place of a handshake, the oldest first.
    waiting: VecDeque<(TcpStream, PeerAddr)>,
}

/// The part of an accepting listener that a reload may change, and its socket, which another listener may take over.
#[derive(Debug)]
pub(super) struct Settings {
    socket: Inner,
    admission: ArcSwap<Admission>,
    socket_options: ArcSwap<SocketOptions>,
    /// The options that the socket was made with.
    made: SocketOptions,
    sources: Arc<SharedAddressLimits>,
    handshakes: UnverifiedPlaces,
}

impl Settings {
    /// Applies other options to new peers.
    pub(super) fn follow(&self, options: &Options) -> io::Result<()> {
        self.admission.rcu(|last| options.admission.after(last));
        self.handshakes.resize(options.unverified_max);
        self.socket_options.store(Arc::new(options.socket_options.clone()));
        options.socket_options.size(SockRef::from(&self.socket))?;
        // A second listen(2) changes the bound of the backlog, and keeps the connections in it.
        rustix::net::listen(&self.socket, i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        self.made.followed_by(&options.socket_options)
    }

    /// A duplicate of the socket, with the connections in its backlog, for another listener.
    pub(super) fn hand_over(&self, options: &Options, metrics: ListenerMetrics) -> io::Result<TcpListener> {
        if let Err(error) = self.made.followed_by(&options.socket_options) {
            tracing::warn!(listener = %options.name, %error, "listener took over existing socket");
        }
        let socket = self.socket.as_fd().try_clone_to_owned()?.into();
        TcpListener::adopt(options, socket, self.made.clone(), metrics)
    }
}

impl TcpListener {
    /// A socket that is bound and listens already.
    fn adopt(
        options: &Options,
        socket: std::net::TcpListener,
        made: SocketOptions,
        metrics: ListenerMetrics,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Self::new(options, Inner::from_std(socket)?, made, metrics)
    }

    pub(super) fn bind(options: &Options, metrics: ListenerMetrics) -> io::Result<Self> {
        if let Some(given) = &options.given {
            let socket = std::net::TcpListener::from(socket_activation::duplicate(given)?);
            options.socket_options.size(SockRef::from(&socket))?;
            return Self::adopt(options, socket, options.socket_options.clone(), metrics);
        }
        let address = options.bind.address;
        let socket = options.socket_options.open(address, Type::STREAM, Protocol::TCP)?;
        // A restarted gateway binds at once, although connections of the former process linger in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        Self::new(options, Inner::from_std(socket.into())?, options.socket_options.clone(), metrics)
    }

    fn new(options: &Options, socket: Inner, made: SocketOptions, metrics: ListenerMetrics) -> io::Result<Self> {
        let local = ListenAddr(socket.local_addr()?);
        Ok(Self {
            name: Arc::clone(&options.name),
            bind: options.bind,
            settings: Arc::new(Settings {
                socket,
                admission: ArcSwap::from_pointee(options.admission.clone()),
                socket_options: ArcSwap::from_pointee(options.socket_options.clone()),
                made,
                sources: SharedAddressLimits::new(metrics.clone()),
                handshakes: UnverifiedPlaces::new(options.unverified_max),
            }),
            local,
            metrics,
            failed: None,
            waiting: VecDeque::new(),
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

    /// The next peer, with a place for its handshake on a secure transport. Cancel safe.
    pub(super) async fn accept(&mut self) -> Pending {
        loop {
            let settings = Arc::clone(&self.settings);
            let freed = settings.handshakes.freed();
            if let Some(pending) = self.next_waiting() {
                return pending;
            }
            let accepted = tokio::select! {
                accepted = settings.socket.accept() => accepted,
                () = freed, if !self.waiting.is_empty() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let peer = PeerAddr(peer);
                    if self.prepare(&stream, peer)
                        && let Some(pending) = self.arrived(stream, peer)
                    {
                        return pending;
                    }
                }
                Err(error) if is_the_peers(&error) => {
                    tracing::debug!(listener = %self.name, %error, "a peer was gone before it was accepted");
                }
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    // While descriptors are freed one by one, some accepts succeed and others fail: logged once.
                    if self.failed.replace(Instant::now()).is_none_or(|failed| failed.elapsed() > RECOVERED_AFTER) {
                        tracing::error!(listener = %self.name, %error, "cannot accept peers; trying again");
                    }
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// A peer that arrives gets a place of a handshake, if it needs one, or waits.
    fn arrived(&mut self, stream: TcpStream, peer: PeerAddr) -> Option<Pending> {
        if !self.bind.transport.is_secure() {
            return Some(self.pending(stream, peer, None));
        }
        if let Some(place) = self.settings.handshakes.enter(self.source(peer), Instant::now()) {
            return Some(self.pending(stream, peer, Some(place)));
        }
        self.waiting.push_back((stream, peer));
        if self.waiting.len() > WAITING_MAX
            && let Some((stream, peer)) = self.waiting.remove(newest_of_the_largest(&self.waiting))
        {
            self.pending(stream, peer, None).shed("handshakes_max");
        }
        None
    }

    fn next_waiting(&mut self) -> Option<Pending> {
        let (_, peer) = self.waiting.front()?;
        let place = self.settings.handshakes.enter_free(self.source(*peer), Instant::now())?;
        let (stream, peer) = self.waiting.pop_front()?;
        Some(self.pending(stream, peer, Some(place)))
    }

    /// The source of a peer for the shares of handshakes. A balancer's address says nothing about it.
    fn source(&self, peer: PeerAddr) -> Option<IpAddr> {
        self.admission().proxy.is_none().then(|| peer.host())
    }

    /// Sets the options of an accepted socket; `false` if its peer is gone.
    fn prepare(&self, stream: &TcpStream, peer: PeerAddr) -> bool {
        if let Err(error) = self.settings.socket_options.load().prepare(stream) {
            tracing::debug!(listener = %self.name, %peer, %error, "a peer was gone when it was accepted");
            return false;
        }
        true
    }

    fn pending(&self, stream: TcpStream, peer: PeerAddr, place: Option<Place>) -> Pending {
        Pending {
            listener: Arc::clone(&self.name),
            kind: self.bind.transport,
            peer,
            // The address that this peer connected to: the listener may be bound to a wildcard.
            local: stream.local_addr().map_or(self.local, ListenAddr),
            socket: RawSocket::Tcp(stream),
            admission: self.admission(),
            sources: Arc::clone(&self.settings.sources),
            metrics: self.metrics.clone(),
            place,
        }
    }
}

/// The index of the newest peer of the address that has the most peers in the queue.
fn newest_of_the_largest(waiting: &VecDeque<(TcpStream, PeerAddr)>) -> usize {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for (_, peer) in waiting {
        *counts.entry(peer.host()).or_default() += 1;
    }
    let count = |(_, peer): &(TcpStream, PeerAddr)| counts.get(&peer.host()).copied();
    let largest = waiting.iter().map(count).max().flatten();
    waiting.iter().rposition(|waits| count(waits) == largest).unwrap_or_default()
}

/// Errors of accept(2) that concern one peer and not the listener.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable
    )
}
