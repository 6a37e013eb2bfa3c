//! The parts of a gateway, assembled for measurements between them.

use std::sync::Arc;

use polygate::testing::adapter::Services;
use polygate::testing::auth::Auth;
use polygate::testing::byte_budget::ByteBudget;
use polygate::testing::config::{self, Config, Program};
use polygate::testing::conn::ConnIds;
use polygate::testing::conn::registry::Registry;
use polygate::testing::connection::{Common, Connections};
use polygate::testing::dispatch::{Chain, Version, Versions};
use polygate::testing::exproto::service;
use polygate::testing::handler::{Handler, grpc, wasm};
use polygate::testing::pubsub::PubSub;
use polygate::testing::pubsub::embedded::Broker;
use polygate::testing::tap::Taps;
use polygate::testing::telemetry::Telemetry;
use tokio::sync::watch;

/// The budget of all queues; measurements do not reach it.
pub fn queued() -> Arc<ByteBudget> {
    Arc::new(ByteBudget::new(usize::MAX))
}

/// State shared by the connections of all listeners.
pub struct Parts {
    pub telemetry: Telemetry,
    pub table: Registry,
    pub versions: Arc<Versions>,
    pub pubsub: PubSub,
    pub adapter: service::Options,
    pub listeners: Vec<config::Listener>,
    host: wasm::Runtime,
    auth: Auth,
    ids: Arc<ConnIds>,
    taps: Taps,
}

impl Parts {
    /// From a configuration with one handler.
    pub async fn start(config: Config) -> Self {
        let telemetry = Telemetry::new();
        let auth = Auth::new(config.auth).expect("no users");
        let host = wasm::Runtime::start(config.data_dir.join("components")).expect("no engine");
        let pubsub =
            PubSub::Embedded(Broker::start(config.broker, auth.clone(), &telemetry, None).await.expect("no broker"));
        let [handler] = <[_; 1]>::try_from(config.handlers).expect("one handler");
        let health = telemetry.health(handler.name());
        let first = version(&host, &telemetry, 1, handler).await;
        Self {
            versions: Versions::new(first, health),
            table: Registry::default(),
            adapter: config.adapter.expect("an adapter"),
            listeners: config.listeners,
            ids: Arc::new(ConnIds::new().expect("no randomness")),
            taps: Taps::default(),
            telemetry,
            pubsub,
            host,
            auth,
        }
    }

    /// The connections of one of the listeners.
    pub fn connections(&self, listener: &config::Listener) -> watch::Receiver<Connections> {
        let metrics = self.telemetry.listener(&listener.socket.name);
        let services = Services {
            auth: self.auth.clone(),
            pubsub: self.pubsub.clone(),
            mountpoint: listener.mountpoint.clone(),
            metrics: metrics.clone(),
            confirm_timeout: None,
        };
        let chain = Chain::new(&listener.socket.name, [Arc::clone(&self.versions)], &self.telemetry).expect("no chain");
        let common = Common {
            ids: Arc::clone(&self.ids),
            registry: self.table.clone(),
            taps: self.taps.clone(),
            limit: None,
            queued: queued(),
        };
        let connections = Connections::new(listener.connection.clone(), common, services, chain, metrics);
        watch::channel(connections).1
    }

    /// Another version of the handler.
    pub async fn version(&self, number: u32, handler: config::Handler) -> Arc<Version> {
        version(&self.host, &self.telemetry, number, handler).await
    }

    /// The gauge of versions that hold memory.
    pub fn versions_loaded(&self) -> i64 {
        self.telemetry.version(self.versions.name(), 1).loaded.get()
    }
}

async fn version(host: &wasm::Runtime, telemetry: &Telemetry, number: u32, handler: config::Handler) -> Arc<Version> {
    let name = Arc::clone(handler.name());
    let program = match handler.program {
        Program::Grpc(options) => Handler::Grpc(grpc::Handler::new(options).expect("no TLS is asked for")),
        Program::Wasm(options) => {
            let (host, metrics) = (host.clone(), telemetry.instances(&name));
            let loading = tokio::task::spawn_blocking(move || host.load(options, metrics));
            let guest = loading.await.expect("loading panicked").expect("no guest");
            guest.try_out().await.expect("the guest does not start");
            Handler::Wasm(guest)
        }
    };
    Version::new(number, program, handler.policy, telemetry.version(&name, number))
}
