//! The handlers in examples/ behave as in examples/handlers/README.md: each is started as a child process, as its
//! user starts it, against a mock of the gateway and against the gateway itself.

mod end_to_end;
mod example;
mod promises;
