//! Devices and MQTT clients at the embedded broker: real sessions, real mailboxes, real MQTT clients.

mod access;
mod bounds;
mod conformance;
mod cost;
mod durability;
mod exchange;
mod harness;
mod raw;
mod sessions;
mod shares;
