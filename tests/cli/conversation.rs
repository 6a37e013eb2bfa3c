//! `polygate replay` on real sockets: against a scripted gateway, many connections at once, and with a broker.

mod bad_files;
mod broker;
mod examples;
mod gateway;
mod playing;
mod replaying;
mod with_broker;
