//! Composition root: builds and binds everything, runs, reloads, drains.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::admin;
use crate::auth::{self, Auth};
use crate::byte_budget::ByteBudget;
use crate::config::{Config, ConfigSnapshot};
use crate::conn::limit::ConnectionLimit;
use crate::conn::registry::Registry;
use crate::conn::{CloseReason, ConnIds, ListenAddr};
use crate::connection::Common;
use crate::dispatch::{ConnectionMigrator, EmptyChain};
use crate::drain::Drain;
use crate::exproto::service::{self, Adapter};
use crate::handler::wasm::Compiler;
use crate::listener::{self, ActivatedSockets};
use crate::pubsub::{PubSub, embedded, external};
use crate::rollout::{self, Initiator, Loader, RolloutManager};
use crate::tap::Taps;
use crate::telemetry::Telemetry;

mod data_dir;
mod descriptors;
mod listeners;
mod memory;
mod ports;

pub(crate) use listeners::ListenersChanged;
use listeners::{Context, Listeners};

/// Timeout for the accept loops to stop; they wait for nothing else.
const ACCEPT_LOOPS_END: Duration = Duration::from_secs(1);

/// Timeout for open responses of the admin port, such as a tap stream.
const ANSWERS_END: Duration = Duration::from_secs(1);

/// The gateway could not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be created, or other users can write to it.
    #[error(transparent)]
    DataDir(#[from] data_dir::DataDirError),
    /// The operating system's random generator failed.
    #[error("the system's random generator failed")]
    Random(#[source] getrandom::Error),
    /// Invalid rules or users.
    #[error(transparent)]
    Auth(#[from] auth::OptionsError),
    /// The embedded broker did not start.
    #[error(transparent)]
    Broker(#[from] embedded::StartError),
    /// The external broker's settings cannot be used.
    #[error(transparent)]
    ExternalBroker(#[from] external::StartError),
    /// A handler could not be loaded.
    #[error(transparent)]
    Handler(#[from] rollout::LoadError),
    /// A listener has no handler.
    #[error(transparent)]
    EmptyChain(#[from] EmptyChain),
    /// A listener's address cannot be bound.
    #[error(transparent)]
    Listener(#[from] listener::BindError),
    /// The adapter's address cannot be bound.
    #[error(transparent)]
    Adapter(#[from] service::BindError),
    /// The admin port cannot start.
    #[error(transparent)]
    Admin(#[from] admin::StartError),
}

/// A running gateway.
pub struct Gateway {
    drain: Drain,
    drain_timeout: Duration,
    registry: Registry,
    telemetry: Telemetry,
    pubsub: PubSub,
    admin: Option<JoinHandle<()>>,
    listeners: Mutex<Listeners>,
    bound: Bound,
    auth: Auth,
    manager: RolloutManager,
    /// The configuration at the start, with the reloaded changes.
    written: Mutex<ConfigSnapshot>,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

/// A configuration was not reloaded. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A version of a handler cannot be loaded.
    #[error(transparent)]
    Handler(#[from] rollout::Error),
    /// A listener's address cannot be bound.
    #[error(transparent)]
    Listener(#[from] listener::BindError),
    /// A listener has no handler.
    #[error(transparent)]
    EmptyChain(#[from] EmptyChain),
    /// The rules or users cannot be used.
    #[error(transparent)]
    Auth(#[from] auth::OptionsError),
}

/// Result of a reload.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// Added, removed and moved listeners; other changes of a listener apply to its new connections.
    pub listeners: ListenersChanged,
    pub changed: Vec<rollout::ChangeResult>,
    /// Keys that differ from the running configuration and need a restart.
    pub needs_restart: Vec<String>,
}

/// Bound addresses, with the ports that the system chose.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// The listeners, by name, in the order of the configuration.
    pub listeners: Vec<(Arc<str>, ListenAddr)>,
    /// The `ConnectionAdapter` service.
    pub adapter: Option<SocketAddr>,
    /// The embedded broker's first MQTT listener.
    pub broker: Option<SocketAddr>,
    /// All of its MQTT listeners, by name, in the order of the configuration.
    pub mqtt: Vec<(Arc<str>, SocketAddr)>,
    pub admin: Option<SocketAddr>,
}

impl Bound {
    /// Bound address of a listener.
    pub fn listener(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.iter().find(|(listener, _)| &**listener == name).map(|(_, address)| address.0)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Builds and binds everything, then accepts connections.
    ///
    /// # Errors
    ///
    /// [`StartError`], the first error.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Compiler::InProcess, ActivatedSockets::default()).await
    }

    /// As [`start`](Self::start), with another compiler for guests, and with sockets from socket activation.
    ///
    /// # Errors
    ///
    /// [`StartError`], the first error.
    pub async fn start_with(
        config: Config,
        compiler: Compiler,
        mut activated: ActivatedSockets,
    ) -> Result<Self, StartError> {
        choose_crypto_provider();
        let Config {
            node,
            data_dir,
            drain_timeout,
            connections_max,
            queued_bytes_max,
            adapter,
            admin,
            broker,
            external_broker,
            auth,
            handlers,
            mut listeners,
            written,
        } = config;
        for listener in &mut listeners {
            let socket = &mut listener.socket;
            socket.given = activated.take(&socket.name, socket.bind).map(Arc::new);
        }
        for socket in activated.unclaimed() {
            tracing::warn!(socket, "socket activation passed a socket that no listener uses");
        }
        drop(activated);
        data_dir::open(&data_dir)?;
        let telemetry = Telemetry::new();
        let drain = Drain::new();
        let registry = Registry::default();
        let taps = Taps::default();
        let ids = Arc::new(ConnIds::new().map_err(StartError::Random)?);
        let auth = Auth::new(auth)?;
        telemetry.logins(auth.counters());

        let loader = Loader::new(compiler, data_dir.join("components"), telemetry.clone());
        let services = rollout::Services {
            versions_dir: data_dir.join("versions"),
            drain_timeout,
            has_adapter: adapter.is_some(),
            migrator: ConnectionMigrator::new(registry.clone()),
            telemetry: telemetry.clone(),
            drain: drain.clone(),
        };
        let manager = RolloutManager::open(handlers, loader, services).await?;
        tracing::info!(handlers = manager.names().len(), "handlers ready");

        // A device takes a second descriptor for its connection to an external broker.
        let descriptors_each = if external_broker.is_some() { 2 } else { 1 };
        let connections_max = connections_max.or_else(|| descriptors::connections_max(descriptors_each));
        let limit = connections_max;
        let queued_bytes_max = queued_bytes_max.unwrap_or_else(memory::queued_bytes_max);
        tracing::info!(connections_max = limit, queued_bytes_max, "connection limit");
        let limit = limit.map(ConnectionLimit::new);
        let (pubsub, mut bound) = match external_broker {
            None => {
                let broker = embedded::Options { state_dir: Some(data_dir.join("broker")), ..broker };
                let broker = embedded::Broker::start(broker, auth.clone(), &telemetry, limit.as_ref()).await?;
                let mqtt = broker.bound().to_vec();
                let bound = Bound { broker: broker.local_addr(), mqtt, ..Bound::default() };
                (PubSub::Embedded(broker), bound)
            }
            Some(options) => {
                ports::warn_if_few(&options, connections_max);
                let counters = external::Counters::default();
                telemetry.external_broker(&counters);
                let broker = external::Broker::new(options, counters)?;
                (PubSub::External(broker), Bound::default())
            }
        };
        let queued = Arc::new(ByteBudget::new(queued_bytes_max));
        telemetry.queued_bytes(&queued);
        let mut running = Listeners::new(Context {
            common: Common { ids, registry: registry.clone(), taps: taps.clone(), limit, queued },
            auth: auth.clone(),
            pubsub: pubsub.clone(),
            manager: manager.clone(),
            telemetry: telemetry.clone(),
            drain: drain.clone(),
        });
        let ports = async {
            let opened = running.open(&listeners)?;
            let adapter = match &adapter {
                Some(options) => {
                    let service = Adapter::new(registry.clone(), pubsub.clone(), telemetry.clone());
                    Some(service.serve(options, drain.clone()).await?)
                }
                None => None,
            };
            let admin = match admin {
                Some(options) => {
                    let watched = (registry.clone(), taps.clone());
                    let (telemetry, manager) = (telemetry.clone(), manager.clone());
                    Some(admin::serve(options, &data_dir, telemetry, manager, watched, drain.clone()).await?)
                }
                None => None,
            };
            Ok((opened, adapter, admin))
        };
        // Last, because nothing can fail after it: no connection is accepted only to be closed by a failed start.
        let started = ports.await.and_then(|(opened, adapter, admin)| {
            running.follow(listeners, opened)?;
            Ok((adapter, admin))
        });
        let (adapter, admin) = match started {
            Ok(ports) => ports,
            Err(error) => {
                drain.begin();
                drain.end();
                pubsub.shutdown().await;
                return Err(error);
            }
        };
        (bound.adapter, bound.admin) = (adapter, admin.as_ref().map(|admin| admin.bound));

        tracing::info!(
            %node,
            adapter = bound.adapter.map(tracing::field::display),
            broker = bound.broker.map(tracing::field::display),
            admin = bound.admin.map(tracing::field::display),
            "started"
        );
        Ok(Self {
            drain,
            drain_timeout,
            registry,
            telemetry,
            pubsub,
            admin: admin.map(|admin| admin.task),
            listeners: Mutex::new(running),
            bound,
            auth,
            manager,
            written: Mutex::new(written),
            reloading: tokio::sync::Mutex::default(),
        })
    }

    /// The addresses that are bound.
    pub fn bound(&self) -> Bound {
        Bound { listeners: self.listeners.lock().bound(), ..self.bound.clone() }
    }

    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The live connections.
    pub fn connections(&self) -> &Registry {
        &self.registry
    }

    /// The handlers and their versions.
    pub fn handlers(&self) -> &RolloutManager {
        &self.manager
    }

    /// Applies a new configuration, as far as possible without a restart. Unchanged listeners keep their sockets and
    /// connections, changed ones apply to new connections, removed ones stop accepting; a changed handler gets a new
    /// version; users and rules are replaced.
    ///
    /// # Errors
    ///
    /// All errors; then nothing has changed.
    pub async fn reload(&self, config: Config) -> Result<Reloaded, Vec<ReloadError>> {
        let _guard = self.reloading.lock().await;
        let Config { auth, broker, handlers, listeners, written, .. } = config;
        let names: Vec<Arc<str>> = handlers.iter().map(|handler| Arc::clone(handler.name())).collect();
        let one = |error: ReloadError| vec![error];

        Auth::new(auth.clone()).map_err(|error| one(error.into()))?;
        let opened = self.listeners.lock().open(&listeners).map_err(|error| one(error.into()))?;
        let changed = match self.manager.reload(handlers, Initiator::Reload).await {
            Ok(changed) => changed,
            Err(errors) => return Err(errors.into_iter().map(ReloadError::from).collect()),
        };
        self.auth.replace(auth).map_err(|error| one(error.into()))?;
        let changes = self.listeners.lock().follow(listeners, opened).map_err(|error| one(error.into()))?;
        let closing = self.listeners.lock().take_closing();
        for shutdown in closing {
            shutdown.closed().await;
        }
        self.manager.retain(&names);
        if let PubSub::Embedded(running) = &self.pubsub {
            running.follow(&broker);
        }

        let is_followed =
            |key: &String| ["handlers", "listeners", "auth"].iter().any(|table| key.split('.').next() == Some(table));
        let mut last = self.written.lock();
        let differences = last.differences(&written);
        let needs_restart: Vec<String> = differences.into_iter().filter(|key| !is_followed(key)).collect();
        if needs_restart.is_empty() {
            *last = written;
        }
        Ok(Reloaded { listeners: changes, changed, needs_restart })
    }

    /// Graceful shutdown: stops accepting, closes every connection in order, and returns when all have closed or the
    /// drain timeout has passed. Returns the number of connections still open then.
    pub async fn stop(self) -> usize {
        tracing::info!(connections = self.registry.len(), "stopping");
        self.drain.begin();
        let mut tasks = self.listeners.into_inner().end(ACCEPT_LOOPS_END).await;
        let close_all = async {
            let mailboxes = self.registry.all();
            let mut close_all: FuturesUnordered<_> =
                mailboxes.iter().map(|mailbox| mailbox.end(CloseReason::Draining)).collect();
            while close_all.next().await.is_some() {}
        };
        let ended = async {
            for connections in &mut tasks {
                while connections.join_next().await.is_some() {}
            }
        };
        let all_ended = tokio::time::timeout(self.drain_timeout, async { tokio::join!(close_all, ended) }).await;
        let open = tasks.iter().map(JoinSet::len).sum();
        if all_ended.is_err() {
            tracing::warn!(connections = open, "drain timeout passed; closing the remaining connections");
        }
        for mut connections in tasks {
            connections.shutdown().await;
        }
        self.drain.end();
        self.pubsub.shutdown().await;
        if let Some(admin) = self.admin
            && tokio::time::timeout(ANSWERS_END, admin).await.is_err()
        {
            tracing::debug!("an open response of the admin port did not end in time");
        }
        tracing::info!("stopped");
        open
    }
}

/// Two providers of rustls are compiled in, because a dependency enables ring, so one must be selected.
fn choose_crypto_provider() {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::trace!("the TLS provider of this process is already installed");
    }
}
