//! Recording: performs the stimuli of a conversation, and records the responses.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::{MissingResource, Unplayable};
use super::wire::{Wire, WireEvent};
use super::{GatewayAddr, MqttObserver, Options, PlayError};
use crate::conn::SocketKind;
use crate::conversation::bless::{Effect, Happened};
use crate::conversation::{Action, ClosedBy, Conversation};

/// Maximum number of effects in one response: the recording of a gateway that never stops has to end.
pub(crate) const RECORDED_MAX: usize = 4096;

/// Plays the stimuli of a conversation and collects the effects of each, for [`super::super::bless::bless`].
///
/// The response to a stimulus is complete when nothing has arrived for `quiet`, or after [`Options::timeout`]; later
/// effects count for the next one. So a recording takes at least `quiet` for each stimulus, and needs an otherwise idle
/// gateway. Messages are recorded if there is a `mqtt_observer`, which must observe everything
/// ([`super::mqtt_observer::Watch::Everything`]).
///
/// # Errors
///
/// As [`super::play`], without mismatches: `timer` lines need [`Options::timer_wait`], `deliver` lines a
/// `mqtt_observer`. More than [`RECORDED_MAX`] effects after one stimulus.
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
            // Both sides have closed then; the conversation records which one was first.
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

/// Writes a line; returns the effects that arrived meanwhile.
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

/// The effects until silence, or the end of the connection.
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

/// A stream has no boundaries: consecutive bytes are one line.
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
