//! Guests: handlers that run in the gateway's process as WebAssembly components (wasmtime).
//!
//! The [`Runtime`] owns the engines and ends with the gateway. It loads a component once for each handler; each
//! connection has an instance of its own, with its own linear memory, so that a device cannot affect the state of
//! another device. A guest can call the adapter and nothing else.
//!
//! | file | content |
//! | --- | --- |
//! | `runtime.rs`, `engines.rs`, `cache.rs`, `component.rs`, `compile_process.rs` | compilation and loading of a guest |
//! | `wasm_handler.rs`, `guest.rs`, `shared_instances.rs`, `instance.rs` | instances and calls |
//! | `store.rs`, `imports.rs`, `wasi.rs`, `log.rs` | host state and host functions of a guest |
//! | `limits.rs`, `ticker.rs`, `fairness/` | limits of memory and CPU time, and fairness between guests |
//! | `slot_allocator.rs` | linear memories and fiber stacks of small instances |

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
pub(crate) use engines::{Capacity, SLOTS_MAX};
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
