//! Guest interface as generated from `wit/handler.wit`, and conversions from and to the types of [`conn`].

use crate::conn::{self, CloseReason, ConnInfo, Refused, SocketKind, Timer};

/// Code generated from `wit/handler.wit` by wasmtime.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "connection-handler",
        // These may wait for the broker; the others only use the connection's own state.
        imports: {
            "polygate:handler/adapter.authenticate": async,
            "polygate:handler/adapter.publish": async,
            "polygate:handler/adapter.subscribe": async,
            "polygate:handler/adapter.unsubscribe": async,
            "polygate:handler/adapter.raw-publish": async,
        },
        exports: { default: async },
    });
}

/// The optional interface that carries a connection's state over a hot swap.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub mod migration {
    wasmtime::component::bindgen!({
        path: "wit",
        inline: "package polygate:host; world migration { export polygate:handler/migrate@0.1.0; }",
        world: "polygate:host/migration",
        with: { "polygate:handler/types": super::bindings::polygate::handler::types },
        exports: { default: async },
    });
}

pub(crate) use bindings::polygate::handler::types;

impl From<&Refused> for types::ErrorCode {
    fn from(refused: &Refused) -> Self {
        match refused {
            Refused::Gone => Self::ConnGone,
            Refused::Missing { .. } | Refused::Malformed { .. } => Self::BadParams,
            Refused::NotAuthenticated { .. } => Self::NotAuthenticated,
            Refused::AlreadyAuthenticated { .. } | Refused::Denied(_) => Self::PermissionDenied,
            Refused::Full { .. } => Self::Overloaded,
            Refused::Broker(_) => Self::Unknown,
        }
    }
}

impl From<SocketKind> for types::SocketKind {
    fn from(kind: SocketKind) -> Self {
        match kind {
            SocketKind::Tcp => Self::Tcp,
            SocketKind::Tls => Self::Tls,
            SocketKind::Udp => Self::Udp,
            SocketKind::Dtls => Self::Dtls,
        }
    }
}

impl From<&ConnInfo> for types::ConnInfo {
    fn from(info: &ConnInfo) -> Self {
        Self {
            kind: info.kind.into(),
            peer: types::Address { host: info.peer.host().to_string(), port: info.peer.port() },
            local: types::Address { host: info.local.0.ip().to_canonical().to_string(), port: info.local.0.port() },
            peer_cert: info
                .certificate
                .as_ref()
                .map(|subject| types::Certificate { cn: subject.cn.clone(), dn: subject.dn.clone() }),
        }
    }
}

/// `mountpoint` is ignored: the listener's configuration decides it.
impl From<types::ClientInfo> for conn::ClientInfo {
    fn from(info: types::ClientInfo) -> Self {
        Self {
            proto_name: info.proto_name,
            proto_ver: info.proto_ver,
            client_id: info.client_id,
            username: info.username.unwrap_or_default(),
        }
    }
}

impl From<types::Qos> for conn::QoS {
    fn from(qos: types::Qos) -> Self {
        match qos {
            types::Qos::AtMostOnce => Self::AtMostOnce,
            types::Qos::AtLeastOnce => Self::AtLeastOnce,
            types::Qos::ExactlyOnce => Self::ExactlyOnce,
        }
    }
}

impl From<conn::QoS> for types::Qos {
    fn from(qos: conn::QoS) -> Self {
        match qos {
            conn::QoS::AtMostOnce => Self::AtMostOnce,
            conn::QoS::AtLeastOnce => Self::AtLeastOnce,
            conn::QoS::ExactlyOnce => Self::ExactlyOnce,
        }
    }
}

impl From<&conn::Message> for types::Message {
    fn from(message: &conn::Message) -> Self {
        Self {
            node: message.node.as_ref().to_owned(),
            id: message.id.clone(),
            topic: message.topic.clone(),
            payload: message.payload.to_vec(),
            qos: message.qos.into(),
            sender: message.from.clone(),
            timestamp_ms: message.timestamp_ms,
        }
    }
}

impl From<types::Timer> for Timer {
    fn from(timer: types::Timer) -> Self {
        match timer {
            types::Timer::Keepalive => Self::Keepalive,
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

impl From<&CloseReason> for types::CloseReason {
    fn from(reason: &CloseReason) -> Self {
        match reason {
            CloseReason::PeerClosed | CloseReason::SocketError(_) => Self::Peer,
            CloseReason::HandlerAsked => Self::Handler,
            CloseReason::KeepaliveExpired => Self::KeepaliveTimeout,
            CloseReason::IdleTimedOut | CloseReason::LoginTimedOut | CloseReason::Unverified => Self::IdleTimeout,
            CloseReason::Replaced => Self::Replaced,
            CloseReason::Kicked => Self::Kicked,
            CloseReason::Expired => Self::Expired,
            CloseReason::Draining => Self::Host,
            CloseReason::WriteTimedOut
            | CloseReason::FramingBroken(_)
            | CloseReason::HandlerFailed { .. }
            | CloseReason::Unconfirmed => Self::Error(reason.to_string()),
        }
    }
}
