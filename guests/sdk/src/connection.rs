//! A handler and its connection: hands it the events, and sees to its errors. The same in a component, in a server and in a
//! test.

use crate::handler::end;
use crate::{Adapter, CloseReason, ConnInfo, Handler, Level, Message, Result, Timer};

/// One connection with its handler.
///
/// Without a handler, when it could not begin: it is closing then, and what still happens concerns nobody.
#[derive(Debug)]
pub struct Connection<H>(Option<H>);

impl<H: Handler> Connection<H> {
    /// Begins with the first event.
    pub fn open(adapter: &mut dyn Adapter, info: &ConnInfo) -> Self {
        match H::on_socket_created(adapter, info) {
            Ok(handler) => Self(Some(handler)),
            Err(error) => {
                end(adapter, &error);
                Self(None)
            }
        }
    }

    /// Goes on with a handler that another instance began with.
    #[must_use]
    pub const fn with(handler: H) -> Self {
        Self(Some(handler))
    }

    /// The handler, unless it could not begin.
    #[must_use]
    pub const fn handler(&self) -> Option<&H> {
        self.0.as_ref()
    }

    /// Tells the handler of bytes.
    pub fn received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
        self.tell(adapter, |handler, adapter| handler.on_received_bytes(adapter, bytes));
    }

    /// Tells the handler that a timer ran out.
    pub fn timer_timeout(&mut self, adapter: &mut dyn Adapter, timer: Timer) {
        self.tell(adapter, |handler, adapter| handler.on_timer_timeout(adapter, timer));
    }

    /// Tells the handler of messages.
    pub fn received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) {
        self.tell(adapter, |handler, adapter| handler.on_received_messages(adapter, messages));
    }

    /// Tells the handler that the connection has ended.
    pub fn closed(self, adapter: &mut dyn Adapter, reason: &CloseReason) {
        let Self(Some(handler)) = self else { return };
        if let Err(error) = handler.on_socket_closed(adapter, reason) {
            adapter.log(Level::Warn, &error.to_string());
        }
    }

    fn tell(&mut self, adapter: &mut dyn Adapter, event: impl FnOnce(&mut H, &mut dyn Adapter) -> Result) {
        if let Self(Some(handler)) = self
            && let Err(error) = event(handler, adapter)
        {
            handler.on_error(adapter, error);
        }
    }
}
