//! Plays one conversation once.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::cuts::Cuts;
use super::stage::{KEPT_BYTES_MAX, Stage};
use super::{Cost, Why};
use crate::conn::{CloseReason, ConnId, Event, Message, Timer};
use crate::conversation::bless::{Effect, Happened};
use crate::conversation::run::{Next, Publishes, Replies, Run, Stop};
use crate::conversation::{self, Action, Closer, Conversation};
use crate::handler::wasm::Handler;

/// One play of one conversation.
pub(super) struct Player<'c> {
    conversation: &'c Conversation,
    stage: Stage,
    /// `deliver` lines so far, for the messages' ids.
    delivered: u128,
}

impl<'c> Player<'c> {
    pub(super) fn new(guest: &Handler, conversation: &'c Conversation, conn: ConnId) -> Self {
        Self { conversation, stage: Stage::new(guest, conversation.transport(), conn), delivered: 0 }
    }

    /// What the guest took so far.
    pub(super) fn cost(&self) -> Cost {
        self.stage.cost()
    }

    /// Plays it and compares.
    ///
    /// # Errors
    ///
    /// It did not go as the conversation says; the first deviation is the last.
    pub(super) async fn play(&mut self, cuts: Cuts) -> Result<(), Why> {
        if let Cuts::Vanishing(bytes) = cuts {
            return self.vanish(bytes).await;
        }
        let mut scene = Scene::new(Run::new(self.conversation, Replies::Exact, Publishes::Seen));
        let mut groups = groups(self.conversation, cuts).into_iter();
        scene.handle(0, self.stage.open().await?)?;
        loop {
            match scene.run.poll()? {
                Next::Do(stop) => {
                    if let Action::FromPeer(bytes) = &stop.step.action {
                        match groups.next().unwrap_or(Group::Line) {
                            Group::Line => {
                                for chunk in cuts.chunks(bytes.len()) {
                                    self.receive(stop.line, bytes.slice(chunk), &mut scene).await?;
                                }
                            }
                            Group::First(joined) => {
                                scene.holds_end = true;
                                self.receive(stop.line, joined, &mut scene).await?;
                            }
                            Group::Further => {}
                            Group::Last => scene.release_end(),
                        }
                    } else {
                        let effects = self.act(stop).await?;
                        scene.handle(stop.line, effects)?;
                    }
                    scene.run.done();
                }
                Next::Await(stop) => self.wait(stop, &mut scene).await?,
                Next::Met(_) | Next::Skipped(_) => {}
                Next::End => break,
            }
        }
        if !self.stage.has_ended() {
            scene.handle(0, self.stage.end(0, CloseReason::PeerClosed).await?)?;
        }
        Ok(scene.run.settle()?)
    }

    /// Bytes come, unless the guest has already ended the connection.
    async fn receive(&mut self, line: u32, bytes: Bytes, scene: &mut Scene<'_>) -> Result<(), Why> {
        if self.stage.has_ended() {
            return Ok(());
        }
        let effects = self.stage.tell(line, &Event::ReceivedBytes(bytes)).await?;
        scene.handle(line, effects)
    }

    /// Does what a line says comes from outside.
    async fn act(&mut self, stop: Stop<'_>) -> Result<Vec<Effect>, Why> {
        let line = stop.line;
        match &stop.step.action {
            Action::FromPeer(bytes) => self.stage.tell(line, &Event::ReceivedBytes(bytes.clone())).await,
            Action::Deliver(message) => self.deliver(line, message).await,
            Action::Timer(_) if !self.stage.has_keepalive() => Err(Why::NoTimer { line }),
            Action::Timer(_) => self.run_out(line).await,
            Action::Close(Closer::Peer) if self.stage.has_ended() => Ok(Vec::new()),
            Action::Close(Closer::Peer) => self.stage.end(line, CloseReason::PeerClosed).await,
            Action::ToPeer(_) | Action::Publish(_) | Action::Close(_) => Ok(Vec::new()),
        }
    }

    async fn deliver(&mut self, line: u32, message: &conversation::Message) -> Result<Vec<Effect>, Why> {
        if !self.stage.is_subscribed(&message.topic) {
            return Err(Why::NotSubscribed { line, topic: message.topic.clone(), filters: self.stage.filters() });
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
        self.stage.tell(line, &Event::ReceivedMessages(vec![message])).await
    }

    /// The keepalive timer runs out, which ends the connection.
    async fn run_out(&mut self, line: u32) -> Result<Vec<Effect>, Why> {
        let mut effects = self.stage.tell(line, &Event::TimerTimeout(Timer::Keepalive)).await?;
        if !self.stage.has_ended() {
            effects.push(Effect::Closed(Closer::Keepalive));
            effects.extend(self.stage.end(line, CloseReason::KeepaliveExpired).await?);
        }
        Ok(effects)
    }

    /// Something is awaited, and the guest has answered all there was: it is only time that could bring it.
    async fn wait(&mut self, stop: Stop<'_>, scene: &mut Scene<'_>) -> Result<(), Why> {
        let line = stop.line;
        let effects = match &stop.step.action {
            Action::Close(by) if ends_by_keepalive(*by) && self.stage.has_keepalive() => self.run_out(line).await?,
            Action::Close(by) if ends_idle(*by) && !self.stage.has_ended() => self.end_idle(line).await?,
            // What the guest publishes when the connection has ended stands before the `close peer` line, since nothing
            // can stand after it.
            Action::Publish(_) if !self.stage.has_ended() && self.hangs_up_after(line) => {
                self.stage.end(line, CloseReason::PeerClosed).await?
            }
            Action::ToPeer(_)
            | Action::Publish(_)
            | Action::Close(_)
            | Action::FromPeer(_)
            | Action::Deliver(_)
            | Action::Timer(_) => Vec::new(),
        };
        if !effects.is_empty() {
            return scene.handle(line, effects);
        }
        Ok(scene.run.handle_silence()?)
    }

    async fn end_idle(&mut self, line: u32) -> Result<Vec<Effect>, Why> {
        let mut effects = vec![Effect::Closed(Closer::Idle)];
        effects.extend(self.stage.end(line, CloseReason::IdleTimedOut).await?);
        Ok(effects)
    }

    /// Whether all that comes from outside after this line is the end of the device.
    fn hangs_up_after(&self, line: u32) -> bool {
        let mut rest = self.conversation.steps().filter(|(at, _)| *at > line).map(|(_, step)| &step.action);
        rest.all(|action| matches!(action, Action::ToPeer(_) | Action::Publish(_) | Action::Close(Closer::Peer)))
    }

    /// Plays it as recorded until so many bytes have come; nothing is compared.
    async fn vanish(&mut self, after: usize) -> Result<(), Why> {
        self.stage.open().await?;
        let mut left = after;
        for (line, step) in self.conversation.steps().filter(|(_, step)| step.action.is_stimulus()) {
            if self.stage.has_ended() {
                return Ok(());
            }
            match &step.action {
                Action::FromPeer(bytes) if bytes.len() > left => {
                    if left > 0 {
                        self.stage.tell(line, &Event::ReceivedBytes(bytes.slice(..left))).await?;
                    }
                    if !self.stage.has_ended() {
                        self.stage.end(line, CloseReason::PeerClosed).await?;
                    }
                    return Ok(());
                }
                Action::FromPeer(bytes) => left -= bytes.len(),
                Action::ToPeer(_) | Action::Publish(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(_) => {}
            }
            self.act(Stop { line, step }).await?;
        }
        Ok(())
    }

    /// Plays it and writes down what the guest does.
    pub(super) async fn record(&mut self) -> Result<Happened, Why> {
        let mut happened = Happened { greeting: merged(self.stage.open().await?), answers: Vec::new() };
        for (line, step) in self.conversation.steps().filter(|(_, step)| step.action.is_stimulus()) {
            if self.stage.has_ended() {
                break;
            }
            let effects = self.act(Stop { line, step }).await?;
            if step.action == Action::Close(Closer::Peer) {
                // Nothing can stand after a `close` line.
                add(&mut happened, effects);
                happened.answers.push(Vec::new());
            } else {
                happened.answers.push(merged(effects));
            }
        }
        let last = self.conversation.steps().last().map(|(_, step)| &step.action);
        if !self.stage.has_ended() {
            let effects = match last {
                Some(Action::Close(by)) if ends_by_keepalive(*by) && self.stage.has_keepalive() => {
                    self.run_out(0).await?
                }
                Some(Action::Close(by)) if ends_idle(*by) => self.end_idle(0).await?,
                _ => self.stage.end(0, CloseReason::PeerClosed).await?,
            };
            add(&mut happened, effects);
        }
        Ok(happened)
    }
}

/// The run of a conversation, and the end of the connection that it is not told yet.
struct Scene<'c> {
    run: Run<'c>,
    /// Lines that came in one event are not done yet: a guest that ends the connection in it has heard them all.
    holds_end: bool,
    held_end: Option<Closer>,
    published_bytes: usize,
}

impl<'c> Scene<'c> {
    fn new(run: Run<'c>) -> Self {
        Self { run, holds_end: false, held_end: None, published_bytes: 0 }
    }

    fn handle(&mut self, line: u32, effects: Vec<Effect>) -> Result<(), Why> {
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
            return Err(Why::TooMuch { line });
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

/// What a `>` line does when lines are joined.
enum Group {
    /// It is for itself.
    Line,
    /// It brings its bytes and those of the lines that are joined to it.
    First(Bytes),
    /// Its bytes have come already, and there are more such lines.
    Further,
    /// Its bytes have come already, and those of the next have not.
    Last,
}

/// What each `>` line does, in their order.
fn groups(conversation: &Conversation, cuts: Cuts) -> Vec<Group> {
    if cuts != Cuts::Joined {
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

/// Whether the keepalive timer may be what ends the connection.
fn ends_by_keepalive(by: Closer) -> bool {
    matches!(by, Closer::Keepalive | Closer::Gateway)
}

/// Whether silence may be what ends the connection.
fn ends_idle(by: Closer) -> bool {
    matches!(by, Closer::Idle | Closer::Gateway)
}

/// What the guest did after the last stimulus is more.
fn add(happened: &mut Happened, effects: Vec<Effect>) {
    let last = happened.answers.last_mut().unwrap_or(&mut happened.greeting);
    last.extend(effects);
    *last = merged(std::mem::take(last));
}

/// A stream has no borders: bytes that follow one another are one line. The end stands last, whatever the guest published when it was told.
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
