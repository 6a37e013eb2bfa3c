//! Where sockets are bound.

use std::net::SocketAddr;

use super::ValueType;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Item;
use crate::conn::SocketKind;
use crate::listener::Bind;

/// An address and port of this machine.
#[derive(Debug)]
pub(in crate::config) struct Address;

impl ValueType for Address {
    type Value = SocketAddr;

    fn expected(&self) -> String {
        "an address such as \"127.0.0.1:9100\" or \"[::1]:9100\"".to_owned()
    }

    fn name(&self) -> String {
        "IP address and port".to_owned()
    }

    fn show(&self, value: &SocketAddr) -> String {
        format!("\"{value}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<SocketAddr, ErrorReported> {
        let text = item.text(&self.expected())?;
        text.parse().map_err(|_| item.fault(Fault::Malformed { found: text.to_owned(), expected: self.expected() }))
    }
}

/// A transport and an address of this machine.
#[derive(Debug)]
pub(in crate::config) struct BindForm;

impl ValueType for BindForm {
    type Value = Bind;

    fn expected(&self) -> String {
        "an address such as \"tcp://0.0.0.0:7993\"".to_owned()
    }

    fn name(&self) -> String {
        "`tcp://`, `tls://`, `udp://` or `dtls://`, IP address and port".to_owned()
    }

    fn show(&self, value: &Bind) -> String {
        format!("\"{value}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<Bind, ErrorReported> {
        let text = item.text(&self.expected())?;
        text.parse().map_err(|why| item.fault(Fault::Bind { found: text.to_owned(), why }))
    }
}

/// Where MQTT clients connect: a transport and an address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct MqttBind {
    /// TCP or TLS.
    pub(in crate::config) bind: Bind,
    pub(in crate::config) is_websocket: bool,
}

/// The schemes, with the transport below and whether WebSocket is in between.
const MQTT_SCHEMES: [(&str, SocketKind, bool); 4] = [
    ("tcp", SocketKind::Tcp, false),
    ("tls", SocketKind::Tls, false),
    ("ws", SocketKind::Tcp, true),
    ("wss", SocketKind::Tls, true),
];

#[derive(Debug)]
pub(in crate::config) struct MqttBindForm;

impl ValueType for MqttBindForm {
    type Value = MqttBind;

    fn expected(&self) -> String {
        "an address such as \"tls://0.0.0.0:8883\" or \"ws://127.0.0.1:8083\"; the transports are tcp, tls, ws and wss"
            .to_owned()
    }

    fn name(&self) -> String {
        "`tcp://`, `tls://`, `ws://` or `wss://`, IP address and port".to_owned()
    }

    fn show(&self, value: &MqttBind) -> String {
        let MqttBind { bind, is_websocket } = value;
        let scheme = MQTT_SCHEMES.iter().find(|(_, kind, ws)| (*kind, *ws) == (bind.transport, *is_websocket));
        format!("\"{}://{}\"", scheme.map_or("tcp", |(scheme, ..)| scheme), bind.address)
    }

    fn read(&self, item: &Item<'_>) -> Result<MqttBind, ErrorReported> {
        let text = item.text(&self.expected())?;
        let parsed = text.split_once("://").and_then(|(scheme, address)| {
            let (_, transport, is_websocket) = MQTT_SCHEMES.into_iter().find(|(known, ..)| *known == scheme)?;
            Some(MqttBind { bind: Bind { transport, address: address.parse().ok()? }, is_websocket })
        });
        parsed.ok_or_else(|| item.fault(Fault::Malformed { found: text.to_owned(), expected: self.expected() }))
    }
}
