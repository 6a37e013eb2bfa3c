//! Background thread pools for long events of guests, at low (niceness 10) and idle (`SCHED_IDLE`) scheduling priority.
//!
//! An ordinary event takes microseconds. A guest that computes for longer would occupy a worker thread of other
//! connections, and a guest in an endless loop a whole CPU. A long event therefore continues in the low-priority pool:
//! at full speed on an idle CPU, at a fraction of it while the gateway needs all CPUs. A very long event, and the
//! events of quarantined instances, run in the idle-priority pool, which gets only idle CPU time.
//!
//! The pools end when dropped, with their events. They never end an event themselves.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::event_clock::EventClock;

/// Niceness of the low-priority pool: under full load, a thread at niceness 0 gets nine times its CPU time. A higher
/// niceness would starve guests that are only slow, on a busy machine.
const NICENESS: i32 = 10;

#[derive(Debug)]
pub(in crate::handler::wasm) struct BackgroundPools {
    /// Events of some milliseconds.
    low_priority: Pool,
    /// Longer events, events of quarantined instances, and the drop of large or failed instances.
    idle_priority: Pool,
}

impl BackgroundPools {
    /// Starts one thread for each CPU in each pool, since all CPUs may be idle.
    ///
    /// # Errors
    ///
    /// The system cannot create the threads.
    pub(in crate::handler::wasm) fn start() -> io::Result<Self> {
        Ok(Self {
            low_priority: Pool::start("guest-low-prio", lower_priority)?,
            idle_priority: Pool::start("guest-idle-prio", use_idle_priority)?,
        })
    }

    /// Runs the rest of an event that has become long. Dropping the future ends the event at its next tick.
    pub(in crate::handler::wasm) async fn finish<F>(&self, mut event: Pin<Box<F>>, clock: &Arc<EventClock>) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let clock = Arc::clone(clock);
        let until_very_long = async move {
            let result = poll_fn(|context| match event.as_mut().poll(context) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if clock.is_very_long() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            result.await.ok_or(event)
        };
        match self.low_priority.run(until_very_long).await {
            Ok(output) => output,
            Err(event) => self.idle_priority.run(event).await,
        }
    }

    /// Runs an event at idle priority from its beginning. Dropping the future ends the event at its next tick.
    pub(in crate::handler::wasm) async fn run_in_background<F>(&self, event: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.idle_priority.run(event).await
    }

    /// Drops an instance in the background. It holds its instance permit until then, which limits the number of such
    /// drops.
    pub(in crate::handler::wasm) fn discard(&self, instance: impl Send + 'static) {
        if let Some(runtime) = &self.idle_priority.runtime {
            runtime.spawn(async move { drop(instance) });
        }
    }
}

#[derive(Debug)]
struct Pool {
    /// `None` only during the drop.
    runtime: Option<Runtime>,
}

impl Pool {
    fn start(name: &str, set_priority: fn() -> io::Result<()>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(available_parallelism().map_or(1, usize::from))
            .thread_name(name)
            .on_thread_start(move || {
                if let Err(error) = set_priority() {
                    tracing::warn!(%error, "cannot lower the priority of a background thread");
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
            // Unreachable: the set has one task.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A tokio runtime must not block on the shutdown of another one.
            runtime.shutdown_background();
        }
    }
}

/// Sets the niceness of the calling thread.
fn lower_priority() -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, NICENESS)?)
}

/// Sets the scheduling policy of the calling thread to `SCHED_IDLE` (sched(7)). Niceness 19 is not enough: since Linux
/// 6.6 a thread keeps a CPU for some milliseconds once it runs there, even when another thread wakes up.
fn use_idle_priority() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    #[expect(unsafe_code, reason = "rustix has no sched_setscheduler")]
    // SAFETY: it reads the parameters, which outlive the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

    /// During an endless loop of a guest, the only worker thread stays free: if it ran the guest, it would poll other
    /// tasks only once a tick. The loop gets its CPU time and no more.
    #[tokio::test]
    async fn an_endless_loop_occupies_no_worker() {
        let mut guest = guest("forever").await;
        let endless = tokio::spawn(async move { receive(&mut guest, "forever").await });
        let mut yields = 0;
        while !endless.is_finished() {
            tokio::task::yield_now().await;
            yields += 1;
        }
        let result = endless.await.unwrap();
        assert!(matches!(result, Err(CallError::Timeout(EVENT_TIMEOUT))), "{result:?}");
        assert!(yields > 10 * EVENT_TIMEOUT.as_millis() / TICK.as_millis(), "{yields} yields");
    }

    /// The replacement of a failed instance is quarantined until its first successful event.
    #[tokio::test]
    async fn a_success_ends_the_quarantine() {
        let mut guest = guest("echo").await;
        guest.quarantine();
        assert!(guest.is_quarantined());
        receive(&mut guest, "{}").await.unwrap();
        assert!(!guest.is_quarantined(), "a success ends the quarantine");
    }

    /// A large memory growth moves an event to the background at its first mebibyte, before its first tick. If this
    /// thread is preempted, the tick may come first; the test therefore tries several guests.
    #[tokio::test]
    async fn a_large_growth_occupies_no_worker() {
        let metrics = Telemetry::new().instances(&"hoard".into());
        let handler = load("hoard", &metrics);
        for _ in 0..100 {
            let mut guest = attached(&handler);
            call(&mut guest, &created()).await.unwrap();
            let result = receive(&mut guest, "hoard").await;
            assert!(matches!(result, Err(CallError::Fault(_))), "{result:?}");
            if metrics.deprioritized_by_memory.get() > 0 {
                return;
            }
        }
        panic!("no event was deprioritized by memory");
    }

    /// Guests that repeatedly exhaust their memory wait for the memory rate limit.
    #[tokio::test]
    async fn repeated_exhaustion_is_rate_limited() {
        let metrics = Telemetry::new().instances(&"hoard".into());
        let handler = load("hoard", &metrics);
        while metrics.memory_waits.get() == 0 {
            let mut guest = attached(&handler);
            call(&mut guest, &created()).await.unwrap();
            assert!(receive(&mut guest, "hoard").await.is_err());
        }
    }

    /// Events with little memory growth stay on the worker thread.
    #[tokio::test]
    async fn ordinary_events_stay_on_the_worker() {
        let metrics = Telemetry::new().instances(&"echo".into());
        let mut guest = guest_with("echo", &metrics).await;
        for _ in 0..100 {
            receive(&mut guest, "{}").await.unwrap();
        }
        assert_eq!((metrics.deprioritized_by_memory.get(), metrics.deprioritized_by_failures.get()), (0, 0));
    }

    /// Repeated traps are logged up to the rate limit and counted beyond it; new instances are quarantined.
    #[tokio::test]
    async fn repeated_traps_are_rate_limited() {
        let metrics = Telemetry::new().instances(&"trap".into());
        let handler = load("trap", &metrics);
        assert!(!attached(&handler).is_quarantined());
        while metrics.suppressed_log_lines.get() == 0 {
            let mut guest = attached(&handler);
            call(&mut guest, &created()).await.unwrap();
            let result = receive(&mut guest, "trap").await;
            assert!(matches!(result, Err(CallError::Fault(_))), "{result:?}");
        }
        assert!(metrics.deprioritized_by_failures.get() > 0);
        let mut healthy = attached(&handler);
        assert!(healthy.is_quarantined());
        call(&mut healthy, &created()).await.unwrap();
        receive(&mut healthy, "all is well").await.unwrap();
        assert!(!healthy.is_quarantined(), "a success ends the quarantine");
    }

    /// A long event runs at niceness 10; a very long one, and one that starts in the background, run as `SCHED_IDLE`.
    #[tokio::test]
    async fn scheduling_priority_of_long_events() {
        let pools = BackgroundPools::start().unwrap();
        let clock = Arc::<EventClock>::default();
        let event_clock = Arc::clone(&clock);
        let event = async move {
            let low_priority = (policy(), rustix::process::getpriority_process(None).unwrap());
            while !event_clock.is_very_long() {
                event_clock.handle_tick();
            }
            event_clock.yield_now().await;
            (low_priority, policy())
        };
        let (low_priority, very_long) = pools.finish(Box::pin(event), &clock).await;
        assert_eq!(low_priority, (libc::SCHED_OTHER, NICENESS));
        assert_eq!(very_long, libc::SCHED_IDLE);
        assert_eq!(pools.run_in_background(async { policy() }).await, libc::SCHED_IDLE);
    }

    /// Dropping the pools does not wait for an endless event.
    #[tokio::test]
    async fn endless_events_do_not_block_shutdown() {
        let pools = BackgroundPools::start().unwrap();
        let endless = pools.run_in_background(std::future::pending::<()>());
        assert!(futures::poll!(Box::pin(endless)).is_pending());
        drop(pools);
    }

    /// Scheduling policy of this thread, from `/proc`.
    fn policy() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(38).unwrap().parse().unwrap()
    }

    async fn receive(guest: &mut Guest, text: &str) -> Result<(), CallError> {
        call(guest, &Event::ReceivedBytes(Bytes::copy_from_slice(text.as_bytes()))).await
    }

    async fn call(guest: &mut Guest, event: &Event) -> Result<(), CallError> {
        let backend = Backend::dry_run(ConnId::from_u64(1));
        guest.call(backend, event).await.1
    }

    /// An instance after `on-socket-created`.
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
        let runtime = wasm::Runtime::start(dir.path().join("cache")).unwrap();
        let options = Options {
            name: name.into(),
            component: format!("guests/dist/{name}.wasm").into(),
            isolation: Isolation::Connection,
            memory_bytes_max: 1 << 24,
            event_timeout: EVENT_TIMEOUT,
            budget: EventBudget::default(),
            settings: BTreeMap::new(),
        };
        runtime.load(options, metrics.clone()).unwrap()
    }
}
