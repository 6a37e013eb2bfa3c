//! Player: one play of one conversation.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::device::{Device, KEPT_BYTES_MAX};
use super::fragmentation::Fragmentation;
use super::{Cost, FailureKind};
use crate::conn::{CloseReason, ConnId, Event, Message, Timer};
use crate::conversation::bless::{Effect, Happened};
use crate::conversation::run::{LocatedStep, Next, Publishes, Replies, Run};
use crate::conversation::{self, Action, ClosedBy, Conversation};
use crate::handler::wasm::Handler;

/// One play of one conversation.
pub(super) struct Player<'c> {
    conversation: &'c Conversation,
    device: Device,
    /// `deliver` lines so far, for the messages' ids.
    delivered: u128,
}

impl<'c> Player<'c> {
    pub(super) fn new(guest: &Handler, conversation: &'c Conversation, conn: ConnId) -> Self {
        Self { conversation, device: Device::new(guest, conversation.transport(), conn), delivered: 0 }
    }

    /// Resources used so far.
    pub(super) fn cost(&self) -> Cost {
        self.device.cost()
    }

    /// Plays the conversation and compares.
    ///
    /// # Errors
    ///
    /// The first deviation; the play stops there.
    pub(super) async fn play(&mut self, fragmentation: Fragmentation) -> Result<(), FailureKind> {
        if let Fragmentation::Vanishing(bytes) = fragmentation {
            return self.vanish(bytes).await;
        }
        let mut scripted_run = ScriptedRun::new(Run::new(self.conversation, Replies::Exact, Publishes::Observed));
        let mut groups = groups(self.conversation, fragmentation).into_iter();
        scripted_run.handle(0, self.device.open().await?)?;
        loop {
            match scripted_run.run.poll()? {
                Next::Do(stop) => {
                    if let Action::FromPeer(bytes) = &stop.step.action {
                        match groups.next().unwrap_or(Group::Line) {
                            Group::Line => {
                                for chunk in fragmentation.chunks(bytes.len()) {
                                    self.receive(stop.line, bytes.slice(chunk), &mut scripted_run).await?;
                                }
                            }
                            Group::First(joined) => {
                                scripted_run.holds_end = true;
                                self.receive(stop.line, joined, &mut scripted_run).await?;
                            }
                            Group::Further => {}
                            Group::Last => scripted_run.release_end(),
                        }
                    } else {
                        let effects = self.act(stop).await?;
                        scripted_run.handle(stop.line, effects)?;
                    }
                    scripted_run.run.done();
                }
                Next::Await(stop) => self.wait(stop, &mut scripted_run).await?,
                Next::Met(_) | Next::Skipped(_) => {}
                Next::End => break,
            }
        }
        if !self.device.has_ended() {
            scripted_run.handle(0, self.device.end(0, CloseReason::PeerClosed).await?)?;
        }
        Ok(scripted_run.run.settle()?)
    }

    /// Delivers bytes, unless the guest has closed the connection.
    async fn receive(
        &mut self,
        line: u32,
        bytes: Bytes,
        scripted_run: &mut ScriptedRun<'_>,
    ) -> Result<(), FailureKind> {
        if self.device.has_ended() {
            return Ok(());
        }
        let effects = self.device.deliver(line, &Event::ReceivedBytes(bytes)).await?;
        scripted_run.handle(line, effects)
    }

    /// Executes a line with a stimulus from outside.
    async fn act(&mut self, stop: LocatedStep<'_>) -> Result<Vec<Effect>, FailureKind> {
        let line = stop.line;
        match &stop.step.action {
            Action::FromPeer(bytes) => self.device.deliver(line, &Event::ReceivedBytes(bytes.clone())).await,
            Action::Deliver(message) => self.deliver(line, message).await,
            Action::Timer(_) if !self.device.has_keepalive() => Err(FailureKind::NoTimer { line }),
            Action::Timer(_) => self.run_out(line).await,
            Action::Close(ClosedBy::Peer) if self.device.has_ended() => Ok(Vec::new()),
            Action::Close(ClosedBy::Peer) => self.device.end(line, CloseReason::PeerClosed).await,
            Action::ToPeer(_) | Action::Publish(_) | Action::Close(_) => Ok(Vec::new()),
        }
    }

    async fn deliver(&mut self, line: u32, message: &conversation::Message) -> Result<Vec<Effect>, FailureKind> {
        if !self.device.is_subscribed(&message.topic) {
            return Err(FailureKind::NotSubscribed {
                line,
                topic: message.topic.clone(),
                filters: self.device.filters(),
            });
        }
        self.delivered += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let message = Message {
            node: "polygate".into(),
            id: format!("{:032x}", self.delivered),
            qos: message.qos,
            from: "conversation".to_owned(),
            topic: message.topic.clone(),
            payload: message.payload.to_bytes(),
            timestamp_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        self.device.deliver(line, &Event::ReceivedMessages(vec![message])).await
    }

    /// Expires the keepalive timer, which closes the connection.
    async fn run_out(&mut self, line: u32) -> Result<Vec<Effect>, FailureKind> {
        let mut effects = self.device.deliver(line, &Event::TimerTimeout(Timer::Keepalive)).await?;
        if !self.device.has_ended() {
            effects.push(Effect::Closed(ClosedBy::Keepalive));
            effects.extend(self.device.end(line, CloseReason::KeepaliveExpired).await?);
        }
        Ok(effects)
    }

    /// An expectation is open and the guest is idle: only time could fulfil it.
    async fn wait(&mut self, stop: LocatedStep<'_>, scripted_run: &mut ScriptedRun<'_>) -> Result<(), FailureKind> {
        let line = stop.line;
        let effects = match &stop.step.action {
            Action::Close(by) if ends_by_keepalive(*by) && self.device.has_keepalive() => self.run_out(line).await?,
            Action::Close(by) if ends_idle(*by) && !self.device.has_ended() => self.end_idle(line).await?,
            // Publications of the guest after the close stand before the `close peer` line, since no line can follow
            // it.
            Action::Publish(_) if !self.device.has_ended() && self.hangs_up_after(line) => {
                self.device.end(line, CloseReason::PeerClosed).await?
            }
            Action::ToPeer(_)
            | Action::Publish(_)
            | Action::Close(_)
            | Action::FromPeer(_)
            | Action::Deliver(_)
            | Action::Timer(_) => Vec::new(),
        };
        if !effects.is_empty() {
            return scripted_run.handle(line, effects);
        }
        Ok(scripted_run.run.handle_silence()?)
    }

    async fn end_idle(&mut self, line: u32) -> Result<Vec<Effect>, FailureKind> {
        let mut effects = vec![Effect::Closed(ClosedBy::Idle)];
        effects.extend(self.device.end(line, CloseReason::IdleTimedOut).await?);
        Ok(effects)
    }

    /// Whether the only stimulus after this line is the disconnect of the device.
    fn hangs_up_after(&self, line: u32) -> bool {
        let mut rest = self.conversation.steps().filter(|(at, _)| *at > line).map(|(_, step)| &step.action);
        rest.all(|action| matches!(action, Action::ToPeer(_) | Action::Publish(_) | Action::Close(ClosedBy::Peer)))
    }

    /// Plays it as recorded until `after` bytes; nothing is compared.
    async fn vanish(&mut self, after: usize) -> Result<(), FailureKind> {
        self.device.open().await?;
        let mut left = after;
        for (line, step) in self.conversation.steps().filter(|(_, step)| step.action.is_stimulus()) {
            if self.device.has_ended() {
                return Ok(());
            }
            match &step.action {
                Action::FromPeer(bytes) if bytes.len() > left => {
                    if left > 0 {
                        self.device.deliver(line, &Event::ReceivedBytes(bytes.slice(..left))).await?;
                    }
                    if !self.device.has_ended() {
                        self.device.end(line, CloseReason::PeerClosed).await?;
                    }
                    return Ok(());
                }
                Action::FromPeer(bytes) => left -= bytes.len(),
                Action::ToPeer(_) | Action::Publish(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(_) => {}
            }
            self.act(LocatedStep { line, step }).await?;
        }
        Ok(())
    }

    /// Plays it and records the guest's effects.
    pub(super) async fn record(&mut self) -> Result<Happened, FailureKind> {
        let mut happened = Happened { greeting: merged(self.device.open().await?), answers: Vec::new() };
        for (line, step) in self.conversation.steps().filter(|(_, step)| step.action.is_stimulus()) {
            if self.device.has_ended() {
                break;
            }
            let effects = self.act(LocatedStep { line, step }).await?;
            if step.action == Action::Close(ClosedBy::Peer) {
                // No line can follow a `close` line.
                add(&mut happened, effects);
                happened.answers.push(Vec::new());
            } else {
                happened.answers.push(merged(effects));
            }
        }
        let last = self.conversation.steps().last().map(|(_, step)| &step.action);
        if !self.device.has_ended() {
            let effects = match last {
                Some(Action::Close(by)) if ends_by_keepalive(*by) && self.device.has_keepalive() => {
                    self.run_out(0).await?
                }
                Some(Action::Close(by)) if ends_idle(*by) => self.end_idle(0).await?,
                _ => self.device.end(0, CloseReason::PeerClosed).await?,
            };
            add(&mut happened, effects);
        }
        Ok(happened)
    }
}

/// The run of a conversation, with a close that is held back from it.
struct ScriptedRun<'c> {
    run: Run<'c>,
    /// Lines delivered in one event are not done yet: a guest that closes the connection in that event has received all
    /// of them.
    holds_end: bool,
    held_end: Option<ClosedBy>,
    published_bytes: usize,
}

impl<'c> ScriptedRun<'c> {
    fn new(run: Run<'c>) -> Self {
        Self { run, holds_end: false, held_end: None, published_bytes: 0 }
    }

    fn handle(&mut self, line: u32, effects: Vec<Effect>) -> Result<(), FailureKind> {
        for effect in effects {
            match effect {
                Effect::Sent(bytes) => self.run.handle_bytes(&bytes),
                Effect::Published(published) => {
                    self.published_bytes += published.payload.len();
                    self.run.handle_published(published);
                }
                Effect::Closed(by) if self.holds_end => self.held_end = Some(by),
                Effect::Closed(by) => self.run.handle_closed(by),
            }
        }
        if self.run.waiting_bytes().saturating_add(self.published_bytes) > KEPT_BYTES_MAX {
            return Err(FailureKind::TooMuch { line });
        }
        Ok(())
    }

    fn release_end(&mut self) {
        self.holds_end = false;
        if let Some(by) = self.held_end.take() {
            self.run.handle_closed(by);
        }
    }
}

/// Role of a `>` line when lines are joined.
enum Group {
    /// Not joined.
    Line,
    /// Delivers its bytes and those of the lines joined to it.
    First(Bytes),
    /// Already delivered; more joined lines follow.
    Further,
    /// Already delivered; the last joined line.
    Last,
}

/// Role of each `>` line, in order.
fn groups(conversation: &Conversation, fragmentation: Fragmentation) -> Vec<Group> {
    if fragmentation != Fragmentation::Joined {
        return Vec::new();
    }
    let stimuli = conversation.steps().map(|(_, step)| &step.action).filter(|action| action.is_stimulus());
    let stimuli: Vec<&Action> = stimuli.collect();
    let follow = |one: &&Action, other: &&Action| matches!((one, other), (Action::FromPeer(_), Action::FromPeer(_)));
    let mut groups = Vec::new();
    for joined in stimuli.chunk_by(follow) {
        let lines = joined.iter().filter_map(|action| match action {
            Action::FromPeer(bytes) => Some(bytes.as_ref()),
            Action::ToPeer(_) | Action::Publish(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(_) => None,
        });
        let lines: Vec<&[u8]> = lines.collect();
        match lines.len() {
            0 => {}
            1 => groups.push(Group::Line),
            more => {
                groups.push(Group::First(lines.concat().into()));
                groups.extend((2..more).map(|_| Group::Further));
                groups.push(Group::Last);
            }
        }
    }
    groups
}

/// Whether the keepalive timer may cause this close.
fn ends_by_keepalive(by: ClosedBy) -> bool {
    matches!(by, ClosedBy::Keepalive | ClosedBy::Gateway)
}

/// Whether silence may cause this close.
fn ends_idle(by: ClosedBy) -> bool {
    matches!(by, ClosedBy::Idle | ClosedBy::Gateway)
}

/// Appends effects to the last answer.
fn add(happened: &mut Happened, effects: Vec<Effect>) {
    let last = happened.answers.last_mut().unwrap_or(&mut happened.greeting);
    last.extend(effects);
    *last = merged(std::mem::take(last));
}

/// Merges adjacent bytes, since a stream has no boundaries. The close comes last, after publications made when it was
/// reported.
fn merged(effects: Vec<Effect>) -> Vec<Effect> {
    let mut merged: Vec<Effect> = Vec::new();
    let (ends, effects): (Vec<_>, Vec<_>) = effects.into_iter().partition(|effect| matches!(effect, Effect::Closed(_)));
    for effect in effects.into_iter().chain(ends) {
        match (merged.last_mut(), effect) {
            (Some(Effect::Sent(before)), Effect::Sent(bytes)) => {
                *before = [before.as_ref(), bytes.as_ref()].concat().into();
            }
            (_, effect) => merged.push(effect),
        }
    }
    merged
}
