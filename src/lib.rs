//! polygate: one gate for every device protocol, in any language.
//!
//! A **listener** accepts a **peer**; one task owns the **connection**; its **handler** is told what
//! happens; through the **adapter** the handler answers; what it publishes goes to **pubsub**.
//!
//! The modules, from the top of the house to its ground floor. Imports point down.
//!
//! | floor | module | what it is |
//! | --- | --- | --- |
//! | 9 | [`cli`] | one file a subcommand: serve, check, demo, replay, guest, completions and man |
//! | 8 | [`gateway`] | the composition root: builds everything, binds everything, runs, reloads, drains |
//! | 7 | [`config`] | checked settings, made of each module's own options; finds every fault at once |
//! | 7 | [`admin`] | health and metrics over HTTP |
//! | 6 | [`rollout`] | new versions of handlers, while devices stay connected |
//! | 6 | [`serve`] | the accept loop |
//! | 6 | [`exproto::service`] | the gRPC `ConnectionAdapter` |
//! | 5 | [`connection`] | the task that owns one connection: its queues, its deadlines, its end |
//! | 5 | [`dispatch`] | listener to handlers |
//! | 5 | [`rehearsal`] | conversations played against a guest in its real host, without a gateway |
//! | 4 | [`handler`] | a gRPC server or a guest: the five things a connection reports |
//! | 4 | [`tap`] | watching one connection, as a conversation |
//! | 3 | [`adapter`] | the operations: send, close, authenticate, timers, publish, subscribe |
//! | 2 | [`listener`] | bind, next peer, and what it must pass: TCP, TLS, UDP, DTLS, PROXY headers, rules, limits |
//! | 2 | [`framing`] | cuts a stream into frames before its handler; pure |
//! | 2 | [`pubsub`] | publish and subscribe; the embedded broker; topics, filters, mountpoints |
//! | 2 | [`auth`] | who may authenticate, and what they may publish and subscribe |
//! | 2 | [`exproto`], [`wit`] | the two handler interfaces as generated, and the way to the gateway's words |
//! | 1 | [`conn`] | the vocabulary of a connection; the table from its id to its mailbox |
//! | 1 | [`conversation`] | recorded conversations: parse, print, play, record |
//! | 1 | [`telemetry`] | the log, how much of it one may fill, and every metric |
//! | 0 | [`drain`], [`rate`], [`files`] | the stop signal; how much may pass in which time; whole files |
#![warn(missing_docs, unreachable_pub)]

pub mod cli;

pub mod gateway;

pub mod admin;
pub mod config;

pub mod rollout;
pub mod serve;

pub mod connection;
pub mod dispatch;
pub mod rehearsal;

pub mod handler;
pub mod tap;

pub mod adapter;

pub mod auth;
pub mod exproto;
pub mod framing;
pub mod listener;
pub mod mqtt;
pub mod pubsub;
pub mod wit;

pub mod conn;
pub mod conversation;
pub mod telemetry;

pub mod drain;
pub mod files;
pub mod rate;
