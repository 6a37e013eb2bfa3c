//! Watching one connection: what happens on it, as it happens, in the format of a conversation.
//!
//! A [`Watching`] waits for a connection and follows it to its end. The connection never waits for its watcher: what a slow
//! one does not take is left out, counted, and said. While nobody waits for a connection, connections pay one look at a
//! counter for each event.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::adapter::{Entry, Operation};
use crate::conn::{CloseReason, ConnId, ConnInfo, Event, QoS};
use crate::conversation::{Action, Closer, Message, OFFSET_MAX, Pattern, Payload, Step, What};

/// How many may wait for a connection at a time.
const WAITING_MAX: usize = 16;

/// Pieces of text that a watcher may be behind. One is at most some times the read buffer of a connection, 64 KiB.
const PIECES_MAX: usize = 256;

/// Which connection is to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// This one, which is live.
    Conn(ConnId),
    /// The one that authenticates, or has authenticated, as this client.
    Client(String),
    /// The next one that is accepted.
    Next {
        /// By this listener; by any, when absent.
        listener: Option<String>,
        /// From this address; from any, when absent.
        peer: Option<IpAddr>,
    },
}

/// There are as many watchers as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING_MAX} watchers wait for a connection, which is as many as may")]
pub struct TooMany;

/// Those who wait for a connection; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Taps(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// As many as wait.
    count: AtomicUsize,
    waiting: Mutex<Vec<Arc<Waits>>>,
}

#[derive(Debug)]
struct Waits {
    whom: Whom,
    pieces: mpsc::Sender<String>,
    /// It has found its connection.
    found: AtomicBool,
}

/// What is watched, piece by piece; ends with the connection.
#[derive(Debug)]
pub struct Watching {
    pieces: mpsc::Receiver<String>,
    /// Not owned: it holds the other end of the pieces, which end with the connection.
    waits: Weak<Waits>,
    taps: Taps,
}

impl Watching {
    /// The next lines of the conversation; `None` after the end of the connection.
    pub async fn next(&mut self) -> Option<String> {
        self.pieces.recv().await
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.taps.remove(&self.waits);
    }
}

impl Taps {
    /// Waits for a connection, from now on.
    ///
    /// # Errors
    ///
    /// [`TooMany`].
    pub fn watch(&self, whom: Whom) -> Result<Watching, TooMany> {
        let (pieces, received) = mpsc::channel(PIECES_MAX);
        let waits = Arc::new(Waits { whom, pieces, found: AtomicBool::new(false) });
        let known = Arc::downgrade(&waits);
        let mut waiting = self.0.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            return Err(TooMany);
        }
        waiting.push(waits);
        self.0.count.store(waiting.len(), Ordering::Relaxed);
        drop(waiting);
        Ok(Watching { pieces: received, waits: known, taps: self.clone() })
    }

    fn remove(&self, waits: &Weak<Waits>) {
        let mut waiting = self.0.waiting.lock();
        waiting.retain(|other| !std::ptr::eq(Arc::as_ptr(other), waits.as_ptr()));
        self.0.count.store(waiting.len(), Ordering::Relaxed);
    }

    /// Whether anybody waits for a connection.
    pub fn are_waiting(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0
    }

    /// The tap on a connection, if somebody waits for it. `is_new`: nothing has happened on it yet.
    pub fn tap(&self, who: &Who<'_>, is_new: bool) -> Option<Box<Tap>> {
        let waits = {
            let waiting = self.0.waiting.lock();
            let waits = waiting.iter().find(|waits| waits.whom.is(who, is_new))?;
            Arc::clone(waits)
        };
        if waits.found.swap(true, Ordering::Relaxed) {
            return None;
        }
        self.remove(&Arc::downgrade(&waits));
        let mut tap = Tap { pieces: waits.pieces.clone(), began: Instant::now(), left_out: 0 };
        tap.begin(who, is_new);
        Some(Box::new(tap))
    }
}

/// A connection, as those who wait may know it.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Its id.
    pub conn: ConnId,
    /// Its listener.
    pub listener: &'a str,
    /// What is known of the peer.
    pub info: &'a ConnInfo,
    /// Who it has proved to be.
    pub client_id: Option<&'a str>,
}

impl Whom {
    fn is(&self, who: &Who<'_>, is_new: bool) -> bool {
        match self {
            Self::Conn(conn) => *conn == who.conn,
            Self::Client(client) => who.client_id == Some(client),
            Self::Next { listener, peer } => {
                is_new
                    && listener.as_ref().is_none_or(|listener| listener == who.listener)
                    && peer.is_none_or(|peer| peer.to_canonical() == who.info.peer.host())
            }
        }
    }
}

/// One connection's side of its watcher.
#[derive(Debug)]
pub struct Tap {
    pieces: mpsc::Sender<String>,
    began: Instant,
    left_out: u64,
}

impl Tap {
    fn begin(&mut self, who: &Who<'_>, is_new: bool) {
        let client = who.client_id.map(|client| format!(", client {client:?}")).unwrap_or_default();
        let start = if is_new { "from its start" } else { "from its middle" };
        self.comment(&format!(
            "conn {} from {} at listener {}{client}, {start}",
            who.conn, who.info.peer, who.listener
        ));
        if who.info.kind != crate::conn::SocketKind::Tcp {
            self.say(&What::Transport(who.info.kind));
        }
    }

    /// Whether nobody watches any more.
    pub fn is_over(&self) -> bool {
        self.pieces.is_closed()
    }

    /// Something has happened on the connection.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::SocketCreated(_) => {}
            Event::ReceivedBytes(bytes) => self.step(Action::FromPeer(bytes.clone())),
            Event::TimerTimeout(timer) => self.step(Action::Timer(*timer)),
            Event::ReceivedMessages(messages) => {
                for message in messages {
                    self.step(Action::Deliver(told(&message.topic, message.qos, &message.payload)));
                }
            }
            Event::SocketClosed(reason) => {
                self.comment(&format!("closed: {reason}"));
                self.step(Action::Close(closer(reason)));
            }
        }
    }

    /// The handler has asked for this.
    pub fn done(&mut self, entries: &[Entry]) {
        for Entry { operation, result } in entries {
            if let Err(refused) = result {
                self.comment(&format!("{} was refused: {refused}", operation.name()));
                continue;
            }
            match operation {
                Operation::Send(bytes) if bytes.is_empty() => {}
                Operation::Send(bytes) => self.step(Action::ToPeer(Pattern::exact(bytes))),
                Operation::Publish { topic, qos, payload } => {
                    self.step(Action::Publish(told(topic, *qos, payload)));
                }
                Operation::RawPublish { topic, qos, payload } => {
                    self.comment("the next publish is a raw one: no mountpoint, no rules");
                    self.step(Action::Publish(told(topic, *qos, payload)));
                }
                Operation::Authenticate(client) => self.comment(&format!(
                    "authenticated as client {:?}, user {:?}, protocol {:?} {:?}",
                    client.client_id, client.username, client.proto_name, client.proto_ver
                )),
                Operation::StartTimer(_, interval) => {
                    self.comment(&format!("keepalive timer of {} started", humantime::format_duration(*interval)));
                }
                Operation::StopTimer(_) => self.comment("keepalive timer stopped"),
                Operation::Subscribe { filter, qos } => {
                    self.comment(&format!("subscribed {filter:?} qos={}", *qos as u8));
                }
                Operation::Unsubscribe { filter } => self.comment(&format!("unsubscribed {filter:?}")),
                Operation::Close => self.comment("the handler asks to close"),
            }
        }
    }

    /// Something is missing here.
    pub fn gap(&mut self, why: &str) {
        self.comment(why);
    }

    fn step(&mut self, action: Action) {
        // As exact as a conversation is.
        let at = Duration::from_micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.say(&What::Step(Step { at: Some(at.min(OFFSET_MAX)), action }));
    }

    fn comment(&mut self, text: &str) {
        self.say(&What::Comment(format!(" {text}")));
    }

    fn say(&mut self, what: &What) {
        let mut text = format!("{what}\n");
        if self.left_out > 0 {
            let gap = format!(" {} lines are left out here: the watcher was too slow", self.left_out);
            text.insert_str(0, &format!("{}\n", What::Comment(gap)));
        }
        match self.pieces.try_send(text) {
            Ok(()) => self.left_out = 0,
            Err(_) => self.left_out += 1,
        }
    }
}

/// A message, its payload as JSON where it is some: that is how people read it, and how a player compares it best.
fn told(topic: &str, qos: QoS, payload: &Bytes) -> Message {
    let json =
        serde_json::from_slice(payload).ok().filter(|value: &serde_json::Value| value.is_object() || value.is_array());
    let payload = json.map_or_else(|| Payload::Bytes(payload.clone()), Payload::Json);
    Message { topic: topic.to_owned(), qos, payload }
}

fn closer(reason: &CloseReason) -> Closer {
    match reason {
        CloseReason::PeerClosed | CloseReason::SocketError(_) => Closer::Peer,
        CloseReason::HandlerAsked => Closer::Handler,
        CloseReason::KeepaliveExpired => Closer::Keepalive,
        CloseReason::IdleTimedOut => Closer::Idle,
        CloseReason::WriteTimedOut
        | CloseReason::FramingBroken(_)
        | CloseReason::HandlerFailed { .. }
        | CloseReason::Draining
        | CloseReason::Replaced
        | CloseReason::Kicked
        | CloseReason::Expired => Closer::Gateway,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conn::{ListenAddr, PeerAddr, Refused, SocketKind, Timer};
    use crate::conversation::Conversation;

    fn info() -> ConnInfo {
        ConnInfo {
            kind: SocketKind::Tcp,
            peer: PeerAddr("192.0.2.7:5000".parse().unwrap()),
            local: ListenAddr("192.0.2.1:7993".parse().unwrap()),
            certificate: None,
        }
    }

    fn who(info: &ConnInfo) -> Who<'_> {
        Who { conn: ConnId::from_u64(7), listener: "l", info, client_id: Some("d-1") }
    }

    fn entry(operation: Operation) -> Entry {
        Entry { operation, result: Ok(()) }
    }

    async fn all(mut watching: Watching) -> String {
        let mut text = String::new();
        while let Some(piece) = watching.next().await {
            text += &piece;
        }
        text
    }

    /// What is watched is a conversation: it reads as one, and says what happened.
    #[tokio::test]
    async fn what_is_watched_is_a_conversation() {
        let (taps, info) = (Taps::default(), info());
        let watching = taps.watch(Whom::Conn(ConnId::from_u64(7))).unwrap();
        assert!(taps.are_waiting());
        let mut tap = taps.tap(&who(&info), true).unwrap();
        assert!(!taps.are_waiting(), "it has found its connection");
        tap.event(&Event::SocketCreated(Arc::new(info)));
        tap.event(&Event::ReceivedBytes("HELLO\r\n".into()));
        let payload = Bytes::from_static(b"{\"celsius\":21.5}");
        tap.done(&[
            entry(Operation::Send("OK\r\n".into())),
            entry(Operation::Publish { topic: "up".into(), qos: QoS::AtLeastOnce, payload }),
            Entry { operation: Operation::Close, result: Err(Refused::Gone) },
        ]);
        tap.event(&Event::TimerTimeout(Timer::Keepalive));
        tap.event(&Event::SocketClosed(CloseReason::KeepaliveExpired));
        drop(tap);
        let text = all(watching).await;
        let steps = "> \"HELLO\\r\\n\"\n< \"OK\\r\\n\"\npublish \"up\" qos=1 json {\"celsius\":21.5}\ntimer keepalive\nclose keepalive\n";
        let timeless = text.lines().filter(|line| !line.starts_with('#'));
        let timeless: Vec<&str> = timeless.map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(timeless.join("\n") + "\n", steps);
        assert!(text.contains("# close was refused: "), "{text}");
        assert_eq!(Conversation::parse("watched", &text).unwrap().steps().count(), 5);
    }

    /// Each way to name a connection finds it, and no other.
    #[test]
    fn a_connection_is_found() {
        let info = info();
        let next = |listener: Option<&str>, peer: Option<&str>| Whom::Next {
            listener: listener.map(str::to_owned),
            peer: peer.map(|peer| peer.parse().unwrap()),
        };
        let finds = |whom: Whom, is_new| {
            let taps = Taps::default();
            let _watching = taps.watch(whom).unwrap();
            taps.tap(&who(&info), is_new).is_some()
        };
        assert!(finds(Whom::Conn(ConnId::from_u64(7)), false) && !finds(Whom::Conn(ConnId::from_u64(8)), true));
        assert!(finds(Whom::Client("d-1".into()), false) && !finds(Whom::Client("d-2".into()), true));
        assert!(finds(next(None, None), true) && !finds(next(None, None), false));
        assert!(finds(next(Some("l"), Some("192.0.2.7")), true));
        assert!(!finds(next(Some("m"), None), true) && !finds(next(None, Some("192.0.2.8")), true));
    }

    /// A watcher that does not read keeps nobody waiting; what it misses is counted where it is missing.
    #[tokio::test]
    async fn a_slow_watcher_misses_lines() {
        let (taps, info) = (Taps::default(), info());
        let mut watching = taps.watch(Whom::Client("d-1".into())).unwrap();
        let mut tap = taps.tap(&who(&info), false).unwrap();
        for _ in 0..PIECES_MAX + 9 {
            tap.event(&Event::ReceivedBytes("x".into()));
        }
        for _ in 0..PIECES_MAX {
            watching.next().await.unwrap();
        }
        tap.event(&Event::ReceivedBytes("y".into()));
        let piece = watching.next().await.unwrap();
        assert!(piece.starts_with("# 10 lines are left out here: the watcher was too slow\n@"), "{piece}");
    }

    /// Who waits is bounded, and who goes away leaves nothing behind.
    #[test]
    fn watchers_are_bounded() {
        let taps = Taps::default();
        let watchers: Vec<_> = (0..WAITING_MAX).map(|_| taps.watch(Whom::Client("x".into())).unwrap()).collect();
        assert_eq!(taps.watch(Whom::Client("x".into())).unwrap_err(), TooMany);
        drop(watchers);
        assert!(!taps.are_waiting());
    }
}
