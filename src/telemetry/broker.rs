//! Counters of the broker, embedded or external.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The connections of devices to an external broker.
#[derive(Clone, Debug, Default)]
pub struct ExternalBrokerMetrics {
    /// Connections that are up.
    pub connected: Gauge,
    /// Attempts that failed or were refused.
    pub connects_failed: Counter,
    /// Connections that were lost.
    pub connections_lost: Counter,
    /// Messages that were dropped: of QoS 0 without a connection, of any QoS with the session of their device.
    pub dropped: Counter,
}

impl ExternalBrokerMetrics {
    /// Shows them in a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "broker_connections",
            "Connections of devices to the external broker",
            self.connected.clone(),
        );
        for (name, help, counter) in [
            ("broker_connects_failed", "Attempts to connect that failed or were refused", &self.connects_failed),
            ("broker_connections_lost", "Connections to the external broker that were lost", &self.connections_lost),
            (
                "broker_outage_dropped",
                "Messages dropped without a connection, or with the session of their device",
                &self.dropped,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}

/// What the embedded broker has refused and dropped since its start.
#[derive(Clone, Debug, Default)]
pub struct BrokerMetrics {
    /// Messages for MQTT clients that were dropped.
    pub dropped: DroppedMessages,
    /// CONNECTs refused, by reason.
    pub connects_refused: ByReason,
    /// Connections of MQTT clients that the broker ended, by reason.
    pub disconnects: ByReason,
    /// Messages of MQTT clients that a rule denied to publish, or whose topic is malformed.
    pub publishes_denied: Counter,
    /// Subscriptions of MQTT clients that a rule denied, whose filter is malformed, or that are above a bound.
    pub subscribes_denied: Counter,
    /// Subscriptions of devices and MQTT clients that would have made matching too costly.
    pub costly_filters_refused: Counter,
    /// Retained messages that were passed on but not kept, because the store is full.
    pub retained_refused: Counter,
    /// The state on disk.
    pub journal: JournalMetrics,
}

/// The journal of the embedded broker.
#[derive(Clone, Debug, Default)]
pub struct JournalMetrics {
    /// Batches on the disk.
    pub commits: Counter,
    /// Writes that failed.
    pub write_errors: Counter,
    /// 1 while the state cannot be written.
    pub failing: Gauge,
    /// Bytes of the log.
    pub bytes: Gauge,
    /// Logs that were damaged.
    pub damaged: Counter,
}

/// Messages for MQTT clients that were dropped, by reason.
#[derive(Clone, Debug)]
pub struct DroppedMessages {
    all: Family<Label, Counter>,
    /// The client's queue is full.
    pub queue_full: Counter,
    /// The queues of all clients together are full.
    pub broker_full: Counter,
    /// QoS 0, and the client is not connected.
    pub offline: Counter,
    /// The message has expired in the queue.
    pub expired: Counter,
    /// The client takes no packet that large.
    pub oversize: Counter,
}

impl Default for DroppedMessages {
    fn default() -> Self {
        let all = Family::default();
        let of = |reason| all.get_or_create_owned(&Label { reason });
        Self {
            queue_full: of("queue_full"),
            broker_full: of("broker_full"),
            offline: of("offline"),
            expired: of("expired"),
            oversize: of("oversize"),
            all,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    reason: &'static str,
}

/// A counter for each reason.
#[derive(Clone, Debug, Default)]
pub struct ByReason(Family<Label, Counter>);

impl ByReason {
    /// Counts one.
    pub fn count(&self, reason: &'static str) {
        self.0.get_or_create(&Label { reason }).inc();
    }

    /// How many there were.
    pub fn get(&self, reason: &'static str) -> u64 {
        self.0.get_or_create(&Label { reason }).get()
    }
}

impl BrokerMetrics {
    /// Shows them in a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("broker_dropped", "Messages for MQTT clients that were dropped", self.dropped.all.clone());
        for (name, help, family) in [
            ("broker_connects_refused", "CONNECTs refused", &self.connects_refused),
            ("broker_disconnects", "Connections of MQTT clients ended by the broker", &self.disconnects),
        ] {
            registry.register(name, help, family.0.clone());
        }
        let journal = &self.journal;
        for (name, help, gauge) in [
            ("broker_journal_failing", "1 while the broker's state cannot be written", &journal.failing),
            ("broker_journal_bytes", "Bytes of the broker's state on disk", &journal.bytes),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, counter) in [
            ("broker_journal_commits", "Batches of changes that were written", &journal.commits),
            ("broker_journal_write_errors", "Writes of the broker's state that failed", &journal.write_errors),
            ("broker_journal_damaged", "Damaged states that were put aside at the start", &journal.damaged),
            ("broker_publishes_denied", "Messages of MQTT clients that were refused", &self.publishes_denied),
            ("broker_subscribes_denied", "Subscriptions of MQTT clients that were refused", &self.subscribes_denied),
            (
                "broker_costly_filters_refused",
                "Subscriptions of devices and MQTT clients that would have made matching too costly",
                &self.costly_filters_refused,
            ),
            ("broker_retained_refused", "Retained messages passed on but not kept", &self.retained_refused),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}
