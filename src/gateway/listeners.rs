//! The listeners of a running gateway, and what a configuration that was read again makes of them.

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

/// What every listener needs of the gateway.
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
        }
    }

    fn chain(&self, options: &config::Listener) -> Result<Chain, EmptyChain> {
        let versions = options.handlers.iter().filter_map(|name| self.manager.versions(name));
        Chain::new(&options.socket.name, versions, &self.telemetry)
    }
}

/// A listener that accepts.
#[derive(Debug)]
struct RunningListener {
    name: Arc<str>,
    bound: ListenAddr,
    handle: Handle,
    /// What a peer that is accepted now gets.
    connections: watch::Sender<Connections>,
    retirement: ListenerShutdown,
    task: JoinHandle<JoinSet<()>>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Listeners {
    context: Context,
    /// In the order of the configuration.
    accepting: Vec<RunningListener>,
    /// Those that accept no more and have connections left.
    draining: Vec<DrainingListener>,
    /// Those of them whose sockets may still be open.
    closing: Vec<ListenerShutdown>,
}

/// A listener that accepts no more.
#[derive(Debug)]
struct DrainingListener {
    /// Where its connections keep the address bound: who has that address later takes it over.
    kept: Option<(Handle, ListenAddr)>,
    task: JoinHandle<JoinSet<()>>,
}

/// Sockets that are bound and not yet accepted from, each with the place of its listener in the configuration.
#[derive(Debug)]
pub(super) struct BoundListeners(Vec<(usize, Listener)>);

/// What a configuration has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenersChanged {
    /// Listeners that accept and did not before.
    pub added: Vec<Arc<str>>,
    /// Listeners that accept no more; their connections live on.
    pub removed: Vec<Arc<str>>,
    /// Listeners that accept on another address than before, or in another transport.
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

    /// Binds what the configuration has and does not run yet. Peers can connect from here on, and are not accepted.
    ///
    /// # Errors
    ///
    /// The first address that is refused; then none is bound.
    pub(super) fn open(&self, listeners: &[config::Listener]) -> Result<BoundListeners, BindError> {
        let mut opened = Vec::new();
        // One of these keeps its address, also where the system chose it.
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
            // A listener that has the address and will not have it any more: it was renamed, or speaks another transport.
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
            opened.push((place, Listener::bind(&options.socket, handle, metrics)?));
        }
        Ok(BoundListeners(opened))
    }

    /// Does what the configuration says, for the peers that come from now on. `opened` is of the same configuration, and
    /// its handlers are loaded.
    ///
    /// # Errors
    ///
    /// [`EmptyChain`], when a listener's handlers are not there; then nothing has changed.
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
                    // First, so that sockets which stay are never without an owner.
                    let next = self.accept(socket, options, chain);
                    self.retire(running);
                    next
                }
                // What is not bound runs already: `open` has seen the same configuration.
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

    /// The listeners that were asked to accept no more, to wait for.
    pub(super) fn take_closing(&mut self) -> Vec<ListenerShutdown> {
        std::mem::take(&mut self.closing)
    }

    /// Starts to accept.
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
            // They take no descriptor.
            true => Common { limit: None, ..context.common.clone() },
            false => context.common.clone(),
        };
        let connections = Connections::new(options.connection, common, services, chain, metrics);
        let (connections, current) = watch::channel(connections);
        let (handle, retirement) = (socket.handle(), ListenerShutdown::default());
        let task = tokio::spawn(serve(socket, current, context.drain.clone(), retirement.clone()));
        RunningListener { name: options.socket.name, bound, handle, connections, retirement, task }
    }

    /// Gives a listener that goes on accepting what it is to have for the peers that come from now on.
    fn revise(&self, running: &RunningListener, options: &config::Listener, chain: Chain) {
        let services = self.context.services(options);
        if let Err(error) = running.handle.follow(&options.socket) {
            tracing::error!(listener = %running.name, %error, "the socket does not take its new options");
        }
        // Last: with this the accept loop looks at all of it anew.
        let next = running.connections.borrow().revised(options.connection.clone(), services, chain);
        running.connections.send_replace(next);
    }

    fn retire(&mut self, running: Option<RunningListener>) {
        let Some(running) = running else { return };
        tracing::info!(listener = %running.name, address = %running.bound, "listener stopped");
        running.retirement.ask();
        let kept = running.handle.outlives_accepting().then_some((running.handle, running.bound));
        self.draining.push(DrainingListener { kept, task: running.task });
        self.closing.push(running.retirement);
    }

    /// Waits until nothing is accepted any more, after the drain was signalled; gives the connections that are left. After
    /// this, every accepted connection is in the table or about to end by itself.
    pub(super) async fn end(self, within: Duration) -> Vec<JoinSet<()>> {
        let mut unclaimed = Vec::new();
        for task in self
            .accepting
            .into_iter()
            .map(|listening| listening.task)
            .chain(self.draining.into_iter().map(|draining| draining.task))
        {
            match tokio::time::timeout(within, task).await {
                Ok(Ok(connections)) => unclaimed.push(connections),
                Ok(Err(error)) => tracing::error!(%error, "an accept loop has panicked"),
                Err(_) => tracing::error!("an accept loop did not end"),
            }
        }
        unclaimed
    }
}
