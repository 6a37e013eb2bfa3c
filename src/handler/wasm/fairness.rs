//! CPU and memory fairness between guests: the load of one guest must not slow down the devices of another.
//!
//! The epoch ticker interrupts a running guest every [`TICK`](super::ticker::TICK). Four mechanisms act on that:
//!
//! 1. **Event clock** ([`EventClock`]): CPU time of one event, measured at ticks by the CPU clock of its thread. It
//!    separates short events (most: a few microseconds, without a tick) from long and very long ones.
//! 2. **Background thread pools** ([`BackgroundPools`]): the first tick moves a long event from its worker thread to a
//!    pool at niceness 10. After 50 ms of CPU time, or at once for the first events of a handler that keeps failing, it
//!    runs in a second pool as `SCHED_IDLE`, which gets only idle CPU time.
//! 3. **Failure rate** ([`FailureRate`]): one token bucket for each handler counts traps and timeouts, weighted by
//!    their CPU time. While the bucket is in debt, the handler "keeps failing".
//! 4. **Memory rate limit** ([`MemoryRateLimit`]): background threads protect the CPU time of other guests, but not the
//!    resources that CPUs share: the kernel zeroes and frees the pages of a failing guest, and caches are evicted.
//!    While a handler keeps failing, its new instances take memory through a token bucket; tokens are returned when the
//!    event succeeds, so only failures cost.
//!
//! An event passes through them in this order:
//!
//! ```text
//! event -> worker thread --tick--> niceness 10 --50 ms CPU--> SCHED_IDLE --event_timeout--> Timeout
//!             |   handler keeps failing, instance without success so far    ^
//!             +-------------------------------------------------------------+   (memory growth: token bucket)
//! ```
//!
//! Failure rate and memory rate limit use the token bucket of [`crate::rate`]. This folder only delays events. The
//! limits that end or refuse are elsewhere: memory and operations of an event in [`super::limits`], `event_timeout` in
//! [`super::store`].

mod background;
mod event_clock;
mod failure_rate;
mod memory_rate;

pub(super) use background::BackgroundPools;
pub(super) use event_clock::EventClock;
pub(super) use failure_rate::FailureRate;
pub(super) use memory_rate::MemoryRateLimit;
