//! The gateway in process: real devices, real handlers of both kinds, a real broker. One module for each feature.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that gets something else than it expects fails"
)]

mod harness;

mod access;
mod admin;
mod broker;
mod data_dir;
mod dtls;
mod dtls_interop;
mod echo;
mod example_handlers;
mod external_broker;
mod fallback;
mod foreign_handlers;
mod framing;
mod gb32960;
mod grpc_handler;
mod gt06;
mod h02;
mod hostile;
mod interop;
mod jt808;
mod limits;
mod mqtt_listeners;
mod nmea;
mod observability;
mod proxy;
mod pubsub;
mod reload;
mod simulation;
mod swap;
mod tcp;
mod teltonika;
mod templates;
mod tls;
mod two_homes;
mod udp;
mod wasm_handler;
