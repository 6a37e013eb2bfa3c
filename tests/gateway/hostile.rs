//! What the gateway promises while someone attacks it: each test is named after the promise.

mod adapter;
mod logins;
