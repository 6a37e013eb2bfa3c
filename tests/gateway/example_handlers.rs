//! The handlers in examples/ keep the promises of examples/handlers/README.md: each is started as a child process, as its
//! user starts it, before a stand-in for the gateway and before the gateway itself.

mod end_to_end;
mod example;
mod promises;
