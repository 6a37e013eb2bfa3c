//! Whatever fails when: handlers that fail at random, from a seed that a failing test names.
//!
//! A chain of three servers; each of the first two fails any event in any way. Every device sends a stream of numbered
//! lines, and is published numbered messages. Who has handled an event in the end has written it down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use polygate::testing::exproto::proto;
use tonic::Status;

use crate::harness::mqtt::MqttClient;
use crate::harness::scripted_handler::{Calls, Event, ScriptedHandler, Serves, authentication};
use crate::harness::{Setup, eventually};

const DEVICES: usize = 20;
const LINES: usize = 30;
const MESSAGES: usize = 20;

/// Every byte of every device is handled exactly once and in order, and so is every message for it; each answer
/// reaches it once.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_nothing_is_lost_or_doubled() {
    let seeds = match std::env::var("SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => vec![1, 2, 3],
    };
    for seed in seeds {
        println!("SIMULATION_SEED={seed}");
        simulate(seed).await;
    }
}

async fn simulate(seed: u64) {
    let book = Book::default();
    let first = unreliable(&book, seed).await;
    let second = unreliable(&book, seed + 1000).await;
    let last = reliable(&book).await;
    let unsteady = "call_timeout = \"100ms\"\nhold_timeout = \"200ms\"";
    let gateway = Setup::grpc(&first)
        .handler(unsteady)
        .then_grpc("second", &second)
        .handler(unsteady)
        .then_grpc("last", &last)
        .start()
        .await;
    for handler in [&first, &second, &last] {
        handler.use_adapter(gateway.adapter());
    }

    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    let mut devices = tokio::task::JoinSet::new();
    let mut names = Vec::new();
    for _ in 0..DEVICES {
        let mut peer = gateway.connect().await;
        names.push(name(peer.local_addr().port().into()));
        devices.spawn(async move {
            let device = name(peer.local_addr().port().into());
            let mut sent = String::new();
            for line in 0..LINES {
                let line = format!("{device} line {line};");
                peer.send(&line).await;
                sent += &line;
                // Also without a pause, so that lines reach a handler together.
                if sent.len().is_multiple_of(3) {
                    tokio::task::yield_now().await;
                }
            }
            peer.expect(&sent).await;
            (device, sent, peer)
        });
    }
    eventually("every device is subscribed", || book.subscribed() == DEVICES).await;
    for message in 0..MESSAGES {
        for device in &names {
            client.publish(&format!("down/{device}"), message.to_string()).await;
        }
    }

    let numbered: Vec<String> = (0..MESSAGES).map(|message| message.to_string()).collect();
    let mut peers = Vec::new();
    while let Some(ended) = devices.join_next().await {
        let (device, sent, peer) = ended.unwrap();
        assert_eq!(book.page(&device).bytes, sent, "what was handled of {device}'s stream");
        let all = || book.page(&device).messages.len() >= MESSAGES;
        eventually(&format!("all messages for {device}"), all).await;
        assert_eq!(book.page(&device).messages, numbered, "what was handled of {device}'s messages");
        peers.push(peer);
    }
    let fell_back = "polygate_recoveries_total{listener=\"l\",handler=\"second\",action=\"fall_back\"}";
    assert!(gateway.metric(fell_back) > 0.0, "nothing fell as far as the last handler");
    assert_eq!(gateway.connections(), DEVICES);
}

/// What has been handled of one device.
#[derive(Clone, Debug, Default)]
struct Page {
    bytes: String,
    messages: Vec<String>,
    subscribed: bool,
}

/// What has been handled, by whomever.
#[derive(Clone, Debug, Default)]
struct Book(Arc<Mutex<HashMap<String, Page>>>);

impl Book {
    fn write(&self, device: &str, write: impl FnOnce(&mut Page)) {
        write(self.0.lock().unwrap().entry(device.to_owned()).or_default());
    }

    fn page(&self, device: &str) -> Page {
        self.0.lock().unwrap().get(device).cloned().unwrap_or_default()
    }

    fn subscribed(&self) -> usize {
        self.0.lock().unwrap().values().filter(|page| page.subscribed).count()
    }
}

/// A handler that does its work, and writes it down.
#[derive(Clone)]
struct Clerk {
    book: Book,
    /// Which device a `conn` of this handler is.
    devices: Arc<Mutex<HashMap<String, String>>>,
}

impl Clerk {
    fn new(book: &Book) -> Self {
        Self { book: book.clone(), devices: Arc::default() }
    }

    async fn handle(&self, conn: String, event: Event, calls: Calls) {
        if let Event::Created(info) = &event {
            let device = name(info.peername.clone().unwrap().port);
            self.devices.lock().unwrap().insert(conn.clone(), device.clone());
            assert_eq!(calls.authenticate(authentication(&conn, &device)).await.code, 0);
            let filter = proto::SubscribeRequest { conn: conn.clone(), topic: format!("down/{device}"), qos: 1 };
            assert_eq!(calls.subscribe(filter).await.code, 0);
            self.book.write(&device, |page| page.subscribed = true);
            return;
        }
        let device = self.devices.lock().unwrap()[&conn].clone();
        match event {
            Event::Bytes(bytes) => {
                self.book.write(&device, |page| page.bytes += std::str::from_utf8(&bytes).unwrap());
                calls.send_ok(&conn, bytes).await;
            }
            Event::Messages(messages) => self.book.write(&device, |page| {
                let texts = messages.iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap());
                page.messages.extend(texts);
            }),
            Event::Created(_) | Event::Timer | Event::Closed(_) => {}
        }
    }
}

async fn reliable(book: &Book) -> ScriptedHandler {
    let clerk = Clerk::new(book);
    ScriptedHandler::start(Serves::Unary, move |callback, calls| {
        let clerk = clerk.clone();
        async move {
            clerk.handle(callback.conn, callback.event, calls).await;
            Ok(())
        }
    })
    .await
}

/// Fails one event in five, before it has done anything: with an error, by saying that it is busy, or by saying
/// nothing.
async fn unreliable(book: &Book, seed: u64) -> ScriptedHandler {
    let clerk = Clerk::new(book);
    let dice = Arc::new(Mutex::new(seed));
    ScriptedHandler::start(Serves::Unary, move |callback, calls| {
        let clerk = clerk.clone();
        let cast = cast(&mut dice.lock().unwrap());
        async move {
            match cast % 15 {
                0 => return Err(Status::internal("broken")),
                1 => return Err(Status::unavailable("busy")),
                2 => std::future::pending().await,
                _ => clerk.handle(callback.conn, callback.event, calls).await,
            }
            Ok(())
        }
    })
    .await
}

fn name(port: u32) -> String {
    format!("d-{port}")
}

/// SplitMix64: the next of a sequence that a seed decides.
fn cast(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
