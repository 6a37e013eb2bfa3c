//! Versions of one configured handler: the active one, the one on trial, the old ones, and the connections of each.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::health::Health;
use super::recovery::Policy;
use crate::conn::{ConnId, Event};
use crate::handler::{CallError, Handler};
use crate::percent::Percent;
use crate::telemetry::{HealthMetrics, VersionMetrics};

/// One loaded build of a handler, and its connections.
#[derive(Debug)]
pub struct Version {
    number: u32,
    handler: Handler,
    policy: Policy,
    members: Mutex<HashSet<ConnId>>,
    events: AtomicU64,
    failures: AtomicU64,
    /// Notified at each failure.
    failed: Notify,
    metrics: VersionMetrics,
}

impl Version {
    /// A version without connections. Numbers start at 1 and grow.
    pub fn new(number: u32, handler: Handler, policy: Policy, metrics: VersionMetrics) -> Arc<Self> {
        metrics.loaded.inc();
        Arc::new(Self {
            number,
            handler,
            policy,
            members: Mutex::default(),
            events: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            failed: Notify::new(),
            metrics,
        })
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    pub fn handler(&self) -> &Handler {
        &self.handler
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Number of its connections.
    pub fn connections(&self) -> usize {
        self.members.lock().len()
    }

    /// Its connections.
    pub fn members(&self) -> Vec<ConnId> {
        self.members.lock().iter().copied().collect()
    }

    /// Counts an event.
    pub fn count(&self, succeeded: bool) {
        self.events.fetch_add(1, Ordering::Relaxed);
        if !succeeded {
            self.failures.fetch_add(1, Ordering::Relaxed);
            self.failed.notify_one();
        }
    }

    /// Waits for the next failure since the last return. One waiter at a time.
    pub async fn failure(&self) {
        self.failed.notified().await;
    }

    /// Number of events, and of failed ones.
    pub fn outcomes(&self) -> (u64, u64) {
        (self.events.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// Adds a connection; it is removed when the membership is dropped.
    pub fn enter(self: &Arc<Self>, conn: ConnId) -> Membership {
        self.members.lock().insert(conn);
        self.metrics.connections.inc();
        Membership { version: Arc::clone(self), conn }
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        self.metrics.loaded.dec();
        tracing::debug!(handler = %self.handler.name(), version = self.number, "version unloaded");
    }
}

/// Membership of a connection in a version.
#[derive(Debug)]
pub struct Membership {
    version: Arc<Version>,
    conn: ConnId,
}

impl Membership {
    pub fn version(&self) -> &Arc<Version> {
        &self.version
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.version.members.lock().remove(&self.conn);
        self.version.metrics.connections.dec();
    }
}

/// Action for the connections of an inactive version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldConnections {
    /// Keep their version until they close.
    Keep,
    /// Migrate to the active version if their state can be carried over; else keep their version.
    Move,
    /// Close.
    End,
}

/// Action for one connection.
#[derive(Clone, Debug)]
pub enum Placement {
    /// Keep its version.
    Keep,
    /// Migrate to this version.
    Move(Arc<Version>),
    /// Close, so that the device reconnects.
    End,
}

impl PartialEq for Placement {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Keep, Self::Keep) | (Self::End, Self::End) => true,
            (Self::Move(to), Self::Move(other)) => Arc::ptr_eq(to, other),
            (Self::Keep | Self::Move(_) | Self::End, _) => false,
        }
    }
}

/// A version on trial, before it becomes active.
#[derive(Clone, Debug)]
pub struct Trial {
    pub version: Arc<Version>,
    pub how: TrialKind,
}

/// Kind of trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialKind {
    /// It serves this percentage of the new connections.
    Canary(Percent),
    /// It gets the events of new connections beside the active version, without effects; differences are counted.
    Shadow,
}

/// Assignment of connections to versions.
#[derive(Clone, Debug)]
pub struct Plan {
    pub active: Arc<Version>,
    /// Action for the connections of other versions.
    pub others: OldConnections,
    pub trial: Option<Trial>,
}

#[derive(Debug)]
pub struct Versions {
    name: Arc<str>,
    plan: ArcSwap<Plan>,
    /// Versions that may still be loaded.
    loaded: Mutex<Vec<Weak<Version>>>,
    /// Counts new connections, for the canary percentage.
    counter: AtomicU32,
    health: Health,
    metrics: HealthMetrics,
}

impl Versions {
    /// A handler with its first version.
    pub fn new(first: Arc<Version>, metrics: HealthMetrics) -> Arc<Self> {
        let name = Arc::clone(first.handler().name());
        let loaded = Mutex::new(vec![Arc::downgrade(&first)]);
        let plan = ArcSwap::from_pointee(Plan { active: first, others: OldConnections::Keep, trial: None });
        Arc::new(Self { name, plan, loaded, counter: AtomicU32::new(0), health: Health::new(metrics.clone()), metrics })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn plan(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// The version that serves new connections.
    pub fn active(&self) -> Arc<Version> {
        Arc::clone(&self.plan.load().active)
    }

    /// Sets the plan. New connections follow it at once, existing ones when
    /// [`ConnectionMigrator`](super::ConnectionMigrator) asks them to.
    pub fn follow(&self, plan: Plan) {
        {
            let mut loaded = self.loaded.lock();
            loaded.retain(|version| version.strong_count() > 0);
            for version in [Some(&plan.active), plan.trial.as_ref().map(|trial| &trial.version)].into_iter().flatten() {
                let known = Arc::downgrade(version);
                if !loaded.iter().any(|other| other.ptr_eq(&known)) {
                    loaded.push(known);
                }
            }
        }
        self.plan.store(Arc::new(plan));
    }

    /// All versions in memory, oldest first.
    pub fn loaded(&self) -> Vec<Arc<Version>> {
        self.loaded.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Assigns a new connection to a version.
    pub fn enter(&self, conn: ConnId) -> Membership {
        loop {
            let plan = self.plan.load();
            let version = match &plan.trial {
                Some(Trial { version, how: TrialKind::Canary(percent) })
                    if percent.has(self.counter.fetch_add(1, Ordering::Relaxed)) =>
                {
                    version
                }
                Some(_) | None => &plan.active,
            };
            let membership = version.enter(conn);
            // After a change of the plan, the members of each version are asked to migrate. A connection that was not
            // yet a member at that moment sees the change here.
            if Arc::ptr_eq(&plan, &self.plan.load()) {
                return membership;
            }
        }
    }

    /// The action for a connection of this version.
    pub fn placement(&self, current: &Arc<Version>) -> Placement {
        let plan = self.plan.load();
        let is_tried = plan.trial.as_ref().is_some_and(|trial| Arc::ptr_eq(&trial.version, current));
        if is_tried || Arc::ptr_eq(&plan.active, current) {
            return Placement::Keep;
        }
        match plan.others {
            OldConnections::Keep => Placement::Keep,
            OldConnections::Move => Placement::Move(Arc::clone(&plan.active)),
            OldConnections::End => Placement::End,
        }
    }

    /// Number of connections of this version that must migrate or close.
    pub fn misplaced(&self, version: &Arc<Version>) -> usize {
        if self.placement(version) == Placement::Keep { 0 } else { version.connections() }
    }

    /// Whether new connections may use it.
    pub fn is_healthy(&self) -> bool {
        self.health.is_good()
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Counts a migrated connection.
    pub fn moved(&self) {
        self.metrics.moved.inc();
    }

    /// Counts an event of a shadow version, and whether its commands were the same.
    pub fn compared(&self, same: bool) {
        self.metrics.shadow_events.inc();
        if !same {
            self.metrics.shadow_differences.inc();
        }
    }

    /// Counts a connection that could not migrate.
    pub fn pinned(&self) {
        self.metrics.pinned.inc();
    }

    /// Reports the result of an event at one of the versions.
    ///
    /// Success of the first and the last event of a connection counts no more than a probe. Otherwise a handler that
    /// fails on every event in between would never open the breaker, because each new connection starts well.
    pub fn report(self: &Arc<Self>, version: &Version, event: &Event, result: &Result<(), CallError>) {
        version.count(result.is_ok());
        match (result, event) {
            (Err(error), _) => self.failed(error),
            (Ok(()), Event::SocketCreated(_) | Event::SocketClosed(_)) => {}
            (Ok(()), Event::ReceivedBytes(_) | Event::ReceivedMessages(_) | Event::TimerTimeout(_)) => {
                self.health.report_success(&self.name);
            }
        }
    }
}
