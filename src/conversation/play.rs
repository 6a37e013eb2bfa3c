//! Replay of conversations: plays the device's side against a gateway, over TCP.
//!
//! Owns one connection to the gateway and ends it; [`Run`] compares. It waits for nothing longer than [`Options`]
//! allow, holds at most [`WAITING_BYTES_MAX`] of unexpected bytes, and never retries.
//!
//! Some lines need more than a device: a [`MqttObserver`] at the broker checks `publish` lines and publishes `deliver`
//! lines, and a `timer` line needs a silence that the caller must allow. Without these, a line is skipped if nothing
//! depends on it, and otherwise the conversation is refused (see [`Unplayable`]).

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::run::{LocatedStep, Mismatch, Next, Publishes, Replies, Run};
use super::{Action, ClosedBy, Conversation};

mod address;
pub mod mqtt_observer;
mod plan;
mod record;
mod wire;

pub use address::{BrokerUrl, GatewayAddr};
pub use mqtt_observer::MqttObserver;
pub(crate) use mqtt_observer::ObserverError;
pub(crate) use plan::Unplayable;
pub(crate) use record::RECORDED_MAX;
pub use record::record;

use plan::{Plan, StepPlan};
use wire::{Wire, WireEvent};

/// Maximum number of received bytes that no line has matched yet; more stay in the socket.
pub(crate) const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// Options of a replay.
#[derive(Clone, Debug)]
pub struct Options {
    /// Timeout of the connect, of the bytes of a `>` line, and of each expected line.
    pub timeout: Duration,
    /// Timeout after a `timer` line, and of `close keepalive` and `close idle`; `None` refuses conversations that
    /// depend on them.
    pub timer_wait: Option<Duration>,
    /// `Some(1.0)` keeps the recorded times, `Some(10.0)` is ten times as fast; positive. `None` ignores them.
    pub speed: Option<f64>,
    /// How the bytes to the device are compared.
    pub replies: Replies,
    /// Timeout for the gateway to close after the device has.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            timer_wait: None,
            speed: None,
            replies: Replies::Exact,
            linger: Duration::from_secs(1),
        }
    }
}

/// Report of a finished step.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'c> {
    /// The step and its line.
    pub stop: LocatedStep<'c>,
    /// Its outcome.
    pub outcome: Outcome,
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// It was performed.
    Done,
    /// It was expected, and it happened.
    Met {
        /// For the first `<` line after a `>` line: the time from the start of the `>` line to the last byte of the `<`
        /// line.
        latency: Option<Duration>,
    },
    /// It cannot be performed or observed, and nothing depends on it.
    Skipped,
}

/// Statistics of a successful replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Bytes to the gateway.
    pub sent_bytes: u64,
    /// Bytes from the gateway.
    pub received_bytes: u64,
    /// From the start of the connect to the end of the connection.
    pub took: Duration,
}

/// A conversation could not be played, or differs.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// It needs a resource that the caller has not given.
    #[error(transparent)]
    Unplayable(#[from] Unplayable),
    /// The connect failed.
    #[error("cannot connect to {to}")]
    Connect {
        /// The gateway.
        to: GatewayAddr,
        /// Why.
        source: io::Error,
    },
    /// The bytes of a line were not written in time.
    #[error("line {line}: expected the gateway to take {bytes} bytes within {}, it did not", humantime::format_duration(*.timeout))]
    NotTaken {
        /// The `>` line.
        line: u32,
        /// Its length.
        bytes: usize,
        /// The timeout.
        timeout: Duration,
    },
    /// In a recording, the response to a line did not end.
    #[error("after line {line}: expected an answer of at most {RECORDED_MAX} pieces, more came")]
    Endless {
        /// The line; 0 before the first.
        line: u32,
    },
    /// The connection differs from the conversation.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The broker failed.
    #[error(transparent)]
    MqttObserver(#[from] ObserverError),
}

/// Plays a conversation, from the connect to its end, and reports every finished step to `observe`.
///
/// With a `mqtt_observer`, `publish` lines are checked and `deliver` lines published; it must be connected with the
/// topics of this conversation (see [`mqtt_observer::topics`]).
///
/// # Errors
///
/// See [`PlayError`]; the first one closes the connection.
pub async fn play(
    conversation: &Conversation,
    to: &GatewayAddr,
    observer: Option<&MqttObserver>,
    options: &Options,
    mut observe: impl FnMut(Progress<'_>),
) -> Result<Played, PlayError> {
    let plan = Plan::new(conversation, observer.is_some(), options.timer_wait)?;
    let begun = Instant::now();
    let inbox = observer.map(|observer| observer.inbox(conversation));
    let wire = Wire::connect(to, inbox, options.timeout).await?;
    let publishes = if observer.is_some() { Publishes::Observed } else { Publishes::Unobserved };
    let run = Run::new(conversation, options.replies, publishes);
    let mut player =
        Player { run, wire, plan, observer, options, started: Instant::now(), asked: None, hung_up: false };

    let mut awaited: Option<(u32, Instant)> = None;
    loop {
        match player.run.poll()? {
            Next::Do(stop) if stop.step.action == Action::Close(ClosedBy::Peer) => {
                player.pace(stop).await;
                player.hang_up().await?;
                player.run.done();
                observe(Progress { stop, outcome: Outcome::Done });
            }
            Next::Do(stop) => {
                let outcome = player.act(stop).await?;
                player.run.done();
                observe(Progress { stop, outcome });
            }
            Next::Met(stop) => observe(Progress { stop, outcome: player.met(stop) }),
            Next::Skipped(stop) => observe(Progress { stop, outcome: Outcome::Skipped }),
            Next::Await(stop) => {
                let since =
                    awaited.filter(|(line, _)| *line == stop.line).map_or_else(Instant::now, |(_, since)| since);
                awaited = Some((stop.line, since));
                player.wait(since + player.plan.patience(stop.line, options)).await?;
            }
            Next::End => break,
        }
    }
    player.hang_up().await?;
    let (sent_bytes, received_bytes) = player.wire.counts();
    Ok(Played { sent_bytes, received_bytes, took: begun.elapsed() })
}

/// One replay on its connection.
struct Player<'a> {
    run: Run<'a>,
    wire: Wire,
    plan: Plan,
    observer: Option<&'a MqttObserver>,
    options: &'a Options,
    started: Instant,
    /// The start of the latest unanswered `>` line.
    asked: Option<Instant>,
    hung_up: bool,
}

impl Player<'_> {
    /// Waits until the recorded time of a step.
    async fn pace(&self, stop: LocatedStep<'_>) {
        if let (Some(speed), Some(at)) = (self.options.speed, stop.step.at) {
            let after = Duration::try_from_secs_f64(at.as_secs_f64() / speed).unwrap_or(super::OFFSET_MAX);
            tokio::time::sleep_until(self.started + after.min(super::OFFSET_MAX)).await;
        }
    }

    async fn act(&mut self, stop: LocatedStep<'_>) -> Result<Outcome, PlayError> {
        if self.plan.treatment(stop.line) == StepPlan::Skip {
            return Ok(Outcome::Skipped);
        }
        self.pace(stop).await;
        match &stop.step.action {
            Action::FromPeer(bytes) => {
                // A write to a connection that the gateway has closed would hide its close.
                self.take_available()?;
                self.run.poll()?;
                self.asked = Some(Instant::now());
                self.send(stop.line, bytes).await?;
            }
            Action::Deliver(message) => {
                if let Some(observer) = self.observer {
                    observer.publish(message, self.options.timeout).await?;
                }
            }
            // The device is silent.
            Action::Timer(_) | Action::ToPeer(_) | Action::Publish(_) | Action::Close(_) => {}
        }
        Ok(Outcome::Done)
    }

    /// Writes and reads concurrently: a gateway that must write before it reads on would otherwise deadlock with us.
    async fn send(&mut self, line: u32, bytes: &[u8]) -> Result<(), PlayError> {
        let deadline = Instant::now() + self.options.timeout;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.run.waiting_bytes() < WAITING_BYTES_MAX;
            let seen = tokio::time::timeout_at(deadline, self.wire.write(&mut rest, room)).await;
            match seen {
                Ok(Some(seen)) => self.handle(seen)?,
                Ok(None) => {}
                Err(_) => {
                    let timeout = self.options.timeout;
                    return Err(PlayError::NotTaken { line, bytes: bytes.len(), timeout });
                }
            }
            if !self.wire.is_open() {
                // The next poll reports the line.
                return self.run.poll().map(|_| ()).map_err(PlayError::from);
            }
        }
        Ok(())
    }

    fn met(&mut self, stop: LocatedStep<'_>) -> Outcome {
        let asked = if matches!(stop.step.action, Action::ToPeer(_)) { self.asked.take() } else { None };
        Outcome::Met { latency: asked.map(|asked| asked.elapsed()) }
    }

    /// Waits for the next event, or for the deadline.
    async fn wait(&mut self, deadline: Instant) -> Result<(), PlayError> {
        let room = self.run.waiting_bytes() < WAITING_BYTES_MAX;
        match tokio::time::timeout_at(deadline, self.wire.next(room)).await {
            Ok(seen) => self.handle(seen?),
            Err(_) => Ok(self.run.handle_silence()?),
        }
    }

    fn handle(&mut self, seen: WireEvent) -> Result<(), PlayError> {
        match seen {
            WireEvent::Bytes(bytes) => self.run.handle_bytes(&bytes),
            WireEvent::Published(published) => self.run.handle_published(published),
            WireEvent::Closed => self.run.handle_closed(ClosedBy::Gateway),
        }
        Ok(())
    }

    fn take_available(&mut self) -> Result<(), PlayError> {
        while self.run.waiting_bytes() < WAITING_BYTES_MAX {
            match self.wire.try_next()? {
                Some(seen) => self.handle(seen)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Ends the device's side, and reads until the gateway has ended its own.
    ///
    /// A socket closed with unread bytes in it is reset, and a reset makes the gateway lose what it has not read yet.
    async fn hang_up(&mut self) -> Result<(), PlayError> {
        if std::mem::replace(&mut self.hung_up, true) {
            return Ok(());
        }
        self.wire.end_writing().await;
        let deadline = Instant::now() + self.options.linger;
        while self.wire.is_open() {
            match tokio::time::timeout_at(deadline, self.wire.next(true)).await {
                Ok(Ok(WireEvent::Closed)) | Err(_) => break,
                Ok(seen) => {
                    self.handle(seen?)?;
                    self.run.settle()?;
                }
            }
        }
        self.take_available()?;
        Ok(self.run.settle()?)
    }
}
