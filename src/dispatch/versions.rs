//! The versions of one configured handler: which of them serves whom.

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

/// One loaded build of a handler, with the connections that it serves.
#[derive(Debug)]
pub struct Version {
    number: u32,
    handler: Handler,
    policy: Policy,
    members: Mutex<HashSet<ConnId>>,
    events: AtomicU64,
    failures: AtomicU64,
    /// Wakes who waits for the next failure.
    failed: Notify,
    metrics: VersionMetrics,
}

impl Version {
    /// A version that serves nobody yet. Numbers start at 1 and grow.
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

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The program.
    pub fn handler(&self) -> &Handler {
        &self.handler
    }

    /// How its failures are met.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// How many connections it serves.
    pub fn connections(&self) -> usize {
        self.members.lock().len()
    }

    /// The connections that it serves, at this moment.
    pub fn members(&self) -> Vec<ConnId> {
        self.members.lock().iter().copied().collect()
    }

    /// Counts an event that was handled or not.
    pub fn count(&self, report_success: bool) {
        self.events.fetch_add(1, Ordering::Relaxed);
        if !report_success {
            self.failures.fetch_add(1, Ordering::Relaxed);
            self.failed.notify_one();
        }
    }

    /// Returns at the next failure, or at once when there was one since it last returned. For one waiter at a time.
    pub async fn failure(&self) {
        self.failed.notified().await;
    }

    /// Events that it was given, and those of them that failed.
    pub fn outcomes(&self) -> (u64, u64) {
        (self.events.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// A connection comes; it leaves when the membership is dropped.
    pub fn enter(self: &Arc<Self>, conn: ConnId) -> Membership {
        self.members.lock().insert(conn);
        self.metrics.connections.inc();
        Membership { version: Arc::clone(self), conn }
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        self.metrics.loaded.dec();
        tracing::debug!(handler = %self.handler.name(), version = self.number, "the version is gone, with its memory");
    }
}

/// A connection's place at a version.
#[derive(Debug)]
pub struct Membership {
    version: Arc<Version>,
    conn: ConnId,
}

impl Membership {
    /// The version.
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

/// What the connections of a version that is not active any more are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldConnections {
    /// Stay until they end by themselves.
    Keep,
    /// Go over to the active version, if its state can be carried over; else stay.
    Move,
    /// End: their time is over.
    End,
}

/// What one connection is to do.
#[derive(Clone, Debug)]
pub enum Placement {
    /// Stay with its version.
    Keep,
    /// Go over to this one.
    Move(Arc<Version>),
    /// End, so that the device connects again.
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

/// A version that is tried on some connections before it becomes the active one.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The version.
    pub version: Arc<Version>,
    /// How it is tried.
    pub how: TrialKind,
}

/// How a version is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialKind {
    /// It serves this part of the new connections.
    Canary(Percent),
    /// It gets the events of new connections beside the active version, without any effect; differences are counted.
    Shadow,
}

/// Which versions serve whom.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Serves new connections.
    pub active: Arc<Version>,
    /// What the connections of other versions are to do.
    pub others: OldConnections,
    /// Is tried beside it.
    pub trial: Option<Trial>,
}

/// One configured handler over time.
#[derive(Debug)]
pub struct Versions {
    name: Arc<str>,
    plan: ArcSwap<Plan>,
    /// All that may still be loaded.
    loaded: Mutex<Vec<Weak<Version>>>,
    /// Numbers the new connections, for a canary's share.
    turns: AtomicU32,
    health: Health,
    metrics: HealthMetrics,
}

impl Versions {
    /// A handler with its first version.
    pub fn new(first: Arc<Version>, metrics: HealthMetrics) -> Arc<Self> {
        let name = Arc::clone(first.handler().name());
        let loaded = Mutex::new(vec![Arc::downgrade(&first)]);
        let plan = ArcSwap::from_pointee(Plan { active: first, others: OldConnections::Keep, trial: None });
        Arc::new(Self { name, plan, loaded, turns: AtomicU32::new(0), health: Health::new(metrics.clone()), metrics })
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Which versions serve whom.
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// The version that serves new connections.
    pub fn active(&self) -> Arc<Version> {
        Arc::clone(&self.plan.load().active)
    }

    /// Changes who serves whom. Connections learn of it when they are asked to review it (see [`ConnectionMigrator`](super::Mover)); new ones
    /// follow at once.
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

    /// All versions that hold memory, oldest first.
    pub fn loaded(&self) -> Vec<Arc<Version>> {
        self.loaded.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// A new connection comes: its version.
    pub fn enter(&self, conn: ConnId) -> Membership {
        loop {
            let plan = self.plan.load();
            let version = match &plan.trial {
                Some(Trial { version, how: TrialKind::Canary(share) })
                    if share.has(self.turns.fetch_add(1, Ordering::Relaxed)) =>
                {
                    version
                }
                Some(_) | None => &plan.active,
            };
            let membership = version.enter(conn);
            // Whoever changes the plan asks the members of each version afterwards. One that was not yet among them when
            // they were asked sees the change here.
            if Arc::ptr_eq(&plan, &self.plan.load()) {
                return membership;
            }
        }
    }

    /// What a connection of this version is to do.
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

    /// How many connections of this version are not where they belong.
    pub fn misplaced(&self, version: &Arc<Version>) -> usize {
        if self.placement(version) == Placement::Keep { 0 } else { version.connections() }
    }

    /// Whether it works well enough for new connections.
    pub fn is_healthy(&self) -> bool {
        self.health.is_good()
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// A connection has gone over to another version.
    pub fn moved(&self) {
        self.metrics.moved.inc();
    }

    /// A version that is tried as a shadow did the same as the active one, or something else.
    pub fn compared(&self, same: bool) {
        self.metrics.shadow_events.inc();
        if !same {
            self.metrics.shadow_differences.inc();
        }
    }

    /// A connection was to go over to another version and could not.
    pub fn pinned(&self) {
        self.metrics.pinned.inc();
    }

    /// What came of an event at one of the versions.
    ///
    /// That a handler takes the beginning or the end of a connection shows no more than a probe does. One that fails
    /// with everything in between would else never count as failing: each new connection begins well.
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
