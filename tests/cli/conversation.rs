//! Conversations on real sockets: the player against a scripted gateway, many of them at once, and with a broker.

mod bad_files;
mod broker;
mod examples;
mod gateway;
mod playing;
mod replaying;
mod with_broker;
