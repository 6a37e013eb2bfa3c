//! Where sockets are bound.

use std::net::SocketAddr;

use super::ValueType;
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Item;
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
