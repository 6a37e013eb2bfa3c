//! Plays a conversation to learn its answers: does what the device does, and writes down what comes.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::{MissingResource, Unplayable};
use super::wire::{Wire, WireEvent};
use super::{GatewayAddr, MqttObserver, Options, PlayError};
use crate::conn::SocketKind;
use crate::conversation::bless::{Effect, Happened};
use crate::conversation::{Action, ClosedBy, Conversation};

/// How many pieces of bytes and messages one answer may have: a gateway that never stops is not recorded for ever.
pub(crate) const RECORDED_MAX: usize = 4096;

/// Plays the stimuli of a conversation and collects what the gateway does after each, for [`super::super::bless::bless`].
///
/// The answer to a stimulus is over when nothing has come for `quiet`, or when it has gone on for [`Options::timeout`]; what
/// comes later counts for the next one. So a recording takes at least `quiet` for each stimulus, and wants a gateway that
/// has nothing else to do. Messages are
/// recorded when there is a `mqtt_observer`, which must watch everything ([`super::mqtt_observer::Watch::Everything`]).
///
/// # Errors
///
/// As [`super::play`], without mismatches: `timer` lines need [`Options::timer_wait`], `deliver` lines a `mqtt_observer`. More
/// than [`RECORDED_MAX`] things came after one stimulus.
pub async fn record(
    conversation: &Conversation,
    to: &GatewayAddr,
    observer: Option<&MqttObserver>,
    options: &Options,
    quiet: Duration,
) -> Result<Happened, PlayError> {
    let needs = needs(conversation, observer.is_some(), options);
    if !needs.is_empty() {
        return Err(Unplayable::new(needs).into());
    }
    let inbox = observer.map(|observer| observer.inbox(conversation));
    let mut wire = Wire::connect(to, inbox, options.timeout).await?;
    let greeting = collect(&mut wire, 0, quiet, quiet, options).await?;
    let mut happened = Happened { greeting: merged(greeting), answers: Vec::new() };
    for (line, step) in conversation.steps().filter(|(_, step)| step.action.is_stimulus()) {
        if !wire.is_open() {
            break;
        }
        let mut patience = quiet;
        let mut before = Vec::new();
        match &step.action {
            Action::FromPeer(bytes) => before = write(&mut wire, line, bytes, options).await?,
            Action::Deliver(message) => {
                if let Some(observer) = observer {
                    observer.publish(message, options.timeout).await?;
                }
            }
            Action::Timer(_) => patience = options.timer_wait.unwrap_or(quiet),
            Action::Close(_) => wire.end_writing().await,
            Action::ToPeer(_) | Action::Publish(_) => {}
        }
        let mut effects = collect(&mut wire, line, patience, quiet, options).await?;
        effects.splice(0..0, before);
        if matches!(step.action, Action::Close(ClosedBy::Peer)) {
            // Both sides have ended it then; the conversation tells who was first.
            effects.retain(|effect| !matches!(effect, Effect::Closed(_)));
        }
        happened.answers.push(merged(effects));
    }
    wire.end_writing().await;
    Ok(happened)
}

fn needs(conversation: &Conversation, has_broker: bool, options: &Options) -> Vec<MissingResource> {
    let mut needs = Vec::new();
    if let kind @ (SocketKind::Udp | SocketKind::Dtls) = conversation.transport() {
        needs.push(MissingResource::Stream(kind));
    }
    needs.extend(conversation.steps().filter_map(|(line, step)| match &step.action {
        Action::Deliver(_) if !has_broker => Some(MissingResource::Broker { line, dependent: line }),
        Action::Timer(_) if options.timer_wait.is_none() => {
            Some(MissingResource::Time { line, word: step.action.word(), dependent: line })
        }
        Action::FromPeer(_)
        | Action::ToPeer(_)
        | Action::Publish(_)
        | Action::Deliver(_)
        | Action::Timer(_)
        | Action::Close(_) => None,
    }));
    needs
}

/// Writes a line; gives back what came meanwhile.
async fn write(wire: &mut Wire, line: u32, bytes: &[u8], options: &Options) -> Result<Vec<Effect>, PlayError> {
    let deadline = Instant::now() + options.timeout;
    let (mut rest, mut effects) = (bytes, Vec::new());
    while !rest.is_empty() && wire.is_open() {
        match tokio::time::timeout_at(deadline, wire.write(&mut rest, true)).await {
            Ok(seen) => effects.extend(seen.map(effect)),
            Err(_) => return Err(PlayError::NotTaken { line, bytes: bytes.len(), timeout: options.timeout }),
        }
    }
    Ok(effects)
}

/// What comes until it is quiet, or the connection has ended.
async fn collect(
    wire: &mut Wire,
    line: u32,
    first: Duration,
    quiet: Duration,
    options: &Options,
) -> Result<Vec<Effect>, PlayError> {
    let mut effects = Vec::new();
    let end = Instant::now() + options.timeout.max(first);
    let mut patience = Instant::now() + first;
    while let Ok(seen) = tokio::time::timeout_at(patience.min(end), wire.next(true)).await {
        if effects.len() == RECORDED_MAX {
            return Err(PlayError::Endless { line });
        }
        effects.push(effect(seen?));
        patience = Instant::now() + quiet;
    }
    Ok(effects)
}

fn effect(seen: WireEvent) -> Effect {
    match seen {
        WireEvent::Bytes(bytes) => Effect::Sent(bytes),
        WireEvent::Published(published) => Effect::Published(published),
        WireEvent::Closed => Effect::Closed(ClosedBy::Gateway),
    }
}

/// A stream has no borders: bytes that follow one another are one line.
fn merged(effects: Vec<Effect>) -> Vec<Effect> {
    let mut merged: Vec<Effect> = Vec::new();
    for effect in effects {
        match (merged.last_mut(), effect) {
            (Some(Effect::Sent(before)), Effect::Sent(bytes)) => {
                *before = [before.as_ref(), bytes.as_ref()].concat().into()
            }
            (_, effect) => merged.push(effect),
        }
    }
    merged
}
