//! Guests: handlers that run inside the gateway as WebAssembly components.
//!
//! The [`Runtime`] owns the engines and ends with the gateway. It loads a component once for each handler; each connection
//! then has an instance of its own, with its own memory, so that the bytes of one device reach no other device's state.
//! A guest can call the adapter and nothing else.
//!
//! | file | content |
//! | --- | --- |
//! | `runtime.rs`, `engines.rs`, `cache.rs`, `component.rs`, `compile_process.rs` | from a file to a loaded guest |
//! | `wasm_handler.rs`, `guest.rs`, `shared_instances.rs`, `instance.rs` | from a connection to a call of its instance |
//! | `store.rs`, `imports.rs`, `wasi.rs`, `log.rs` | what a guest can reach during a call |
//! | `limits.rs`, `ticker.rs`, `fairness/` | memory, CPU time, and their distribution among guests |
//! | `slot_allocator.rs` | memories and stacks of many small instances |

mod cache;
mod compile_process;
pub mod component;
mod engines;
mod error;
mod fairness;
mod guest;
mod imports;
mod inspect;
mod instance;
mod limits;
mod loaded_guest;
mod log;
mod options;
mod runtime;
mod shared_instances;
mod slot_allocator;
mod store;
mod ticker;
mod wasi;
mod wasm_handler;

pub(crate) use compile_process::{Bounds, Compiler, bound_this_process};
pub(crate) use engines::Capacity;
pub(crate) use error::LoadErrorKind;
pub(crate) use error::{LoadError, RuntimeError};
pub(crate) use guest::Guest;
pub(crate) use inspect::{Form, Inspection};
pub(crate) use instance::Usage;
pub(crate) use limits::EventBudget;
pub(crate) use options::{EVENT_TIMEOUT_DEFAULT, MEMORY_BYTES_DEFAULT};
pub(crate) use options::{Isolation, Options};
pub use runtime::Runtime;
pub(crate) use wasm_handler::Handler;
