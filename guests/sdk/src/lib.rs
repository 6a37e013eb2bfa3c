//! What a polygate handler written in Rust stands on.
//!
//! A handler implements [`Handler`]: one value of its type is one connection, and the five functions are what can
//! happen to it. It answers through the [`Adapter`] that each of them is given. [`export!`] makes it a component:
//!
//! ```
//! use polygate_guest::{Adapter, ConnInfo, Handler};
//!
//! struct Shout;
//!
//! impl Handler for Shout {
//!     fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Self {
//!         Self
//!     }
//!
//!     fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
//!         // A refusal means that the connection is ending; there is nobody left to tell.
//!         let _ = adapter.send(&bytes.to_ascii_uppercase());
//!     }
//! }
//!
//! polygate_guest::export!(Shout);
//!
//! // Natively the same handler runs against a scripted adapter.
//! use polygate_guest::scripted::Scripted;
//! let mut adapter = Scripted::new();
//! let mut shout = Shout::on_socket_created(&mut adapter, &ConnInfo::default());
//! shout.on_received_bytes(&mut adapter, b"hello");
//! assert_eq!(adapter.sent(), b"HELLO");
//! ```
//!
//! The crate never reads a clock, a file or the environment, and has no WASI imports: the adapter is all there is.

mod adapter;
mod handler;
pub mod json;
mod words;

#[cfg(not(target_arch = "wasm32"))]
pub mod scripted;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod wasm;

pub use adapter::Adapter;
pub use handler::Handler;
pub use words::{
    Address, Certificate, ClientInfo, CloseReason, ConnInfo, ErrorCode, Level, Message, Qos, SocketKind, Timer,
};
