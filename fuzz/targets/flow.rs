//! Flow table and queues under random opens, datagrams, reads and closes: each datagram goes to the newest flow of its
//! peer, and is read once, in order and whole, or was over a bound; and the bounds hold.

#![no_main]

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use polygate::testing::listener::flow::{Bounds, FlowId, Full, Key, Queue, QueueFull, Table, split};

/// The expected content of a flow, its number, and its id.
struct Expected {
    number: usize,
    id: FlowId,
    datagrams: VecDeque<Vec<u8>>,
}

fuzz_target!(|input: &[u8]| {
    let Some(([flows_max, datagrams_max, bytes_max, parts], steps)) = input.split_first_chunk::<4>() else { return };
    borders(steps, usize::from(*parts));
    let flows_max = usize::from(flows_max % 8) + 1;
    let bounds = Bounds { datagrams_max: usize::from(datagrams_max % 8) + 1, bytes_max: usize::from(*bytes_max) + 1 };
    let mut table: Table<(usize, RefCell<Queue>)> = Table::new(flows_max);
    let mut expected: HashMap<Key, Expected> = HashMap::new();
    let mut opened: Vec<(Key, FlowId)> = Vec::new();
    for step in steps.chunks_exact(3) {
        let key = key(step[1]);
        match step[0] % 5 {
            0 => open(&mut table, key, bounds, flows_max, &mut expected, &mut opened),
            1 | 2 => {
                let datagram = vec![step[2]; usize::from(step[2]) / 2];
                match (table.find(&key), expected.get_mut(&key)) {
                    (None, None) => open(&mut table, key, bounds, flows_max, &mut expected, &mut opened),
                    (Some((number, queue)), Some(flow)) => {
                        assert_eq!(*number, flow.number);
                        deliver(&mut queue.borrow_mut(), bounds, flow, datagram);
                    }
                    (found, _) => panic!("found {found:?}"),
                }
            }
            3 => {
                if let (Some((_, queue)), Some(flow)) = (table.find(&key), expected.get_mut(&key)) {
                    assert_eq!(queue.borrow_mut().pop().map(Vec::from), flow.datagrams.pop_front());
                }
            }
            _ => {
                // Any flow, open or not: a replaced one takes nothing from its successor.
                let Some((key, id)) = opened.get(usize::from(step[2])) else { continue };
                let is_newest = expected.get(key).is_some_and(|flow| flow.id == *id);
                let closed = table.close(key, *id);
                assert_eq!(closed.is_some(), is_newest);
                if let Some((_, queue)) = closed {
                    let left = expected.remove(key).map_or(0, |flow| flow.datagrams.len());
                    assert_eq!(queue.into_inner().clear(), left);
                }
            }
        }
        assert_eq!(table.len(), expected.len());
        assert!(table.len() <= flows_max);
    }
});

/// Few peers, and two local addresses.
fn key(byte: u8) -> Key {
    let peer = SocketAddr::from(([10, 0, 0, byte >> 4], 1));
    Key { peer, local: Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, byte & 1))) }
}

fn open(
    table: &mut Table<(usize, RefCell<Queue>)>,
    key: Key,
    bounds: Bounds,
    flows_max: usize,
    expected: &mut HashMap<Key, Expected>,
    opened: &mut Vec<(Key, FlowId)>,
) {
    let number = opened.len();
    match table.open(key, (number, RefCell::new(Queue::new(bounds)))) {
        Ok((id, replaced)) => {
            opened.push((key, id));
            let last = expected.insert(key, Expected { number, id, datagrams: VecDeque::new() });
            assert_eq!(replaced.map(|(number, _)| number), last.map(|flow| flow.number));
        }
        Err(Full) => assert!(expected.len() >= flows_max && !expected.contains_key(&key)),
    }
}

fn deliver(queue: &mut Queue, bounds: Bounds, flow: &mut Expected, datagram: Vec<u8>) {
    let bytes: usize = flow.datagrams.iter().map(Vec::len).sum();
    match queue.push(&datagram) {
        Ok(()) => flow.datagrams.push_back(datagram),
        Err(QueueFull::Datagrams) => assert_eq!(flow.datagrams.len(), bounds.datagrams_max),
        Err(QueueFull::Bytes) => assert!(bytes >= bounds.bytes_max),
    }
    assert_eq!(queue.len(), flow.datagrams.len());
    assert!(queue.len() <= bounds.datagrams_max && queue.bytes() < bounds.bytes_max + 128);
}

/// A read is split into all of its bytes, and into at least one datagram, whatever their length.
fn borders(bytes: &[u8], datagram_bytes: usize) {
    let datagrams: Vec<&[u8]> = split(bytes, datagram_bytes).collect();
    assert_eq!(datagrams.concat(), bytes);
    assert!(!datagrams.is_empty());
    if let Some((_, all_but_the_last)) = datagrams.split_last() {
        assert!(all_but_the_last.iter().all(|datagram| datagram.len() == datagram_bytes));
    }
}
