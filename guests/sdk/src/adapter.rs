//! What a handler may ask of the gateway, for the one connection it is told about.

use crate::{ClientInfo, ErrorCode, Level, Qos, Timer};

/// The adapter operations of `wit/handler.wit`, bound to one connection.
///
/// In a component it is the gateway; in a native test it is [`crate::scripted::Scripted`].
pub trait Adapter {
    /// Queues `bytes` for the peer; the order of calls is the order on the wire.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Overloaded`] when more is queued than the listener allows, [`ErrorCode::ConnGone`] after the end.
    fn send(&mut self, bytes: &[u8]) -> Result<(), ErrorCode>;

    /// Flushes what was queued and closes; `on_socket_closed` follows.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::ConnGone`] when the connection has already ended.
    fn close(&mut self) -> Result<(), ErrorCode>;

    /// Asks the gateway's authentication who the peer is; returns when it has answered.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::PermissionDenied`] when refused, and for every call after a successful one; others when the broker
    /// did not answer. The connection stays open, and the call may be tried again.
    fn authenticate(&mut self, client: ClientInfo<'_>, password: Option<&str>) -> Result<(), ErrorCode>;

    /// Starts a timer. The keepalive runs out after 1.5 times `interval_ms` (milliseconds, from 1) without a byte from
    /// the peer: `on_timer_timeout` follows, then the end. A second call replaces the first.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::BadParams`] for an interval that the gateway does not accept.
    fn start_timer(&mut self, timer: Timer, interval_ms: u32) -> Result<(), ErrorCode>;

    /// Stops a timer; one that was never started is no error.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::ConnGone`] when the connection has already ended.
    fn stop_timer(&mut self, timer: Timer) -> Result<(), ErrorCode>;

    /// Publishes as the authenticated client, under the listener's mountpoint and the gateway's rules.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NotAuthenticated`], [`ErrorCode::PermissionDenied`] by a rule, [`ErrorCode::BadParams`] for a
    /// malformed topic name, [`ErrorCode::Overloaded`], or what befell the broker.
    fn publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode>;

    /// Subscribes to a topic filter; its messages arrive in `on_received_messages`.
    ///
    /// # Errors
    ///
    /// As for [`Adapter::publish`].
    fn subscribe(&mut self, filter: &str, qos: Qos) -> Result<(), ErrorCode>;

    /// Ends a subscription; a filter that is not subscribed is no error.
    ///
    /// # Errors
    ///
    /// As for [`Adapter::publish`].
    fn unsubscribe(&mut self, filter: &str) -> Result<(), ErrorCode>;

    /// Publishes on no connection's behalf: no mountpoint, no rules, the sender is "exproto".
    ///
    /// # Errors
    ///
    /// As for [`Adapter::publish`], but it needs no authentication.
    fn raw_publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) -> Result<(), ErrorCode>;

    /// A value from the handler's `settings` table in the gateway's configuration.
    fn setting(&mut self, name: &str) -> Option<String>;

    /// Milliseconds since the Unix epoch.
    fn now_ms(&mut self) -> u64;

    /// `len` bytes (at most 1024) from the gateway's secure generator.
    fn random(&mut self, len: u32) -> Vec<u8>;

    /// A line in the gateway's log, with the connection's id beside it. Never a secret.
    fn log(&mut self, level: Level, text: &str);
}
