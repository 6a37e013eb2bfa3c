//! polygate: one gate for every device protocol, in any language.
//!
//! A **listener** accepts a **peer**; one task owns the **connection**; the connection reports events to its **handler**;
//! the handler acts through the **adapter**; its messages go to **pubsub**.
//!
//! The module map, from the top layer down. A module imports from the layers below it, and in its layer from rows below its own.
//!
//! | layer | module | content |
//! | --- | --- | --- |
//! | 9 | [`cli`] | command line, one file for each subcommand: serve, check, demo, replay, guest, handler, tap, completions, man |
//! | 8 | [`gateway`] | composition root: builds, binds, runs, reloads and drains everything |
//! | 7 | [`config`] | configuration file to checked settings, which are made of the options of each module; finds all errors at once |
//! | 7 | [`admin`] | admin HTTP port: health, metrics, REST API for handlers, tap stream |
//! | 6 | [`rollout`] | hot swap: versions of handlers, canary, shadow, rollback |
//! | 6 | [`serve`] | accept loop |
//! | 6 | [`exproto::service`] | gRPC service `ConnectionAdapter` |
//! | 5 | [`connection`] | task that owns one connection: queues, deadlines, failure recovery, close |
//! | 5 | [`dispatch`] | handler chain of a listener: health, circuit breaker, versions, fallback |
//! | 5 | [`local_replay`] | conversations replayed against a guest in process, without a gateway |
//! | 4 | [`handler`] | gRPC servers and guests behind one interface |
//! | 4 | [`tap`] | live view of one connection in the format of conversations |
//! | 3 | [`adapter`] | operations of a handler: send, close, authenticate, timers, publish, subscribe |
//! | 2 | [`exproto`], [`wit`] | the two handler interfaces as generated, and conversions to the types of [`conn`] |
//! | 2 | [`pubsub`] | publish and subscribe; the embedded MQTT broker |
//! | 2 | [`auth`] | authentication of clients; authorization of publish and subscribe |
//! | 2 | [`listener`] | sockets: TCP, TLS, UDP, DTLS, PROXY protocol, access rules, limits |
//! | 2 | [`framing`] | cuts a stream into frames before the handler; pure |
//! | 1 | [`conversation`] | recorded conversations: parse, print, replay, record |
//! | 1 | [`mqtt_stream`], [`mqtt_client`] | MQTT over a byte stream; one connection of a client |
//! | 1 | [`mqtt`] | MQTT 3.1.1 and 5.0: packets, state of a session at either end; no I/O |
//! | 1 | [`telemetry`] | log, log rate limits, every metric |
//! | 1 | [`topic`] | MQTT topic names, topic filters, mountpoints, templates; pure |
//! | 1 | [`conn`] | types of a connection: ids, events, commands, close reasons; registry; limits |
//! | 0 | [`drain`] | stop signal |
//! | 0 | [`rate`] | token-bucket rate limiter |
//! | 0 | [`byte_budget`] | byte budget that many queues share |
//! | 0 | [`percent`], [`atomic_file`], [`error`] | percentages; atomic file replacement; error reports |
#![warn(unreachable_pub)]

mod cli;

mod gateway;

mod admin;
mod config;

mod rollout;
mod serve;

mod connection;
mod dispatch;
mod local_replay;

mod handler;
mod tap;

mod adapter;

mod auth;
mod exproto;
mod framing;
mod listener;
mod pubsub;
mod wit;

mod conn;
mod conversation;
mod mqtt;
mod mqtt_client;
mod mqtt_stream;
mod telemetry;
mod topic;

mod atomic_file;
mod byte_budget;
mod drain;
mod error;
mod percent;
mod rate;

#[doc(hidden)]
pub mod testing;

pub use cli::run;
