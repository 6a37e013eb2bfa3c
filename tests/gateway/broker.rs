//! Devices and MQTT clients at the embedded broker: real sessions, real mailboxes, real MQTT clients.

mod access;
mod bounds;
mod cost;
mod exchange;
mod harness;
mod sessions;
mod shares;
