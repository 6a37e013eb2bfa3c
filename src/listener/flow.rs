//! Flow table of a datagram socket, and the receive queue of each flow. Pure: no socket, no clock, no lock.
//!
//! A datagram socket receives for all peers on one descriptor. [`Table`] maps a datagram to its flow and bounds the
//! number of flows; [`Queue`] holds the received datagrams that the connection has not taken yet. Both are bounded,
//! because source addresses can be spoofed.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

/// Below this many flows the memory of the table is not released.
const KEPT_CAPACITY: usize = 1024;

/// The sender of a datagram and the local address it was sent to: the answer must come from there.
///
/// A peer that sends to two local addresses has two flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The peer's address on the socket.
    pub peer: SocketAddr,
    /// The local address; `None` if the socket has only one.
    pub local: Option<IpAddr>,
}

/// Distinguishes successive flows of the same peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowId(u64);

/// The maximum number of flows is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The flows of a socket.
///
/// Peers choose their addresses, so the hashes are keyed with a secret against collision attacks.
#[derive(Debug)]
pub struct Table<V> {
    flows: HashMap<Key, (FlowId, V)>,
    flows_max: usize,
    opened: u64,
}

impl<V> Table<V> {
    /// An empty table for at most `flows_max` flows.
    pub fn new(flows_max: usize) -> Self {
        Self { flows: HashMap::new(), flows_max, opened: 0 }
    }

    /// Changes the maximum number of flows; open flows beyond it stay.
    pub fn resize(&mut self, flows_max: usize) {
        self.flows_max = flows_max;
    }

    /// The number of open flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether no flow is open.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Whether a new peer would be rejected.
    pub fn is_full(&self) -> bool {
        self.flows.len() >= self.flows_max
    }

    /// The flow of a datagram.
    pub fn find(&self, key: &Key) -> Option<&V> {
        self.flows.get(key).map(|(_, flow)| flow)
    }

    /// Opens a flow. An existing flow of the same key is replaced and returned.
    ///
    /// # Errors
    ///
    /// [`Full`]: the key is new and the maximum number of flows is open.
    pub fn open(&mut self, key: Key, flow: V) -> Result<(FlowId, Option<V>), Full> {
        if self.is_full() && !self.flows.contains_key(&key) {
            return Err(Full);
        }
        let id = FlowId(self.opened);
        self.opened += 1;
        let replaced = self.flows.insert(key, (id, flow));
        Ok((id, replaced.map(|(_, flow)| flow)))
    }

    /// Removes a flow, unless another one has replaced it.
    pub fn close(&mut self, key: &Key, id: FlowId) -> Option<V> {
        if self.flows.get(key)?.0 != id {
            return None;
        }
        let (_, flow) = self.flows.remove(key)?;
        // Memory is released after a flood. At a quarter, so that an oscillating table is not copied each time.
        if self.flows.capacity() > KEPT_CAPACITY && self.flows.len() < self.flows.capacity() / 4 {
            self.flows.shrink_to(self.flows.len() * 2);
        }
        Some(flow)
    }
}

/// Bounds of a flow's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Datagrams, `1..`; empty ones count too.
    pub datagrams_max: usize,
    /// Their bytes, `1..`; the datagram that reaches the bound may go over it.
    pub bytes_max: usize,
}

/// Why a datagram was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFull {
    /// The maximum number of datagrams is queued.
    Datagrams,
    /// The maximum number of bytes is queued.
    Bytes,
}

/// The queued datagrams of one flow, oldest first.
#[derive(Debug)]
pub struct Queue {
    bounds: Bounds,
    /// The oldest; `more` holds the others. Mostly there is one at a time, and then no allocation.
    first: Option<Bytes>,
    more: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    /// An empty queue.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, first: None, more: VecDeque::new(), bytes: 0 }
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The number of queued datagrams.
    pub fn len(&self) -> usize {
        self.more.len() + usize::from(self.first.is_some())
    }

    /// The number of queued bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues a datagram; queued ones are never dropped for it.
    ///
    /// The bytes are copied, because those of one datagram would otherwise keep the whole buffer that it was received
    /// in.
    ///
    /// # Errors
    ///
    /// [`QueueFull`], with the reached bound.
    pub fn push(&mut self, datagram: &[u8]) -> Result<(), QueueFull> {
        if self.len() >= self.bounds.datagrams_max {
            return Err(QueueFull::Datagrams);
        }
        if self.bytes >= self.bounds.bytes_max {
            return Err(QueueFull::Bytes);
        }
        self.bytes += datagram.len();
        let datagram = Bytes::copy_from_slice(datagram);
        match self.first {
            None => self.first = Some(datagram),
            Some(_) => self.more.push_back(datagram),
        }
        Ok(())
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Bytes> {
        let first = self.first.take()?;
        self.bytes -= first.len();
        self.first = self.more.pop_front();
        if self.more.is_empty() && self.more.capacity() > 0 {
            // An idle flow keeps no memory of its queue.
            self.more = VecDeque::new();
        }
        Some(first)
    }

    /// Drops the queued datagrams, and returns their number.
    pub fn clear(&mut self) -> usize {
        let dropped = self.len();
        *self = Self::new(self.bounds);
        dropped
    }
}

/// Splits one read into the datagrams that the kernel coalesced (UDP GRO): all but the last have the same length.
///
/// An empty datagram is never coalesced.
pub fn split(bytes: &[u8], datagram_bytes: usize) -> impl Iterator<Item = &[u8]> {
    let empty = bytes.is_empty().then_some(bytes);
    let size = if datagram_bytes == 0 { bytes.len().max(1) } else { datagram_bytes };
    empty.into_iter().chain(bytes.chunks(size))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u16) -> Key {
        // Few peers and two local addresses, so that keys differ in one part only.
        let local = Ipv4Addr::new(127, 0, 0, 1 + (number % 2) as u8);
        Key { peer: SocketAddr::from(([10, 0, 0, 1], number / 2)), local: Some(local.into()) }
    }

    proptest! {
        /// The table agrees with a plain map of the newest flow of each key, up to its bound; a replaced flow cannot
        /// close its successor.
        #[test]
        fn it_finds_the_newest_flow(steps in proptest::collection::vec((0..3u8, 0..12u16), 0..200)) {
            const FLOWS_MAX: usize = 8;
            let mut table = Table::new(FLOWS_MAX);
            let mut model: HashMap<Key, usize> = HashMap::new();
            let mut opened: Vec<(Key, FlowId)> = Vec::new();
            for (step, number) in steps {
                let key = key(number);
                match step {
                    0 => prop_assert_eq!(table.find(&key), model.get(&key)),
                    1 => {
                        let value = opened.len();
                        match table.open(key, value) {
                            Ok((id, replaced)) => {
                                prop_assert_eq!(replaced, model.insert(key, value));
                                opened.push((key, id));
                            }
                            Err(Full) => prop_assert!(model.len() == FLOWS_MAX && !model.contains_key(&key)),
                        }
                    }
                    _ if opened.is_empty() => {}
                    _ => {
                        let value = usize::from(number) * 31 % opened.len();
                        let (key, id) = opened[value];
                        let is_newest = model.get(&key) == Some(&value);
                        if is_newest {
                            model.remove(&key);
                        }
                        prop_assert_eq!(table.close(&key, id), is_newest.then_some(value));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert!(table.len() <= FLOWS_MAX);
            }
        }

        /// Queued datagrams come out once, in order and whole; the others exceeded a bound.
        #[test]
        fn datagrams_keep_their_order_and_borders(
            steps in proptest::collection::vec(prop_oneof![3 => (0..40usize).prop_map(Some), 2 => Just(None)], 0..200),
        ) {
            const BOUNDS: Bounds = Bounds { datagrams_max: 5, bytes_max: 64 };
            let mut queue = Queue::new(BOUNDS);
            let mut model: VecDeque<Vec<u8>> = VecDeque::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Some(size) => {
                        let datagram = vec![number as u8; size];
                        let bytes: usize = model.iter().map(Vec::len).sum();
                        let expected = if model.len() == BOUNDS.datagrams_max {
                            Err(QueueFull::Datagrams)
                        } else if bytes >= BOUNDS.bytes_max {
                            Err(QueueFull::Bytes)
                        } else {
                            Ok(())
                        };
                        prop_assert_eq!(queue.push(&datagram), expected);
                        if expected.is_ok() {
                            model.push_back(datagram);
                        }
                    }
                    None => prop_assert_eq!(queue.pop().map(Vec::from), model.pop_front()),
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.bytes(), model.iter().map(Vec::len).sum::<usize>());
                prop_assert!(queue.bytes() < BOUNDS.bytes_max + 40);
            }
            prop_assert_eq!(queue.clear(), model.len());
            prop_assert_eq!((queue.len(), queue.bytes(), queue.pop()), (0, 0, None));
        }

        /// No byte of a read is lost or duplicated, and only the last datagram may be shorter.
        #[test]
        fn a_read_is_split_at_its_borders(length in 0..300usize, datagram_bytes in 0..80usize) {
            let bytes: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let parts: Vec<&[u8]> = split(&bytes, datagram_bytes).collect();
            prop_assert_eq!(parts.concat(), &bytes[..]);
            if datagram_bytes > 0 && length > 0 {
                prop_assert_eq!(parts.len(), length.div_ceil(datagram_bytes));
                prop_assert!(parts[..parts.len() - 1].iter().all(|part| part.len() == datagram_bytes));
            } else {
                prop_assert_eq!(parts.len(), 1);
            }
        }
    }

    /// An empty datagram is one datagram.
    #[test]
    fn an_empty_datagram_is_one() {
        assert_eq!(split(b"", 0).collect::<Vec<_>>(), [b""]);
        assert_eq!(split(b"abc", 3).collect::<Vec<_>>(), [b"abc"]);
        assert_eq!(split(b"abcde", 2).collect::<Vec<_>>(), [&b"ab"[..], b"cd", b"e"]);
    }

    /// The memory of a flood is released when its flows are gone.
    #[test]
    fn a_flood_leaves_no_memory_behind() {
        let mut table = Table::new(usize::MAX);
        let flows: Vec<_> = (0..50_000u16)
            .map(|port| {
                let key = Key { peer: SocketAddr::from(([10, 0, 0, 1], port)), local: None };
                (key, table.open(key, ()).unwrap().0)
            })
            .collect();
        for (key, id) in flows {
            assert_eq!(table.close(&key, id), Some(()));
        }
        assert!(table.is_empty());
        assert!(table.flows.capacity() <= 2 * KEPT_CAPACITY, "{}", table.flows.capacity());
    }
}
