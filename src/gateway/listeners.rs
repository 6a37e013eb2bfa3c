//! Listeners of a running gateway, and the changes that a reload makes to them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::adapter::Services;
use crate::auth::Auth;
use crate::config;
use crate::conn::ListenAddr;
use crate::connection::{Common, Connections};
use crate::dispatch::{Chain, EmptyChain};
use crate::drain::Drain;
use crate::listener::{BindError, Handle, Listener};
use crate::pubsub::PubSub;
use crate::rollout::RolloutManager;
use crate::serve::{ListenerShutdown, serve};
use crate::telemetry::Telemetry;

/// Dependencies of every listener.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) common: Common,
    pub(super) auth: Auth,
    pub(super) pubsub: PubSub,
    pub(super) manager: RolloutManager,
    pub(super) telemetry: Telemetry,
    pub(super) drain: Drain,
}

impl Context {
    fn services(&self, options: &config::Listener) -> Services {
        Services {
            auth: self.auth.clone(),
            pubsub: self.pubsub.clone(),
            mountpoint: options.mountpoint.clone(),
            metrics: self.telemetry.listener(&options.socket.name),
            confirm_timeout: options.confirm_timeout,
        }
    }

    fn chain(&self, options: &config::Listener) -> Result<Chain, EmptyChain> {
        let versions = options.handlers.iter().filter_map(|name| self.manager.versions(name));
        Chain::new(&options.socket.name, versions, &self.telemetry)
    }
}

#[derive(Debug)]
struct RunningListener {
    name: Arc<str>,
    bound: ListenAddr,
    handle: Handle,
    /// Options, services and handlers for new connections.
    connections: watch::Sender<Connections>,
    shutdown: ListenerShutdown,
    task: JoinHandle<JoinSet<()>>,
}

#[derive(Debug)]
pub(super) struct Listeners {
    context: Context,
    /// In the order of the configuration.
    accepting: Vec<RunningListener>,
    /// Stopped listeners with open connections.
    draining: Vec<DrainingListener>,
    /// Stopped listeners whose sockets may still be open.
    closing: Vec<ListenerShutdown>,
}

/// A stopped listener.
#[derive(Debug)]
struct DrainingListener {
    /// Set if its connections keep the address bound; a later listener on that address takes the socket over.
    kept: Option<(Handle, ListenAddr)>,
    task: JoinHandle<JoinSet<()>>,
}

/// Bound sockets that do not accept yet, each with the index of its listener in the configuration.
#[derive(Debug)]
pub(super) struct BoundListeners(Vec<(usize, Listener)>);

/// Changed listeners after a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenersChanged {
    /// Added listeners.
    pub added: Vec<Arc<str>>,
    /// Stopped listeners; their connections stay open.
    pub removed: Vec<Arc<str>>,
    /// Listeners with another address or transport.
    pub moved: Vec<Arc<str>>,
}

impl Listeners {
    pub(super) fn new(context: Context) -> Self {
        Self { context, accepting: Vec::new(), draining: Vec::new(), closing: Vec::new() }
    }

    /// The bound addresses, by name.
    pub(super) fn bound(&self) -> Vec<(Arc<str>, ListenAddr)> {
        self.accepting.iter().map(|listening| (Arc::clone(&listening.name), listening.bound)).collect()
    }

    /// Binds the listeners of the configuration that do not run yet. Peers can connect from here on, but are not
    /// accepted.
    ///
    /// # Errors
    ///
    /// The first address that cannot be bound; then none is bound.
    pub(super) fn open(&self, listeners: &[config::Listener]) -> Result<BoundListeners, BindError> {
        let mut opened = Vec::new();
        // A listener of these keeps its address, even one that the system chose.
        let stays = |running: &RunningListener| {
            let is_asked =
                |socket: &crate::listener::Options| socket.name == running.name && socket.bind == running.handle.bind();
            listeners.iter().any(|options| is_asked(&options.socket))
        };
        for (place, options) in listeners.iter().enumerate() {
            let bind = options.socket.bind;
            let same =
                |running: &&RunningListener| running.name == options.socket.name && running.handle.bind() == bind;
            if self.accepting.iter().any(|running| same(&running)) {
                continue;
            }
            // A listener that gives this address up: it was renamed, or changes its transport.
            let accepting = self.accepting.iter().filter(|running| !stays(running));
            let accepting = accepting.map(|running| (&running.handle, running.bound));
            let draining = self.draining.iter().filter_map(|draining| draining.kept.as_ref());
            let predecessor =
                accepting.chain(draining.map(|(handle, bound)| (handle, *bound))).find(|(handle, bound)| {
                    let ports = handle.bind().transport.has_datagrams() == bind.transport.has_datagrams();
                    ports && (handle.bind().address == bind.address || bound.0 == bind.address)
                });
            let metrics = self.context.telemetry.listener(&options.socket.name);
            let handle = predecessor.map(|(handle, _)| handle);
            opened.push((place, Listener::bind(&options.socket, handle, metrics, &self.context.common.queued)?));
        }
        Ok(BoundListeners(opened))
    }

    /// Applies the configuration to new connections. `opened` belongs to the same configuration, whose handlers are
    /// loaded.
    ///
    /// # Errors
    ///
    /// [`EmptyChain`] for a listener without loaded handlers; then nothing has changed.
    pub(super) fn follow(
        &mut self,
        listeners: Vec<config::Listener>,
        opened: BoundListeners,
    ) -> Result<ListenersChanged, EmptyChain> {
        let chains: Vec<Chain> =
            listeners.iter().map(|options| self.context.chain(options)).collect::<Result<_, _>>()?;
        let mut opened: std::collections::BTreeMap<usize, Listener> = opened.0.into_iter().collect();
        let mut last = std::mem::take(&mut self.accepting);
        let mut changed = ListenersChanged::default();
        for ((place, options), chain) in listeners.into_iter().enumerate().zip(chains) {
            let running = last.iter().position(|running| running.name == options.socket.name).map(|at| last.remove(at));
            let next = match (opened.remove(&place), running) {
                (None, Some(running)) => {
                    self.revise(&running, &options, chain);
                    running
                }
                (Some(socket), running) => {
                    let known = if running.is_some() { &mut changed.moved } else { &mut changed.added };
                    known.push(Arc::clone(&options.socket.name));
                    // First, so that a shared socket is never without an owner.
                    let next = self.accept(socket, options, chain);
                    self.retire(running);
                    next
                }
                // Not reachable: `open` has bound every listener that does not run.
                (None, None) => continue,
            };
            self.accepting.push(next);
        }
        for running in last {
            changed.removed.push(Arc::clone(&running.name));
            self.retire(Some(running));
        }
        self.draining.retain(|draining| !draining.task.is_finished());
        Ok(changed)
    }

    /// Takes the stopped listeners, to wait for their sockets to close.
    pub(super) fn take_closing(&mut self) -> Vec<ListenerShutdown> {
        std::mem::take(&mut self.closing)
    }

    /// Starts a listener.
    fn accept(&self, mut socket: Listener, options: config::Listener, chain: Chain) -> RunningListener {
        socket.begin();
        let bound = socket.local_addr();
        tracing::info!(
            listener = %options.socket.name,
            transport = %options.socket.bind.transport,
            address = %bound,
            handlers = ?chain.names().collect::<Vec<_>>(),
            "accepting"
        );
        let context = &self.context;
        let services = context.services(&options);
        let metrics = services.metrics.clone();
        let common = match options.socket.bind.transport.has_datagrams() {
            // They use no descriptor.
            true => Common { limit: None, ..context.common.clone() },
            false => context.common.clone(),
        };
        let connections = Connections::new(options.connection, common, services, chain, metrics);
        let (connections, current) = watch::channel(connections);
        let (handle, shutdown) = (socket.handle(), ListenerShutdown::default());
        let task = tokio::spawn(serve(socket, current, context.drain.clone(), shutdown.clone()));
        RunningListener { name: options.socket.name, bound, handle, connections, shutdown, task }
    }

    /// Applies changed options, services and handlers to a running listener, for new connections.
    fn revise(&self, running: &RunningListener, options: &config::Listener, chain: Chain) {
        let services = self.context.services(options);
        if let Err(error) = running.handle.follow(&options.socket) {
            tracing::error!(listener = %running.name, %error, "cannot apply the new options to the socket");
        }
        // Last, because it wakes the accept loop, which reads all of them.
        let next = running.connections.borrow().revised(options.connection.clone(), services, chain);
        running.connections.send_replace(next);
    }

    fn retire(&mut self, running: Option<RunningListener>) {
        let Some(running) = running else { return };
        tracing::info!(listener = %running.name, address = %running.bound, "listener stopped");
        running.shutdown.ask();
        let kept = running.handle.outlives_accepting().then_some((running.handle, running.bound));
        self.draining.push(DrainingListener { kept, task: running.task });
        self.closing.push(running.shutdown);
    }

    /// Waits for the accept loops after the drain was signalled; returns the tasks of open connections. After this,
    /// every accepted connection is in the registry or about to close by itself.
    pub(super) async fn end(self, within: Duration) -> Vec<JoinSet<()>> {
        let mut open = Vec::new();
        for task in self
            .accepting
            .into_iter()
            .map(|listening| listening.task)
            .chain(self.draining.into_iter().map(|draining| draining.task))
        {
            match tokio::time::timeout(within, task).await {
                Ok(Ok(connections)) => open.push(connections),
                Ok(Err(error)) => tracing::error!(%error, "an accept loop has panicked"),
                Err(_) => tracing::error!("an accept loop did not end"),
            }
        }
        open
    }
}
