//! Test harness: a real gateway on free ports, real handlers, real peers.

pub mod admin;
pub mod certificates;
pub mod dtls;
pub mod echo_device;
pub mod mqtt;
pub mod peer;
pub mod recorded;
pub mod relay;
pub mod scripted_handler;
pub mod transport;

use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polygate::testing::config::Config;
use polygate::testing::conn::registry::Mailbox;
use polygate::testing::gateway::{Gateway, ReloadError, Reloaded, StartError};
use polygate::testing::rollout::RolloutManager;
use polygate::testing::telemetry::Telemetry;
use tempfile::TempDir;

use echo_device::EchoDevice;
use peer::RawPeer;
use scripted_handler::ScriptedHandler;
use transport::Transport;

/// Timeout of every wait. Long, because the machine may be busy; a passing test does not come near it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A guest of guests/dist; those under `large/` are not committed.
pub fn guest(name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/dist").join(name).with_extension("wasm");
    assert!(file.exists(), "{file:?} is missing; run guests/build");
    file
}

/// A shared data directory for compiled components: compiling a large guest takes seconds.
fn data_dir(of_test: &Path) -> PathBuf {
    let data_dir = of_test.join("data");
    let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("components");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&shared).unwrap();
    std::fs::create_dir(&data_dir).unwrap();
    std::os::unix::fs::symlink(shared, data_dir.join("components")).unwrap();
    data_dir
}

/// A lock that keeps other tests, also in other processes, from compiling the same large guest at the same time.
fn one_compiles() -> File {
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("components.lock")).unwrap();
    tokio::task::block_in_place(|| lock.lock()).unwrap();
    lock
}

/// The configuration of a gateway under test: text of a configuration file, as a user writes it.
pub struct Setup {
    gateway: String,
    data_dir: Option<String>,
    adapter: String,
    admin: String,
    auth: String,
    handlers: String,
    chain: Vec<String>,
    listener: String,
    more: String,
    transport: Transport,
    bind: String,
    admin_bind: String,
    broker: String,
}

impl Setup {
    fn new(handlers: String) -> Self {
        Self {
            gateway: String::new(),
            data_dir: None,
            adapter: String::new(),
            admin: "token = \"none\"".to_owned(),
            auth: "allow_anonymous = true\n".to_owned(),
            handlers,
            chain: vec!["h".to_owned()],
            listener: String::new(),
            more: String::new(),
            transport: Transport::Tcp,
            bind: Transport::Tcp.bind(),
            admin_bind: "127.0.0.1:0".to_owned(),
            broker: "kind = \"embedded\"\nbind = \"127.0.0.1:0\"".to_owned(),
        }
    }

    /// One listener whose handler is a guest.
    pub fn guest(name: &str) -> Self {
        Self::guest_at(&guest(name))
    }

    /// One listener whose handler is the guest in this file.
    pub fn guest_at(component: &Path) -> Self {
        Self::new(format!("[handlers.h]\nkind = \"wasm\"\ncomponent = {component:?}\n"))
    }

    /// One listener whose handler is a gRPC server.
    pub fn grpc(handler: &ScriptedHandler) -> Self {
        Self::grpc_at(&handler.url())
    }

    /// One listener with a gRPC handler at this url.
    pub fn grpc_at(url: &str) -> Self {
        Self::new(format!("[handlers.h]\nkind = \"grpc\"\nurl = {url:?}\n"))
    }

    /// One listener with a gRPC handler of several servers.
    pub fn grpc_many(urls: &[String]) -> Self {
        Self::new(format!("[handlers.h]\nkind = \"grpc\"\nurls = {urls:?}\n"))
    }

    /// Adds a guest to the end of the chain; further keys are its own.
    pub fn then_guest(self, name: &str, guest_name: &str) -> Self {
        let component = guest(guest_name);
        self.then(name, &format!("kind = \"wasm\"\ncomponent = {component:?}"))
    }

    /// Adds a gRPC server to the end of the chain; further keys are its own.
    pub fn then_grpc(self, name: &str, handler: &ScriptedHandler) -> Self {
        self.then(name, &format!("kind = \"grpc\"\nurl = {:?}", handler.url()))
    }

    fn then(mut self, name: &str, keys: &str) -> Self {
        writeln!(self.handlers, "[handlers.{name}]\n{keys}").unwrap();
        self.chain.push(name.to_owned());
        self
    }

    /// More keys of the handler.
    pub fn handler(mut self, keys: &str) -> Self {
        writeln!(self.handlers, "{keys}").unwrap();
        self
    }

    /// More keys of the listener.
    pub fn listener(mut self, keys: &str) -> Self {
        writeln!(self.listener, "{keys}").unwrap();
        self
    }

    /// More keys of the gateway.
    pub fn gateway(mut self, keys: &str) -> Self {
        writeln!(self.gateway, "{keys}").unwrap();
        self
    }

    /// The directory of compiled components, instead of its own.
    pub fn data_dir(mut self, key: &str) -> Self {
        self.data_dir = Some(key.to_owned());
        self
    }

    /// The keys of the admin port, instead of `token = "none"`.
    pub fn admin(mut self, keys: &str) -> Self {
        self.admin = keys.to_owned();
        self
    }

    /// More keys of the adapter.
    pub fn adapter(mut self, keys: &str) -> Self {
        writeln!(self.adapter, "{keys}").unwrap();
        self
    }

    /// The keys and tables of `[auth]`, instead of anonymous access.
    pub fn auth(mut self, keys: &str) -> Self {
        self.auth = keys.to_owned();
        self
    }

    /// More tables.
    pub fn more(mut self, tables: &str) -> Self {
        writeln!(self.more, "{tables}").unwrap();
        self
    }

    /// The transport of the listener, instead of plain TCP.
    pub fn over(mut self, transport: Transport) -> Self {
        self.bind = transport.bind();
        let keys = transport.keys();
        self.transport = transport;
        self.listener(&keys)
    }

    /// The address of the listener, instead of an IPv4 loopback port.
    pub fn bind(mut self, bind: &str) -> Self {
        self.bind = bind.to_owned();
        self
    }

    /// The keys of the broker, instead of an embedded one on a loopback port.
    pub fn broker(mut self, keys: &str) -> Self {
        self.broker = keys.to_owned();
        self
    }

    /// The address of the admin port, instead of an IPv4 loopback port.
    pub fn admin_bind(mut self, bind: &str) -> Self {
        self.admin_bind = bind.to_owned();
        self
    }

    /// Starts it.
    pub async fn start(self) -> GatewayUnderTest {
        self.try_start().await.unwrap()
    }

    /// Starts it, or returns the error.
    pub async fn try_start(self) -> Result<GatewayUnderTest, StartError> {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = self.data_dir.unwrap_or_else(|| format!("data_dir = {:?}", data_dir(dir.path())));
        let text = format!(
            "[gateway]\nnode = \"test\"\n{data_dir}\n{}\n[adapter]\nbind = \"127.0.0.1:0\"\n{}\n\
             [admin]\nbind = {:?}\n{}\n[broker]\n{}\n[auth]\n{}\n{}\n\
             [listeners.l]\nbind = {:?}\nhandlers = {:?}\n{}\n{}",
            self.gateway,
            self.adapter,
            self.admin_bind,
            self.admin,
            self.broker,
            self.auth,
            self.handlers,
            self.bind,
            self.chain,
            self.listener,
            self.more,
        );
        let (config, _) =
            Config::parse(&text, dir.path(), "test.toml").unwrap_or_else(|faults| panic!("{faults}\n{text}"));
        let _lock = text.contains("/large/").then(one_compiles);
        let gateway = Gateway::start(config).await?;
        Ok(GatewayUnderTest { gateway: Some(gateway), transport: self.transport, text, dir })
    }
}

/// A running gateway with a directory of its own.
pub struct GatewayUnderTest {
    gateway: Option<Gateway>,
    transport: Transport,
    text: String,
    dir: TempDir,
}

impl GatewayUnderTest {
    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    /// Reloads its configuration with one text replaced by another.
    pub async fn reload(&self, from: &str, to: &str) -> Result<Reloaded, Vec<ReloadError>> {
        assert!(self.text.contains(from), "no {from} in {}", self.text);
        self.follow(&self.text.replace(from, to)).await
    }

    /// Its configuration when it started.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reloads another configuration.
    pub async fn follow(&self, text: &str) -> Result<Reloaded, Vec<ReloadError>> {
        let (config, _) = Config::parse(text, self.dir.path(), "test.toml").unwrap_or_else(|faults| panic!("{faults}"));
        self.gateway().reload(config).await
    }

    /// Its handlers.
    pub fn handlers(&self) -> &RolloutManager {
        self.gateway().handlers()
    }

    /// Its data directory, if it has one of its own.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The address of the listener.
    pub fn listener(&self) -> SocketAddr {
        self.gateway().bound().listener("l").unwrap()
    }

    /// The address of another listener.
    pub fn listener_named(&self, name: &str) -> SocketAddr {
        self.gateway().bound().listener(name).unwrap()
    }

    /// The address of the adapter.
    pub fn adapter(&self) -> SocketAddr {
        self.gateway().bound().adapter.unwrap()
    }

    /// The address of one of the broker's MQTT listeners.
    pub fn mqtt_listener(&self, name: &str) -> SocketAddr {
        let bound = self.gateway().bound().mqtt;
        bound.iter().find(|(known, _)| **known == *name).unwrap().1
    }

    /// The MQTT address of the broker.
    pub fn broker(&self) -> SocketAddr {
        self.gateway().bound().broker.unwrap()
    }

    /// The admin port.
    pub fn admin(&self) -> SocketAddr {
        self.gateway().bound().admin.unwrap()
    }

    /// Live connections.
    pub fn connections(&self) -> usize {
        self.gateway().connections().len()
    }

    /// The mailbox of the only connection.
    pub fn mailbox(&self) -> Mailbox {
        let [mailbox] = &self.gateway().connections().all()[..] else { panic!("not one connection") };
        mailbox.clone()
    }

    /// A device, over the listener's transport.
    pub async fn connect(&self) -> RawPeer {
        self.transport.connect(self.listener()).await
    }

    /// A device that speaks the echo protocol, over the listener's transport.
    pub async fn device(&self) -> EchoDevice {
        EchoDevice::over(self.connect().await)
    }

    /// The same, authenticated.
    pub async fn login(&self, client_id: &str) -> EchoDevice {
        let mut device = self.device().await;
        device.log_in(client_id).await;
        device
    }

    /// The value of the first line of the metrics that begins with `line`, for example
    /// `polygate_closes_total{listener="l",reason="peer_closed"}`; 0 if there is none yet.
    pub fn metric(&self, line: &str) -> f64 {
        let page = self.gateway().telemetry().render().unwrap();
        let value = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The metrics, usable after the end.
    pub fn telemetry(&self) -> Telemetry {
        self.gateway().telemetry().clone()
    }

    /// Waits until a metric has a value.
    pub async fn metric_reaches(&self, line: &str, value: f64) {
        eventually(&format!("{line} reaches {value}"), || self.metric(line) == value).await;
    }

    /// Waits until a metric is greater than a value.
    pub async fn metric_exceeds(&self, line: &str, value: f64) {
        eventually(&format!("{line} exceeds {value}"), || self.metric(line) > value).await;
    }

    /// Stops it; returns the number of connections that were closed at the drain timeout.
    pub async fn stop(mut self) -> usize {
        self.gateway.take().unwrap().stop().await
    }
}

/// Waits until a condition holds that no socket reports.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Waits for a future with the timeout.
pub async fn within<T>(what: &str, coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, coming).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
