//! The journal over a storage in memory that can be full, cut and damaged.

use std::io::Cursor;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::auth::{Auth, Options as AuthOptions};
use crate::conn::QoS;
use crate::mqtt::packet::{SubscriptionOptions, Will};
use crate::pubsub::embedded::clients::{Attach, Room, WillAction};
use crate::pubsub::embedded::message::{Origin, Publication};
use crate::pubsub::embedded::{Counters, Options};

/// A disk of so many bytes.
#[derive(Clone)]
struct Memory(Arc<Mutex<Disk>>);

struct Disk {
    current: Vec<u8>,
    new: Option<Vec<u8>>,
    capacity: usize,
}

impl Memory {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Disk { current: Vec::new(), new: None, capacity: usize::MAX })))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().current.clone()
    }
}

impl Storage for Memory {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let disk = &mut *self.0.lock();
        let used = disk.current.len() + disk.new.as_ref().map_or(0, Vec::len);
        let room = disk.capacity.saturating_sub(used);
        let file = disk.new.as_mut().unwrap_or(&mut disk.current);
        // As a real disk does it: what there is room for is written.
        file.extend_from_slice(&bytes[..room.min(bytes.len())]);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        self.0.lock().new = Some(Vec::new());
        Ok(())
    }

    fn replace(&mut self) -> io::Result<()> {
        let disk = &mut *self.0.lock();
        disk.current = disk.new.take().unwrap();
        Ok(())
    }

    fn rollback(&mut self, len: u64) {
        let disk = &mut *self.0.lock();
        if disk.new.take().is_none() {
            disk.current.truncate(len as usize);
        }
    }
}

/// A broker without connections and without the thread: the test commits.
struct Life {
    router: Arc<Router>,
    journal: Arc<Journal>,
    committer: Committer<Memory>,
    memory: Memory,
}

impl Life {
    fn begin(memory: Memory) -> Self {
        let recovered = log::recover(Cursor::new(memory.bytes()), clock()).unwrap();
        assert_eq!(recovered.rest, Rest::Nothing);
        let counters = Counters::default();
        let journal = Arc::new(Journal::new(Durability::EveryMessage, counters.journal.clone(), recovered.len == 0));
        let auth = Auth::new(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }).unwrap();
        let router = Arc::new(Router::new(&Options::default(), auth, counters, Some(journal.clone())).unwrap());
        let mut image = recovered.image;
        router.restore(&mut image, Instant::now());
        let committer = Committer {
            log: Log::new(memory.clone(), recovered.len),
            router: Arc::downgrade(&router),
            journal: journal.clone(),
            compacted: 0,
            failed: false,
        };
        Self { router, journal, committer, memory }
    }

    fn commit(&mut self) {
        if let Some(taken) = take(&self.journal, &self.router) {
            self.committer.commit(taken);
        }
    }

    fn retain(&self, topic: &str, payload: &str) {
        self.publish(topic, payload, QoS::AtMostOnce, true);
    }

    fn publish(&self, topic: &str, payload: &str, qos: QoS, retain: bool) {
        let payload = &Bytes::from(payload.to_owned());
        self.router.publish(&Publication { origin: Origin::Local("p"), topic, qos, retain, payload, properties: None });
    }

    /// Everything that has to be kept, as text.
    fn state(&self) -> String {
        let mut retained: Vec<String> =
            self.router.all_retained().iter().map(|m| format!("{} {:?} {:?}", m.topic, m.payload, m.qos)).collect();
        retained.sort();
        let mut clients = self.router.clients().all();
        clients.sort_by_key(|client| client.serial);
        let sessions = clients.iter().filter_map(|client| client.take_change(Extent::All)).map(|session| {
            let queued: Vec<String> = session
                .queued
                .iter()
                .map(|queued| {
                    let message = &queued.message;
                    let (qos, retain) = (queued.qos, message.retain);
                    format!("{} {} {:?} {qos:?} {retain}", queued.seq, message.message.topic, message.message.payload)
                })
                .collect();
            let SessionChange { serial, id, filters, outline, unreleased, will, .. } = &session;
            format!("{serial} {id} {filters:?} {queued:?} {} {unreleased:?} {will:?}", outline.shape())
        });
        format!("{retained:#?}\n{:#?}", sessions.collect::<Vec<_>>())
    }
}

/// While the disk is full the broker goes on, and when there is room everything is written.
#[test]
fn a_full_disk_costs_nothing_but_time() {
    let memory = Memory::new();
    let mut life = Life::begin(memory.clone());
    life.retain("a", "1");
    life.commit();
    let durable = life.journal.durable();
    let kept = memory.bytes();
    memory.0.lock().capacity = kept.len() + 20;
    for topic in ["b", "c", "d"] {
        life.retain(topic, "2");
        life.commit();
    }
    let metrics = life.router.counters().journal.clone();
    assert_eq!((metrics.failing.get(), metrics.write_errors.get()), (1, 3));
    assert_eq!(*durable.borrow(), 1, "nobody takes it for written");
    assert!(life.journal.position().is_some());
    assert_eq!(memory.bytes(), kept, "what was there is as it was");
    assert_eq!(life.router.stats().retained, 4);

    memory.0.lock().capacity = usize::MAX;
    life.commit();
    assert_eq!((metrics.failing.get(), life.journal.position()), (0, None));
    assert_eq!(Life::begin(memory).state(), life.state());
}

/// The list of changes is bounded while the disk is slow, and nothing is lost by that.
#[test]
fn many_changes_are_written_as_the_whole_state() {
    let mut life = Life::begin(Memory::new());
    life.commit();
    life.retain("first", "x");
    for number in 0..=CHANGES_MAX {
        // A topic without a message: it has changed all the same.
        life.publish(&format!("t/{number}"), "", QoS::AtMostOnce, true);
    }
    {
        let changes = life.journal.changes.lock();
        assert!(changes.all && changes.topics.len() <= CHANGES_MAX);
    }
    life.commit();
    assert_eq!(Life::begin(life.memory.clone()).state(), life.state());
}

/// A log that has grown to more than its state is written anew, and is then as small as that.
#[test]
fn a_log_is_compacted() {
    let mut life = Life::begin(Memory::new());
    let payload = "x".repeat(1 << 20);
    for _ in 0..70 {
        life.retain("a", &payload);
        life.commit();
    }
    assert!(life.memory.bytes().len() < 8 << 20, "{}", life.memory.bytes().len());
    assert_eq!(Life::begin(life.memory.clone()).state(), life.state());
}

/// Whatever a crash or the disk does to the file, it is read without a panic, and gives the state of one of its batches.
#[test]
fn a_damaged_log_gives_the_state_before_the_damage() {
    let mut life = Life::begin(Memory::new());
    let mut states = vec![Vec::new()];
    for number in 0..4 {
        life.retain(&format!("t{number}"), "some payload");
        life.commit();
        let mut topics: Vec<String> =
            life.router.all_retained().iter().map(|message| message.topic.to_string()).collect();
        topics.sort();
        states.push(topics);
    }
    let whole = life.memory.bytes();
    let read = |bytes: &[u8]| {
        let recovered = log::recover(Cursor::new(bytes.to_vec()), clock()).unwrap();
        let mut topics: Vec<String> = recovered.image.retained().map(|message| message.topic.to_string()).collect();
        topics.sort();
        assert!(states.contains(&topics), "{topics:?}");
        (recovered.rest, topics.len())
    };
    assert_eq!(read(&whole), (Rest::Nothing, 4));
    for cut in 0..whole.len() {
        let (rest, _) = read(&whole[..cut]);
        assert!(!matches!(rest, Rest::Damaged), "cut at {cut}");
    }
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x10;
        let (rest, count) = read(&damaged);
        assert!(rest != Rest::Nothing && count < 4, "{place}");
    }
    let mut zeros = whole.clone();
    zeros.resize(whole.len() + 4096, 0);
    assert_eq!(read(&zeros), (Rest::Torn { bytes: 4096 }, 4));
}

#[derive(Clone, Debug)]
enum Step {
    Attach {
        client: usize,
        clean: bool,
        keeps: bool,
    },
    Detach {
        client: usize,
    },
    Subscribe {
        client: usize,
        filter: &'static str,
        qos: QoS,
    },
    Unsubscribe {
        client: usize,
        filter: &'static str,
    },
    Publish {
        topic: &'static str,
        qos: QoS,
        retain: bool,
        empty: bool,
    },
    /// Sends what there is, and acknowledges this many of them.
    Exchange {
        client: usize,
        acks: usize,
        released: bool,
    },
    Receive {
        client: usize,
        packet_id: u16,
        release: bool,
    },
    Commit,
    FullDisk,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0usize..3;
    let qos = prop::sample::select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]);
    let filter = prop::sample::select(vec!["a", "+/b", "#", "$share/g/a"]);
    let topic = prop::sample::select(vec!["a", "a/b", "c"]);
    prop_oneof![
        3 => (client.clone(), prop::bool::weighted(0.2), prop::bool::weighted(0.8))
            .prop_map(|(client, clean, keeps)| Step::Attach { client, clean, keeps }),
        1 => client.clone().prop_map(|client| Step::Detach { client }),
        3 => (client.clone(), filter.clone(), qos.clone())
            .prop_map(|(client, filter, qos)| Step::Subscribe { client, filter, qos }),
        1 => (client.clone(), filter).prop_map(|(client, filter)| Step::Unsubscribe { client, filter }),
        6 => (topic, qos, any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(topic, qos, retain, empty)| Step::Publish { topic, qos, retain, empty }),
        3 => (client.clone(), 0usize..5, any::<bool>())
            .prop_map(|(client, acks, released)| Step::Exchange { client, acks, released }),
        2 => (client, 1u16..4, any::<bool>())
            .prop_map(|(client, packet_id, release)| Step::Receive { client, packet_id, release }),
        3 => Just(Step::Commit),
        1 => Just(Step::FullDisk),
        1 => Just(Step::Crash),
    ]
}

fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut life = Life::begin(Memory::new());
    let mut connections: [Option<(Arc<Client>, u64)>; 3] = Default::default();
    for (number, step) in steps.into_iter().enumerate() {
        let now = Instant::now();
        match step {
            Step::Attach { client, clean, keeps } => {
                let will = Will {
                    topic: "will".into(),
                    payload: Bytes::from_static(b"w"),
                    qos: QoS::AtLeastOnce,
                    retain: false,
                    delay_s: 1_000,
                    properties: Default::default(),
                };
                let (attached, aftermath) = life.router.clients().attach(
                    Attach {
                        client_id: ["x", "y", "z"][client],
                        username: "",
                        clean_start: clean,
                        receive_max: 3,
                        expiry: Duration::from_secs(if keeps { 3_600 } else { 0 }),
                        will: keeps.then(|| Box::new(will)),
                    },
                    now,
                );
                life.router.settle(aftermath);
                let attached = attached.unwrap();
                connections[client] = Some((attached.client, attached.connection));
            }
            Step::Detach { client } => {
                if let Some((client, connection)) = connections[client].take() {
                    let clients = life.router.clients();
                    life.router.settle(clients.detach(&client, connection, WillAction::Publish, None, now));
                }
            }
            Step::Subscribe { client, filter, qos } => {
                if let Some((client, connection)) = &connections[client] {
                    let options = SubscriptionOptions::new(qos);
                    // A connection that has lost its session changes nothing, here and below.
                    let _refused = life.router.subscribe_client(client, *connection, filter, options, Some(7));
                }
            }
            Step::Unsubscribe { client, filter } => {
                if let Some((client, connection)) = &connections[client] {
                    let _refused = life.router.unsubscribe_client(client, *connection, filter);
                }
            }
            Step::Publish { topic, qos, retain, empty } => {
                let payload = if empty { String::new() } else { number.to_string() };
                life.publish(topic, &payload, qos, retain);
            }
            Step::Exchange { client, acks, released } => {
                let Some((client, connection)) = &connections[client] else { continue };
                let mut ids = Vec::new();
                let page = |filter: &str, from, found: &mut Vec<_>| life.router.retained_page(filter, from, now, found);
                let _sent = client.poll_send(
                    *connection,
                    now,
                    |send, _| {
                        if let crate::mqtt::outbound::Send::Publish { packet_id: Some(id), .. } = send {
                            ids.push(id);
                        }
                        Room::Left
                    },
                    page,
                );
                for id in ids.into_iter().take(acks) {
                    let _acknowledged = client.with(*connection, |outbound, _| {
                        drop(outbound.handle_puback(id));
                        outbound.handle_pubrec(id, crate::mqtt::Reason::SUCCESS);
                        if released {
                            outbound.handle_pubcomp(id);
                        }
                    });
                }
            }
            Step::Receive { client, packet_id, release } => {
                let Some((client, connection)) = &connections[client] else { continue };
                let _received = client.with(*connection, |_, inbound| {
                    if release {
                        inbound.handle_pubrel(packet_id);
                    } else {
                        inbound.handle_publish(packet_id, true, 100);
                    }
                });
            }
            Step::Commit => life.commit(),
            Step::FullDisk => {
                life.memory.0.lock().capacity = 30;
                life.publish("full", "x", QoS::AtMostOnce, true);
                life.commit();
                life.memory.0.lock().capacity = usize::MAX;
            }
            Step::Crash => {
                life.commit();
                let next = Life::begin(life.memory.clone());
                // Sessions without an expiry end with their connections.
                for aftermath in next.router.clients().handle_timeout(Instant::now()) {
                    next.router.settle(aftermath);
                }
                // Without messages of QoS 0, which are not kept, and on both sides without connections.
                for (client, connection) in connections.iter_mut().filter_map(Option::take) {
                    life.router.settle(life.router.clients().detach(
                        &client,
                        connection,
                        WillAction::Publish,
                        None,
                        now,
                    ));
                }
                prop_assert_eq!(next.state(), life.state());
                life = next;
            }
        }
    }
    Ok(())
}

proptest! {
    /// What a life of the broker has committed is what the next one begins with, whatever came before.
    #[test]
    fn a_restored_state_is_the_state_that_was_committed(steps in prop::collection::vec(step(), 1..60)) {
        play(steps)?;
    }
}
