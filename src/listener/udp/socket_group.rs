//! Sockets of one address with their receiving tasks, shared by a listener, its successor and its flows.

use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Flow;
use super::receiver::Receiver;
use super::socket::Socket;
use crate::byte_budget::ByteBudget;
use crate::conn::ListenAddr;
use crate::listener::flow::Bounds;
use crate::listener::flow_gate::FlowGate;
use crate::listener::{Admission, Options, SocketOptions};
use crate::telemetry::ListenerMetrics;

/// Creates the gate of each socket.
#[derive(Clone)]
pub(super) struct GateFactory(Arc<dyn Fn() -> FlowGate + Send + Sync>);

impl GateFactory {
    pub(super) fn new(gate: impl Fn() -> FlowGate + Send + Sync + 'static) -> Self {
        Self(Arc::new(gate))
    }

    pub(super) fn make(&self) -> FlowGate {
        self.0()
    }

    pub(super) fn are(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for GateFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doors")
    }
}

/// The listener in logs and metrics.
#[derive(Debug)]
pub(super) struct ListenerLabels {
    pub(super) name: Arc<str>,
    pub(super) metrics: ListenerMetrics,
}

/// Configuration of the receiving tasks: the owner of new peers. Replaced as a whole.
#[derive(Clone, Debug)]
pub(super) struct ReceiverConfig {
    pub(super) labels: Arc<ListenerLabels>,
    pub(super) admission: Arc<ArcSwap<Admission>>,
    pub(super) gates: GateFactory,
    pub(super) queue: Bounds,
    /// The budget of all queues.
    pub(super) queued: Arc<ByteBudget>,
    pub(super) arrivals: mpsc::Sender<Flow>,
}

/// The sockets of an address, with their receiving tasks, which end when it is dropped.
///
/// Shared by listeners and flows: all sockets stay as long as one of them is alive, because the kernel would spread the
/// peers anew over the remaining sockets.
#[derive(Debug)]
pub(super) struct SocketGroup {
    sockets: Vec<Arc<Socket>>,
    local: ListenAddr,
    /// The options that the sockets were made with.
    made: SocketOptions,
    config: Arc<ArcSwap<ReceiverConfig>>,
    _tasks: DropGuard,
}

impl SocketGroup {
    /// Binds the sockets and begins to receive.
    pub(super) fn bind(options: &Options, config: ReceiverConfig, buffer_bytes: usize) -> io::Result<Self> {
        let mut sockets = Vec::with_capacity(options.datagrams.sockets);
        let mut address = options.bind.address;
        for _ in 0..options.datagrams.sockets {
            let socket = Socket::bind(address, options)?;
            // When the system chose the port, the others get the same.
            address = socket.local;
            sockets.push(Arc::new(socket));
        }
        let config = Arc::new(ArcSwap::from_pointee(config));
        let ended = CancellationToken::new();
        for socket in &sockets {
            let receiver = Receiver::new(Arc::clone(socket), Arc::clone(&config));
            tokio::spawn(receiver.run(ended.clone(), buffer_bytes));
        }
        Ok(Self {
            sockets,
            local: ListenAddr(address),
            made: options.socket_options.clone(),
            config,
            _tasks: ended.drop_guard(),
        })
    }

    /// The bound address.
    pub(super) fn local(&self) -> ListenAddr {
        self.local
    }

    /// Changes the owner of new peers.
    pub(super) fn set_config(&self, config: ReceiverConfig) {
        self.config.store(Arc::new(config));
    }

    /// Applies other options to new peers.
    ///
    /// # Errors
    ///
    /// Options that need other sockets, such as their number: the kernel would spread the peers anew.
    pub(super) fn follow(&self, options: &Options) -> io::Result<()> {
        let datagrams = &options.datagrams;
        self.config.rcu(|config| ReceiverConfig { queue: datagrams.queue, ..ReceiverConfig::clone(config) });
        for socket in &self.sockets {
            socket.flows.lock().resize(datagrams.flows_max);
        }
        for socket in &self.sockets {
            socket.resize(&options.socket_options)?;
        }
        self.made.followed_by(&options.socket_options)?;
        if self.sockets.len() == datagrams.sockets {
            return Ok(());
        }
        let (now, asked) = (self.sockets.len(), datagrams.sockets);
        Err(io::Error::other(format!("it keeps its {now} sockets; {asked} need a restart, or another address")))
    }
}
