//! Limits for each address: number of connections, and rate of new connections (token bucket).
//!
//! An IPv6 user gets a whole /64 from its provider and has 2^64 addresses, so IPv6 addresses count by their first 64
//! bits. An entry is removed when its address has no connection and its bucket is full again: a removed entry and a new
//! one are equivalent.
//!
//! [`AddressLimits`] is pure and takes `now`; [`SharedAddressLimits`] is the lock around it, which is never held across
//! an await.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::rate::{Rate, TokenBucket};
use crate::telemetry::ListenerMetrics;

/// The maximum number of entries without a connection whose bucket is not full yet. Each takes about 100 bytes. Beyond,
/// the least recently checked entry is removed early and counted: a limit for each address does not restrain an
/// attacker with more addresses than this anyway.
pub(crate) const IDLE_MAX: usize = 65_536;

/// The limits of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one address at a time, `1..`; `None` is unlimited.
    pub connections_max: Option<u32>,
    /// New connections of one address; `None` is unlimited.
    pub rate: Option<Rate>,
}

/// The unit that the limits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// One IPv4 address.
    V4(u32),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            // The upper half of 128 bits fits.
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// Why an address may not open another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has the maximum number of connections.
    #[error("its address has {connections_max} connections already")]
    Connections {
        /// The bound.
        connections_max: u32,
    },
    /// It opens connections too fast.
    #[error("its address opens connections faster than {rate}")]
    Rate {
        /// The bound.
        rate: Rate,
    },
}

/// The entries of a listener.
#[derive(Debug)]
pub(crate) struct AddressLimits {
    idle_max: usize,
    entries: HashMap<Source, Entry>,
    /// Entries to be checked again, each once: they had no connection when they were added, and their bucket was not
    /// full.
    idle: VecDeque<Source>,
}

#[derive(Debug)]
struct Entry {
    held: u32,
    /// It is in `idle`.
    is_idle: bool,
    bucket: TokenBucket,
}

impl AddressLimits {
    /// An empty table with at most `idle_max` entries without a connection.
    pub(crate) fn new(idle_max: usize) -> Self {
        Self { idle_max, entries: HashMap::new(), idle: VecDeque::new() }
    }

    /// Counts a connection of this address until [`leave`](Self::leave). The limits may differ each time.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; then nothing has changed.
    pub(crate) fn enter(&mut self, limits: &Limits, now: Instant, source: Source) -> Result<(), Refusal> {
        self.sweep(now);
        let entry = self.entries.entry(source);
        // A new entry is never refused, so no entry is made in vain.
        let entry = entry.or_insert(Entry { held: 0, is_idle: false, bucket: TokenBucket::full(now) });
        if let Some(connections_max) = limits.connections_max
            && entry.held >= connections_max
        {
            return Err(Refusal::Connections { connections_max });
        }
        if let Some(rate) = limits.rate {
            entry.bucket.cap_debt(&rate, now, 0);
            entry.bucket.take(&rate, now, 1).map_err(|_| Refusal::Rate { rate })?;
        }
        entry.held = entry.held.saturating_add(1);
        Ok(())
    }

    /// Counts the end of a connection. Returns how many entries were removed early: 0 or 1.
    pub(crate) fn leave(&mut self, now: Instant, source: Source) -> u64 {
        self.sweep(now);
        let Some(entry) = self.entries.get_mut(&source) else {
            return 0;
        };
        entry.held = entry.held.saturating_sub(1);
        if entry.held > 0 || entry.is_idle {
            return 0;
        }
        if entry.bucket.is_full(now) {
            self.forget(source);
            return 0;
        }
        entry.is_idle = true;
        self.idle.push_back(source);
        if self.idle.len() <= self.idle_max {
            return 0;
        }
        let oldest = self.idle.pop_front().and_then(|oldest| Some((oldest, self.entries.get_mut(&oldest)?)));
        match oldest {
            Some((_, entry)) if entry.held > 0 => {
                entry.is_idle = false;
                0
            }
            Some((oldest, _)) => {
                self.forget(oldest);
                1
            }
            None => 0,
        }
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Checks the entries that have waited longest: two for each one that is added, so the queue is swept as fast as it
    /// grows.
    fn sweep(&mut self, now: Instant) {
        const LOOKS: usize = 2;
        for _ in 0..LOOKS {
            let Some(source) = self.idle.pop_front() else {
                return;
            };
            match self.entries.get_mut(&source) {
                Some(entry) if entry.held > 0 => entry.is_idle = false,
                Some(entry) if entry.bucket.is_full(now) => self.forget(source),
                Some(_) => self.idle.push_back(source),
                None => {}
            }
        }
    }

    fn forget(&mut self, source: Source) {
        const KEPT: usize = 1024;
        self.entries.remove(&source);
        // Memory is released after a storm; by halves, so that it stays cheap.
        if self.entries.capacity() > KEPT && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.entries.capacity() / 2);
        }
        if self.idle.capacity() > KEPT && self.idle.len() < self.idle.capacity() / 8 {
            self.idle.shrink_to(self.idle.capacity() / 2);
        }
    }
}

/// The limits of a listener, shared by all of its peers.
#[derive(Debug)]
pub struct SharedAddressLimits {
    address_limits: Mutex<AddressLimits>,
    metrics: ListenerMetrics,
}

impl SharedAddressLimits {
    /// An empty table.
    pub fn new(metrics: ListenerMetrics) -> Arc<Self> {
        Arc::new(Self { address_limits: Mutex::new(AddressLimits::new(IDLE_MAX)), metrics })
    }

    /// Counts a connection of this address until the returned guard is dropped; without limits, nothing is counted.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; then nothing has changed.
    pub fn enter(self: &Arc<Self>, limits: &Limits, now: Instant, address: IpAddr) -> Result<Option<Entered>, Refusal> {
        if *limits == Limits::default() {
            return Ok(None);
        }
        let source = Source::from(address);
        self.address_limits.lock().enter(limits, now, source)?;
        Ok(Some(Entered { sources: Arc::clone(self), source }))
    }

    /// The number of entries.
    pub fn remembered(&self) -> usize {
        self.address_limits.lock().len()
    }
}

/// Guard of a connection that counts for its address.
#[derive(Debug)]
pub struct Entered {
    sources: Arc<SharedAddressLimits>,
    source: Source,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let forgotten = self.sources.address_limits.lock().leave(Instant::now(), self.source);
        if forgotten > 0 {
            self.sources.metrics.shed("address_forgotten");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Telemetry;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(connections_max: Option<u32>, rate: Option<(u64, Duration)>) -> Limits {
        let rate = rate.map(|(amount, per)| Rate::smooth(NonZeroU64::new(amount).unwrap(), per).with_full_burst());
        Limits { connections_max, rate }
    }

    fn source(address: &str) -> Source {
        address.parse::<IpAddr>().unwrap().into()
    }

    /// The third connection of an address is refused until one of the others ends; other addresses are independent.
    #[test]
    fn connections_of_an_address_are_counted() {
        let now = Instant::now();
        let (mut address_limits, limits) = (AddressLimits::new(9), limits(Some(2), None));
        let (a, b) = (source("10.0.0.1"), source("10.0.0.2"));
        for from in [a, a, b] {
            assert_eq!(address_limits.enter(&limits, now, from), Ok(()));
        }
        assert_eq!(address_limits.enter(&limits, now, a), Err(Refusal::Connections { connections_max: 2 }));
        address_limits.leave(now, a);
        assert_eq!(address_limits.enter(&limits, now, a), Ok(()));
        for from in [a, a, b] {
            address_limits.leave(now, from);
        }
        assert!(address_limits.len() == 0);
    }

    /// Ten a minute: ten at once, then one every six seconds, whether or not the others have ended.
    #[test]
    fn connects_of_an_address_are_counted() {
        let start = Instant::now();
        let (mut address_limits, limits) = (AddressLimits::new(9), limits(None, Some((10, 60 * SECOND))));
        let a = source("10.0.0.1");
        let connect = |address_limits: &mut AddressLimits, now| {
            let entered = address_limits.enter(&limits, now, a).is_ok();
            if entered {
                address_limits.leave(now, a);
            }
            entered
        };
        assert_eq!((0..30).filter(|_| connect(&mut address_limits, start)).count(), 10);
        assert!(!connect(&mut address_limits, start + 5 * SECOND));
        assert!(connect(&mut address_limits, start + 6 * SECOND) && !connect(&mut address_limits, start + 6 * SECOND));
        assert_eq!(address_limits.len(), 1);
        // Any change sweeps the entries that can be removed.
        address_limits.enter(&limits, start + 66 * SECOND, source("10.0.0.2")).unwrap();
        assert_eq!(address_limits.len(), 1, "the other one");
    }

    /// An IPv6 /64 is one source; a mapped address is the IPv4 one.
    #[test]
    fn ipv6_counts_by_its_first_half() {
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("::10.0.0.1"), source("10.0.0.1"));
        assert_eq!(size_of::<(Source, Entry)>(), 40);
    }

    /// Beyond the maximum number of entries, the oldest is removed early, and counted.
    #[test]
    fn memory_has_a_bound() {
        let now = Instant::now();
        let (mut address_limits, limits) = (AddressLimits::new(100), limits(None, Some((1, 3600 * SECOND))));
        let mut forgotten = 0;
        for address in 0..1000 {
            address_limits.enter(&limits, now, Source::V4(address)).unwrap();
            forgotten += address_limits.leave(now, Source::V4(address));
        }
        assert_eq!((address_limits.len(), forgotten), (100, 900));
        let refused = (0..1000).filter(|address| address_limits.enter(&limits, now, Source::V4(*address)).is_err());
        assert_eq!(refused.count(), 100, "those that are remembered");
    }

    /// The memory of a storm is released.
    #[test]
    fn a_storm_leaves_nothing() {
        let now = Instant::now();
        let (mut address_limits, limits) = (AddressLimits::new(IDLE_MAX), limits(Some(1), Some((1, SECOND))));
        for address in 0..50_000 {
            address_limits.enter(&limits, now, Source::V4(address)).unwrap();
        }
        for address in 0..50_000 {
            address_limits.leave(now, Source::V4(address));
        }
        assert_eq!(address_limits.len(), 50_000);
        for step in 0..25_001 {
            address_limits.leave(now + SECOND, Source::V6(step));
        }
        assert!(address_limits.len() == 0 && address_limits.idle.is_empty());
        assert!(address_limits.entries.capacity() < 4096 && address_limits.idle.capacity() < 4096);
    }

    /// The guard releases its connection also when its task panics or is aborted.
    #[test]
    fn a_guard_lets_go() {
        let sources = SharedAddressLimits::new(Telemetry::new().listener(&"l".into()));
        let limits = limits(Some(1), None);
        let address = "10.0.0.1".parse().unwrap();
        let held = sources.enter(&limits, Instant::now(), address).unwrap();
        assert!(sources.enter(&limits, Instant::now(), address).is_err());
        drop(held);
        assert_eq!(sources.remembered(), 0);
        sources.enter(&limits, Instant::now(), address).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u32),
        Leave(u32),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u32..6).prop_map(Step::Enter),
            2 => (0u32..6).prop_map(Step::Leave),
            1 => (0u64..900).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Without early removals the limits agree with a table that removes nothing; and the number of entries stays
        /// bounded.
        #[test]
        fn forgetting_changes_nothing(
            connections_max in prop::option::of(1u32..4),
            rate in prop::option::of(1u64..5),
            idle_max in 1usize..4,
            steps in steps(),
        ) {
            let limits = limits(connections_max, rate.map(|rate| (rate, SECOND)));
            let mut now = Instant::now();
            let mut address_limits = AddressLimits::new(IDLE_MAX);
            let mut forgetful = AddressLimits::new(idle_max);
            let mut model: BTreeMap<u32, (u32, TokenBucket)> = BTreeMap::new();
            let mut held_by_forgetful: BTreeMap<u32, u32> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Enter(from) => {
                        let (held, bucket) = model.entry(from).or_insert((0, TokenBucket::full(now)));
                        let expected = match (limits.connections_max, limits.rate) {
                            (Some(connections_max), _) if *held >= connections_max => {
                                Err(Refusal::Connections { connections_max })
                            }
                            (_, Some(rate)) => bucket.take(&rate, now, 1).map_err(|_| Refusal::Rate { rate }),
                            (_, None) => Ok(()),
                        };
                        *held += u32::from(expected.is_ok());
                        prop_assert_eq!(address_limits.enter(&limits, now, Source::V4(from)), expected);
                        if forgetful.enter(&limits, now, Source::V4(from)).is_ok() {
                            *held_by_forgetful.entry(from).or_default() += 1;
                        }
                    }
                    Step::Leave(from) => {
                        if let Some((held, _)) = model.get_mut(&from).filter(|(held, _)| *held > 0) {
                            *held -= 1;
                            prop_assert_eq!(address_limits.leave(now, Source::V4(from)), 0);
                        }
                        if let Some(held) = held_by_forgetful.get_mut(&from).filter(|held| **held > 0) {
                            *held -= 1;
                            forgetful.leave(now, Source::V4(from));
                        }
                    }
                }
                let needed = model.values().filter(|(held, bucket)| *held > 0 || !bucket.is_full(now)).count();
                prop_assert!(address_limits.len() >= needed);
                let held = held_by_forgetful.values().filter(|held| **held > 0).count();
                prop_assert!(forgetful.len() <= held + idle_max, "{} for {held}", forgetful.len());
            }
            // All connections end; after a while no entry remains.
            for (from, (held, _)) in model {
                for _ in 0..held {
                    address_limits.leave(now, Source::V4(from));
                }
            }
            now += 10 * SECOND;
            for _ in 0..6 {
                address_limits.leave(now, Source::V6(0));
            }
            prop_assert!(address_limits.len() == 0);
        }
    }
}
