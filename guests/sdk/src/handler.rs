//! What a handler implements.

use crate::{Adapter, CloseReason, ConnInfo, Error, ErrorCode, Level, Message, Result, Timer};

/// One connection, as its handler sees it. The gateway never calls for a second event before the first returned.
pub trait Handler: Sized {
    /// First of all events, before any byte was read.
    ///
    /// # Errors
    ///
    /// The connection cannot be served: the error is logged, the connection is closed, and no event follows.
    fn on_socket_created(adapter: &mut dyn Adapter, info: &ConnInfo) -> Result<Self>;

    /// The next bytes of the stream, cut anywhere ([`crate::framing`] finds the frames); or one whole datagram.
    ///
    /// # Errors
    ///
    /// Whatever [`Handler::on_error`] should hear of; the same holds for the other events.
    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result;

    /// A timer ran out; after the keepalive's the connection ends, and what is sent here still goes out.
    ///
    /// # Errors
    ///
    /// As for [`Handler::on_received_bytes`].
    fn on_timer_timeout(&mut self, _adapter: &mut dyn Adapter, _timer: Timer) -> Result {
        Ok(())
    }

    /// One or more messages of this connection's subscriptions, in order.
    ///
    /// # Errors
    ///
    /// As for [`Handler::on_received_bytes`].
    fn on_received_messages(&mut self, _adapter: &mut dyn Adapter, _messages: &[Message]) -> Result {
        Ok(())
    }

    /// Last of all events.
    ///
    /// # Errors
    ///
    /// They are logged; there is no connection left to end.
    fn on_socket_closed(self, _adapter: &mut dyn Adapter, _reason: &CloseReason) -> Result {
        Ok(())
    }

    /// An event before the last ended with an error. Unless the handler has a better idea, it is logged with its causes and
    /// the connection ends; a handler that does not close goes on with the next event.
    fn on_error(&mut self, adapter: &mut dyn Adapter, error: Error) {
        end(adapter, &error);
    }
}

/// What [`Handler::on_error`] does by itself: logs the error with its causes, and closes.
///
/// That the connection is ending already is no fault, and only a debug line.
pub fn end(adapter: &mut dyn Adapter, error: &Error) {
    let gone = matches!(error.downcast_ref(), Some(ErrorCode::ConnGone));
    adapter.log(if gone { Level::Debug } else { Level::Warn }, &error.to_string());
    // It can only fail because the connection ends, which is what is wanted.
    let _ = adapter.close();
}
