//! Plays the device's side of a conversation against a gateway, over TCP.
//!
//! Owns one connection to the gateway and ends it; the comparing is done by [`Run`]. It waits for nothing longer than
//! [`Options`] says, holds at most [`WAITING_BYTES_MAX`] of what it did not expect, and never retries.
//!
//! What a device cannot do alone needs help: `publish` lines are checked and `deliver` lines published by a [`Witness`] at
//! the broker, a `timer` line is a silence that the caller must allow for. Without help a line is skipped where nothing
//! depends on it, and the conversation is refused where something does (see [`Unplayable`]).

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::run::{Mismatch, Next, Publishes, Replies, Run, Stop};
use super::{Action, Closer, Conversation};

mod address;
mod plan;
mod record;
mod wire;
pub mod witness;

pub use address::{AddressError, BrokerUrl, GatewayAddr};
pub use plan::{Need, Unplayable};
pub use record::{RECORDED_MAX, record};
pub use witness::{Witness, WitnessError};

use plan::{Plan, Way};
use wire::{Seen, Wire};

/// How many received bytes that no line has taken yet are held; more stay in the socket.
pub const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// How a conversation is played.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for the connection, for the gateway to take the bytes of a `>` line, and for each expected line.
    pub timeout: Duration,
    /// How long to wait for what follows a `timer` line, and for `close keepalive` and `close idle`; `None` refuses
    /// conversations in which something depends on it.
    pub timer_wait: Option<Duration>,
    /// `Some(1.0)` keeps to the recorded times, `Some(10.0)` is ten times as fast; positive. `None` ignores them.
    pub speed: Option<f64>,
    /// How the bytes to the device are compared.
    pub replies: Replies,
    /// How long to wait, after the device has ended its side, for the gateway to end its own.
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

/// Tells an observer that a step is over.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'c> {
    /// The step and its line.
    pub stop: Stop<'c>,
    /// How it went.
    pub outcome: Outcome,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was expected, and it came.
    Met {
        /// For the first `<` line after a `>` line: the time from the beginning of the one to the last byte of the other.
        latency: Option<Duration>,
    },
    /// It could not be done or seen, and nothing depends on it.
    Skipped,
}

/// What a conversation that went well took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Bytes to the gateway.
    pub sent_bytes: u64,
    /// Bytes from the gateway.
    pub received_bytes: u64,
    /// From the first attempt to connect to the end of the connection.
    pub took: Duration,
}

/// A conversation could not be played, or did not go as it says.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// It needs help that was not given.
    #[error(transparent)]
    Unplayable(#[from] Unplayable),
    /// No connection.
    #[error("cannot connect to {to}")]
    Connect {
        /// The gateway.
        to: GatewayAddr,
        /// Why.
        source: io::Error,
    },
    /// The gateway did not take the bytes of a line in time.
    #[error("line {line}: expected the gateway to take {bytes} bytes within {}, it did not", humantime::format_duration(*.timeout))]
    NotTaken {
        /// The `>` line.
        line: u32,
        /// How many bytes it has.
        bytes: usize,
        /// The time it had.
        timeout: Duration,
    },
    /// While recording, the answer to a line did not end.
    #[error("after line {line}: expected an answer of at most {RECORDED_MAX} pieces, more came")]
    Endless {
        /// The line; 0 before the first.
        line: u32,
    },
    /// What happened is not what the conversation says.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The broker's side failed.
    #[error(transparent)]
    Witness(#[from] WitnessError),
}

/// Plays a conversation, from the connect to its end, and tells `observe` of every step as it is over.
///
/// With a `witness`, `publish` lines are checked and `deliver` lines published; it must have been connected with the topics
/// of this conversation (see [`witness::topics`]).
///
/// # Errors
///
/// See [`PlayError`]; the first is the last, the connection is closed then.
pub async fn play(
    conversation: &Conversation,
    to: &GatewayAddr,
    witness: Option<&Witness>,
    options: &Options,
    mut observe: impl FnMut(Progress<'_>),
) -> Result<Played, PlayError> {
    let plan = Plan::new(conversation, witness.is_some(), options.timer_wait)?;
    let begun = Instant::now();
    let inbox = witness.map(|witness| witness.inbox(conversation));
    let wire = Wire::connect(to, inbox, options.timeout).await?;
    let publishes = if witness.is_some() { Publishes::Seen } else { Publishes::Unseen };
    let run = Run::new(conversation, options.replies, publishes);
    let mut player = Player { run, wire, plan, witness, options, started: Instant::now(), asked: None, hung_up: false };

    let mut awaited: Option<(u32, Instant)> = None;
    loop {
        match player.run.poll()? {
            Next::Do(stop) if stop.step.action == Action::Close(Closer::Peer) => {
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

/// One run on the wire.
struct Player<'a> {
    run: Run<'a>,
    wire: Wire,
    plan: Plan,
    witness: Option<&'a Witness>,
    options: &'a Options,
    started: Instant,
    /// When the latest `>` line began, until a `<` line has answered it.
    asked: Option<Instant>,
    hung_up: bool,
}

impl Player<'_> {
    /// Waits until the recorded time of a step.
    async fn pace(&self, stop: Stop<'_>) {
        if let (Some(speed), Some(at)) = (self.options.speed, stop.step.at) {
            let after = Duration::try_from_secs_f64(at.as_secs_f64() / speed).unwrap_or(super::OFFSET_MAX);
            tokio::time::sleep_until(self.started + after.min(super::OFFSET_MAX)).await;
        }
    }

    async fn act(&mut self, stop: Stop<'_>) -> Result<Outcome, PlayError> {
        if self.plan.way(stop.line) == Way::Skip {
            return Ok(Outcome::Skipped);
        }
        self.pace(stop).await;
        match &stop.step.action {
            Action::FromPeer(bytes) => {
                // Not to write into a connection that the gateway has ended: that would hide who ended it, and when.
                self.take_what_is_there()?;
                self.run.poll()?;
                self.asked = Some(Instant::now());
                self.send(stop.line, bytes).await?;
            }
            Action::Deliver(message) => {
                if let Some(witness) = self.witness {
                    witness.publish(message, self.options.timeout).await?;
                }
            }
            // The device's part in it is to be silent.
            Action::Timer(_) | Action::ToPeer(_) | Action::Publish(_) | Action::Close(_) => {}
        }
        Ok(Outcome::Done)
    }

    /// Writes while it goes on reading: a gateway that must write before it reads on would otherwise wait for us, and we for it.
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
                // The poll that follows says at which line.
                return self.run.poll().map(|_| ()).map_err(PlayError::from);
            }
        }
        Ok(())
    }

    fn met(&mut self, stop: Stop<'_>) -> Outcome {
        let asked = if matches!(stop.step.action, Action::ToPeer(_)) { self.asked.take() } else { None };
        Outcome::Met { latency: asked.map(|asked| asked.elapsed()) }
    }

    /// Waits for the next thing to happen, or for the end of patience.
    async fn wait(&mut self, deadline: Instant) -> Result<(), PlayError> {
        let room = self.run.waiting_bytes() < WAITING_BYTES_MAX;
        match tokio::time::timeout_at(deadline, self.wire.next(room)).await {
            Ok(seen) => self.handle(seen?),
            Err(_) => Ok(self.run.handle_silence()?),
        }
    }

    fn handle(&mut self, seen: Seen) -> Result<(), PlayError> {
        match seen {
            Seen::Bytes(bytes) => self.run.handle_bytes(&bytes),
            Seen::Published(published) => self.run.handle_published(published),
            Seen::Closed => self.run.handle_closed(Closer::Gateway),
        }
        Ok(())
    }

    fn take_what_is_there(&mut self) -> Result<(), PlayError> {
        while self.run.waiting_bytes() < WAITING_BYTES_MAX {
            match self.wire.try_next()? {
                Some(seen) => self.handle(seen)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Ends the device's side, and reads on until the gateway has ended its own.
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
                Ok(Ok(Seen::Closed)) | Err(_) => break,
                Ok(seen) => {
                    self.handle(seen?)?;
                    self.run.settle()?;
                }
            }
        }
        self.take_what_is_there()?;
        Ok(self.run.settle()?)
    }
}
