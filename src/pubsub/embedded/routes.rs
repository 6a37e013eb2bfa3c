//! Who has subscribed to what: the index from a topic name to its subscribers.
//!
//! Pure. A tree of topic levels; a look-up visits one node a level, and one more for each `+` on its
//! way, so its cost depends on the depth of the topic and not on how many subscriptions there are. The
//! depth is bounded where filters are checked. A million subscriptions of devices to topics of their
//! own are the usual case, so nodes lie in one vector and all edges in one map: a level that only one
//! filter uses costs about 120 bytes.

use std::collections::HashMap;
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

#[derive(Debug)]
struct Node<K, T> {
    /// The node for `+`.
    plus: Option<NodeId>,
    /// How many edges with a text leave here.
    literals: u32,
    /// Subscribers of the filter that ends here.
    here: Option<Box<Subscribers<K, T>>>,
    /// Subscribers of the filter that ends here with `#`.
    below: Option<Box<Subscribers<K, T>>>,
}

impl<K, T> Default for Node<K, T> {
    fn default() -> Self {
        Self { plus: None, literals: 0, here: None, below: None }
    }
}

impl<K, T> Node<K, T> {
    fn is_unused(&self) -> bool {
        self.plus.is_none() && self.literals == 0 && self.here.is_none() && self.below.is_none()
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

    /// Enters a subscription; gives back what it replaces.
    pub(super) fn add(&mut self, filter: &str, group: Option<&str>, key: K, target: T) -> Option<T> {
        let (levels, open) = split(filter);
        let mut node = ROOT;
        for level in levels.into_iter().flat_map(|levels| levels.split('/')) {
            node = self.step(node, level);
        }
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

    /// Frees the nodes of a path, from its end, as far as no filter uses them any more.
    fn prune(&mut self, path: &[(NodeId, &str)], buffer: &mut Vec<u8>) {
        for pair in path.windows(2).rev() {
            let ((parent, _), (node, level)) = (pair[0], pair[1]);
            if !self.nodes[node as usize].is_unused() {
                return;
            }
            if level == "+" {
                self.nodes[parent as usize].plus = None;
            } else {
                self.edges.remove(edge(buffer, parent, level));
                self.nodes[parent as usize].literals -= 1;
            }
            self.free.push(node);
        }
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

    /// Shows the subscribers of every filter that matches `name`, each filter once.
    pub(super) fn visit<'a>(&'a self, name: &str, mut visit: impl FnMut(&'a Subscribers<K, T>)) {
        let mut buffer = Vec::with_capacity(64);
        // MQTT 5.0 §4.7.2: a wildcard does not stand for a first level that begins with "$".
        let wildcards = !name.starts_with('$');
        self.visit_below(ROOT, Some(name), wildcards, &mut buffer, &mut visit);
    }

    /// `rest` are the levels of the name below `node`. The recursion is as deep as the topic.
    fn visit_below<'a>(
        &'a self,
        node: NodeId,
        rest: Option<&str>,
        wildcards: bool,
        buffer: &mut Vec<u8>,
        visit: &mut impl FnMut(&'a Subscribers<K, T>),
    ) {
        let here = &self.nodes[node as usize];
        if wildcards && let Some(below) = &here.below {
            visit(below);
        }
        let Some(rest) = rest else {
            if let Some(subscribers) = &here.here {
                visit(subscribers);
            }
            return;
        };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        if here.literals > 0
            && let Some(&child) = self.edges.get(edge(buffer, node, level))
        {
            self.visit_below(child, rest, true, buffer, visit);
        }
        if wildcards && let Some(child) = here.plus {
            self.visit_below(child, rest, true, buffer, visit);
        }
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
            routes.add(&format!("devices/{round}/cmd/#"), None, round, round);
            routes.add(&format!("devices/{round}/+/x"), Some("g"), round, round);
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
        assert_eq!(routes.add("a", None, 1, 1), None);
        assert_eq!(routes.add("a", None, 1, 2), Some(1));
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
            routes.add("a", Some("g"), member, member);
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

    proptest! {
        /// The index finds what comparing with every filter would find, whatever came and went before.
        #[test]
        fn the_index_agrees_with_comparing_every_filter(
            filters in prop::collection::vec((filter(), any::<bool>()), 1..40),
            names in prop::collection::vec("(a|b|c|\\$s|)(/(a|b|c|)){0,3}", 1..20),
        ) {
            let mut routes = Routes::new();
            for (number, (filter, _)) in filters.iter().enumerate() {
                routes.add(filter, None, number as u8, number as u8);
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
