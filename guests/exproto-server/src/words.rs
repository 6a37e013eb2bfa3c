//! From ExProto's messages to a handler's words.

use polygate_guest::{Address, Certificate, CloseReason, ConnInfo, Message, Qos, SocketKind};
use tonic::Status;

use crate::proto::{self, SocketType};

/// What is known of a connection.
pub(crate) fn conn_info(info: Option<proto::ConnInfo>) -> Result<ConnInfo, Status> {
    let info = info.ok_or_else(|| Status::invalid_argument("expected a conninfo, found none"))?;
    let kind = match SocketType::try_from(info.socktype) {
        Ok(SocketType::Tcp) => SocketKind::Tcp,
        Ok(SocketType::Ssl) => SocketKind::Tls,
        Ok(SocketType::Udp) => SocketKind::Udp,
        Ok(SocketType::Dtls) => SocketKind::Dtls,
        Err(_) => {
            let found = info.socktype;
            return Err(Status::invalid_argument(format!("expected a socktype of 0 to 3, found {found}")));
        }
    };
    Ok(ConnInfo {
        kind,
        peer: address(info.peername)?,
        local: address(info.sockname)?,
        peer_cert: info.peercert.map(|proto::CertificateInfo { cn, dn }| Certificate { cn, dn }),
    })
}

fn address(address: Option<proto::Address>) -> Result<Address, Status> {
    let proto::Address { host, port } = address.unwrap_or_default();
    let port =
        port.try_into().map_err(|_| Status::invalid_argument(format!("expected a port under 65536, found {port}")))?;
    Ok(Address { host, port })
}

/// A message of a subscription.
pub(crate) fn message(message: proto::Message) -> Result<Message, Status> {
    let proto::Message { node, id, qos, from, topic, payload, timestamp } = message;
    let qos = Qos::from_number(qos.into())
        .ok_or_else(|| Status::invalid_argument(format!("expected a qos of 0 to 2, found {qos}")))?;
    Ok(Message { node, id, topic, payload, qos, sender: from, timestamp_ms: timestamp })
}

/// Why a connection ended, from the words that EMQX 5.1 has for it and the gateway keeps to.
pub(crate) fn close_reason(reason: String) -> CloseReason {
    match reason.as_str() {
        "{shutdown,tcp_closed}" | "{shutdown,ssl_closed}" => CloseReason::Peer,
        "{shutdown,normal}" => CloseReason::Handler,
        "{shutdown,keepalive_timeout}" => CloseReason::KeepaliveTimeout,
        "{shutdown,idle_timeout}" => CloseReason::IdleTimeout,
        "{shutdown,discarded}" => CloseReason::Replaced,
        "{shutdown,kicked}" => CloseReason::Kicked,
        "{shutdown,expired}" => CloseReason::Expired,
        _ => CloseReason::Error(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reason has its enum, or keeps its words.
    #[test]
    fn reasons() {
        assert_eq!(close_reason("{shutdown,ssl_closed}".into()), CloseReason::Peer);
        assert_eq!(close_reason("{shutdown,econnreset}".into()), CloseReason::Error("{shutdown,econnreset}".into()));
    }

    /// What no gateway would send is refused, with what was expected.
    #[test]
    fn malformed() {
        let words = |result: Result<ConnInfo, Status>| result.unwrap_err().message().to_owned();
        assert_eq!(words(conn_info(None)), "expected a conninfo, found none");
        let info = proto::ConnInfo { socktype: 4, ..proto::ConnInfo::default() };
        assert_eq!(words(conn_info(Some(info))), "expected a socktype of 0 to 3, found 4");
        let peername = Some(proto::Address { host: String::new(), port: 65_536 });
        let info = proto::ConnInfo { peername, ..proto::ConnInfo::default() };
        assert_eq!(words(conn_info(Some(info))), "expected a port under 65536, found 65536");
        let odd = proto::Message { qos: 3, ..proto::Message::default() };
        assert_eq!(message(odd).unwrap_err().message(), "expected a qos of 0 to 2, found 3");
    }
}
