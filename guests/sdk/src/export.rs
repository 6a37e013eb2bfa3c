//! How a handler becomes a component.

/// Makes a [`Handler`](crate::Handler) the component's; once in a crate of type `cdylib`. Does nothing on other targets
/// than wasm32.
///
/// `export!(Lines)` is all; `export!(Lines, migrate)` keeps its connections over a hot swap, for a handler that implements
/// [`Migrate`](crate::Migrate).
///
/// An instance may serve one connection or many (`isolation` in the gateway's configuration): the connections it was
/// told of are kept by their id, each with a value of its own.
#[macro_export]
macro_rules! export {
    ($handler:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::export_events!($handler);
        };
    };
    ($handler:ty, migrate) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::wasm::migrating;

            $crate::export_events!($handler);

            impl migrating::exports::polygate::handler::migrate::Guest for Component {
                fn snapshot(conn: types::Conn) -> ::core::option::Option<$crate::wasm::State> {
                    CONNECTIONS.with(|connections| connections.snapshot(conn))
                }

                fn restore(
                    conn: types::Conn,
                    info: types::ConnInfo,
                    state: ::core::option::Option<$crate::wasm::State>,
                ) -> ::core::result::Result<(), ::std::string::String> {
                    CONNECTIONS.with(|connections| connections.restore(conn, info, state))
                }
            }

    migrating::export!(Component with_types_in migrating);
        };
    };
}

/// The five events, which both worlds have.
#[doc(hidden)]
#[macro_export]
macro_rules! export_events {
    ($handler:ty) => {
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
}
