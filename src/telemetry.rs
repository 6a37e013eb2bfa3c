//! Telemetry: log set-up, and every metric with its name, once.
//!
//! Other modules hold handles to their counters, resolved when a listener or a handler is built, so that no event looks
//! up a label.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::byte_budget::ByteBudget;
use crate::conn::registry::DroppedMessages;
mod broker;
mod line_format;
mod log;
mod log_limit;
mod logins;

pub(crate) use broker::{BrokerMetrics, ExternalBrokerMetrics, JournalMetrics};
pub use log::{LogFormat, start_log};
pub(crate) use log_limit::{LogBudget, LogDecision, LogLimiter, lines_in};
pub(crate) use logins::LoginMetrics;

/// Log target of the bytes between devices and handlers, at level trace only. Payloads may contain passwords of
/// devices.
pub(crate) const PAYLOAD_LOG: &str = "polygate::payload";

/// Upper bounds of the buckets of event durations, in seconds: from one call into a guest to a hanging server.
const EVENT_SECONDS: [f64; 12] = [0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    listener: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    listener: Arc<str>,
    handler: Arc<str>,
    event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabel {
    listener: Arc<str>,
    handler: Arc<str>,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandlerLabel {
    handler: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeprioritizedLabel {
    handler: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    handler: Arc<str>,
    version: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwapLabel {
    handler: Arc<str>,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    listener: Arc<str>,
    handler: Arc<str>,
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
    code: &'static str,
}

#[derive(Clone)]
struct EventSeconds;

impl MetricConstructor<Histogram> for EventSeconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(EVENT_SECONDS)
    }
}

/// All metrics of one gateway.
#[derive(Clone)]
pub struct Telemetry {
    registry: Arc<Mutex<Registry>>,
    connections: Family<ListenerLabel, Gauge>,
    accepted: Family<ListenerLabel, Counter>,
    accept_errors: Family<ListenerLabel, Counter>,
    rejected: Family<ReasonLabel, Counter>,
    closes: Family<ReasonLabel, Counter>,
    received_bytes: Family<ListenerLabel, Counter>,
    sent_bytes: Family<ListenerLabel, Counter>,
    published: Family<ListenerLabel, Counter>,
    delivered: Family<ListenerLabel, Counter>,
    unframed_bytes: Family<ListenerLabel, Counter>,
    inbound_queue_bytes: Family<ListenerLabel, Gauge>,
    outbound_queue_bytes: Family<ListenerLabel, Gauge>,
    queued_messages: Family<ListenerLabel, Gauge>,
    dropped: Family<ReasonLabel, Counter>,
    throttled_reads: Family<ListenerLabel, Counter>,
    event_seconds: Family<EventLabel, Histogram, EventSeconds>,
    failures: Family<FailureLabel, Counter>,
    undelivered: Family<EventLabel, Counter>,
    recoveries: Family<ActionLabel, Counter>,
    healthy: Family<HandlerLabel, Gauge>,
    breaker_opened: Family<HandlerLabel, Counter>,
    moved: Family<HandlerLabel, Counter>,
    pinned: Family<HandlerLabel, Counter>,
    shadow_events: Family<HandlerLabel, Counter>,
    shadow_differences: Family<HandlerLabel, Counter>,
    versions: Family<HandlerLabel, Gauge>,
    version_connections: Family<VersionLabel, Gauge>,
    active_version: Family<HandlerLabel, Gauge>,
    swaps: Family<SwapLabel, Counter>,
    instances: Family<HandlerLabel, Gauge>,
    instance_memory_bytes: Family<HandlerLabel, Gauge>,
    suppressed_log_lines: Family<HandlerLabel, Counter>,
    memory_waits: Family<HandlerLabel, Counter>,
    deprioritized: Family<DeprioritizedLabel, Counter>,
    adapter_calls: Family<OperationLabel, Counter>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// Registers every metric.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("polygate");
        let connections = Family::default();
        registry.register("connections", "Live connections", connections.clone());
        let accepted = Family::default();
        registry.register("accepted_connections", "Connections accepted", accepted.clone());
        let accept_errors = Family::default();
        registry.register("accept_errors", "Accepts that failed and were retried", accept_errors.clone());
        let rejected = Family::default();
        registry.register(
            "connections_rejected",
            "Peers rejected before they got a connection, by reason",
            rejected.clone(),
        );
        let closes = Family::default();
        registry.register("closes", "Connections closed, by reason", closes.clone());
        let received_bytes = Family::default();
        registry.register_with_unit("received", "Bytes from devices", Unit::Bytes, received_bytes.clone());
        let sent_bytes = Family::default();
        registry.register_with_unit("sent", "Bytes to devices", Unit::Bytes, sent_bytes.clone());
        let published = Family::default();
        registry.register("published_messages", "Messages published by devices", published.clone());
        let delivered = Family::default();
        registry.register("delivered_messages", "Messages delivered to handlers", delivered.clone());
        let unframed_bytes = Family::default();
        registry.register_with_unit("unframed", "Bytes from devices in no frame", Unit::Bytes, unframed_bytes.clone());
        let inbound_queue_bytes = Family::default();
        registry.register_with_unit(
            "inbound_queue",
            "Bytes read from devices that wait for a handler",
            Unit::Bytes,
            inbound_queue_bytes.clone(),
        );
        let outbound_queue_bytes = Family::default();
        registry.register_with_unit(
            "outbound_queue",
            "Bytes for devices that wait for the socket",
            Unit::Bytes,
            outbound_queue_bytes.clone(),
        );
        let queued_messages = Family::default();
        registry.register("queued_messages", "Messages for devices that wait for a handler", queued_messages.clone());
        let dropped = Family::default();
        registry.register("dropped", "Datagrams, flows and messages dropped, by reason", dropped.clone());
        let throttled_reads = Family::default();
        registry.register(
            "reads_throttled",
            "Reads after which a stream was throttled by its rate limit",
            throttled_reads.clone(),
        );
        let event_seconds = Family::new_with_constructor(EventSeconds);
        registry.register_with_unit("event", "Duration of events at a handler", Unit::Seconds, event_seconds.clone());
        let failures = Family::default();
        registry.register("handler_failures", "Events that failed at a handler, by kind", failures.clone());
        let undelivered = Family::default();
        registry.register("undelivered_events", "Events that were delivered to no handler", undelivered.clone());
        let recoveries = Family::default();
        registry.register("recoveries", "Recoveries from failures of a handler, by action", recoveries.clone());
        let healthy = Family::default();
        registry.register("handler_healthy", "Whether a handler gets new connections", healthy.clone());
        let breaker_opened = Family::default();
        registry.register(
            "handler_breaker_opened",
            "Times that the circuit breaker of a handler opened",
            breaker_opened.clone(),
        );
        let moved = Family::default();
        registry.register("moved_connections", "Connections migrated to another version", moved.clone());
        let pinned = Family::default();
        registry.register(
            "pinned_connections",
            "Connections that could not migrate to another version",
            pinned.clone(),
        );
        let shadow_events = Family::default();
        registry.register("shadow_events", "Events of a shadow version", shadow_events.clone());
        let shadow_differences = Family::default();
        registry.register(
            "shadow_differences",
            "Events with which a shadow version failed or differed from the active version",
            shadow_differences.clone(),
        );
        let versions = Family::default();
        registry.register("handler_versions", "Versions of a handler in memory", versions.clone());
        let version_connections = Family::default();
        registry.register(
            "handler_version_connections",
            "Live connections of a version of a handler",
            version_connections.clone(),
        );
        let active_version = Family::default();
        registry.register("handler_active_version", "The version that serves new connections", active_version.clone());
        let swaps = Family::default();
        registry.register("handler_swaps", "Requested changes of a handler, by result", swaps.clone());
        let instances = Family::default();
        registry.register("instances", "Live instances of a guest", instances.clone());
        let instance_memory_bytes = Family::default();
        registry.register_with_unit(
            "instance_memory",
            "Linear memory of all live instances of a guest",
            Unit::Bytes,
            instance_memory_bytes.clone(),
        );
        let memory_waits = Family::default();
        registry.register(
            "guest_memory_waits",
            "Times that an event waited for memory, because its failing handler had used up its memory rate",
            memory_waits.clone(),
        );
        let suppressed_log_lines = Family::default();
        registry.register(
            "guest_log_lines_suppressed",
            "Log lines of guests that were suppressed",
            suppressed_log_lines.clone(),
        );
        let deprioritized = Family::default();
        registry.register(
            "guest_events_deprioritized",
            "Events of guests that continued in threads of low priority",
            deprioritized.clone(),
        );
        let adapter_calls = Family::default();
        registry.register("adapter_calls", "Calls of the gRPC adapter, by result", adapter_calls.clone());

        Self {
            registry: Arc::new(Mutex::new(registry)),
            connections,
            accepted,
            accept_errors,
            rejected,
            closes,
            received_bytes,
            sent_bytes,
            published,
            delivered,
            unframed_bytes,
            inbound_queue_bytes,
            outbound_queue_bytes,
            queued_messages,
            dropped,
            throttled_reads,
            event_seconds,
            failures,
            undelivered,
            recoveries,
            healthy,
            breaker_opened,
            moved,
            pinned,
            shadow_events,
            shadow_differences,
            versions,
            version_connections,
            active_version,
            swaps,
            instances,
            instance_memory_bytes,
            suppressed_log_lines,
            memory_waits,
            deprioritized,
            adapter_calls,
        }
    }

    /// Metrics in the OpenMetrics text format 1.0, as scraped by Prometheus.
    ///
    /// # Errors
    ///
    /// A label could not be written.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.lock())?;
        Ok(page)
    }

    /// Shows the counters that the embedded broker keeps.
    pub fn broker(&self, metrics: &BrokerMetrics) {
        metrics.register(&mut self.lock());
    }

    /// Shows the counters of the connections to an external broker.
    pub fn external_broker(&self, metrics: &ExternalBrokerMetrics) {
        metrics.register(&mut self.lock());
    }

    /// Registers the gauge of the bytes in the queues of all connections.
    pub fn queued_bytes(&self, queued: &Arc<ByteBudget>) {
        self.lock().register_collector(Box::new(QueuedBytes(Arc::clone(queued))));
    }

    /// Registers the counters of logins.
    pub fn logins(&self, metrics: &LoginMetrics) {
        metrics.register(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // A panic while rendering leaves the registry intact: it is only read there.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Metrics of one listener.
    pub fn listener(&self, name: &Arc<str>) -> ListenerMetrics {
        let label = ListenerLabel { listener: Arc::clone(name) };
        ListenerMetrics {
            connections: self.connections.get_or_create_owned(&label),
            accepted: self.accepted.get_or_create_owned(&label),
            accept_errors: self.accept_errors.get_or_create_owned(&label),
            received_bytes: self.received_bytes.get_or_create_owned(&label),
            sent_bytes: self.sent_bytes.get_or_create_owned(&label),
            published: self.published.get_or_create_owned(&label),
            delivered: self.delivered.get_or_create_owned(&label),
            unframed_bytes: self.unframed_bytes.get_or_create_owned(&label),
            inbound_queue_bytes: self.inbound_queue_bytes.get_or_create_owned(&label),
            outbound_queue_bytes: self.outbound_queue_bytes.get_or_create_owned(&label),
            queued_messages: self.queued_messages.get_or_create_owned(&label),
            messages_dropped: DroppedMessages {
                full: self.shed(name, "messages_full"),
                over_budget: self.shed(name, "queued_bytes_full"),
            },
            throttled_reads: self.throttled_reads.get_or_create_owned(&label),
            rejected: self.rejected.clone(),
            dropped: self.dropped.clone(),
            closes: self.closes.clone(),
            listener: Arc::clone(name),
        }
    }

    /// Counter of items dropped by a listener for this reason.
    fn shed(&self, listener: &Arc<str>, reason: &'static str) -> Counter {
        self.dropped.get_or_create_owned(&ReasonLabel { listener: Arc::clone(listener), reason })
    }

    /// Metrics of one handler under one listener.
    pub fn handler(&self, listener: &Arc<str>, handler: &Arc<str>) -> HandlerMetrics {
        let seconds = |event| {
            self.event_seconds.get_or_create_owned(&EventLabel {
                listener: Arc::clone(listener),
                handler: Arc::clone(handler),
                event,
            })
        };
        HandlerMetrics {
            created: seconds("on_socket_created"),
            bytes: seconds("on_received_bytes"),
            timer: seconds("on_timer_timeout"),
            messages: seconds("on_received_messages"),
            closed: seconds("on_socket_closed"),
            failures: self.failures.clone(),
            undelivered: self.undelivered.clone(),
            recoveries: self.recoveries.clone(),
            listener: Arc::clone(listener),
            handler: Arc::clone(handler),
        }
    }

    /// Health metrics of one handler.
    pub fn health(&self, handler: &Arc<str>) -> HealthMetrics {
        let label = HandlerLabel { handler: Arc::clone(handler) };
        HealthMetrics {
            healthy: self.healthy.get_or_create_owned(&label),
            breaker_opened: self.breaker_opened.get_or_create_owned(&label),
            moved: self.moved.get_or_create_owned(&label),
            pinned: self.pinned.get_or_create_owned(&label),
            shadow_events: self.shadow_events.get_or_create_owned(&label),
            shadow_differences: self.shadow_differences.get_or_create_owned(&label),
        }
    }

    /// Metrics of one version of a handler.
    pub fn version(&self, handler: &Arc<str>, version: u32) -> VersionMetrics {
        let label = VersionLabel { handler: Arc::clone(handler), version };
        VersionMetrics {
            loaded: self.versions.get_or_create_owned(&HandlerLabel { handler: Arc::clone(handler) }),
            connections: self.version_connections.get_or_create_owned(&label),
            all_connections: self.version_connections.clone(),
            label,
        }
    }

    /// Sets the active version.
    pub fn activated(&self, handler: &Arc<str>, version: u32) {
        let label = HandlerLabel { handler: Arc::clone(handler) };
        self.active_version.get_or_create(&label).set(version.into());
    }

    /// Counts a change of a handler, by result.
    pub fn swapped(&self, handler: &Arc<str>, result: &'static str) {
        self.swaps.get_or_create(&SwapLabel { handler: Arc::clone(handler), result }).inc();
    }

    /// Metrics of one guest's instances.
    pub fn instances(&self, handler: &Arc<str>) -> InstanceMetrics {
        let label = HandlerLabel { handler: Arc::clone(handler) };
        let deprioritized = |reason| {
            self.deprioritized.get_or_create_owned(&DeprioritizedLabel { handler: Arc::clone(handler), reason })
        };
        InstanceMetrics {
            live: self.instances.get_or_create_owned(&label),
            memory_bytes: self.instance_memory_bytes.get_or_create_owned(&label),
            suppressed_log_lines: self.suppressed_log_lines.get_or_create_owned(&label),
            memory_waits: self.memory_waits.get_or_create_owned(&label),
            deprioritized_by_time: deprioritized("time"),
            deprioritized_by_memory: deprioritized("memory"),
            deprioritized_by_failures: deprioritized("suspicion"),
        }
    }

    /// Counts one call of the gRPC adapter.
    pub fn adapter_called(&self, operation: &'static str, code: &'static str) {
        self.adapter_calls.get_or_create(&OperationLabel { operation, code }).inc();
    }
}

/// Metrics of one listener.
#[derive(Clone, Debug)]
pub struct ListenerMetrics {
    pub connections: Gauge,
    pub accepted: Counter,
    /// Accepts that failed and were retried.
    pub accept_errors: Counter,
    pub received_bytes: Counter,
    pub sent_bytes: Counter,
    /// Messages published by devices.
    pub published: Counter,
    /// Messages delivered to handlers.
    pub delivered: Counter,
    /// Bytes from devices that are in no frame of the listener's framing.
    pub unframed_bytes: Counter,
    /// Bytes read from devices that wait for a handler.
    pub inbound_queue_bytes: Gauge,
    /// Bytes for devices that wait for the socket.
    pub outbound_queue_bytes: Gauge,
    /// Messages for devices that wait for a handler.
    pub queued_messages: Gauge,
    /// Messages for devices that were dropped.
    pub messages_dropped: DroppedMessages,
    /// Reads after which a stream was throttled by its rate limit.
    pub throttled_reads: Counter,
    rejected: Family<ReasonLabel, Counter>,
    dropped: Family<ReasonLabel, Counter>,
    closes: Family<ReasonLabel, Counter>,
    listener: Arc<str>,
}

/// Gauge whose value is read when the page is made.
#[derive(Debug)]
struct QueuedBytes(Arc<ByteBudget>);

impl Collector for QueuedBytes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from(self.0.used()).unwrap_or(i64::MAX));
        let help = "Bytes in the queues of all connections, bounded by queued_bytes_max";
        let metric = encoder.encode_descriptor("queued_bytes", help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

impl ListenerMetrics {
    /// Counts a peer rejected before it got a connection.
    pub fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&self.reason(reason)).inc();
    }

    /// Counts one dropped item, such as a datagram.
    pub fn shed(&self, reason: &'static str) {
        self.dropped.get_or_create(&self.reason(reason)).inc();
    }

    /// Counts several dropped items.
    pub fn dropped(&self, reason: &'static str, count: u64) {
        if count > 0 {
            self.dropped.get_or_create(&self.reason(reason)).inc_by(count);
        }
    }

    fn reason(&self, reason: &'static str) -> ReasonLabel {
        ReasonLabel { listener: Arc::clone(&self.listener), reason }
    }

    /// Counts a closed connection.
    pub fn closed(&self, reason: &'static str) {
        self.closes.get_or_create(&self.reason(reason)).inc();
    }
}

/// Metrics of one handler under one listener.
#[derive(Clone, Debug)]
pub struct HandlerMetrics {
    created: Histogram,
    bytes: Histogram,
    timer: Histogram,
    messages: Histogram,
    closed: Histogram,
    failures: Family<FailureLabel, Counter>,
    undelivered: Family<EventLabel, Counter>,
    recoveries: Family<ActionLabel, Counter>,
    listener: Arc<str>,
    handler: Arc<str>,
}

impl HandlerMetrics {
    /// The histogram of an event's durations, by the event's name; unknown names count as bytes.
    pub fn seconds(&self, event: &'static str) -> &Histogram {
        match event {
            "on_socket_created" => &self.created,
            "on_timer_timeout" => &self.timer,
            "on_received_messages" => &self.messages,
            "on_socket_closed" => &self.closed,
            _ => &self.bytes,
        }
    }

    /// Counts a failed event.
    pub fn failed(&self, kind: &'static str) {
        let label = FailureLabel { listener: Arc::clone(&self.listener), handler: Arc::clone(&self.handler), kind };
        self.failures.get_or_create(&label).inc();
    }

    /// Counts a recovery action.
    pub fn recovered(&self, action: &'static str) {
        let label = ActionLabel { listener: Arc::clone(&self.listener), handler: Arc::clone(&self.handler), action };
        self.recoveries.get_or_create(&label).inc();
    }

    /// Counts an event that was delivered to no handler.
    pub fn undelivered(&self, event: &'static str) {
        let label = EventLabel { listener: Arc::clone(&self.listener), handler: Arc::clone(&self.handler), event };
        self.undelivered.get_or_create(&label).inc();
    }
}

/// Health metrics of one handler.
#[derive(Clone, Debug)]
pub struct HealthMetrics {
    /// 1 while it gets new connections, else 0.
    pub healthy: Gauge,
    /// Times that its circuit breaker opened.
    pub breaker_opened: Counter,
    /// Connections migrated to another version.
    pub moved: Counter,
    /// Connections that could not migrate.
    pub pinned: Counter,
    /// Events of its shadow version.
    pub shadow_events: Counter,
    /// Those with which the shadow version failed or differed from the active version.
    pub shadow_differences: Counter,
}

/// Metrics of one version of a handler. Its own label is removed on drop.
#[derive(Debug)]
pub struct VersionMetrics {
    /// Versions of the handler in memory.
    pub loaded: Gauge,
    /// Live connections of this version.
    pub connections: Gauge,
    all_connections: Family<VersionLabel, Gauge>,
    label: VersionLabel,
}

impl Drop for VersionMetrics {
    fn drop(&mut self) {
        self.all_connections.remove(&self.label);
    }
}

/// Metrics of one guest's instances.
#[derive(Clone, Debug)]
pub struct InstanceMetrics {
    pub live: Gauge,
    /// Linear memory of all of them.
    pub memory_bytes: Gauge,
    /// Log lines suppressed by the rate limit of an instance.
    pub suppressed_log_lines: Counter,
    /// Events continued in threads of low priority because of their CPU time.
    pub deprioritized_by_time: Counter,
    /// The same because of their memory.
    pub deprioritized_by_memory: Counter,
    /// Events that started in threads of low priority, because the handler keeps failing.
    pub deprioritized_by_failures: Counter,
    /// Times that such an event waited for memory, because the failing handler had used up its memory rate.
    pub memory_waits: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/operations.md lists every metric.
    #[test]
    fn every_metric_is_documented() {
        let telemetry = Telemetry::new();
        telemetry.broker(&BrokerMetrics::default());
        telemetry.external_broker(&ExternalBrokerMetrics::default());
        let documented = include_str!("../docs/operations.md");
        let page = telemetry.render().unwrap();
        let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        for (name, kind) in names {
            let suffix = if kind == "counter" { "_total" } else { "" };
            assert!(documented.contains(&format!("`{name}{suffix}`")), "{name}{suffix} is not in docs/operations.md");
        }
    }
}
