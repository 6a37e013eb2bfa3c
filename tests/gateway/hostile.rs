//! What the gateway promises while someone attacks it: each test is named after the promise.

mod adapter;
mod adapter_port;
mod handshakes;
mod logins;
mod memory;
mod rules;
mod spoofing;
