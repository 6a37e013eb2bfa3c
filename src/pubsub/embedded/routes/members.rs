//! The members of one filter: one in most cases, a hundred thousand in some.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};

/// From this many members on, a map says where each one is; below, looking at all is as fast and saves
/// the map, which would cost more than the members.
const MAPPED_FROM: usize = 16;

/// Keyed members in a vector, so that turns can be taken by index.
#[derive(Debug)]
pub(super) struct Members<K, T> {
    list: Vec<(K, T)>,
    #[expect(clippy::box_collection, reason = "most lists have no map, and there may be millions of them")]
    places: Option<Box<HashMap<K, usize>>>,
    turn: AtomicUsize,
}

impl<K, T> Default for Members<K, T> {
    fn default() -> Self {
        Self { list: Vec::new(), places: None, turn: AtomicUsize::new(0) }
    }
}

impl<K, T> Members<K, T> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.list.iter().map(|(_, target)| target)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The next member in turn that is `ready`, or the next one if none is.
    pub(super) fn pick(&self, ready: impl Fn(&T) -> bool) -> Option<&T> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(self.list.len())?;
        let (before, after) = self.list.split_at(first);
        let mut in_turn = after.iter().chain(before).map(|(_, target)| target);
        in_turn.find(|target| ready(target)).or(after.first().map(|(_, target)| target))
    }
}

impl<K: Eq + Hash + Clone, T> Members<K, T> {
    fn place(&self, key: &K) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(key).copied(),
            None => self.list.iter().position(|(known, _)| known == key),
        }
    }

    pub(super) fn insert(&mut self, key: K, target: T) -> Option<T> {
        if let Some(place) = self.place(&key) {
            return Some(std::mem::replace(&mut self.list[place].1, target));
        }
        if self.list.is_empty() {
            // Most filters never have a second member.
            self.list.reserve_exact(1);
        }
        if let Some(places) = &mut self.places {
            places.insert(key.clone(), self.list.len());
        }
        self.list.push((key, target));
        if self.places.is_none() && self.list.len() >= MAPPED_FROM {
            let places = self.list.iter().enumerate().map(|(place, (key, _))| (key.clone(), place));
            self.places = Some(Box::new(places.collect()));
        }
        None
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<T> {
        let place = self.place(key)?;
        let (key, target) = self.list.swap_remove(place);
        if let Some(places) = &mut self.places {
            places.remove(&key);
            if let Some((moved, _)) = self.list.get(place) {
                places.insert(moved.clone(), place);
            }
        }
        if self.list.len() < MAPPED_FROM / 2 {
            self.places = None;
            self.list.shrink_to_fit();
        }
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Members are a map, however many there are and were.
        #[test]
        fn members_are_a_map(steps in prop::collection::vec((0u8..40, any::<bool>()), 0..300)) {
            let mut members = Members::default();
            let mut model = HashMap::new();
            for (number, (key, insert)) in steps.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(members.insert(key, number), model.insert(key, number));
                } else {
                    prop_assert_eq!(members.remove(&key), model.remove(&key));
                }
                prop_assert_eq!(members.list.len(), model.len());
                prop_assert!(model.iter().all(|(key, target)| members.place(key).map(|place| &members.list[place].1) == Some(target)));
            }
        }
    }
}
