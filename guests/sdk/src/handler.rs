//! What a handler implements, and how it becomes a component.

use crate::{Adapter, CloseReason, ConnInfo, Message, Timer};

/// One connection, as its handler sees it. The gateway never calls for a second event before the first returned.
pub trait Handler: Sized {
    /// First of all events, before any byte was read.
    fn on_socket_created(adapter: &mut dyn Adapter, info: &ConnInfo) -> Self;

    /// The next bytes of the stream, cut anywhere; or one whole datagram.
    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]);

    /// A timer ran out; after the keepalive's the connection ends, and what is sent here still goes out.
    fn on_timer_timeout(&mut self, _adapter: &mut dyn Adapter, _timer: Timer) {}

    /// One or more messages of this connection's subscriptions, in order.
    fn on_received_messages(&mut self, _adapter: &mut dyn Adapter, _messages: &[Message]) {}

    /// Last of all events.
    fn on_socket_closed(self, _adapter: &mut dyn Adapter, _reason: &CloseReason) {}
}

/// Makes a [`Handler`] the component's; once in a crate of type `cdylib`. Does nothing on other targets than wasm32.
///
/// An instance may serve one connection or many (`isolation` in the gateway's configuration): the connections it was
/// told of are kept by their id, each with a value of its own.
#[macro_export]
macro_rules! export {
    ($handler:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::wasm::{Connections, bindings, types};

            ::std::thread_local! {
                static CONNECTIONS: Connections<$handler> = const { Connections::new() };
            }

            struct Component;

            impl bindings::exports::polygate::handler::handler::Guest for Component {
                fn on_socket_created(conn: types::Conn, info: types::ConnInfo) {
                    CONNECTIONS.with(|connections| connections.created(conn, info));
                }

                fn on_received_bytes(conn: types::Conn, bytes: ::std::vec::Vec<u8>) {
                    CONNECTIONS.with(|connections| connections.received_bytes(conn, &bytes));
                }

                fn on_timer_timeout(conn: types::Conn, timer: types::Timer) {
                    CONNECTIONS.with(|connections| connections.timer_timeout(conn, timer));
                }

                fn on_received_messages(conn: types::Conn, messages: ::std::vec::Vec<types::Message>) {
                    CONNECTIONS.with(|connections| connections.received_messages(conn, messages));
                }

                fn on_socket_closed(conn: types::Conn, reason: types::CloseReason) {
                    CONNECTIONS.with(|connections| connections.closed(conn, reason));
                }
            }

    bindings::export!(Component with_types_in bindings);
        };
    };
}
