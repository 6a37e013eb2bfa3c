//! Places of the handshakes in progress of one listener, shared out among the sources.
//!
//! While places are free, anyone gets one. When all are taken, a source that holds its share (a 64th) gets no more, except
//! in place of its own oldest silent handshake; a peer of any other source gets the place of the oldest silent
//! handshake, or of the oldest one of a source that holds more than its share. So a flood delays only itself.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The part of the places that one source may hold while others wait.
const SHARE: usize = 64;

/// Clones share the places.
#[derive(Clone, Debug)]
pub(super) struct HandshakePlaces(Arc<Inner>);

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

/// Why there is no place now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The peer's source holds its share.
    Source,
    /// All places are in use by sources that hold no more than their share, and none is silent.
    All,
}

/// Place of one handshake; returned on drop.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    taken: Arc<Taken>,
    places: HandshakePlaces,
}

impl Place {
    /// The peer has sent something.
    pub(super) fn has_spoken(&self) {
        self.taken.has_spoken.store(true, Ordering::Relaxed);
    }

    /// Waits until another handshake has got the place.
    pub(super) fn displaced(&self) -> impl Future<Output = ()> + use<> {
        self.taken.displaced.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.state.lock().remove(self.id);
        self.places.0.freed.notify_waiters();
    }
}

impl HandshakePlaces {
    pub(super) fn new(max: usize) -> Self {
        let state = State { max, taken: BTreeMap::new(), next: 0, held: HashMap::new() };
        Self(Arc::new(Inner { state: Mutex::new(state), freed: Notify::new() }))
    }

    /// Changes the number of places; handshakes above a lower one go on.
    pub(super) fn resize(&self, max: usize) {
        self.0.state.lock().max = max;
        self.0.freed.notify_waiters();
    }

    /// A place for a peer, perhaps that of another handshake, which ends.
    pub(super) fn try_enter(&self, address: Option<IpAddr>) -> Result<Place, Full> {
        let mut state = self.0.state.lock();
        let sources = sources(address);
        if state.taken.len() >= state.max {
            let victim = state.victim(&sources)?;
            if let Some(taken) = state.remove(victim) {
                taken.displaced.cancel();
            }
        }
        let taken =
            Arc::new(Taken { sources, has_spoken: AtomicBool::new(false), displaced: CancellationToken::new() });
        let id = state.next;
        state.next += 1;
        state.taken.insert(id, Arc::clone(&taken));
        for source in sources.into_iter().flatten() {
            *state.held.entry(source).or_default() += 1;
        }
        Ok(Place { id, taken, places: self.clone() })
    }

    /// As [`try_enter`](Self::try_enter), but waits while all sources hold no more than their share.
    pub(super) async fn enter(&self, address: Option<IpAddr>) -> Option<Place> {
        loop {
            let freed = self.0.freed.notified();
            match self.try_enter(address) {
                Ok(place) => return Some(place),
                Err(Full::Source) => return None,
                Err(Full::All) => freed.await,
            }
        }
    }
}

impl State {
    fn share(&self) -> usize {
        (self.max / SHARE).max(1)
    }

    fn holds(&self, sources: &Sources, at_least: usize) -> bool {
        sources.iter().flatten().any(|source| self.held.get(source).is_some_and(|held| *held >= at_least))
    }

    /// The handshake that ends for one of these sources.
    fn victim(&self, sources: &Sources) -> Result<u64, Full> {
        let is_silent = |taken: &Taken| !taken.has_spoken.load(Ordering::Relaxed);
        let oldest =
            |is_it: &dyn Fn(&Taken) -> bool| self.taken.iter().find(|(_, taken)| is_it(taken)).map(|(id, _)| *id);
        if self.holds(sources, self.share()) {
            let is_own = |taken: &Taken| taken.sources.iter().flatten().any(|source| sources.contains(&Some(*source)));
            return oldest(&|taken| is_silent(taken) && is_own(taken)).ok_or(Full::Source);
        }
        oldest(&is_silent).or_else(|| oldest(&|taken| self.holds(&taken.sources, self.share() + 1))).ok_or(Full::All)
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

    fn flood(places: &HandshakePlaces, from: Option<IpAddr>, speak: bool) -> Vec<Place> {
        let entered = (0..1000).filter_map(|_| places.try_enter(from).ok());
        let held: Vec<_> = entered
            .inspect(|place| {
                if speak {
                    place.has_spoken()
                }
            })
            .collect();
        held.into_iter().filter(|place| place.displaced().now_or_never().is_none()).collect()
    }

    /// After a flood of one source, silent or not, every other source gets a place at once, and the flood no further one.
    #[test]
    fn a_flood_of_one_source_shuts_out_no_other() {
        for speak in [false, true] {
            for from in [address("192.0.2.1"), address("2001:db8::1")] {
                let places = HandshakePlaces::new(128);
                let flooding = flood(&places, from, speak);
                assert_eq!(flooding.len(), 128, "while no other waits");
                let mut good = Vec::new();
                for number in 1..100 {
                    let place = places.try_enter(address(&format!("198.51.100.{number}"))).unwrap();
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
        let places = HandshakePlaces::new(128);
        let site: Vec<_> =
            (0..128).map(|net| places.try_enter(address(&format!("2001:db8:0:{net:x}::1"))).unwrap()).collect();
        site.iter().for_each(Place::has_spoken);
        assert_eq!(places.try_enter(address("2001:db8:0:ffff::1")).err(), Some(Full::Source));
        assert!(places.try_enter(address("2001:db8:1::1")).is_ok());
    }

    /// Without a flood, peers wait for their turn, and no handshake ends for another.
    #[tokio::test]
    async fn peers_wait_while_no_source_holds_too_much() {
        let places = HandshakePlaces::new(64);
        let mut held: Vec<_> =
            (0..64).map(|number| places.try_enter(address(&format!("10.0.0.{number}"))).unwrap()).collect();
        held.iter().for_each(Place::has_spoken);
        let mut waiting = Box::pin(places.enter(address("10.0.1.1")));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(held.iter().all(|place| place.displaced().now_or_never().is_none()));
        held.pop();
        assert!(waiting.await.is_some());
    }

    proptest! {
        /// Whatever happens, no more than `max` places are taken, and the counts by source agree with them.
        #[test]
        fn places_are_bounded(
            max in 1..40_usize,
            steps in proptest::collection::vec((0..4_u8, 0..6_u8, any::<bool>()), 0..200),
        ) {
            let places = HandshakePlaces::new(max);
            let mut held = Vec::new();
            for (kind, from, speak) in steps {
                match kind {
                    0 if !held.is_empty() => drop(held.swap_remove(usize::from(from) % held.len())),
                    _ => {
                        if let Ok(place) = places.try_enter(address(&format!("10.0.0.{from}"))) {
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
