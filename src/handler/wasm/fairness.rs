//! CPU and memory fairness between guests: what one guest takes must not slow down the devices of another.
//!
//! The epoch ticker interrupts a running guest every [`TICK`](super::ticker::TICK). Four mechanisms act on that:
//!
//! 1. **Event clock** ([`EventClock`]): the CPU time that one event has used, measured at ticks by the thread's own CPU clock. It
//!    tells short events (most: a few microseconds, no tick at all) from long and very long ones.
//! 2. **Background thread pools** ([`BackgroundPools`]): the first tick moves a long event off the worker threads, into a pool at
//!    niceness 10. After 50 ms of CPU time, or at once for the first events of a handler that keeps failing, it runs in
//!    a second pool as `SCHED_IDLE`, which gets only idle CPU time.
//! 3. **Failure rate** ([`FailureRate`]): one token bucket for each handler counts traps and timeouts, weighted by the CPU
//!    time that each took. While the bucket is in debt, the handler "keeps failing".
//! 4. **Memory rate limit** ([`MemoryRateLimit`]): background threads keep a failing guest off the CPU, but not off what
//!    CPUs share: the kernel zeroes its pages and takes them back, and caches are evicted. While a handler keeps failing,
//!    its unproven instances take memory through a token bucket; tokens come back when the event succeeds, so only failures cost.
//!
//! An event passes through them in this order:
//!
//! ```text
//! event -> worker thread --tick--> niceness 10 --50 ms CPU--> SCHED_IDLE --event_timeout--> Timeout
//!             |   handler keeps failing, instance has handled nothing yet   ^
//!             +-------------------------------------------------------------+   (memory growth: token bucket)
//! ```
//!
//! Failure and memory rate use the token bucket of [`crate::rate`]. The limits themselves (memory, `event_timeout`, calls per
//! event) are in [`super::limits`]: exceeding one ends the event; nothing in this folder does.

mod background;
mod event_clock;
mod failure_rate;
mod memory_rate;

pub(super) use background::BackgroundPools;
pub(super) use event_clock::EventClock;
pub(super) use failure_rate::FailureRate;
pub(super) use memory_rate::MemoryRateLimit;
