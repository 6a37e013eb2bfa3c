//! The gateway as a whole: real devices, real handlers of both kinds, a real broker. One module a promise.

mod harness;

mod echo;
mod grpc_handler;
mod jt808;
mod observability;
mod pubsub;
mod tcp;
mod wasm_handler;
