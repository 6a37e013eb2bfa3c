//! UDP listeners: one flow for each peer address, many on a socket, several sockets for a listener.
//!
//! One task for each socket receives for all of its flows and never waits for one of them: a datagram without room in
//! its flow's queue is dropped and counted. Tasks and sockets live until the listener and its last flow are gone, so
//! connections still receive while the gateway stops, or when the listener was removed. Network errors of one peer
//! (ICMP) never end them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::establish::RawSocket;
use super::flow::{Bounds, FlowId, Key};
use super::flow_gate::{FlowGate, FlowStart};
use super::per_address::SharedAddressLimits;
use super::unverified_places::UnverifiedPlaces;
use super::{Admission, Bind, Options, Pending};
use crate::byte_budget::ByteBudget;
use crate::conn::{ListenAddr, PeerAddr};
use crate::telemetry::ListenerMetrics;

mod inbox;
mod receiver;
mod socket;
mod socket_group;
#[cfg(test)]
mod tests;

use inbox::Inbox;
use socket::Socket;
use socket_group::{GateFactory, ListenerLabels, ReceiverConfig, SocketGroup};

/// Space for the longest datagram, and for coalesced datagrams of one peer (UDP GRO), which are never longer.
const BUFFER_BYTES: usize = 65_536;

/// New flows that wait for the accept loop, which only takes them; more are rejected.
const ARRIVALS_MAX: usize = 1024;

/// Options of a datagram listener.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Sockets on its address, `1..=64`; the kernel assigns each peer to one.
    pub sockets: usize,
    /// Flows of one socket, `1..`; more peers are rejected.
    pub flows_max: usize,
    /// Bounds of a flow's queue.
    pub queue: Bounds,
}

/// Accepts flows from the peers of its sockets.
#[derive(Debug)]
pub struct UdpListener {
    labels: Arc<ListenerLabels>,
    bind: Bind,
    settings: Arc<Settings>,
    group: Arc<SocketGroup>,
    arrivals: mpsc::Receiver<Flow>,
    /// The configuration and options to take over sockets with; their last owner has them until then.
    takes_over: Option<Box<(ReceiverConfig, Options)>>,
}

/// The part of an accepting listener that a reload may change, and its sockets, which another listener may take over.
#[derive(Debug)]
pub(super) struct Settings {
    admission: Arc<ArcSwap<Admission>>,
    sources: Arc<SharedAddressLimits>,
    places: UnverifiedPlaces,
    /// Weak: the receiving tasks own it.
    group: Weak<SocketGroup>,
}

impl Settings {
    /// Applies other options to new peers.
    pub(super) fn follow(&self, options: &Options) -> io::Result<()> {
        self.admission.store(Arc::new(options.admission.clone()));
        self.places.resize(options.unverified_max);
        self.group.upgrade().map_or(Ok(()), |group| group.follow(options))
    }
}

impl UdpListener {
    /// Binds the sockets and receives from them, or takes over those of a listener with the same address once it
    /// [begins](Self::begin). Each socket has a gate of its own.
    pub(super) fn bind(
        options: &Options,
        predecessor: Option<&Settings>,
        metrics: ListenerMetrics,
        queued: &Arc<ByteBudget>,
        gate: impl Fn() -> FlowGate + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::bind_with(options, predecessor, metrics, queued, GateFactory::new(gate), BUFFER_BYTES)
    }

    fn bind_with(
        options: &Options,
        predecessor: Option<&Settings>,
        metrics: ListenerMetrics,
        queued: &Arc<ByteBudget>,
        gates: GateFactory,
        buffer_bytes: usize,
    ) -> io::Result<Self> {
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let labels = Arc::new(ListenerLabels { name: Arc::clone(&options.name), metrics });
        let admission = Arc::new(ArcSwap::from_pointee(options.admission.clone()));
        let config = ReceiverConfig {
            labels: Arc::clone(&labels),
            admission: Arc::clone(&admission),
            gates,
            queue: options.datagrams.queue,
            queued: Arc::clone(queued),
            arrivals: sender,
        };
        let (group, takes_over) = match predecessor.and_then(|settings| settings.group.upgrade()) {
            Some(group) => (group, Some(Box::new((config, options.clone())))),
            None => (Arc::new(SocketGroup::bind(options, config, buffer_bytes)?), None),
        };
        let sources = SharedAddressLimits::new(labels.metrics.clone());
        let places = UnverifiedPlaces::new(options.unverified_max);
        let settings = Arc::new(Settings { admission, sources, places, group: Arc::downgrade(&group) });
        Ok(Self { labels, bind: options.bind, settings, group, arrivals, takes_over })
    }

    pub(super) fn local_addr(&self) -> ListenAddr {
        self.group.local()
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

    pub(super) async fn accept(&mut self) -> Pending {
        loop {
            let flow = self.flow().await;
            let pending = Pending {
                listener: Arc::clone(&self.labels.name),
                kind: self.bind.transport,
                peer: flow.peer(),
                local: flow.local(),
                socket: RawSocket::Udp(flow),
                admission: self.settings.admission.load_full(),
                sources: Arc::clone(&self.settings.sources),
                metrics: self.labels.metrics.clone(),
                place: None,
            };
            let place = self.settings.places.enter(Some(pending.peer.host()), Instant::now());
            match place {
                Some(place) => {
                    if self.bind.transport.is_secure() {
                        // Its cookie has come back.
                        place.has_spoken();
                    }
                    return Pending { place: Some(place), ..pending };
                }
                // The peer retransmits its ClientHello, and there may be room then; no state is kept meanwhile.
                None if self.bind.transport.is_secure() => pending.shed("handshakes_max"),
                None => pending.shed("unverified_max"),
            }
        }
    }

    /// Starts to receive new peers, if the sockets have had another owner until now.
    pub(super) fn begin(&mut self) {
        if let Some(taken) = self.takes_over.take() {
            let (config, options) = *taken;
            self.group.set_config(config);
            if let Err(error) = self.group.follow(&options) {
                tracing::warn!(listener = %self.labels.name, %error, "listener took over existing sockets");
            }
        }
    }

    /// The flow of the next new peer.
    async fn flow(&mut self) -> Flow {
        match self.arrivals.recv().await {
            Some(mut flow) => {
                flow.group = Some(Arc::clone(&self.group));
                flow
            }
            // The receiving tasks end after this listener, unless the runtime itself ends.
            None => std::future::pending().await,
        }
    }
}

/// The flow of one peer: receives its datagrams, and sends from the local address that the peer uses.
///
/// Dropping it closes it.
pub struct Flow {
    labels: Arc<ListenerLabels>,
    socket: Arc<Socket>,
    inbox: Arc<Inbox>,
    key: Key,
    id: FlowId,
    entry: FlowStart,
    /// Waits until the socket is writable, concurrently with other flows of the socket.
    unwritable: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
    /// Set when the flow is accepted: an unaccepted flow must not keep the sockets.
    group: Option<Arc<SocketGroup>>,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("peer", &self.key.peer).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Flow {
    fn new(
        labels: Arc<ListenerLabels>,
        socket: Arc<Socket>,
        inbox: Arc<Inbox>,
        key: Key,
        id: FlowId,
        entry: FlowStart,
    ) -> Self {
        Self { labels, socket, inbox, key, id, entry, unwritable: None, group: None }
    }

    /// The peer.
    pub fn peer(&self) -> PeerAddr {
        PeerAddr(self.key.peer)
    }

    /// The local address that the peer uses.
    pub fn local(&self) -> ListenAddr {
        self.socket.local(&self.key)
    }

    /// How the gate admitted it.
    pub fn entry_mut(&mut self) -> &mut FlowStart {
        &mut self.entry
    }

    /// Received datagrams that are not taken yet.
    pub(in crate::listener) fn queued(&self) -> usize {
        self.inbox.queued()
    }

    /// Counts datagrams that were dropped from the peer or for it.
    pub(in crate::listener) fn dropped(&self, reason: &'static str, count: u64) {
        if count > 0 {
            self.labels.metrics.dropped(reason, count);
        }
    }

    /// The next datagram; `None` once the flow was closed, or replaced by a newer flow of a restarted peer.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.inbox.poll_take(cx)
    }

    /// Stops receiving, and drops and counts the queued datagrams; the peer's next datagram opens another flow. Until
    /// the flow is dropped, it can still send.
    pub fn close(&mut self) {
        self.labels.metrics.dropped("flow_ended", self.inbox.close() as u64);
        // A datagram that arrives between these two finds a closed flow, and opens another one in its place.
        self.socket.flows.lock().close(&self.key, self.id);
    }

    /// Sends one datagram. Pending while the socket is not writable; other flows of the socket may continue.
    ///
    /// A datagram that the system refuses (too large, no route, no memory) is dropped and counted, and does not end the
    /// flow: the idle timeout ends that of a disconnected peer.
    ///
    /// # Errors
    ///
    /// The runtime is ending.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        loop {
            if let Some(waiting) = &mut self.unwritable {
                let writable = ready!(waiting.as_mut().poll(cx));
                self.unwritable = None;
                writable?;
            }
            match self.socket.try_send(&self.key, datagram) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let socket = Arc::clone(&self.socket);
                    // Not the socket's own poll function, which wakes only the last of several tasks.
                    self.unwritable = Some(Box::pin(async move { socket.writable().await }));
                }
                Err(error) => {
                    self.socket.unsent(&self.labels, &self.key, datagram, &error);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.close();
    }
}
