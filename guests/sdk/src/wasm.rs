//! The border to the gateway: generated bindings, and the translation to this crate's words.
//!
//! Owns the connections of the instance. Exists on wasm32 only, and is reached through [`crate::export!`] alone.

use std::cell::{Cell, RefCell};

use crate::connection::Connection;
use crate::{
    Adapter, Address, Certificate, ClientInfo, CloseReason, ConnInfo, ErrorCode, Handler, Level, Message, Migrate, Qos,
    SocketKind, Timer, migrate,
};

#[allow(missing_docs, unused_qualifications, reason = "generated from wit/handler.wit, which has the words")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "connection-handler",
        pub_export_macro: true,
    });
}

/// What the world `migrating-connection-handler` has over the other. A component that exports both is of that world.
#[allow(missing_docs, unused_qualifications, reason = "generated from wit/handler.wit, which has the words")]
pub mod migrating {
    wit_bindgen::generate!({
        inline: "package polygate:guest; world migrating { export polygate:handler/migrate@0.1.0; }",
        path: "../../wit",
        world: "polygate:guest/migrating",
        pub_export_macro: true,
        with: { "polygate:handler/types@0.1.0": crate::wasm::bindings::polygate::handler::types },
    });
}

pub use bindings::polygate::handler::types;
pub use migrating::exports::polygate::handler::migrate::State;

use bindings::polygate::handler::adapter as host;

/// The connections of this instance, by the gateway's id.
pub struct Connections<H> {
    // Sorted by id, which the gateway only counts up: a new one goes to the end. A tree would do the same with 10 KiB
    // more of code.
    by_id: RefCell<Vec<(types::Conn, Box<Connection<H>>)>>,
    hooked: Cell<bool>,
}

impl<H> Connections<H> {
    pub const fn new() -> Self {
        Self { by_id: RefCell::new(Vec::new()), hooked: Cell::new(false) }
    }

    fn insert(&self, conn: types::Conn, connection: Connection<H>) {
        let mut by_id = self.by_id.borrow_mut();
        match by_id.binary_search_by_key(&conn, |(id, _)| *id) {
            Ok(_) => host::log(types::Level::Error, &format!("connection {conn} was announced twice")),
            Err(at) => by_id.insert(at, (conn, Box::new(connection))),
        }
    }

    fn with(&self, conn: types::Conn, event: impl FnOnce(&mut Connection<H>, &mut Gateway)) {
        let mut by_id = self.by_id.borrow_mut();
        let found = by_id.binary_search_by_key(&conn, |(id, _)| *id).ok();
        match found.and_then(|at| by_id.get_mut(at)) {
            Some((_, connection)) => event(connection, &mut Gateway(conn)),
            None => unannounced(conn),
        }
    }

    fn hook(&self) {
        if !self.hooked.replace(true) {
            // A panic ends in a trap, which has no words; these are its last.
            std::panic::set_hook(Box::new(|panic| host::log(types::Level::Error, &panic.to_string())));
        }
    }
}

impl<H: Handler> Connections<H> {
    pub fn created(&self, conn: types::Conn, info: types::ConnInfo) {
        self.hook();
        self.insert(conn, Connection::open(&mut Gateway(conn), &info.into()));
    }

    pub fn received_bytes(&self, conn: types::Conn, bytes: &[u8]) {
        self.with(conn, |connection, gateway| connection.received_bytes(gateway, bytes));
    }

    pub fn timer_timeout(&self, conn: types::Conn, timer: types::Timer) {
        let timer = match timer {
            types::Timer::Keepalive => Timer::Keepalive,
        };
        self.with(conn, |connection, gateway| connection.timer_timeout(gateway, timer));
    }

    pub fn received_messages(&self, conn: types::Conn, messages: Vec<types::Message>) {
        let messages: Vec<Message> = messages.into_iter().map(Message::from).collect();
        self.with(conn, |connection, gateway| connection.received_messages(gateway, &messages));
    }

    pub fn closed(&self, conn: types::Conn, reason: types::CloseReason) {
        let mut by_id = self.by_id.borrow_mut();
        match by_id.binary_search_by_key(&conn, |(id, _)| *id) {
            Ok(at) => by_id.remove(at).1.closed(&mut Gateway(conn), &reason.into()),
            Err(_) => unannounced(conn),
        }
    }
}

impl<H: Migrate> Connections<H> {
    pub fn snapshot(&self, conn: types::Conn) -> Option<State> {
        let mut state = None;
        self.with(conn, |connection, _| state = connection.snapshot());
        state.map(|migrate::State { format, bytes }| State { format, bytes })
    }

    pub fn restore(&self, conn: types::Conn, info: types::ConnInfo, state: Option<State>) -> Result<(), String> {
        self.hook();
        let state = state.map(|State { format, bytes }| migrate::State { format, bytes });
        self.insert(conn, Connection::restore(&mut Gateway(conn), &info.into(), state)?);
        Ok(())
    }
}

fn unannounced(conn: types::Conn) {
    host::log(types::Level::Error, &format!("event for connection {conn}, which was never announced or has ended"));
}

/// The gateway's adapter, for one connection.
struct Gateway(types::Conn);

impl Adapter for Gateway {
    fn send(&mut self, bytes: &[u8]) -> Result<(), ErrorCode> {
        host::send(self.0, bytes).map_err(ErrorCode::from)
    }

    fn close(&mut self) -> Result<(), ErrorCode> {
        host::close(self.0).map_err(ErrorCode::from)
    }

    fn authenticate(&mut self, client: ClientInfo<'_>, password: Option<&str>) -> Result<(), ErrorCode> {
        let client = types::ClientInfo {
            proto_name: client.proto_name.to_owned(),
            proto_ver: client.proto_ver.to_owned(),
            client_id: client.client_id.to_owned(),
            username: client.username.map(str::to_owned),
            mountpoint: None,
        };
        host::authenticate(self.0, &client, password).map_err(ErrorCode::from)
    }

    fn start_timer(&mut self, timer: Timer, interval_ms: u32) -> Result<(), ErrorCode> {
        host::start_timer(self.0, timer.into(), interval_ms).map_err(ErrorCode::from)
    }

    fn stop_timer(&mut self, timer: Timer) -> Result<(), ErrorCode> {
        host::stop_timer(self.0, timer.into()).map_err(ErrorCode::from)
    }

    fn publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode> {
        host::publish(self.0, topic, qos.into(), payload).map_err(ErrorCode::from)
    }

    fn subscribe(&mut self, filter: &str, qos: Qos) -> Result<(), ErrorCode> {
        host::subscribe(self.0, filter, qos.into()).map_err(ErrorCode::from)
    }

    fn unsubscribe(&mut self, filter: &str) -> Result<(), ErrorCode> {
        host::unsubscribe(self.0, filter).map_err(ErrorCode::from)
    }

    fn raw_publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode> {
        host::raw_publish(topic, qos.into(), payload).map_err(ErrorCode::from)
    }

    fn setting(&mut self, name: &str) -> Option<String> {
        host::setting(name)
    }

    fn now_ms(&mut self) -> u64 {
        host::now_ms()
    }

    fn random(&mut self, len: u32) -> Vec<u8> {
        host::random(len)
    }

    fn log(&mut self, level: Level, text: &str) {
        let level = match level {
            Level::Trace => types::Level::Trace,
            Level::Debug => types::Level::Debug,
            Level::Info => types::Level::Info,
            Level::Warn => types::Level::Warn,
            Level::Error => types::Level::Error,
        };
        host::log(level, text);
    }
}

impl From<types::ErrorCode> for ErrorCode {
    fn from(code: types::ErrorCode) -> Self {
        match code {
            types::ErrorCode::Unknown => Self::Unknown,
            types::ErrorCode::ConnGone => Self::ConnGone,
            types::ErrorCode::BadParams => Self::BadParams,
            types::ErrorCode::PermissionDenied => Self::PermissionDenied,
            types::ErrorCode::NotAuthenticated => Self::NotAuthenticated,
            types::ErrorCode::Overloaded => Self::Overloaded,
            types::ErrorCode::Timeout => Self::Timeout,
        }
    }
}

impl From<Timer> for types::Timer {
    fn from(timer: Timer) -> Self {
        match timer {
            Timer::Keepalive => Self::Keepalive,
        }
    }
}

impl From<Qos> for types::Qos {
    fn from(qos: Qos) -> Self {
        match qos {
            Qos::AtMostOnce => Self::AtMostOnce,
            Qos::AtLeastOnce => Self::AtLeastOnce,
            Qos::ExactlyOnce => Self::ExactlyOnce,
        }
    }
}

impl From<types::Qos> for Qos {
    fn from(qos: types::Qos) -> Self {
        match qos {
            types::Qos::AtMostOnce => Self::AtMostOnce,
            types::Qos::AtLeastOnce => Self::AtLeastOnce,
            types::Qos::ExactlyOnce => Self::ExactlyOnce,
        }
    }
}

impl From<types::Message> for Message {
    fn from(message: types::Message) -> Self {
        let types::Message { node, id, topic, payload, qos, sender, timestamp_ms } = message;
        Self { node, id, topic, payload, qos: qos.into(), sender, timestamp_ms }
    }
}

impl From<types::Address> for Address {
    fn from(address: types::Address) -> Self {
        let types::Address { host, port } = address;
        Self { host, port }
    }
}

impl From<types::ConnInfo> for ConnInfo {
    fn from(info: types::ConnInfo) -> Self {
        let types::ConnInfo { kind, peer, local, peer_cert } = info;
        Self {
            kind: match kind {
                types::SocketKind::Tcp => SocketKind::Tcp,
                types::SocketKind::Tls => SocketKind::Tls,
                types::SocketKind::Udp => SocketKind::Udp,
                types::SocketKind::Dtls => SocketKind::Dtls,
                types::SocketKind::Websocket => SocketKind::Websocket,
            },
            peer: peer.into(),
            local: local.into(),
            peer_cert: peer_cert.map(|types::Certificate { cn, dn }| Certificate { cn, dn }),
        }
    }
}

impl From<types::CloseReason> for CloseReason {
    fn from(reason: types::CloseReason) -> Self {
        match reason {
            types::CloseReason::Peer => Self::Peer,
            types::CloseReason::Handler => Self::Handler,
            types::CloseReason::KeepaliveTimeout => Self::KeepaliveTimeout,
            types::CloseReason::IdleTimeout => Self::IdleTimeout,
            types::CloseReason::Replaced => Self::Replaced,
            types::CloseReason::Kicked => Self::Kicked,
            types::CloseReason::Expired => Self::Expired,
            types::CloseReason::Host => Self::Host,
            types::CloseReason::Error(words) => Self::Error(words),
        }
    }
}
