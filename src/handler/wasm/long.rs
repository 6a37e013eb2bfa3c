//! Where events go on that take long.
//!
//! An ordinary event is over within microseconds. A guest that computes for longer would hold a thread that others wait
//! for, and a guest in an endless loop a processor. So its event goes on in threads that get what all the others leave of
//! the processors: at once where one is idle, and a small share while the gateway's own work takes them all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::limits::{FIRST_TICKS, TICK};

/// The lowest priority that a thread can have (setpriority(2)): a thread of the ordinary one, when it wakes, does not wait for
/// it, and gets 68 times its share when both have work all the time. At 10, where it would be nine times, an endless loop
/// made the others' p99 three times as long.
const NICENESS: i32 = 19;

/// Threads of low priority; they end when dropped, and the events with them.
#[derive(Debug)]
pub(super) struct LongEvents {
    /// Taken away only at the end.
    runtime: Option<Runtime>,
}

impl LongEvents {
    /// As many threads as processors: there may be that many idle ones.
    ///
    /// # Errors
    ///
    /// When the system has no room for threads.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(available_parallelism().map_or(1, usize::from))
            .thread_name("guest-long")
            .on_thread_start(|| {
                if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                    tracing::warn!(%error, "long events of guests run at the priority of all others");
                }
            })
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// Runs the rest of an event. It ends when this is dropped, at its next tick.
    pub(super) async fn finish<F>(&self, event: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let Some(runtime) = &self.runtime else {
            return event.await;
        };
        let mut task = JoinSet::new();
        task.spawn_on(event, runtime.handle());
        match task.join_next().await {
            Some(Ok(output)) => output,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            // There is one.
            None => std::future::pending().await,
        }
    }

    /// Drops what takes long to drop. Each instance has a permit until it is gone, which bounds their number.
    pub(super) fn discard(&self, instance: impl Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { drop(instance) });
        }
    }
}

impl Drop for LongEvents {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be waited for from within another one.
            runtime.shutdown_background();
        }
    }
}

/// How an event runs that is long: since when, by the CPU time of its thread, its present stretch between two ticks lasts.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    /// In nanoseconds; zero while the event is not long.
    since_ns: AtomicU64,
}

impl Stretch {
    /// Whether the event has seen a tick.
    pub(super) fn is_long(&self) -> bool {
        self.since_ns.load(Ordering::Relaxed) != 0
    }

    /// The event is over.
    pub(super) fn end(&self) {
        self.since_ns.store(0, Ordering::Relaxed);
    }

    /// CPU time of the stretch that ends now. The first one is not measured, since ordinary events would pay for that, and
    /// counts as its ticks. Where the event has waited for the host and gone on in another thread, nobody knows; then it is
    /// between nothing and what a stretch can take.
    pub(super) fn cpu_time(&self) -> Duration {
        match self.since_ns.load(Ordering::Relaxed) {
            0 => TICK * FIRST_TICKS as u32,
            since_ns => Duration::from_nanos(thread_time_ns().saturating_sub(since_ns)).min(2 * TICK),
        }
    }

    /// Lets others run, and begins the next stretch. The runtime's own way to yield lets it look at its sockets before.
    pub(super) async fn yield_now(self: Arc<Self>) {
        self.begin();
        tokio::task::yield_now().await;
        self.begin();
    }

    fn begin(&self) {
        self.since_ns.store(thread_time_ns().max(1), Ordering::Relaxed);
    }
}

/// CPU time of this thread so far.
fn thread_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Both are never negative, and 584 years fit.
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, SocketAddr};

    use bytes::Bytes;

    use super::super::{Desk, EventBudget, Guest, Handler, Host, Isolation, Options};
    use super::*;
    use crate::adapter::Rehearsal;
    use crate::conn::{ConnId, ConnInfo, Event, ListenAddr, PeerAddr, SocketKind};
    use crate::handler::CallError;
    use crate::telemetry::{InstanceMetrics, Telemetry};

    const EVENT_TIMEOUT: Duration = Duration::from_millis(100);

    /// While a guest is in an endless loop, the only thread of the connections is free: were it to run the guest, it would
    /// have one turn in each tick for something else. The loop gets its CPU time all the same, and no more.
    #[tokio::test]
    async fn an_endless_loop_holds_no_thread() {
        let mut guest = guest("forever").await;
        let looping = tokio::spawn(async move { said(&mut guest, "forever").await });
        let mut turns = 0;
        while !looping.is_finished() {
            tokio::task::yield_now().await;
            turns += 1;
        }
        let result = looping.await.unwrap();
        assert!(matches!(result, Err(CallError::Timeout(EVENT_TIMEOUT))), "{result:?}");
        assert!(turns > 10 * EVENT_TIMEOUT.as_millis() / TICK.as_millis(), "{turns} turns");
    }

    /// An instance that takes over from a failed one runs apart from its first event on, and an ordinary event ends that.
    #[tokio::test]
    async fn a_suspected_instance_runs_apart() {
        let mut guest = guest("echo").await;
        guest.suspect();
        assert!(guest.is_suspected());
        said(&mut guest, "{}").await.unwrap();
        assert!(!guest.is_suspected(), "it is an instance like all others");
    }

    /// A guest that takes all its memory is given away at its first mebibyte, and not after the ticks that the rest would last.
    /// Where this thread is kept from running for so long, the tick may come first; so some have their turn.
    #[tokio::test]
    async fn a_hog_holds_no_thread() {
        let metrics = Telemetry::new().instances(&"hoard".into());
        let handler = load("hoard", &metrics);
        for _ in 0..100 {
            let mut guest = attached(&handler);
            call(&mut guest, &created()).await.unwrap();
            let result = said(&mut guest, "hoard").await;
            assert!(matches!(result, Err(CallError::Fault(_))), "{result:?}");
            if metrics.apart_by_memory.get() > 0 {
                return;
            }
        }
        panic!("no hog was given away for its memory");
    }

    /// What takes little memory stays where it is.
    #[tokio::test]
    async fn an_ordinary_event_is_not_given_away_for_its_memory() {
        let metrics = Telemetry::new().instances(&"echo".into());
        let mut guest = guest_with("echo", &metrics).await;
        for _ in 0..100 {
            said(&mut guest, "{}").await.unwrap();
        }
        assert_eq!((metrics.apart_by_memory.get(), metrics.apart_by_suspicion.get()), (0, 0));
    }

    /// A guest that traps again and again is told of some times, and then counted; its new instances run apart.
    #[tokio::test]
    async fn a_flood_of_traps() {
        let metrics = Telemetry::new().instances(&"trap".into());
        let handler = load("trap", &metrics);
        assert!(!attached(&handler).is_suspected());
        while metrics.log_lines_shed.get() == 0 {
            let mut guest = attached(&handler);
            call(&mut guest, &created()).await.unwrap();
            let result = said(&mut guest, "trap").await;
            assert!(matches!(result, Err(CallError::Fault(_))), "{result:?}");
        }
        assert!(metrics.apart_by_suspicion.get() > 0);
        let mut good = attached(&handler);
        assert!(good.is_suspected());
        call(&mut good, &created()).await.unwrap();
        said(&mut good, "all is well").await.unwrap();
        assert!(!good.is_suspected(), "it is an instance like all others");
    }

    /// What is given away runs at a lower priority; the threads go without waiting for an event that does not end.
    #[tokio::test]
    async fn long_events_have_a_lower_priority() {
        let long_events = LongEvents::start().unwrap();
        let niceness = async { rustix::process::getpriority_process(None).unwrap() };
        assert_eq!(long_events.finish(niceness).await, NICENESS);
        let endless = long_events.finish(std::future::pending::<()>());
        assert!(futures::poll!(Box::pin(endless)).is_pending());
        drop(long_events);
    }

    async fn said(guest: &mut Guest, text: &str) -> Result<(), CallError> {
        call(guest, &Event::ReceivedBytes(Bytes::copy_from_slice(text.as_bytes()))).await
    }

    async fn call(guest: &mut Guest, event: &Event) -> Result<(), CallError> {
        let desk = Desk::Rehearsal(Box::new(Rehearsal::new(ConnId::from_u64(1))));
        guest.call(desk, event).await.1
    }

    /// A connection's instance that has been told of it.
    async fn guest(name: &str) -> Guest {
        guest_with(name, &Telemetry::new().instances(&name.into())).await
    }

    async fn guest_with(name: &str, metrics: &InstanceMetrics) -> Guest {
        let mut guest = attached(&load(name, metrics));
        call(&mut guest, &created()).await.unwrap();
        guest
    }

    fn attached(handler: &Handler) -> Guest {
        handler.attach(ConnId::from_u64(1), &info())
    }

    fn created() -> Event {
        Event::SocketCreated(info())
    }

    fn info() -> Arc<ConnInfo> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        Arc::new(ConnInfo {
            kind: SocketKind::Tcp,
            peer: PeerAddr(anywhere),
            local: ListenAddr(anywhere),
            certificate: None,
        })
    }

    fn load(name: &str, metrics: &InstanceMetrics) -> Handler {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::start(dir.path().join("cache")).unwrap();
        let options = Options {
            name: name.into(),
            component: format!("guests/dist/{name}.wasm").into(),
            isolation: Isolation::Connection,
            memory_bytes_max: 1 << 24,
            event_timeout: EVENT_TIMEOUT,
            budget: EventBudget::default(),
            settings: BTreeMap::new(),
        };
        host.load(options, metrics.clone()).unwrap()
    }
}
