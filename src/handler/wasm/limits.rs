//! Limits of guests: memory and tables of an instance, operations of an event, number of instances.
//!
//! The limit of CPU time is in [`store`](super::store), where the epoch deadline callback enforces it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use wasmtime::ResourceLimiterAsync;

use super::fairness::{EventClock, MemoryRateLimit};
use crate::conn::Refused;
use crate::telemetry::InstanceMetrics;

/// Memory growth, in bytes, above which an event is long at once: the kernel zeroes each page at its first access,
/// which for some MiB takes longer than the ticks. Four times the size of a read from a device.
pub(super) const GROWTH_QUICK_BYTES: usize = 256 << 10;

/// Maximum number of elements in all tables of one instance. Tables hold function references; guests have a few
/// hundred.
const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Maximum number of core instances in one instance of a guest. Linked libraries add some: a Python guest has 38. Each
/// takes host memory that the guest's memory limit does not count.
const CORE_INSTANCES_MAX: usize = 200;

/// Maximum number of tables of one instance. Libraries share one; their linking module has another.
const TABLES_MAX: usize = 100;

/// Maximum number of linear memories of one instance: each takes a slot or mappings, whatever its length. Known guests
/// have up to three.
const MEMORIES_MAX: usize = 8;

/// Mappings of one instance on the large engine: its memory and stack, with their guards.
const MAPPINGS_PER_INSTANCE: usize = 7;

/// The kernel's default of `vm.max_map_count`, for systems where it cannot be read.
const MAPPINGS_MAX_DEFAULT: usize = 65_530;

/// Limits of the operations of one event. Operations beyond them, caused by a hostile device or a bug of the guest, are
/// refused; the guest continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventBudget {
    /// Maximum number of published messages.
    pub publishes_max: u32,
    /// Maximum number of bytes sent to the peer.
    pub sent_bytes_max: usize,
    /// Maximum number of log lines.
    pub log_lines_max: u32,
}

impl Default for EventBudget {
    /// More than the operations for a read of 64 KiB full of minimal frames.
    fn default() -> Self {
        Self { publishes_max: 10_000, sent_bytes_max: 16 << 20, log_lines_max: 100 }
    }
}

/// The part of the [`EventBudget`] that the current event has used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BudgetUsed {
    publishes: u32,
    sent_bytes: usize,
    log_lines: u32,
}

impl BudgetUsed {
    /// Charges one message.
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

    /// Charges sent bytes.
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

    /// Charges one log line; `false` beyond the budget.
    pub(super) fn log(&mut self, budget: &EventBudget) -> bool {
        let is_within_budget = self.log_lines < budget.log_lines_max;
        self.log_lines += u32::from(is_within_budget);
        is_within_budget
    }
}

/// Limits linear memory and tables of one instance (wasmtime's resource limiter), and updates the memory gauges.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    bytes_max: usize,
    bytes: usize,
    table_elements: usize,
    /// A growth was refused; reported with the trap that usually follows.
    pub(super) exceeded: bool,
    /// Whether the instantiation is over. Initial memory does not count as growth: the guest has not touched its pages.
    is_instantiated: bool,
    /// Memory growth during the current event, in bytes.
    event_growth: usize,
    /// The part of `event_growth` that was charged to the memory rate limit.
    charged: usize,
    clock: Arc<EventClock>,
    memory_rate: Arc<MemoryRateLimit>,
    metrics: InstanceMetrics,
}

impl MemoryLimit {
    /// `clock` is the event clock of the instance, `memory_rate` the memory rate limit of its handler.
    pub(super) fn new(
        bytes_max: usize,
        clock: Arc<EventClock>,
        memory_rate: Arc<MemoryRateLimit>,
        metrics: InstanceMetrics,
    ) -> Self {
        let (is_instantiated, exceeded) = (false, false);
        Self {
            bytes_max,
            bytes: 0,
            table_elements: 0,
            exceeded,
            is_instantiated,
            event_growth: 0,
            charged: 0,
            clock,
            memory_rate,
            metrics,
        }
    }

    pub(super) fn handle_instantiated(&mut self) {
        self.is_instantiated = true;
    }

    /// Resets the growth of the last event.
    pub(super) fn begin_event(&mut self) {
        self.event_growth = 0;
        self.charged = 0;
    }

    /// Linear memory of the instance, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a memory may grow; counts an allowed growth.
    fn grow_memory(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> bool {
        if is_beyond(desired, maximum) {
            return false;
        }
        let growth = desired.saturating_sub(current);
        let bytes = self.bytes.saturating_add(growth);
        if bytes > self.bytes_max {
            self.exceeded = true;
            return false;
        }
        self.bytes = bytes;
        if self.is_instantiated {
            self.event_growth = self.event_growth.saturating_add(growth);
        }
        self.metrics.memory_bytes.inc_by(gauge(growth));
        true
    }

    /// Whether a table may grow; counts an allowed growth.
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

/// The limits hold for the total of all memories and tables of the instance. A large growth makes the event long: it
/// yields before it gets the memory. If the event is subject to the memory rate limit, the growth waits for it.
#[async_trait]
impl ResourceLimiterAsync for MemoryLimit {
    async fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let is_allowed = self.grow_memory(current, desired, maximum);
        if is_allowed && self.event_growth > GROWTH_QUICK_BYTES {
            if self.clock.waits() {
                let uncharged = self.event_growth - std::mem::replace(&mut self.charged, self.event_growth);
                if self.clock.take(&self.memory_rate, uncharged).await {
                    self.metrics.memory_waits.inc();
                }
            } else if !self.clock.is_long() {
                self.metrics.deprioritized_by_memory.inc();
                Arc::clone(&self.clock).yield_now().await;
            }
        }
        Ok(is_allowed)
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

/// Whether the guest's declared maximum forbids the growth. Wasmtime checks the maximum only after the limiter, which
/// would have counted the growth by then.
fn is_beyond(desired: usize, maximum: Option<usize>) -> bool {
    maximum.is_some_and(|maximum| desired > maximum)
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The resource that limits the number of instances.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// The kernel's limit of mappings in a process.
    ///
    /// At that limit not only the next instance fails, but possibly also the next allocation of the gateway, which
    /// would end the process. The instance limit is therefore well below.
    Mappings,
    /// The slots reserved at startup.
    Slots,
}

/// Maximum number of live instances on one engine, and their current number.
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

    /// A permit for one instance.
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

/// The instance limit is reached; with the number of live instances.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstanceLimitReached {
    #[error("instance limit of the large engine reached: {0} live instances, limited by vm.max_map_count")]
    Mappings(usize),
    #[error("instance limit of the small engine reached: {0} live instances, limited by reserved slots")]
    Slots(usize),
}

/// Permit for one instance; dropping it returns the permit.
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

    /// The budget is exact to the last message, byte and line; a send beyond it is refused as a whole.
    #[test]
    fn the_event_budget_is_exact() {
        let budget = EventBudget { publishes_max: 2, sent_bytes_max: 10, log_lines_max: 1 };
        let mut budget_used = BudgetUsed::default();
        assert_eq!([(); 3].map(|()| budget_used.publish(&budget).is_ok()), [true, true, false]);
        assert_eq!([8, 3, 2, 1].map(|bytes| budget_used.send(bytes, &budget).is_ok()), [true, false, true, false]);
        assert_eq!([(); 2].map(|()| budget_used.log(&budget)), [true, false]);
        assert!(budget_used.send(usize::MAX, &budget).is_err());
    }

    /// The second instance gets no permit while the first is live, and gets one after its drop.
    #[test]
    fn instances_are_limited() {
        let metrics = Telemetry::new().instances(&"guest".into());
        for (bound, reason) in [(Bound::Mappings, "vm.max_map_count"), (Bound::Slots, "reserved slots")] {
            let instance_limit = InstanceLimit::new(1, bound);
            let first = instance_limit.permit(&metrics).unwrap();
            let reached = instance_limit.permit(&metrics).unwrap_err().to_string();
            assert!(reached.contains("reached: 1 live") && reached.contains(reason), "{reached}");
            assert_eq!(metrics.live.get(), 1);
            drop(first);
            assert_eq!(metrics.live.get(), 0);
            drop(instance_limit.permit(&metrics).unwrap());
        }
    }

    /// Growth beyond the guest's declared maximum fails in wasmtime and is not counted.
    #[test]
    fn growth_beyond_the_declared_maximum_is_not_counted() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let mut limit = limit(100, &metrics);
        for _ in 0..10 {
            assert!(!limit.grow_memory(0, 30, Some(20)));
            assert!(!limit.grow_table(0, 30_000, Some(20)));
        }
        assert!(!limit.exceeded, "the limiter has refused no growth");
        assert_eq!(metrics.memory_bytes.get(), 0);
        assert!(limit.grow_memory(0, 20, Some(20)));
        assert!(limit.grow_table(0, 20, Some(20)));
    }

    /// A guest with too many core instances, tables or memories is not instantiated.
    #[tokio::test]
    async fn parts_of_an_instance_are_limited() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let engine = Engine::default();
        let instantiate = async |part: &str, count: usize| {
            let instances = "(core instance (instantiate 0))".repeat(count);
            let text = format!("(component (core module {part}) {instances})");
            let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
            let mut store = Store::new(&engine, limit(1 << 20, &metrics));
            store.limiter_async(|limit| limit);
            let instance = Linker::new(&engine).instantiate_async(&mut store, &component).await;
            instance.map(drop).map_err(|error| format!("{error:#}"))
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

    /// The total of all memories grows to the limit and not beyond; the gauge follows and returns to zero.
    #[test]
    fn memory_is_limited() {
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

    /// An event is long once its growth exceeds [`GROWTH_QUICK_BYTES`], in any number of steps, and yields once;
    /// initial memory and refused growth do not count.
    #[tokio::test]
    async fn a_large_growth_makes_an_event_long() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let clock = Arc::<EventClock>::default();
        let memory_rate = Arc::new(MemoryRateLimit::new());
        let mut limit = MemoryLimit::new(8 * GROWTH_QUICK_BYTES, Arc::clone(&clock), memory_rate, metrics.clone());
        assert!(limit.memory_growing(0, 4 * GROWTH_QUICK_BYTES, None).await.unwrap());
        limit.handle_instantiated();
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
