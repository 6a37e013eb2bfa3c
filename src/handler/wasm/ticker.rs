//! Epoch ticker: increments the engines' epochs at a fixed interval, so that running guests reach their epoch deadline,
//! yield, and have their CPU time measured.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::{Engine, EngineWeak};

/// Interval at which a running guest yields, and the resolution of its CPU time. The ticker thread takes 0.25 % of one
/// core.
pub(super) const TICK: Duration = Duration::from_millis(2);

/// Epoch deadline of an event: it is long after this many ticks. The first tick may come immediately.
pub(super) const FIRST_TICKS: u64 = 2;

/// The ticker thread; dropping it stops the thread.
#[derive(Debug)]
pub(super) struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// A thread of its own, because a guest in an endless loop occupies its worker thread until a tick makes it yield.
    pub(super) fn start<'a>(engines: impl Iterator<Item = &'a Engine>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("epoch-ticker".to_owned()).spawn({
            let (engines, stop) = (engines.map(Engine::weak).collect::<Vec<_>>(), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::park_timeout(TICK);
                    for engine in engines.iter().filter_map(EngineWeak::upgrade) {
                        engine.increment_epoch();
                    }
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the ticker thread panicked");
            }
        }
    }
}
