//! What a polygate handler written in Rust stands on.
//!
//! A handler implements [`Handler`]: one value of its type is one connection, and the five functions are what can
//! happen to it. It answers through the [`Adapter`] that each of them is given, and passes on with `?` what it cannot go on
//! from. [`export!`] makes it a component. This one has devices that send their name first, and then lines to publish:
//!
//! ```
//! use polygate_guest::framing::{Framing, Held, Lines};
//! use polygate_guest::{Adapter, ClientInfo, ConnInfo, Handler, Qos, Result};
//!
//! const LINES: Lines = Lines { max: 1024 };
//!
//! #[derive(Default)]
//! struct Meter {
//!     unfinished: Held,
//!     name: Option<String>,
//! }
//!
//! impl Handler for Meter {
//!     fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
//!         Ok(Self::default())
//!     }
//!
//!     fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, mut bytes: &[u8]) -> Result {
//!         while let Some(line) = LINES.next(&mut self.unfinished, &mut bytes)? {
//!             if let Some(name) = &self.name {
//!                 adapter.publish(&format!("meters/{name}"), Qos::AtLeastOnce, &line)?;
//!             } else {
//!                 let name = String::from_utf8(line.into_owned())?;
//!                 adapter.authenticate(ClientInfo::named(&name), None)?;
//!                 self.name = Some(name);
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! polygate_guest::export!(Meter);
//!
//! // Natively the same handler runs without a gateway, here with its stream cut at every place.
//! use polygate_guest::scripted::{Call, Scripted, splits};
//! let outcome = splits::<Meter>(Scripted::new, b"kitchen\n21.5\n");
//! let published = Call::Publish { topic: "meters/kitchen".into(), qos: Qos::AtLeastOnce, payload: b"21.5".to_vec() };
//! assert_eq!(outcome.calls().last(), Some(&published));
//! ```
//!
//! The same source is also a server that speaks ExProto: the crate `polygate-exproto` serves any [`Handler`] over gRPC.
//!
//! The crate never reads a clock, a file or the environment, and has no WASI imports: the adapter is all there is.

mod adapter;
pub mod calendar;
pub mod connection;
mod error;
mod export;
pub mod faults;
pub mod foreign;
pub mod framing;
pub mod handler;
pub mod json;
pub mod migrate;
mod words;

#[cfg(not(target_arch = "wasm32"))]
pub mod scripted;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod wasm;

pub use adapter::Adapter;
pub use error::{Error, Result};
pub use handler::Handler;
pub use migrate::Migrate;
pub use words::{
    Address, Certificate, ClientInfo, CloseReason, ConnInfo, ErrorCode, Level, Message, Qos, SocketKind, Timer,
};
