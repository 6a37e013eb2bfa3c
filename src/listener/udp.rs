//! The flows of UDP peers: one for each peer address, many on a socket, several sockets for a listener.
//!
//! A task for each socket receives for all of its flows and never waits for one of them: what a flow has no room for is
//! shed and counted. Tasks and sockets live until the listener and its last flow are gone, so connections still hear
//! their peers while the gateway stops, or when the listener is gone from the configuration. What the network says about one peer (an ICMP message) never ends them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::establish::RawSocket;
use super::flow::{Bounds, FlowId, Key};
use super::flow_gate::{FlowGate, FlowStart};

use super::per_address::SharedAddressLimits;
use super::{Admission, Bind, Options, Pending};
use crate::conn::limit::ConnectionLimit;
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

/// Room for the longest datagram, and for what the kernel puts together from several of one peer, which is never more.
const BUFFER_BYTES: usize = 65_536;

/// New flows that wait for the accept loop, which does nothing but take them; a burst beyond is turned away.
const ARRIVALS_MAX: usize = 1024;

/// What a listener for datagrams is to be, beside what all listeners are.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Sockets on its address, `1..=64`; the kernel spreads the peers over them, each peer to one.
    pub sockets: usize,
    /// Flows of one socket, `1..`; more peers are turned away.
    pub flows_max: usize,
    /// What waits for one flow's connection.
    pub queue: Bounds,
}

/// Opens flows for the peers of its sockets.
#[derive(Debug)]
pub struct UdpListener {
    labels: Arc<ListenerLabels>,
    bind: Bind,
    settings: Arc<Settings>,
    group: Arc<SocketGroup>,
    arrivals: mpsc::Receiver<Flow>,
    /// What takes the sockets over, with the options for it: until then their last owner has them.
    takes_over: Option<Box<(ReceiverConfig, Options)>>,
}

/// What a reload may change of a listener that goes on accepting, and its sockets, which another one may take over.
#[derive(Debug)]
pub(super) struct Settings {
    admission: Arc<ArcSwap<Admission>>,
    sources: Arc<SharedAddressLimits>,
    /// Peers that may be about their handshake.
    handshakes: ConnectionLimit,
    /// Not held: it lives as long as somebody receives.
    group: Weak<SocketGroup>,
}

impl Settings {
    /// Follows other options, for the peers that come from now on.
    pub(super) fn follow(&self, options: &Options) -> io::Result<()> {
        self.admission.store(Arc::new(options.admission.clone()));
        self.handshakes.resize(options.handshakes_max);
        self.group.upgrade().map_or(Ok(()), |group| group.follow(options))
    }
}

impl UdpListener {
    /// Binds the sockets and receives from them, or takes those of a listener of the same address over once it
    /// [begins](Self::begin). Each socket has a door of its own.
    pub(super) fn bind(
        options: &Options,
        predecessor: Option<&Settings>,
        metrics: ListenerMetrics,
        gate: impl Fn() -> FlowGate + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::bind_with(options, predecessor, metrics, GateFactory::new(gate), BUFFER_BYTES)
    }

    fn bind_with(
        options: &Options,
        predecessor: Option<&Settings>,
        metrics: ListenerMetrics,
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
            arrivals: sender,
        };
        let (group, takes_over) = match predecessor.and_then(|settings| settings.group.upgrade()) {
            Some(group) => (group, Some(Box::new((config, options.clone())))),
            None => (Arc::new(SocketGroup::bind(options, config, buffer_bytes)?), None),
        };
        let sources = SharedAddressLimits::new(labels.metrics.clone());
        let handshakes = ConnectionLimit::new(options.handshakes_max);
        let settings = Arc::new(Settings { admission, sources, handshakes, group: Arc::downgrade(&group) });
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
            let turn = self.settings.handshakes.try_permit();
            let waits = turn.is_none() && self.bind.transport.is_secure();
            let pending = Pending {
                listener: Arc::clone(&self.labels.name),
                kind: self.bind.transport,
                peer: flow.peer(),
                local: flow.local(),
                socket: RawSocket::Udp(flow),
                admission: self.settings.admission.load_full(),
                sources: Arc::clone(&self.settings.sources),
                metrics: self.labels.metrics.clone(),
                _turn: turn.filter(|_| self.bind.transport.is_secure()),
            };
            if !waits {
                return pending;
            }
            // It sends its hello again, and there may be room then; nothing keeps it for so long.
            pending.shed("handshakes_max");
        }
    }

    /// Has the peers that come from now on, where the sockets have another owner until then.
    pub(super) fn begin(&mut self) {
        if let Some(taken) = self.takes_over.take() {
            let (config, options) = *taken;
            self.group.set_config(config);
            if let Err(error) = self.group.follow(&options) {
                tracing::warn!(listener = %self.labels.name, %error, "takes the sockets of another listener over");
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

/// One peer of a listener: what it sends arrives here, and what is sent here leaves from the address that it has used.
///
/// Dropping it closes it.
pub struct Flow {
    labels: Arc<ListenerLabels>,
    socket: Arc<Socket>,
    inbox: Arc<Inbox>,
    key: Key,
    id: FlowId,
    entry: FlowStart,
    /// Waits until the socket takes datagrams again, beside the other flows of the socket.
    unwritable: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
    /// Set when it is accepted: one that nobody accepts must not keep the sockets.
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

    /// The address of ours that the peer uses.
    pub fn local(&self) -> ListenAddr {
        self.socket.local(&self.key)
    }

    /// What the door let it in with.
    pub fn entry_mut(&mut self) -> &mut FlowStart {
        &mut self.entry
    }

    /// Counts what was dropped on purpose of the peer or for it.
    pub(in crate::listener) fn dropped(&self, reason: &'static str, count: u64) {
        if count > 0 {
            self.labels.metrics.dropped(reason, count);
        }
    }

    /// The next datagram; `None` once the flow was closed, or the peer has begun anew and a newer flow gets what it sends.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.inbox.poll_take(cx)
    }

    /// Nothing more is received, and what waits is dropped and counted; the peer's next datagram opens another flow. Until
    /// the flow is dropped, it can still send.
    pub fn close(&mut self) {
        self.labels.metrics.dropped("flow_ended", self.inbox.close() as u64);
        // A datagram that comes between these two finds a flow that is gone, and opens another one in its place.
        self.socket.flows.lock().close(&self.key, self.id);
    }

    /// Sends one datagram. It is pending while the socket takes none, and other flows of the socket may go on.
    ///
    /// A datagram that is refused (too large, no route, no memory) is dropped and counted, and does not end the flow:
    /// a peer that is gone ends it by its silence.
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
