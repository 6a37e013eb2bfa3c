//! polygate: one gate for every device protocol, in any language.
//!
//! A **listener** accepts a **peer**; one task owns the **connection**; its **handler** is told what
//! happens; through the **adapter** the handler answers; what it publishes goes to **pubsub**.
//!
//! The modules, from the top of the house to its ground floor. Imports point down.

#![warn(missing_docs, unreachable_pub)]

pub mod cli;

pub mod gateway;

pub mod admin;
pub mod config;

pub mod serve;

pub mod connection;
pub mod dispatch;

pub mod handler;

pub mod adapter;

pub mod auth;
pub mod exproto;
pub mod listener;
pub mod pubsub;
pub mod wit;

pub mod conn;
pub mod conversation;

pub mod drain;
pub mod telemetry;
