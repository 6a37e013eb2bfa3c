//! Places of the unverified peers of one listener, shared out among the sources: of handshakes in progress (TLS, DTLS), or
//! of flows whose source address may be spoofed (UDP).
//!
//! While places are free, any source gets one. When all are taken, a source that holds its share (a 64th) gets no more,
//! except in place of its own oldest peer that has been silent for a second; a peer of any other source gets the place
//! of the oldest silent peer, or of the oldest one of a source that holds more than its share. So a flood delays only
//! itself, and the devices behind one address of a carrier wait for each other.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

/// The part of the places that one source may hold while others wait.
const SHARE: usize = 64;

/// Age from which a silent peer gives its place to another one of its own source: longer than the round trips of a
/// mobile network.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// Clones share the places.
#[derive(Clone, Debug)]
pub(super) struct UnverifiedPlaces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    max: usize,
    /// By age: ids ascend.
    taken: BTreeMap<u64, Arc<Taken>>,
    next: u64,
    held: HashMap<Source, usize>,
}

#[derive(Debug)]
struct Taken {
    sources: Sources,
    since: Instant,
    has_spoken: AtomicBool,
    displaced: CancellationToken,
}

/// An IPv4 address, or an IPv6 network: a /64 is one subscriber, and a /48 one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Address(IpAddr),
    Site(u64),
}

/// The sources that a peer belongs to; none if its address is that of a balancer.
type Sources = [Option<Source>; 2];

fn sources(address: Option<IpAddr>) -> Sources {
    match address.map(|address| address.to_canonical()) {
        None => [None, None],
        Some(address @ IpAddr::V4(_)) => [Some(Source::Address(address)), None],
        Some(IpAddr::V6(address)) => {
            let bits = address.to_bits();
            let subscriber = Ipv6Addr::from_bits(bits >> 64 << 64);
            // The upper 48 of 128 bits.
            [Some(Source::Address(subscriber.into())), Some(Source::Site((bits >> 80) as u64))]
        }
    }
}

/// Place of one unverified peer; returned on drop.
#[derive(Debug)]
pub struct Place {
    id: u64,
    taken: Arc<Taken>,
    places: UnverifiedPlaces,
}

impl Place {
    /// The peer has sent something that counts: the first byte of a TLS handshake, or a cookie of DTLS.
    pub(super) fn has_spoken(&self) {
        self.taken.has_spoken.store(true, Ordering::Relaxed);
    }

    /// Waits until another peer has got the place.
    pub(crate) fn displaced(&self) -> impl Future<Output = ()> + use<> {
        self.taken.displaced.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.state.lock().remove(self.id);
        self.places.0.freed.notify_waiters();
    }
}

impl UnverifiedPlaces {
    pub(super) fn new(max: usize) -> Self {
        let state = State { max, taken: BTreeMap::new(), next: 0, held: HashMap::new() };
        Self(Arc::new(Inner { state: Mutex::new(state), freed: Notify::new() }))
    }

    /// Changes the number of places; peers above a lower one go on.
    pub(super) fn resize(&self, max: usize) {
        self.0.state.lock().max = max;
        self.0.freed.notify_waiters();
    }

    /// A place for a peer that arrives, perhaps that of another one, which ends.
    pub(super) fn enter(&self, address: Option<IpAddr>, now: Instant) -> Option<Place> {
        let mut state = self.0.state.lock();
        let sources = sources(address);
        if state.taken.len() >= state.max {
            let victim = state.victim(&sources, now)?;
            if let Some(taken) = state.remove(victim) {
                taken.displaced.cancel();
            }
        }
        Some(self.take(&mut state, sources, now))
    }

    /// A free place for a peer that has waited.
    pub(super) fn enter_free(&self, address: Option<IpAddr>, now: Instant) -> Option<Place> {
        let mut state = self.0.state.lock();
        (state.taken.len() < state.max).then(|| self.take(&mut state, sources(address), now))
    }

    fn take(&self, state: &mut State, sources: Sources, now: Instant) -> Place {
        let has_spoken = AtomicBool::new(false);
        let taken = Arc::new(Taken { sources, since: now, has_spoken, displaced: CancellationToken::new() });
        let id = state.next;
        state.next += 1;
        state.taken.insert(id, Arc::clone(&taken));
        for source in sources.into_iter().flatten() {
            *state.held.entry(source).or_default() += 1;
        }
        Place { id, taken, places: self.clone() }
    }

    /// Waits until a place is returned, from this call on.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.0.freed.notified()
    }
}

impl State {
    fn share(&self) -> usize {
        (self.max / SHARE).max(1)
    }

    fn holds(&self, sources: &Sources, at_least: usize) -> bool {
        sources.iter().flatten().any(|source| self.held.get(source).is_some_and(|held| *held >= at_least))
    }

    /// The peer that ends for one of these sources.
    fn victim(&self, sources: &Sources, now: Instant) -> Option<u64> {
        let is_silent = |taken: &Taken| !taken.has_spoken.load(Ordering::Relaxed);
        let oldest =
            |is_it: &dyn Fn(&Taken) -> bool| self.taken.iter().find(|(_, taken)| is_it(taken)).map(|(id, _)| *id);
        if self.holds(sources, self.share()) {
            let is_own = |taken: &Taken| taken.sources.iter().flatten().any(|source| sources.contains(&Some(*source)));
            let is_old = |taken: &Taken| now.saturating_duration_since(taken.since) >= SILENT_MAX;
            return oldest(&|taken| is_silent(taken) && is_old(taken) && is_own(taken));
        }
        oldest(&is_silent).or_else(|| oldest(&|taken| self.holds(&taken.sources, self.share() + 1)))
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Taken>> {
        let taken = self.taken.remove(&id)?;
        for source in taken.sources.into_iter().flatten() {
            if let Some(held) = self.held.get_mut(&source) {
                *held -= 1;
                if *held == 0 {
                    self.held.remove(&source);
                }
            }
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn flood(places: &UnverifiedPlaces, from: Option<IpAddr>, speak: bool) -> Vec<Place> {
        let now = Instant::now();
        let held: Vec<_> = (0..1000).filter_map(|_| places.enter(from, now)).collect();
        if speak {
            held.iter().for_each(Place::has_spoken);
        }
        held.into_iter().filter(|place| place.displaced().now_or_never().is_none()).collect()
    }

    /// After a flood of one source, silent or not, every other source gets a place at once, and the flood no further one.
    #[test]
    fn a_flood_of_one_source_shuts_out_no_other() {
        for speak in [false, true] {
            for from in [address("192.0.2.1"), address("2001:db8::1")] {
                let places = UnverifiedPlaces::new(128);
                let flooding = flood(&places, from, speak);
                assert_eq!(flooding.len(), 128, "while no other waits");
                let mut good = Vec::new();
                for number in 1..100 {
                    let place = places.enter(address(&format!("198.51.100.{number}")), Instant::now()).unwrap();
                    place.has_spoken();
                    good.push(place);
                }
                flood(&places, from, speak);
                assert!(good.iter().all(|place| place.displaced().now_or_never().is_none()));
            }
        }
    }

    /// The subscribers of one IPv6 site have the share of one source together.
    #[test]
    fn a_site_is_one_source() {
        let (places, now) = (UnverifiedPlaces::new(128), Instant::now());
        let enter = |text: &str| places.enter(address(text), now);
        let site: Vec<_> = (0..128).map(|net| enter(&format!("2001:db8:0:{net:x}::1")).unwrap()).collect();
        site.iter().for_each(Place::has_spoken);
        assert!(enter("2001:db8:0:ffff::1").is_none());
        assert!(enter("2001:db8:1::1").is_some());
    }

    /// Devices behind one address wait for a free place; only a peer that has been silent for long ends for another.
    #[test]
    fn devices_of_one_source_wait_for_each_other() {
        let (places, now, from) = (UnverifiedPlaces::new(64), Instant::now(), address("192.0.2.1"));
        let mut held: Vec<_> = (0..64).map(|_| places.enter(from, now).unwrap()).collect();
        held[1..].iter().for_each(Place::has_spoken);
        assert!(places.enter(from, now).is_none(), "the silent one is young");
        held.pop();
        held.push(places.enter_free(from, now).unwrap());
        assert!(places.enter_free(from, now).is_none());
        let later = now + SILENT_MAX;
        held.push(places.enter(from, later).unwrap());
        assert!(held[0].displaced().now_or_never().is_some());
    }

    /// When spoofed sources have taken all places, the oldest one ends for each new peer.
    #[test]
    fn the_oldest_of_many_sources_ends() {
        let (places, now) = (UnverifiedPlaces::new(64), Instant::now());
        let held: Vec<_> =
            (0..64).map(|number| places.enter(address(&format!("10.0.0.{number}")), now).unwrap()).collect();
        let mut kept = Vec::new();
        for (number, oldest) in held.iter().enumerate() {
            assert!(oldest.displaced().now_or_never().is_none());
            kept.push(places.enter(address(&format!("10.0.1.{number}")), now).unwrap());
            assert!(oldest.displaced().now_or_never().is_some());
        }
    }

    /// Without a flood, peers wait for their turn, and none ends for another.
    #[tokio::test]
    async fn peers_wait_while_no_source_holds_too_much() {
        let (places, now) = (UnverifiedPlaces::new(64), Instant::now());
        let mut held: Vec<_> =
            (0..64).map(|number| places.enter(address(&format!("10.0.0.{number}")), now).unwrap()).collect();
        held.iter().for_each(Place::has_spoken);
        assert!(places.enter(address("10.0.1.1"), now).is_none());
        assert!(held.iter().all(|place| place.displaced().now_or_never().is_none()));
        let freed = places.freed();
        held.pop();
        freed.await;
        assert!(places.enter_free(address("10.0.1.1"), now).is_some());
    }

    proptest! {
        /// Whatever happens, no more than `max` places are taken, and the counts by source agree with them.
        #[test]
        fn places_are_bounded(
            max in 1..40_usize,
            steps in proptest::collection::vec((0..4_u8, 0..6_u8, any::<bool>()), 0..200),
        ) {
            let places = UnverifiedPlaces::new(max);
            let mut held = Vec::new();
            let start = Instant::now();
            for (step, (kind, from, speak)) in steps.into_iter().enumerate() {
                match kind {
                    0 if !held.is_empty() => drop(held.swap_remove(usize::from(from) % held.len())),
                    _ => {
                        let now = start + SILENT_MAX / 50 * u32::try_from(step).unwrap();
                        if let Some(place) = places.enter(address(&format!("10.0.0.{from}")), now) {
                            if speak {
                                place.has_spoken();
                            }
                            held.push(place);
                        }
                    }
                }
                let state = places.0.state.lock();
                prop_assert!(state.taken.len() <= max);
                prop_assert_eq!(state.held.values().sum::<usize>(), state.taken.len());
            }
            drop(held);
            prop_assert!(places.0.state.lock().held.is_empty());
        }
    }
}
