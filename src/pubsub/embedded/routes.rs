//! Who has subscribed to what: the index from a topic name to its subscribers.
//!
//! Pure. A tree of topic levels; a look-up visits one node a level, and one more for each `+` on its
//! way, so its cost depends on the depth of the topic and not on how many subscriptions there are. The
//! depth is bounded where filters are checked. A million subscriptions of devices to topics of their
//! own are the usual case, so nodes lie in one vector and all edges in one map: a level that only one
//! filter uses costs about 140 bytes.
//!
//! Filters that have a literal and a `+` at the same level double the nodes of a look-up, and n such levels multiply them
//! by 2^n. So each node knows how many nodes below it a topic name can visit at most ([`Node::steps`]), and a filter that
//! would take the root above [`STEPS_MAX`] is refused: no topic name ever costs more, whatever the filters are.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

mod members;

use members::Members;

/// The index. `K` distinguishes subscribers, `T` is what is wanted of one when a topic matches.
#[derive(Debug)]
pub(super) struct Routes<K, T> {
    nodes: Vec<Node<K, T>>,
    /// Nodes that no filter uses, to be used again.
    free: Vec<NodeId>,
    /// From a node's id and the text of a level to the node below; see [`super::mqtt_server`].
    edges: HashMap<Box<[u8]>, NodeId>,
    subscriptions: usize,
}

type NodeId = u32;

const ROOT: NodeId = 0;

/// Nodes that one look-up visits at most.
pub(in crate::pubsub) const STEPS_MAX: u32 = 1_024;

/// A subscriber with more filters with `+` than this may take only the first half of [`STEPS_MAX`], so that one
/// subscriber cannot use up the steps of all others.
pub(in crate::pubsub) const FEW_WILDCARD_FILTERS: usize = 16;

/// A filter was refused: with it, a topic name could take more than [`STEPS_MAX`] steps to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooCostly;

#[derive(Debug)]
struct Node<K, T> {
    /// The node for `+`.
    plus: Option<NodeId>,
    /// How many edges with a text leave here.
    literals: u32,
    /// Nodes that a look-up visits here and below at most: this one, those below the most costly literal, and those below
    /// `+`. 0 while it is not counted in its parent.
    steps: u32,
    /// The `steps` of the most costly literal.
    literal_steps: u32,
    /// How many literals have which `steps`; none while all have `literal_steps`.
    #[expect(clippy::box_collection, reason = "8 bytes of each node instead of 24; nearly all nodes have none")]
    step_counts: Option<Box<BTreeMap<u32, u32>>>,
    /// Subscribers of the filter that ends here.
    here: Option<Box<Subscribers<K, T>>>,
    /// Subscribers of the filter that ends here with `#`.
    below: Option<Box<Subscribers<K, T>>>,
}

impl<K, T> Default for Node<K, T> {
    fn default() -> Self {
        Self { plus: None, literals: 0, steps: 0, literal_steps: 0, step_counts: None, here: None, below: None }
    }
}

impl<K, T> Node<K, T> {
    fn is_unused(&self) -> bool {
        self.plus.is_none() && self.literals == 0 && self.here.is_none() && self.below.is_none()
    }

    /// A literal below has gone from `before` to `after` steps; `None` is one that is not there. `literals` already counts
    /// it.
    fn update_literal(&mut self, before: Option<u32>, after: Option<u32>) {
        if before == after {
            return;
        }
        let others = self.literals - u32::from(after.is_some());
        if self.step_counts.is_none() {
            match after {
                None if others > 0 => return,
                None => self.literal_steps = 0,
                Some(after) if others == 0 || after == self.literal_steps => self.literal_steps = after,
                Some(_) => self.step_counts = Some(Box::new(BTreeMap::from([(self.literal_steps, others)]))),
            }
            // `others` are all literals but this one, so its old count is not in the new map.
            if let (Some(counts), Some(after)) = (&mut self.step_counts, after) {
                *counts.entry(after).or_insert(0) += 1;
                self.literal_steps = self.literal_steps.max(after);
            }
            return;
        }
        let Some(counts) = &mut self.step_counts else { return };
        if let Some(before) = before
            && let Some(count) = counts.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                counts.remove(&before);
            }
        }
        if let Some(after) = after {
            *counts.entry(after).or_insert(0) += 1;
        }
        self.literal_steps = counts.last_key_value().map_or(0, |(steps, _)| *steps);
        if counts.len() <= 1 {
            self.step_counts = None;
        }
    }
}

/// The subscribers of one filter.
#[derive(Debug)]
pub(super) struct Subscribers<K, T> {
    each: Members<K, T>,
    groups: Vec<Group<K, T>>,
}

impl<K, T> Default for Subscribers<K, T> {
    fn default() -> Self {
        Self { each: Members::default(), groups: Vec::new() }
    }
}

impl<K, T> Subscribers<K, T> {
    /// Those that each get a message of their own.
    pub(super) fn each(&self) -> impl Iterator<Item = &T> {
        self.each.iter()
    }

    /// The groups of shared subscriptions, of which one member each gets the message.
    pub(super) fn groups(&self) -> impl Iterator<Item = &Group<K, T>> {
        self.groups.iter()
    }

    fn is_empty(&self) -> bool {
        self.each.is_empty() && self.groups.is_empty()
    }
}

/// The members of one group that share a filter.
#[derive(Debug)]
pub(super) struct Group<K, T> {
    name: Box<str>,
    members: Members<K, T>,
}

impl<K, T> Group<K, T> {
    /// The member whose turn it is: the next one that is `ready`, or the next one if none is.
    pub(super) fn pick(&self, ready: impl Fn(&T) -> bool) -> Option<&T> {
        self.members.pick(ready)
    }
}

/// The key of the edge from `parent` by `level`, written over `buffer`.
fn edge<'a>(buffer: &'a mut Vec<u8>, parent: NodeId, level: &str) -> &'a [u8] {
    buffer.clear();
    buffer.extend_from_slice(&parent.to_le_bytes());
    buffer.extend_from_slice(level.as_bytes());
    buffer
}

impl<K: Eq + Hash + Clone, T> Routes<K, T> {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new(), edges: HashMap::new(), subscriptions: 0 }
    }

    /// How many subscriptions there are.
    pub(super) fn len(&self) -> usize {
        self.subscriptions
    }

    /// Enters a subscription, unless it would make matching too costly; gives back what it replaces.
    ///
    /// `has_few` says that its subscriber has at most [`FEW_WILDCARD_FILTERS`] filters with `+`.
    ///
    /// # Errors
    ///
    /// [`TooCostly`]; nothing has changed then.
    pub(super) fn add(
        &mut self,
        filter: &str,
        group: Option<&str>,
        key: K,
        target: T,
        has_few: bool,
    ) -> Result<Option<T>, TooCostly> {
        let steps_before = self.nodes[ROOT as usize].steps;
        let steps_max = if has_few { STEPS_MAX } else { STEPS_MAX / 2 };
        let replaced = self.enter(filter, group, key.clone(), target);
        let steps = self.nodes[ROOT as usize].steps;
        if steps > steps_before && steps > steps_max {
            self.remove(filter, group, &key);
            return Err(TooCostly);
        }
        Ok(replaced)
    }

    /// Enters a subscription that was admitted in an earlier life of the process: what all of them cost together was
    /// allowed then.
    pub(super) fn restore(&mut self, filter: &str, group: Option<&str>, key: K, target: T) {
        self.enter(filter, group, key, target);
    }

    fn enter(&mut self, filter: &str, group: Option<&str>, key: K, target: T) -> Option<T> {
        let (levels, open) = split(filter);
        let mut node = ROOT;
        let mut path = vec![(ROOT, "")];
        for level in levels.into_iter().flat_map(|levels| levels.split('/')) {
            node = self.step(node, level);
            path.push((node, level));
        }
        self.count_steps(&path);
        let node = &mut self.nodes[node as usize];
        let subscribers = if open { &mut node.below } else { &mut node.here }.get_or_insert_default();
        let members = match group {
            None => &mut subscribers.each,
            Some(name) => {
                let known = subscribers.groups.iter().position(|group| &*group.name == name);
                let index = known.unwrap_or_else(|| {
                    subscribers.groups.push(Group { name: name.into(), members: Members::default() });
                    subscribers.groups.len() - 1
                });
                &mut subscribers.groups[index].members
            }
        };
        let replaced = members.insert(key, target);
        self.subscriptions += usize::from(replaced.is_none());
        replaced
    }

    /// Removes a subscription; `None` when there is no such one.
    pub(super) fn remove(&mut self, filter: &str, group: Option<&str>, key: &K) -> Option<T> {
        self.remove_from(filter, |subscribers| match group {
            None => subscribers.each.remove(key),
            Some(name) => {
                let index = subscribers.groups.iter().position(|group| &*group.name == name)?;
                subscribers.remove_from_group(index, key)
            }
        })
    }

    fn remove_from(&mut self, filter: &str, remove: impl FnOnce(&mut Subscribers<K, T>) -> Option<T>) -> Option<T> {
        let (levels, open) = split(filter);
        let mut path = vec![(ROOT, "")];
        let mut buffer = Vec::new();
        for level in levels.into_iter().flat_map(|levels| levels.split('/')) {
            let parent = path.last()?.0;
            path.push((self.child(parent, level, &mut buffer)?, level));
        }
        let node = &mut self.nodes[path.last()?.0 as usize];
        let subscribers = if open { &mut node.below } else { &mut node.here };
        let removed = remove(subscribers.as_mut()?);
        if subscribers.as_ref().is_some_and(|subscribers| subscribers.is_empty()) {
            *subscribers = None;
        }
        self.subscriptions -= usize::from(removed.is_some());
        self.prune(&path, &mut buffer);
        removed
    }

    /// Counts the steps of the nodes of a path anew, from its end, after nodes were added at its end.
    fn count_steps(&mut self, path: &[(NodeId, &str)]) {
        for pair in path.windows(2).rev() {
            let ((parent, _), (node, level)) = (pair[0], pair[1]);
            self.count_child(parent, level, node);
        }
        self.count_node(ROOT);
    }

    /// Counts the steps of `child`, and reports them to its parent when it is a literal.
    fn count_child(&mut self, parent: NodeId, level: &str, child: NodeId) {
        let before = self.nodes[child as usize].steps;
        let is_new = before == 0;
        self.count_node(child);
        let after = self.nodes[child as usize].steps;
        if level != "+" {
            self.nodes[parent as usize].update_literal((!is_new).then_some(before), Some(after));
        }
    }

    fn count_node(&mut self, node: NodeId) {
        let plus = self.nodes[node as usize].plus.map_or(0, |plus| self.nodes[plus as usize].steps);
        let node = &mut self.nodes[node as usize];
        node.steps = 1 + node.literal_steps + plus;
    }

    /// Frees the nodes of a path that no filter uses any more, and counts the steps of the others anew.
    fn prune(&mut self, path: &[(NodeId, &str)], buffer: &mut Vec<u8>) {
        for pair in path.windows(2).rev() {
            let ((parent, _), (node, level)) = (pair[0], pair[1]);
            if !self.nodes[node as usize].is_unused() {
                self.count_child(parent, level, node);
                continue;
            }
            if level == "+" {
                self.nodes[parent as usize].plus = None;
            } else {
                self.edges.remove(edge(buffer, parent, level));
                let steps = self.nodes[node as usize].steps;
                let parent = &mut self.nodes[parent as usize];
                parent.literals -= 1;
                parent.update_literal(Some(steps), None);
            }
            self.nodes[node as usize] = Node::default();
            self.free.push(node);
        }
        self.count_node(ROOT);
    }

    fn child(&self, parent: NodeId, level: &str, buffer: &mut Vec<u8>) -> Option<NodeId> {
        match level {
            "+" => self.nodes[parent as usize].plus,
            level => self.edges.get(edge(buffer, parent, level)).copied(),
        }
    }

    /// The node below `parent` for `level`, made if there is none.
    fn step(&mut self, parent: NodeId, level: &str) -> NodeId {
        let mut buffer = Vec::with_capacity(size_of::<NodeId>() + level.len());
        if let Some(node) = self.child(parent, level, &mut buffer) {
            return node;
        }
        let node = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            // Four thousand million nodes do not fit into the memory of any machine this runs on.
            (self.nodes.len() - 1) as NodeId
        });
        if level == "+" {
            self.nodes[parent as usize].plus = Some(node);
        } else {
            self.edges.insert(edge(&mut buffer, parent, level).into(), node);
            self.nodes[parent as usize].literals += 1;
        }
        node
    }

    /// Shows the subscribers of every filter that matches `name`, each filter once; gives the number of nodes that it
    /// has visited, at most [`STEPS_MAX`].
    pub(super) fn visit<'a>(&'a self, name: &str, mut visit: impl FnMut(&'a Subscribers<K, T>)) -> u32 {
        let mut buffer = Vec::with_capacity(64);
        // MQTT 5.0 §4.7.2: a wildcard does not stand for a first level that begins with "$".
        let wildcards = !name.starts_with('$');
        self.visit_below(ROOT, Some(name), wildcards, &mut buffer, &mut visit)
    }

    /// `rest` are the levels of the name below `node`. The recursion is as deep as the topic.
    fn visit_below<'a>(
        &'a self,
        node: NodeId,
        rest: Option<&str>,
        wildcards: bool,
        buffer: &mut Vec<u8>,
        visit: &mut impl FnMut(&'a Subscribers<K, T>),
    ) -> u32 {
        let mut steps = 1;
        let here = &self.nodes[node as usize];
        if wildcards && let Some(below) = &here.below {
            visit(below);
        }
        let Some(rest) = rest else {
            if let Some(subscribers) = &here.here {
                visit(subscribers);
            }
            return steps;
        };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        if here.literals > 0
            && let Some(&child) = self.edges.get(edge(buffer, node, level))
        {
            steps += self.visit_below(child, rest, true, buffer, visit);
        }
        if wildcards && let Some(child) = here.plus {
            steps += self.visit_below(child, rest, true, buffer, visit);
        }
        steps
    }
}

impl<K: Eq + Hash + Clone, T> Subscribers<K, T> {
    fn remove_from_group(&mut self, index: usize, key: &K) -> Option<T> {
        let removed = self.groups[index].members.remove(key);
        if self.groups[index].members.is_empty() {
            self.groups.swap_remove(index);
        }
        removed
    }
}

/// The levels of a filter without the `#` at its end, and whether there is one.
fn split(filter: &str) -> (Option<&str>, bool) {
    match filter.strip_suffix('#') {
        None => (Some(filter), false),
        Some("") => (None, true),
        Some(levels) => (Some(levels.strip_suffix('/').unwrap_or(levels)), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::{self, tests::filter};
    use proptest::prelude::*;

    fn matched(routes: &Routes<u8, u8>, name: &str) -> Vec<u8> {
        let mut found = Vec::new();
        routes.visit(name, |subscribers| found.extend(subscribers.each().copied()));
        found.sort_unstable();
        found
    }

    #[test]
    fn what_was_removed_is_gone_and_its_nodes_are_used_again() {
        let mut routes = Routes::new();
        for round in 0..100u8 {
            routes.add(&format!("devices/{round}/cmd/#"), None, round, round, true).unwrap();
            routes.add(&format!("devices/{round}/+/x"), Some("g"), round, round, true).unwrap();
            assert_eq!(matched(&routes, &format!("devices/{round}/cmd/1")), [round]);
            assert!(routes.remove(&format!("devices/{round}/cmd/#"), None, &round).is_some());
            assert!(routes.remove(&format!("devices/{round}/+/x"), Some("g"), &round).is_some());
        }
        assert_eq!((routes.len(), routes.edges.len()), (0, 0));
        assert!(routes.nodes.len() <= 6, "{} nodes", routes.nodes.len());
        assert_eq!(routes.nodes.len(), routes.free.len() + 1);
    }

    #[test]
    fn a_second_subscription_to_the_same_filter_replaces_the_first() {
        let mut routes = Routes::new();
        assert_eq!(routes.add("a", None, 1, 1, true), Ok(None));
        assert_eq!(routes.add("a", None, 1, 2, true), Ok(Some(1)));
        assert_eq!(routes.len(), 1);
        assert_eq!(matched(&routes, "a"), [2]);
        assert_eq!(routes.remove("a", Some("g"), &1), None);
        assert_eq!(routes.remove("b", None, &1), None);
        assert_eq!(routes.remove("a/#", None, &1), None);
    }

    #[test]
    fn a_group_takes_turns_and_passes_over_who_is_not_ready() {
        let mut routes = Routes::new();
        for member in 0..3u8 {
            routes.add("a", Some("g"), member, member, true).unwrap();
        }
        let turn = |ready: &dyn Fn(&u8) -> bool| {
            let mut picked = Vec::new();
            routes.visit("a", |subscribers| {
                picked.extend(subscribers.groups().filter_map(|group| group.pick(ready)).copied());
            });
            assert_eq!(picked.len(), 1);
            picked[0]
        };
        let mut turns = [0; 3];
        for _ in 0..30 {
            turns[turn(&|_| true) as usize] += 1;
        }
        assert_eq!(turns, [10, 10, 10]);
        for _ in 0..5 {
            assert_eq!(turn(&|&member| member == 1), 1);
        }
        turn(&|_| false);
    }

    /// All filters of `levels` levels that are each `a` or `+`, the index's worst case.
    fn literal_or_plus(levels: u32) -> impl Iterator<Item = String> {
        (0..1u32 << levels).map(move |bits| {
            (0..levels).map(|level| if bits >> level & 1 == 0 { "a" } else { "+" }).collect::<Vec<_>>().join("/")
        })
    }

    #[test]
    fn filters_that_multiply_the_cost_of_matching_are_refused() {
        let mut routes = Routes::new();
        let results: Vec<bool> =
            literal_or_plus(13).map(|filter| routes.add(&filter, None, filter.clone(), 0, true).is_ok()).collect();
        assert!(results.iter().filter(|accepted| **accepted).count() < 1_024);
        let steps = routes.visit(&["a"; 13].join("/"), |_| {});
        assert!((STEPS_MAX - 16..=STEPS_MAX).contains(&steps), "{steps} steps");
        assert_eq!(routes.add("devices/1/cmd", None, "1".to_owned(), 0, true), Ok(None), "no more steps than others");
        // What was refused has left nothing, and what goes gives its steps back.
        for (filter, accepted) in literal_or_plus(13).zip(results) {
            assert_eq!(routes.remove(&filter, None, &filter).is_some(), accepted);
        }
        assert_eq!((routes.len(), routes.nodes[ROOT as usize].steps), (1, 4));
    }

    /// A subscriber with many wildcards leaves steps to those with few.
    #[test]
    fn one_subscriber_cannot_use_up_the_steps_of_all() {
        let mut routes = Routes::new();
        for (number, filter) in literal_or_plus(13).enumerate() {
            // The refusal itself is the subject of the test above.
            let _accepted = routes.add(&filter, None, 1u8, 0u8, number < FEW_WILDCARD_FILTERS);
        }
        assert!(routes.visit(&["a"; 13].join("/"), |_| {}) <= STEPS_MAX / 2);
        assert_eq!(routes.add("+/+/status/+", None, 2, 0, true), Ok(None));
    }

    proptest! {
        /// No topic name takes more steps than the index promises, whatever the filters were and which of them are left;
        /// and what the index promises is counted as if it were built anew.
        #[test]
        fn the_cost_of_matching_is_bounded_for_every_set_of_filters(
            filters in prop::collection::vec(("(a|b|\\+)(/(a|b|\\+)){0,11}(/#)?", any::<bool>()), 1..600),
            names in prop::collection::vec("(a|b)(/(a|b)){0,12}", 1..20),
        ) {
            let mut routes = Routes::new();
            let mut kept = Vec::new();
            for (number, (filter, _)) in filters.iter().enumerate() {
                if routes.add(filter, None, number, number, true).is_ok() {
                    kept.push(number);
                }
            }
            let promised = |routes: &Routes<usize, usize>| routes.nodes[ROOT as usize].steps;
            prop_assert!(promised(&routes) <= STEPS_MAX);
            for name in &names {
                let steps = routes.visit(name, |_| {});
                prop_assert!(steps <= promised(&routes), "{} steps for {}", steps, name);
            }
            let (stay, go): (Vec<usize>, Vec<usize>) = kept.into_iter().partition(|&number| filters[number].1);
            for number in go {
                routes.remove(&filters[number].0, None, &number);
            }
            let mut anew = Routes::new();
            for number in stay {
                prop_assert!(anew.add(&filters[number].0, None, number, number, true).is_ok());
            }
            prop_assert_eq!(promised(&routes).max(1), promised(&anew).max(1));
            for name in &names {
                let steps = routes.visit(name, |_| {});
                prop_assert!(steps <= promised(&routes).max(1), "{} steps for {}", steps, name);
            }
        }

        /// The index finds what comparing with every filter would find, whatever came and went before.
        #[test]
        fn the_index_agrees_with_comparing_every_filter(
            filters in prop::collection::vec((filter(), any::<bool>()), 1..40),
            names in prop::collection::vec("(a|b|c|\\$s|)(/(a|b|c|)){0,3}", 1..20),
        ) {
            let mut routes = Routes::new();
            for (number, (filter, _)) in filters.iter().enumerate() {
                routes.add(filter, None, number as u8, number as u8, true).unwrap();
            }
            for (number, (filter, stays)) in filters.iter().enumerate() {
                if !stays {
                    prop_assert_eq!(routes.remove(filter, None, &(number as u8)), Some(number as u8));
                }
            }
            for name in names.iter().filter(|name| !name.is_empty()) {
                let expected: Vec<u8> = (0..filters.len() as u8)
                    .filter(|&number| filters[usize::from(number)].1)
                    .filter(|&number| topic::matches(&filters[usize::from(number)].0, name))
                    .collect();
                prop_assert_eq!(matched(&routes, name), expected, "{}", name);
            }
        }
    }
}
