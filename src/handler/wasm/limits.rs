//! What bounds a guest: its memory, its CPU time, and how many instances there may be.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use wasmtime::ResourceLimiterAsync;

use super::fairness::{EventClock, MemoryRateLimit};
use crate::conn::Refused;
use crate::telemetry::InstanceMetrics;

/// An event that takes more memory than this is long, however short it may be: the kernel zeroes each page at its first touch,
/// which for a memory of some MiB takes it longer than the ticks. What is read of a device at once, four times over.
pub(super) const GROWTH_QUICK_BYTES: usize = 256 << 10;

/// Elements of all tables of one instance. A table holds function references; guests have a few hundred.
const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Core instances in one instance of a guest. Linked libraries make some: a Python guest has 38. Each takes memory of the
/// gateway's that the guest's limit does not see.
const CORE_INSTANCES_MAX: usize = 200;

/// Tables of one instance of a guest. Libraries share one; what links them has another.
const TABLES_MAX: usize = 100;

/// Linear memories of one instance of a guest: each takes a slot or mappings, however short it is. The guests that there
/// are have up to three.
const MEMORIES_MAX: usize = 8;

/// Mappings that one instance may take: its memory, that memory's guards, its stack and the stack's guard.
const MAPPINGS_PER_INSTANCE: usize = 7;

/// Mappings allowed to a process where the system does not say (the kernel's default).
const MAPPINGS_MAX_DEFAULT: usize = 65_530;

/// What one event may ask of the host. A handler that is asked for more than it should be, by a hostile device or its own
/// fault, is refused the rest, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventBudget {
    /// Messages that it may publish.
    pub publishes_max: u32,
    /// Bytes that it may send to the peer.
    pub sent_bytes_max: usize,
    /// Lines that it may log.
    pub log_lines_max: u32,
}

impl Default for EventBudget {
    /// Room for a read of 64 KiB that is full of the smallest frames, and then some.
    fn default() -> Self {
        Self { publishes_max: 10_000, sent_bytes_max: 16 << 20, log_lines_max: 100 }
    }
}

/// What an event has asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BudgetUsed {
    publishes: u32,
    sent_bytes: usize,
    log_lines: u32,
}

impl BudgetUsed {
    /// One more message.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`].
    pub(super) fn publish(&mut self, budget: &EventBudget) -> Result<(), Refused> {
        let publishes_max = budget.publishes_max;
        if self.publishes >= publishes_max {
            return Err(Refused::Full {
                what: "the number of messages published in one event",
                limit: format!("{publishes_max} messages"),
            });
        }
        self.publishes += 1;
        Ok(())
    }

    /// So many bytes more.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`].
    pub(super) fn send(&mut self, bytes: usize, budget: &EventBudget) -> Result<(), Refused> {
        let sent_bytes = self.sent_bytes.saturating_add(bytes);
        if sent_bytes > budget.sent_bytes_max {
            let limit = format!("{} bytes", budget.sent_bytes_max);
            return Err(Refused::Full { what: "the number of bytes sent in one event", limit });
        }
        self.sent_bytes = sent_bytes;
        Ok(())
    }

    /// Whether one more line may be said.
    pub(super) fn log(&mut self, budget: &EventBudget) -> bool {
        let may = self.log_lines < budget.log_lines_max;
        self.log_lines += u32::from(may);
        may
    }
}

/// Bounds the memory of one instance, and tells the gauges of it.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    bytes_max: usize,
    bytes: usize,
    table_elements: usize,
    /// The guest asked for more than it may have; told with the trap that usually follows.
    pub(super) exceeded: bool,
    /// Whether the instance is there. What it is made with, it has not touched by that.
    is_made: bool,
    /// What the event in progress has taken.
    grown: usize,
    /// How much of that it has waited for, if it has to.
    paid: usize,
    clock: Arc<EventClock>,
    memory_rate: Arc<MemoryRateLimit>,
    metrics: InstanceMetrics,
}

impl MemoryLimit {
    /// `event_clock` is how the instance's events run, and `memory_rate` what they may take together with others while the handler keeps
    /// failing.
    pub(super) fn new(
        bytes_max: usize,
        clock: Arc<EventClock>,
        memory_rate: Arc<MemoryRateLimit>,
        metrics: InstanceMetrics,
    ) -> Self {
        let (is_made, exceeded) = (false, false);
        Self {
            bytes_max,
            bytes: 0,
            table_elements: 0,
            exceeded,
            is_made,
            grown: 0,
            paid: 0,
            clock,
            memory_rate,
            metrics,
        }
    }

    /// The instance is there.
    pub(super) fn handle_made(&mut self) {
        self.is_made = true;
    }

    /// What was taken until now was not taken by the event that begins.
    pub(super) fn begin_event(&mut self) {
        self.grown = 0;
        self.paid = 0;
    }

    /// Linear memory of the instance, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a memory may grow; then it is counted.
    fn grow_memory(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> bool {
        if is_beyond(desired, maximum) {
            return false;
        }
        let grown = desired.saturating_sub(current);
        let bytes = self.bytes.saturating_add(grown);
        if bytes > self.bytes_max {
            self.exceeded = true;
            return false;
        }
        self.bytes = bytes;
        if self.is_made {
            self.grown = self.grown.saturating_add(grown);
        }
        self.metrics.memory_bytes.inc_by(gauge(grown));
        true
    }

    /// Whether a table may grow; then it is counted.
    fn grow_table(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> bool {
        if is_beyond(desired, maximum) {
            return false;
        }
        let elements = self.table_elements.saturating_add(desired.saturating_sub(current));
        if elements > TABLE_ELEMENTS_MAX {
            self.exceeded = true;
            return false;
        }
        self.table_elements = elements;
        true
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        self.metrics.memory_bytes.dec_by(gauge(self.bytes));
    }
}

/// The limits hold for all memories and tables of the instance together. An event that takes much yields before it has it, and
/// so is long; one that has to wait for its memory does.
#[async_trait]
impl ResourceLimiterAsync for MemoryLimit {
    async fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let may = self.grow_memory(current, desired, maximum);
        if may && self.grown > GROWTH_QUICK_BYTES {
            if self.clock.waits() {
                let unpaid = self.grown - std::mem::replace(&mut self.paid, self.grown);
                if self.clock.take(&self.memory_rate, unpaid).await {
                    self.metrics.memory_waits.inc();
                }
            } else if !self.clock.is_long() {
                self.metrics.deprioritized_by_memory.inc();
                Arc::clone(&self.clock).yield_now().await;
            }
        }
        Ok(may)
    }

    async fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grow_table(current, desired, maximum))
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

/// Whether the guest's own declaration forbids the growth. The engine asks us first, and refuses it only after we
/// have counted it.
fn is_beyond(desired: usize, maximum: Option<usize>) -> bool {
    maximum.is_some_and(|maximum| desired > maximum)
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What bounds the number of instances.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// The kernel's limit on a process's mappings.
    ///
    /// At that limit not only the next instance fails: the next allocation of the gateway itself may, and that ends
    /// the process. So the ceiling is well below.
    Mappings,
    /// The slots that were reserved at the start.
    Slots,
}

/// How many instances may live at once on one engine.
#[derive(Clone, Debug)]
pub(super) struct InstanceLimit {
    live: Arc<AtomicUsize>,
    instances_max: usize,
    bound: Bound,
}

impl InstanceLimit {
    pub(super) fn of_this_system() -> Self {
        let mappings_max = fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(MAPPINGS_MAX_DEFAULT);
        Self::new(mappings_max / MAPPINGS_PER_INSTANCE, Bound::Mappings)
    }

    pub(super) fn new(instances_max: usize, bound: Bound) -> Self {
        Self { live: Arc::default(), instances_max, bound }
    }

    pub(super) fn instances_max(&self) -> usize {
        self.instances_max
    }

    /// The right to hold one instance; an error when there are as many as may be.
    pub(super) fn permit(&self, metrics: &InstanceMetrics) -> Result<InstancePermit, InstanceLimitReached> {
        let below = |live: usize| (live < self.instances_max).then_some(live + 1);
        match self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below) {
            Ok(_) => {
                metrics.live.inc();
                Ok(InstancePermit { live: Arc::clone(&self.live), metrics: metrics.clone() })
            }
            Err(live) => Err(match self.bound {
                Bound::Mappings => InstanceLimitReached::Mappings(live),
                Bound::Slots => InstanceLimitReached::Slots(live),
            }),
        }
    }
}

/// As many instances live as may; the number says how many.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstanceLimitReached {
    /// Of guests that take mappings.
    #[error("{0} instances of large guests live, which is as many as this system's vm.max_map_count allows")]
    Mappings(usize),
    /// Of guests that take slots.
    #[error("{0} instances of small guests live, which is as many as there is memory reserved for")]
    Slots(usize),
}

/// The right to hold one instance; given back when dropped.
#[derive(Debug)]
pub(super) struct InstancePermit {
    live: Arc<AtomicUsize>,
    metrics: InstanceMetrics,
}

impl Drop for InstancePermit {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.metrics.live.dec();
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::component::{Component, Linker};
    use wasmtime::{Engine, Store};

    use super::*;
    use crate::telemetry::Telemetry;

    fn limit(bytes_max: usize, metrics: &InstanceMetrics) -> MemoryLimit {
        MemoryLimit::new(bytes_max, Arc::default(), Arc::new(MemoryRateLimit::new()), metrics.clone())
    }

    /// An event gets what its budget says, to the last message, byte and line; what is too large is refused whole.
    #[test]
    fn an_event_has_a_budget() {
        let budget = EventBudget { publishes_max: 2, sent_bytes_max: 10, log_lines_max: 1 };
        let mut budget_used = BudgetUsed::default();
        assert_eq!([(); 3].map(|()| budget_used.publish(&budget).is_ok()), [true, true, false]);
        assert_eq!([8, 3, 2, 1].map(|bytes| budget_used.send(bytes, &budget).is_ok()), [true, false, true, false]);
        assert_eq!([(); 2].map(|()| budget_used.log(&budget)), [true, false]);
        assert!(budget_used.send(usize::MAX, &budget).is_err());
    }

    /// The second instance gets no permit while the first lives, and one when it is gone.
    #[test]
    fn instances_are_bounded() {
        let metrics = Telemetry::new().instances(&"guest".into());
        for (bound, why) in [(Bound::Mappings, "vm.max_map_count"), (Bound::Slots, "memory reserved")] {
            let instance_limit = InstanceLimit::new(1, bound);
            let first = instance_limit.permit(&metrics).unwrap();
            let reached = instance_limit.permit(&metrics).unwrap_err().to_string();
            assert!(reached.starts_with("1 instances of ") && reached.contains(why), "{reached}");
            assert_eq!(metrics.live.get(), 1);
            drop(first);
            assert_eq!(metrics.live.get(), 0);
            drop(instance_limit.permit(&metrics).unwrap());
        }
    }

    /// What a guest has forbidden itself is not counted: it does not get it.
    #[test]
    fn growth_beyond_the_guests_own_maximum_is_not_counted() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let mut limit = limit(100, &metrics);
        for _ in 0..10 {
            assert!(!limit.grow_memory(0, 30, Some(20)));
            assert!(!limit.grow_table(0, 30_000, Some(20)));
        }
        assert!(!limit.exceeded, "the gateway has refused nothing");
        assert_eq!(metrics.memory_bytes.get(), 0);
        assert!(limit.grow_memory(0, 20, Some(20)));
        assert!(limit.grow_table(0, 20, Some(20)));
    }

    /// A guest that is made of too much is no instance, whichever it has too much of.
    #[tokio::test]
    async fn parts_of_an_instance_are_bounded() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let engine = Engine::default();
        let instantiate = async |part: &str, count: usize| {
            let instances = "(core instance (instantiate 0))".repeat(count);
            let text = format!("(component (core module {part}) {instances})");
            let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
            let mut store = Store::new(&engine, limit(1 << 20, &metrics));
            store.limiter_async(|limit| limit);
            let made = Linker::new(&engine).instantiate_async(&mut store, &component).await;
            made.map(drop).map_err(|error| format!("{error:#}"))
        };
        for (part, most, name) in [
            ("", CORE_INSTANCES_MAX, "instance"),
            ("(table 1 funcref)", TABLES_MAX, "table"),
            ("(memory 1)", MEMORIES_MAX, "memory"),
        ] {
            assert_eq!(instantiate(part, most).await, Ok(()), "{part}");
            let refused = instantiate(part, most + 1).await.unwrap_err();
            assert!(refused.contains(&format!("{name} count too high at {}", most + 1)), "{part}: {refused}");
        }
    }

    /// Memory grows to the limit, not beyond, over all memories; the gauges follow and return to zero.
    #[test]
    fn memory_is_bounded() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let mut limit = limit(100, &metrics);
        assert!(limit.grow_memory(0, 60, None));
        assert!(!limit.grow_memory(0, 41, None), "a second memory counts as well");
        assert!(limit.exceeded);
        assert!(limit.grow_memory(60, 100, None));
        assert_eq!(metrics.memory_bytes.get(), 100);
        drop(limit);
        assert_eq!(metrics.memory_bytes.get(), 0);
    }

    /// An event is long as soon as it has taken more than it may quickly have, in however many steps, and yields once; what the
    /// instance had before does not count, and what it may not have neither.
    #[tokio::test]
    async fn an_event_that_takes_much_is_long() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let clock = Arc::<EventClock>::default();
        let memory_rate = Arc::new(MemoryRateLimit::new());
        let mut limit = MemoryLimit::new(8 * GROWTH_QUICK_BYTES, Arc::clone(&clock), memory_rate, metrics.clone());
        assert!(limit.memory_growing(0, 4 * GROWTH_QUICK_BYTES, None).await.unwrap());
        limit.handle_made();
        let half = GROWTH_QUICK_BYTES / 2;
        assert!(!limit.memory_growing(0, 8 * GROWTH_QUICK_BYTES, None).await.unwrap());
        for step in 0..2 {
            assert!(limit.memory_growing(step * half, (step + 1) * half, None).await.unwrap());
        }
        assert!(!clock.is_long());
        assert!(futures::poll!(limit.memory_growing(2 * half, 3 * half, None)).is_pending());
        assert!(clock.is_long());
        assert!(futures::poll!(limit.memory_growing(3 * half, 4 * half, None)).is_ready(), "it has yielded");
        assert_eq!(metrics.deprioritized_by_memory.get(), 1);
    }
}
