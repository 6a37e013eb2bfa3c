//! Tap: live view of one connection in the format of a conversation.
//!
//! A [`Subscription`] waits for a connection and follows it until its close. The connection never waits for a
//! subscriber: lines that a slow subscriber does not take are dropped, counted and reported in the stream. While no
//! subscription waits, a connection pays one atomic load per event.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::adapter::LoggedCommand;
use crate::conn::{CloseReason, Command, ConnId, ConnInfo, Event, QoS};
use crate::conversation::{Action, ClosedBy, Line, Message, OFFSET_MAX, Pattern, Payload, Step};

/// Maximum number of subscriptions that wait for a connection.
const WAITING_MAX: usize = 16;

/// Maximum number of queued chunks of a subscription. A chunk has at most a few times the size of a connection's read
/// buffer, 64 KiB.
const CHUNKS_MAX: usize = 256;

/// Selector of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// A live connection.
    Conn(ConnId),
    /// The connection that is or will be authenticated as this client.
    Client(String),
    /// The next new connection.
    Next {
        /// Of this listener; `None`: any.
        listener: Option<String>,
        /// From this address; `None`: any.
        peer: Option<IpAddr>,
    },
}

/// Too many subscriptions wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING_MAX} taps already wait for a connection; expected at most that many")]
pub struct TooMany;

/// Subscriptions that wait for a connection; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Taps(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Length of `waiting`.
    count: AtomicUsize,
    waiting: Mutex<Vec<Arc<PendingTap>>>,
}

#[derive(Debug)]
struct PendingTap {
    selector: Selector,
    chunks: mpsc::Sender<String>,
    /// A connection has matched.
    found: AtomicBool,
}

/// Stream of a tap; ends with the connection.
#[derive(Debug)]
pub struct Subscription {
    chunks: mpsc::Receiver<String>,
    /// Weak, because it holds the sender of the chunks, which must end with the connection.
    pending: Weak<PendingTap>,
    taps: Taps,
}

impl Subscription {
    /// The next lines of the conversation; `None` after the end of the connection.
    pub async fn next(&mut self) -> Option<String> {
        self.chunks.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.taps.remove(&self.pending);
    }
}

impl Taps {
    /// Subscribes to a connection.
    ///
    /// # Errors
    ///
    /// [`TooMany`].
    pub fn watch(&self, selector: Selector) -> Result<Subscription, TooMany> {
        let (chunks, received) = mpsc::channel(CHUNKS_MAX);
        let pending = Arc::new(PendingTap { selector, chunks, found: AtomicBool::new(false) });
        let known = Arc::downgrade(&pending);
        let mut waiting = self.0.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            return Err(TooMany);
        }
        waiting.push(pending);
        self.0.count.store(waiting.len(), Ordering::Relaxed);
        drop(waiting);
        Ok(Subscription { chunks: received, pending: known, taps: self.clone() })
    }

    fn remove(&self, pending: &Weak<PendingTap>) {
        let mut waiting = self.0.waiting.lock();
        waiting.retain(|other| !std::ptr::eq(Arc::as_ptr(other), pending.as_ptr()));
        self.0.count.store(waiting.len(), Ordering::Relaxed);
    }

    /// Whether a subscription waits.
    pub fn are_waiting(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0
    }

    /// The tap of a connection, if a subscription waits for it. `is_new`: it has had no event yet.
    pub fn tap(&self, view: &ConnectionView<'_>, is_new: bool) -> Option<Box<Tap>> {
        let pending = {
            let waiting = self.0.waiting.lock();
            let pending = waiting.iter().find(|pending| pending.selector.matches(view, is_new))?;
            Arc::clone(pending)
        };
        if pending.found.swap(true, Ordering::Relaxed) {
            return None;
        }
        self.remove(&Arc::downgrade(&pending));
        let mut tap = Tap { chunks: pending.chunks.clone(), began: Instant::now(), omitted: 0 };
        tap.begin(view, is_new);
        Some(Box::new(tap))
    }
}

/// Properties of a connection that a [`Selector`] can match.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionView<'a> {
    pub conn: ConnId,
    pub listener: &'a str,
    pub info: &'a ConnInfo,
    /// The authenticated client id.
    pub client_id: Option<&'a str>,
}

impl Selector {
    fn matches(&self, view: &ConnectionView<'_>, is_new: bool) -> bool {
        match self {
            Self::Conn(conn) => *conn == view.conn,
            Self::Client(client) => view.client_id == Some(client),
            Self::Next { listener, peer } => {
                is_new
                    && listener.as_ref().is_none_or(|listener| listener == view.listener)
                    && peer.is_none_or(|peer| peer.to_canonical() == view.info.peer.host())
            }
        }
    }
}

/// Connection side of a subscription.
#[derive(Debug)]
pub struct Tap {
    chunks: mpsc::Sender<String>,
    began: Instant,
    omitted: u64,
}

impl Tap {
    fn begin(&mut self, view: &ConnectionView<'_>, is_new: bool) {
        let client = view.client_id.map(|client| format!(", client {client:?}")).unwrap_or_default();
        let start = if is_new { "from its start" } else { "from its middle" };
        self.comment(&format!(
            "conn {} from {} at listener {}{client}, {start}",
            view.conn, view.info.peer, view.listener
        ));
        if view.info.kind != crate::conn::SocketKind::Tcp {
            self.write_line(&Line::Transport(view.info.kind));
        }
    }

    /// Whether the subscriber has gone.
    pub fn is_over(&self) -> bool {
        self.chunks.is_closed()
    }

    /// Reports an event of the connection.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::SocketCreated(_) => {}
            Event::ReceivedBytes(bytes) => self.step(Action::FromPeer(bytes.clone())),
            Event::TimerTimeout(timer) => self.step(Action::Timer(*timer)),
            Event::ReceivedMessages(messages) => {
                for message in messages {
                    self.step(Action::Deliver(message_of(&message.topic, message.qos, &message.payload)));
                }
            }
            Event::SocketClosed(reason) => {
                self.comment(&format!("closed: {reason}"));
                self.step(Action::Close(closed_by(reason)));
            }
        }
    }

    /// Reports commands of the handler.
    pub fn done(&mut self, entries: &[LoggedCommand]) {
        for LoggedCommand { command, result } in entries {
            if let Err(refused) = result {
                self.comment(&format!("{} was refused: {refused}", command.name()));
                continue;
            }
            match command {
                Command::Send(bytes) if bytes.is_empty() => {}
                Command::Send(bytes) => self.step(Action::ToPeer(Pattern::exact(bytes))),
                Command::Publish { topic, qos, payload } => {
                    self.step(Action::Publish(message_of(topic, *qos, payload)));
                }
                Command::RawPublish { topic, qos, payload } => {
                    self.comment("the next publish is a raw one: no mountpoint, no rules");
                    self.step(Action::Publish(message_of(topic, *qos, payload)));
                }
                Command::Authenticate { client, .. } => self.comment(&format!(
                    "authenticated as client {:?}, user {:?}, protocol {:?} {:?}",
                    client.client_id, client.username, client.proto_name, client.proto_ver
                )),
                Command::StartTimer { interval, .. } => {
                    self.comment(&format!("keepalive timer of {} started", humantime::format_duration(*interval)));
                }
                Command::StopTimer(_) => self.comment("keepalive timer stopped"),
                Command::Subscribe { filter, qos } => {
                    self.comment(&format!("subscribed {filter:?} qos={}", *qos as u8));
                }
                Command::Unsubscribe { filter } => self.comment(&format!("unsubscribed {filter:?}")),
                Command::Close => self.comment("the handler asks to close"),
            }
        }
    }

    /// Reports missing lines.
    pub fn gap(&mut self, why: &str) {
        self.comment(why);
    }

    fn step(&mut self, action: Action) {
        // The precision of conversations.
        let at = Duration::from_micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.write_line(&Line::Step(Step { at: Some(at.min(OFFSET_MAX)), action }));
    }

    fn comment(&mut self, text: &str) {
        self.write_line(&Line::Comment(format!(" {text}")));
    }

    fn write_line(&mut self, what: &Line) {
        let mut text = format!("{what}\n");
        if self.omitted > 0 {
            let gap = format!(" {} lines omitted: the subscriber was too slow", self.omitted);
            text.insert_str(0, &format!("{}\n", Line::Comment(gap)));
        }
        match self.chunks.try_send(text) {
            Ok(()) => self.omitted = 0,
            Err(_) => self.omitted += 1,
        }
    }
}

/// A message; its payload as JSON if it is an object or array, which is best to read and to compare.
fn message_of(topic: &str, qos: QoS, payload: &Bytes) -> Message {
    let json =
        serde_json::from_slice(payload).ok().filter(|value: &serde_json::Value| value.is_object() || value.is_array());
    let payload = json.map_or_else(|| Payload::Bytes(payload.clone()), Payload::Json);
    Message { topic: topic.to_owned(), qos, payload }
}

fn closed_by(reason: &CloseReason) -> ClosedBy {
    match reason {
        CloseReason::PeerClosed | CloseReason::SocketError(_) => ClosedBy::Peer,
        CloseReason::HandlerAsked => ClosedBy::Handler,
        CloseReason::KeepaliveExpired => ClosedBy::Keepalive,
        CloseReason::IdleTimedOut => ClosedBy::Idle,
        CloseReason::WriteTimedOut
        | CloseReason::FramingBroken(_)
        | CloseReason::LoginTimedOut
        | CloseReason::Unverified
        | CloseReason::HandlerFailed { .. }
        | CloseReason::Draining
        | CloseReason::Replaced
        | CloseReason::Kicked
        | CloseReason::Expired
        | CloseReason::Unconfirmed => ClosedBy::Gateway,
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

    fn view(info: &ConnInfo) -> ConnectionView<'_> {
        ConnectionView { conn: ConnId::from_u64(7), listener: "l", info, client_id: Some("d-1") }
    }

    fn entry(command: Command) -> LoggedCommand {
        LoggedCommand { command, result: Ok(()) }
    }

    async fn all(mut subscription: Subscription) -> String {
        let mut text = String::new();
        while let Some(chunk) = subscription.next().await {
            text += &chunk;
        }
        text
    }

    /// The stream of a tap parses as a conversation with the events of the connection.
    #[tokio::test]
    async fn the_stream_is_a_conversation() {
        let (taps, info) = (Taps::default(), info());
        let subscription = taps.watch(Selector::Conn(ConnId::from_u64(7))).unwrap();
        assert!(taps.are_waiting());
        let mut tap = taps.tap(&view(&info), true).unwrap();
        assert!(!taps.are_waiting(), "it has found its connection");
        tap.event(&Event::SocketCreated(Arc::new(info)));
        tap.event(&Event::ReceivedBytes("HELLO\r\n".into()));
        let payload = Bytes::from_static(b"{\"celsius\":21.5}");
        tap.done(&[
            entry(Command::Send("OK\r\n".into())),
            entry(Command::Publish { topic: "up".into(), qos: QoS::AtLeastOnce, payload }),
            LoggedCommand { command: Command::Close, result: Err(Refused::Gone) },
        ]);
        tap.event(&Event::TimerTimeout(Timer::Keepalive));
        tap.event(&Event::SocketClosed(CloseReason::KeepaliveExpired));
        drop(tap);
        let text = all(subscription).await;
        let steps = "> \"HELLO\\r\\n\"\n< \"OK\\r\\n\"\npublish \"up\" qos=1 json {\"celsius\":21.5}\ntimer keepalive\nclose keepalive\n";
        let timeless = text.lines().filter(|line| !line.starts_with('#'));
        let timeless: Vec<&str> = timeless.map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(timeless.join("\n") + "\n", steps);
        assert!(text.contains("# close was refused: "), "{text}");
        assert_eq!(Conversation::parse("watched", &text).unwrap().steps().count(), 5);
    }

    /// Each selector matches its connection, and no other.
    #[test]
    fn selectors() {
        let info = info();
        let next = |listener: Option<&str>, peer: Option<&str>| Selector::Next {
            listener: listener.map(str::to_owned),
            peer: peer.map(|peer| peer.parse().unwrap()),
        };
        let finds = |selector: Selector, is_new| {
            let taps = Taps::default();
            let _watching = taps.watch(selector).unwrap();
            taps.tap(&view(&info), is_new).is_some()
        };
        assert!(finds(Selector::Conn(ConnId::from_u64(7)), false) && !finds(Selector::Conn(ConnId::from_u64(8)), true));
        assert!(finds(Selector::Client("d-1".into()), false) && !finds(Selector::Client("d-2".into()), true));
        assert!(finds(next(None, None), true) && !finds(next(None, None), false));
        assert!(finds(next(Some("l"), Some("192.0.2.7")), true));
        assert!(!finds(next(Some("m"), None), true) && !finds(next(None, Some("192.0.2.8")), true));
    }

    /// A slow subscriber delays no connection; omitted lines are counted in place.
    #[tokio::test]
    async fn lines_for_a_slow_subscriber_are_omitted() {
        let (taps, info) = (Taps::default(), info());
        let mut subscription = taps.watch(Selector::Client("d-1".into())).unwrap();
        let mut tap = taps.tap(&view(&info), false).unwrap();
        for _ in 0..CHUNKS_MAX + 9 {
            tap.event(&Event::ReceivedBytes("x".into()));
        }
        for _ in 0..CHUNKS_MAX {
            subscription.next().await.unwrap();
        }
        tap.event(&Event::ReceivedBytes("y".into()));
        let chunk = subscription.next().await.unwrap();
        assert!(chunk.starts_with("# 10 lines omitted: the subscriber was too slow\n@"), "{chunk}");
    }

    /// Waiting subscriptions are bounded, and removed on drop.
    #[test]
    fn subscriptions_are_bounded() {
        let taps = Taps::default();
        let subscriptions: Vec<_> =
            (0..WAITING_MAX).map(|_| taps.watch(Selector::Client("x".into())).unwrap()).collect();
        assert_eq!(taps.watch(Selector::Client("x".into())).unwrap_err(), TooMany);
        drop(subscriptions);
        assert!(!taps.are_waiting());
    }
}
