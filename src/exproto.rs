//! ExProto messages and services as generated from `proto/exproto.proto`, and conversions from and to the types of
//! [`conn`].

mod budget;
mod port;
pub mod service;

use crate::conn::{self, ClientInfo, CloseReason, ConnInfo, Refused, SocketKind, Timer};

/// Code generated from `proto/exproto.proto` by prost and tonic.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("emqx.exproto.v1");

    /// The compiled proto file, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/exproto.bin"));
}

/// Result code of an adapter operation.
impl From<&Refused> for proto::ResultCode {
    fn from(refused: &Refused) -> Self {
        match refused {
            Refused::Gone => Self::ConnProcessNotAlive,
            Refused::Missing { .. } => Self::RequiredParamsMissed,
            Refused::Malformed { .. } => Self::ParamsTypeError,
            Refused::NotAuthenticated { .. } | Refused::AlreadyAuthenticated { .. } | Refused::Denied(_) => {
                Self::PermissionDeny
            }
            Refused::Full { .. } | Refused::Broker(_) => Self::Unknown,
        }
    }
}

impl From<Result<(), Refused>> for proto::CodeResponse {
    fn from(result: Result<(), Refused>) -> Self {
        match result {
            Ok(()) => Self { code: proto::ResultCode::Success.into(), message: String::new() },
            Err(refused) => Self { code: proto::ResultCode::from(&refused).into(), message: refused.to_string() },
        }
    }
}

impl From<SocketKind> for proto::SocketType {
    fn from(kind: SocketKind) -> Self {
        match kind {
            SocketKind::Tcp => Self::Tcp,
            SocketKind::Tls => Self::Ssl,
            SocketKind::Udp => Self::Udp,
            SocketKind::Dtls => Self::Dtls,
        }
    }
}

impl From<&ConnInfo> for proto::ConnInfo {
    fn from(info: &ConnInfo) -> Self {
        let address = |host: std::net::IpAddr, port: u16| proto::Address { host: host.to_string(), port: port.into() };
        Self {
            socktype: proto::SocketType::from(info.kind).into(),
            peername: Some(address(info.peer.host(), info.peer.port())),
            sockname: Some(address(info.local.0.ip().to_canonical(), info.local.0.port())),
            peercert: info
                .certificate
                .as_ref()
                .map(|subject| proto::CertificateInfo { cn: subject.cn.clone(), dn: subject.dn.clone() }),
        }
    }
}

/// `mountpoint` is ignored: the listener's configuration decides it, as in EMQX 5.1 and later.
impl From<proto::ClientInfo> for ClientInfo {
    fn from(info: proto::ClientInfo) -> Self {
        Self {
            proto_name: info.proto_name,
            proto_ver: info.proto_ver,
            client_id: info.clientid,
            username: info.username,
        }
    }
}

impl From<conn::Message> for proto::Message {
    fn from(message: conn::Message) -> Self {
        Self {
            node: message.node.as_ref().to_owned(),
            id: message.id,
            qos: message.qos as u32,
            from: message.from,
            topic: message.topic,
            payload: message.payload,
            timestamp: message.timestamp_ms,
        }
    }
}

impl From<Timer> for proto::TimerType {
    fn from(timer: Timer) -> Self {
        match timer {
            Timer::Keepalive => Self::Keepalive,
        }
    }
}

impl From<proto::TimerType> for Timer {
    fn from(timer: proto::TimerType) -> Self {
        match timer {
            proto::TimerType::Keepalive => Self::Keepalive,
        }
    }
}

/// The text of `OnSocketClosed.reason`.
pub(crate) fn close_reason(reason: &CloseReason, kind: SocketKind) -> String {
    reason.exproto(matches!(kind, SocketKind::Tls | SocketKind::Dtls)).into_owned()
}
