//! A host in which every operation succeeds and is recorded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polygate::testing::handler::wasm::component;
use wasmtime::component::{Component, HasSelf, Instance, InstancePre, Linker};
use wasmtime::{Config, Engine, Store, StoreLimits, StoreLimitsBuilder};

mod bindings {
    wasmtime::component::bindgen!({ path: "wit", world: "connection-handler" });
}

mod migrating {
    wasmtime::component::bindgen!({ path: "wit", world: "migrating-connection-handler" });
}

use bindings::exports::polygate::handler::handler::{CloseReason, ConnInfo, Message, Timer};
use bindings::polygate::handler::adapter::{self, ClientInfo, ErrorCode, Level, Qos};
use bindings::polygate::handler::types::Address;
pub use bindings::polygate::handler::types::SocketKind as Socket;
pub use migrating::exports::polygate::handler::migrate::State;

/// The connection of every test.
const CONN: u64 = 7;

/// The time of `now-ms`: 2026-11-23T12:00:00Z.
const NOW_MS: u64 = 1_795_348_800_000;

/// Limits of a guest; the largest guests need some.
const MEMORY_BYTES_MAX: usize = 64 << 20;

/// A guest, ready for instances.
pub struct Guest {
    engine: Engine,
    pre: InstancePre<Runtime>,
}

impl Guest {
    /// A guest of guests/dist.
    pub fn load(name: &str) -> Self {
        Self::of_component(&component::from_file(file(name)).unwrap())
    }

    pub fn of_component(component: &[u8]) -> Self {
        let engine = Engine::new(Config::new().concurrency_support(false)).unwrap();
        let mut linker = Linker::new(&engine);
        bindings::ConnectionHandler::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host).unwrap();
        let component = Component::new(&engine, component).unwrap();
        let pre = linker.instantiate_pre(&component).unwrap();
        Self { engine, pre }
    }

    /// An instance, without a connection yet.
    pub fn instance(&self, settings: &[(&str, &str)]) -> Running {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let limits = StoreLimitsBuilder::new().memory_size(MEMORY_BYTES_MAX).trap_on_grow_failure(true).build();
        let host = Runtime { settings, limits, now_ms: NOW_MS, seen: Seen::default(), logged: Vec::new() };
        let mut store = Store::new(&self.engine, host);
        store.limiter(|host| &mut host.limits);
        let instance = self.pre.instantiate(&mut store).unwrap();
        let exports = bindings::ConnectionHandler::new(&mut store, &instance).unwrap();
        Running { store, instance, exports }
    }

    /// An instance with a connection.
    pub fn connected(&self, settings: &[(&str, &str)]) -> Running {
        self.connected_over(Socket::Tcp, settings)
    }

    /// An instance with a connection of that kind.
    pub fn connected_over(&self, kind: Socket, settings: &[(&str, &str)]) -> Running {
        let mut running = self.instance(settings);
        let handler = running.exports.polygate_handler_handler();
        handler.call_on_socket_created(&mut running.store, CONN, &info(kind)).unwrap();
        running
    }
}

/// The file of a built guest.
pub fn file(name: &str) -> Vec<u8> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/dist").join(name).with_extension("wasm");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}; run guests/build"))
}

/// An instance. Every event must return: a trap fails the test.
pub struct Running {
    store: Store<Runtime>,
    instance: Instance,
    exports: bindings::ConnectionHandler,
}

impl Running {
    pub fn receive(&mut self, bytes: &[u8]) {
        let handler = self.exports.polygate_handler_handler();
        handler.call_on_received_bytes(&mut self.store, CONN, bytes).unwrap();
    }

    pub fn deliver(&mut self, payload: &[u8]) {
        let message = Message {
            node: "test".to_owned(),
            id: "1".to_owned(),
            topic: "down".to_owned(),
            payload: payload.to_vec(),
            qos: Qos::AtLeastOnce,
            sender: "app".to_owned(),
            timestamp_ms: NOW_MS,
        };
        let handler = self.exports.polygate_handler_handler();
        handler.call_on_received_messages(&mut self.store, CONN, &[message]).unwrap();
    }

    pub fn keepalive_timeout(&mut self) {
        let handler = self.exports.polygate_handler_handler();
        handler.call_on_timer_timeout(&mut self.store, CONN, Timer::Keepalive).unwrap();
    }

    pub fn close(&mut self) {
        let handler = self.exports.polygate_handler_handler();
        handler.call_on_socket_closed(&mut self.store, CONN, &CloseReason::Error("test".to_owned())).unwrap();
    }

    /// A snapshot of the connection's state, for another version.
    pub fn snapshot(&mut self) -> Option<State> {
        let exports = migrating::MigratingConnectionHandler::new(&mut self.store, &self.instance).unwrap();
        exports.polygate_handler_migrate().call_snapshot(&mut self.store, CONN).unwrap()
    }

    /// Restores the connection's state.
    pub fn restore(&mut self, state: Option<&State>) -> Result<(), String> {
        use migrating::polygate::handler::types::{Address, ConnInfo, SocketKind};

        let exports = migrating::MigratingConnectionHandler::new(&mut self.store, &self.instance).unwrap();
        let address = || Address { host: "192.0.2.1".to_owned(), port: 7 };
        let info = ConnInfo { kind: SocketKind::Tcp, peer: address(), local: address(), peer_cert: None };
        exports.polygate_handler_migrate().call_restore(&mut self.store, CONN, &info, state).unwrap()
    }

    /// Time goes by.
    pub fn pass_ms(&mut self, ms: u64) {
        self.store.data_mut().now_ms += ms;
    }

    /// The lines for the gateway's log, behind their level.
    pub fn logged(&self) -> &[String] {
        &self.store.data().logged
    }

    pub fn seen(&self) -> &Seen {
        &self.store.data().seen
    }

    /// Takes the recorded operations.
    pub fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.store.data_mut().seen)
    }
}

fn info(kind: Socket) -> ConnInfo {
    let address = |port| Address { host: "192.0.2.1".to_owned(), port };
    ConnInfo { kind, peer: address(1), local: address(2), peer_cert: None }
}

/// A recorded operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub sent: Vec<u8>,
    /// Topic and payload.
    pub published: Vec<(String, Vec<u8>)>,
    pub authenticated: Vec<String>,
    pub subscribed: Vec<String>,
    pub keepalive_ms: Option<u32>,
    pub closed: bool,
}

struct Runtime {
    settings: BTreeMap<String, String>,
    limits: StoreLimits,
    now_ms: u64,
    seen: Seen,
    logged: Vec<String>,
}

impl bindings::polygate::handler::types::Host for Runtime {}

impl adapter::Host for Runtime {
    fn send(&mut self, _: u64, bytes: Vec<u8>) -> Result<(), ErrorCode> {
        self.seen.sent.extend(bytes);
        Ok(())
    }

    fn close(&mut self, _: u64) -> Result<(), ErrorCode> {
        self.seen.closed = true;
        Ok(())
    }

    fn authenticate(&mut self, _: u64, client: ClientInfo, _: Option<String>) -> Result<(), ErrorCode> {
        self.seen.authenticated.push(client.client_id);
        Ok(())
    }

    fn start_timer(&mut self, _: u64, _: adapter::Timer, interval_ms: u32) -> Result<(), ErrorCode> {
        self.seen.keepalive_ms = Some(interval_ms);
        Ok(())
    }

    fn stop_timer(&mut self, _: u64, _: adapter::Timer) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn publish(&mut self, _: u64, topic: String, _: Qos, payload: Vec<u8>) -> Result<(), ErrorCode> {
        self.seen.published.push((topic, payload));
        Ok(())
    }

    fn subscribe(&mut self, _: u64, filter: String, _: Qos) -> Result<(), ErrorCode> {
        self.seen.subscribed.push(filter);
        Ok(())
    }

    fn unsubscribe(&mut self, _: u64, _: String) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn raw_publish(&mut self, topic: String, _: Qos, payload: Vec<u8>) -> Result<(), ErrorCode> {
        self.seen.published.push((topic, payload));
        Ok(())
    }

    fn setting(&mut self, name: String) -> Option<String> {
        self.settings.get(&name).cloned()
    }

    fn now_ms(&mut self) -> u64 {
        self.now_ms
    }

    fn random(&mut self, len: u32) -> Vec<u8> {
        vec![7; len as usize]
    }

    fn log(&mut self, level: Level, text: String) {
        self.logged.push(format!("{level:?} {text}"));
    }
}
