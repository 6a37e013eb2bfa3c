//! Where events go on that take long.
//!
//! An ordinary event is over within microseconds. A guest that computes for longer would hold a thread that others wait
//! for, and a guest in an endless loop a processor. So its event goes on in threads that get what all the others leave of
//! the processors: at once where one is idle, and a share while the gateway's own work takes them all. An event that is still
//! not over then, and one of a guest that has failed before, gets only the time that nobody else wants.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::event_clock::EventClock;

/// The priority of a slow event: a thread of the ordinary one gets nine times its share when both have work all the time. Lower
/// would be hard on a guest that is only slow, where the machine is busy.
const NICENESS: i32 = 10;

/// Threads that come after the gateway's own; they end when dropped, and the events with them.
#[derive(Debug)]
pub(in crate::handler::wasm) struct BackgroundPools {
    /// For events that take some milliseconds.
    low_priority: Pool,
    /// For those that take longer, those of guests that have failed, and the memory that they leave behind.
    idle_priority: Pool,
}

impl BackgroundPools {
    /// As many threads of each kind as processors: there may be that many idle ones.
    ///
    /// # Errors
    ///
    /// When the system has no room for threads.
    pub(in crate::handler::wasm) fn start() -> io::Result<Self> {
        Ok(Self {
            low_priority: Pool::start("guest-slow", lower_priority)?,
            idle_priority: Pool::start("guest-spare", use_idle_priority)?,
        })
    }

    /// Runs the rest of an event that has become long. It ends when this is dropped, at its next tick.
    pub(in crate::handler::wasm) async fn finish<F>(&self, mut event: Pin<Box<F>>, clock: &Arc<EventClock>) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let clock = Arc::clone(clock);
        let while_slow = async move {
            let low_priority = poll_fn(|context| match event.as_mut().poll(context) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if clock.is_very_long() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            low_priority.await.ok_or(event)
        };
        match self.low_priority.run(while_slow).await {
            Ok(output) => output,
            Err(event) => self.idle_priority.run(event).await,
        }
    }

    /// Runs an event that nobody is to wait for from its beginning. It ends when this is dropped, at its next tick.
    pub(in crate::handler::wasm) async fn run_in_background<F>(&self, event: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.idle_priority.run(event).await
    }

    /// Drops what takes long to drop. Each instance has a permit until it is gone, which bounds their number.
    pub(in crate::handler::wasm) fn discard(&self, instance: impl Send + 'static) {
        if let Some(runtime) = &self.idle_priority.runtime {
            runtime.spawn(async move { drop(instance) });
        }
    }
}

/// Threads of one kind.
#[derive(Debug)]
struct Pool {
    /// Taken away only at the end.
    runtime: Option<Runtime>,
}

impl Pool {
    fn start(name: &str, begin: fn() -> io::Result<()>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(available_parallelism().map_or(1, usize::from))
            .thread_name(name)
            .on_thread_start(move || {
                if let Err(error) = begin() {
                    tracing::warn!(%error, "long events of guests run at the priority of all others");
                }
            })
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    async fn run<F>(&self, event: F) -> F::Output
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
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be waited for from within another one.
            runtime.shutdown_background();
        }
    }
}

/// This thread comes after all ordinary ones.
fn lower_priority() -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, NICENESS)?)
}

/// This thread gets the time that nobody else wants (sched(7), `SCHED_IDLE`). A thread of the lowest ordinary priority is not
/// enough: since Linux 6.6 one that has just got a processor keeps it for some milliseconds, whoever else wakes there.
fn use_idle_priority() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    #[expect(unsafe_code, reason = "sched_setscheduler, which no safe crate of ours has")]
    // SAFETY: it reads the parameters, which live until it returns; 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::adapter::Backend;
    use crate::conn::{ConnId, ConnInfo, Event, ListenAddr, PeerAddr, SocketKind};
    use crate::handler::wasm::ticker::TICK;
    use crate::handler::wasm::{EventBudget, Guest, Handler, Isolation, Options};
    use crate::handler::{CallError, wasm};
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

    /// An instance that takes over from a failed one runs aside from its first event on, and an ordinary event ends that.
    #[tokio::test]
    async fn a_suspected_instance_runs_apart() {
        let mut guest = guest("echo").await;
        guest.quarantine();
        assert!(guest.is_quarantined());
        said(&mut guest, "{}").await.unwrap();
        assert!(!guest.is_quarantined(), "it is an instance like all others");
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
            if metrics.deprioritized_by_memory.get() > 0 {
                return;
            }
        }
        panic!("no hog was given away for its memory");
    }

    /// Guests that take all their memory again and again have to wait for it.
    #[tokio::test]
    async fn hogs_wait_for_their_memory() {
        let metrics = Telemetry::new().instances(&"hoard".into());
        let handler = load("hoard", &metrics);
        while metrics.memory_waits.get() == 0 {
            let mut guest = attached(&handler);
            call(&mut guest, &created()).await.unwrap();
            assert!(said(&mut guest, "hoard").await.is_err());
        }
    }

    /// What takes little memory stays where it is.
    #[tokio::test]
    async fn an_ordinary_event_is_not_given_away_for_its_memory() {
        let metrics = Telemetry::new().instances(&"echo".into());
        let mut guest = guest_with("echo", &metrics).await;
        for _ in 0..100 {
            said(&mut guest, "{}").await.unwrap();
        }
        assert_eq!((metrics.deprioritized_by_memory.get(), metrics.deprioritized_by_failures.get()), (0, 0));
    }

    /// A guest that traps again and again is told of some times, and then counted; its new instances run aside.
    #[tokio::test]
    async fn a_flood_of_traps() {
        let metrics = Telemetry::new().instances(&"trap".into());
        let handler = load("trap", &metrics);
        assert!(!attached(&handler).is_quarantined());
        while metrics.suppressed_log_lines.get() == 0 {
            let mut guest = attached(&handler);
            call(&mut guest, &created()).await.unwrap();
            let result = said(&mut guest, "trap").await;
            assert!(matches!(result, Err(CallError::Fault(_))), "{result:?}");
        }
        assert!(metrics.deprioritized_by_failures.get() > 0);
        let mut good = attached(&handler);
        assert!(good.is_quarantined());
        call(&mut good, &created()).await.unwrap();
        said(&mut good, "all is well").await.unwrap();
        assert!(!good.is_quarantined(), "it is an instance like all others");
    }

    /// An event that has become long gets less than the gateway's own work, and once it is very long, as well as one that runs
    /// aside from its beginning, what nobody else wants.
    #[tokio::test]
    async fn long_events_come_after_all_else() {
        let long_events = BackgroundPools::start().unwrap();
        let clock = Arc::<EventClock>::default();
        let seen = Arc::clone(&clock);
        let event = async move {
            let low_priority = (policy(), rustix::process::getpriority_process(None).unwrap());
            while !seen.is_very_long() {
                seen.handle_tick();
            }
            seen.yield_now().await;
            (low_priority, policy())
        };
        let (low_priority, very_long) = long_events.finish(Box::pin(event), &clock).await;
        assert_eq!(low_priority, (libc::SCHED_OTHER, NICENESS));
        assert_eq!(very_long, libc::SCHED_IDLE);
        assert_eq!(long_events.run_in_background(async { policy() }).await, libc::SCHED_IDLE);
    }

    /// The threads go without waiting for an event that does not end.
    #[tokio::test]
    async fn endless_events_hold_nothing_up() {
        let long_events = BackgroundPools::start().unwrap();
        let endless = long_events.run_in_background(std::future::pending::<()>());
        assert!(futures::poll!(Box::pin(endless)).is_pending());
        drop(long_events);
    }

    /// The scheduling policy of this thread, as the kernel tells it.
    fn policy() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(38).unwrap().parse().unwrap()
    }

    async fn said(guest: &mut Guest, text: &str) -> Result<(), CallError> {
        call(guest, &Event::ReceivedBytes(Bytes::copy_from_slice(text.as_bytes()))).await
    }

    async fn call(guest: &mut Guest, event: &Event) -> Result<(), CallError> {
        let backend = Backend::dry_run(ConnId::from_u64(1));
        guest.call(backend, event).await.1
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
        let host = wasm::Runtime::start(dir.path().join("cache")).unwrap();
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
