//! Records the observed responses in a conversation, and keeps the manual edits around them.
//!
//! Pure. Stimuli (`>`, `deliver`, `timer`, `close peer`), comments, blank lines and `transport` stay; the lines of
//! responses are replaced where they no longer match. A line that still matches is kept, so its `??` and `"*"` survive.

use bytes::Bytes;

use super::run::Published;
use super::{Action, ClosedBy, Conversation, Item, Line, Message, Pattern, Payload, Step};

/// The observed effects of a run, grouped by stimulus.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Happened {
    /// Before the first stimulus.
    pub greeting: Vec<Effect>,
    /// After each stimulus, in order; fewer than the stimuli if the connection ended early.
    pub answers: Vec<Vec<Effect>>,
}

/// One effect of the gateway or its handler.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// It sent these bytes to the device.
    Sent(Bytes),
    /// The handler published this.
    Published(Published),
    /// It ended the connection.
    Closed(ClosedBy),
}

/// The connection ended before the last stimulus of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the connection to stay open until line {line} ({word:?}), it was closed before: cut the conversation there"
)]
pub struct EndedEarly {
    /// The first stimulus after the end.
    pub line: u32,
    /// The first word of its line.
    pub word: &'static str,
}

/// The conversation with the observed responses.
///
/// # Errors
///
/// The gateway ended the connection before the last stimulus.
pub fn bless(conversation: &Conversation, happened: &Happened) -> Result<Conversation, EndedEarly> {
    let mut blessed = Vec::new();
    let mut answers = happened.answers.iter();
    let mut closed = false;
    let (preamble, groups) = groups(conversation.items());

    let at = preamble_end(preamble);
    closed |= bless_group(&mut blessed, preamble, at, &happened.greeting);
    for group in groups {
        if closed {
            let Some((line, word)) = group.first().filter(|first| !is_close(first)).and_then(stimulus) else {
                // The gateway closed before the device's `close peer`; manual edits around it are kept.
                blessed.extend(group.iter().filter(|item| !matches!(item.content, Line::Step(_))).cloned());
                continue;
            };
            return Err(EndedEarly { line, word });
        }
        let effects = answers.next().map_or(&[][..], Vec::as_slice);
        closed |= bless_group(&mut blessed, group, 1, effects);
    }
    Ok(Conversation::new(conversation.name(), blessed))
}

/// Splits the items before each stimulus.
fn groups(items: &[Item]) -> (&[Item], Vec<&[Item]>) {
    let mut starts: Vec<usize> = (0..items.len()).filter(|at| stimulus(&items[*at]).is_some()).collect();
    let preamble = &items[..starts.first().copied().unwrap_or(items.len())];
    starts.push(items.len());
    (preamble, starts.windows(2).map(|pair| &items[pair[0]..pair[1]]).collect())
}

fn stimulus(item: &Item) -> Option<(u32, &'static str)> {
    match &item.content {
        Line::Step(step) if step.action.is_stimulus() => Some((item.line, step.action.word())),
        Line::Step(_) | Line::Blank | Line::Comment(_) | Line::Transport(_) => None,
    }
}

fn is_close(item: &Item) -> bool {
    matches!(item.content, Line::Step(Step { action: Action::Close(_), .. }))
}

fn is_answer(item: &Item) -> bool {
    matches!(&item.content, Line::Step(step) if !step.action.is_stimulus())
}

/// Where a new greeting is inserted: below the heading, above the comment of the first stimulus.
fn preamble_end(preamble: &[Item]) -> usize {
    preamble
        .iter()
        .rposition(|item| matches!(item.content, Line::Blank | Line::Transport(_)))
        .map_or(preamble.len(), |at| at + 1)
}

/// Adds one group with its new responses: each in the place of an old one, the rest after the last old one, or at
/// `insert_at` if there was none. Returns whether the gateway ended the connection.
fn bless_group(blessed: &mut Vec<Item>, group: &[Item], insert_at: usize, effects: &[Effect]) -> bool {
    let old: Vec<&Item> = group.iter().filter(|item| is_answer(item)).collect();
    let new = answers(&old, effects);
    let closed = effects.iter().any(|effect| matches!(effect, Effect::Closed(_)));
    let mut new = new.into_iter();
    let mut left = old.len();
    for (index, item) in group.iter().enumerate() {
        if left == 0 && index == insert_at {
            blessed.extend(new.by_ref());
        }
        if !is_answer(item) {
            blessed.push(item.clone());
            continue;
        }
        left -= 1;
        blessed.extend(new.next());
        if left == 0 {
            blessed.extend(new.by_ref());
        }
    }
    blessed.extend(new);
    closed
}

/// The responses as items: old ones that still match, new ones for the rest.
fn answers(old: &[&Item], effects: &[Effect]) -> Vec<Item> {
    if fits(old, effects) {
        return old.iter().map(|item| (*item).clone()).collect();
    }
    let mut old_messages =
        old.iter().filter(|item| matches!(&item.content, Line::Step(Step { action: Action::Publish(_), .. })));
    let mut old_bytes =
        old.iter().filter(|item| matches!(&item.content, Line::Step(Step { action: Action::ToPeer(_), .. })));
    // An empty send has no effect on a stream, and no `<` line can express it.
    let sent = effects.iter().filter(|effect| !matches!(effect, Effect::Sent(bytes) if bytes.is_empty()));
    sent.map(|effect| match effect {
            Effect::Sent(bytes) => {
                let fitting = old_bytes.next().filter(|item| {
                    matches!(&item.content, Line::Step(Step { action: Action::ToPeer(pattern), .. })
                        if pattern.len() == bytes.len() && pattern.first_difference(bytes, 0).is_none())
                });
                keep_or(fitting, || Action::ToPeer(Pattern::exact(bytes)))
            }
            Effect::Published(published) => {
                let fitting = old_messages.next().filter(|item| {
                    matches!(&item.content, Line::Step(Step { action: Action::Publish(message), .. }) if is_fit(message, published))
                });
                keep_or(fitting, || {
                    let (topic, qos) = (published.topic.clone(), published.qos);
                    Action::Publish(Message { topic, qos, payload: Payload::recorded(&published.payload) })
                })
            }
            Effect::Closed(by) => Item::new(Line::Step(Step::new(Action::Close(*by)))),
        })
        .collect()
}

fn keep_or(fitting: Option<&&Item>, action: impl FnOnce() -> Action) -> Item {
    fitting.map_or_else(|| Item::new(Line::Step(Step::new(action()))), |item| (*item).clone())
}

fn is_fit(expected: &Message, published: &Published) -> bool {
    expected.topic == published.topic
        && expected.qos == published.qos
        && expected.payload.difference(&published.payload).is_none()
}

/// Whether the old responses match the effects, however the bytes are split over `<` lines.
fn fits(old: &[&Item], effects: &[Effect]) -> bool {
    let (mut cells, mut messages, mut closers) = (Vec::new(), Vec::new(), Vec::new());
    for item in old {
        if let Line::Step(step) = &item.content {
            match &step.action {
                Action::ToPeer(pattern) => cells.extend_from_slice(pattern.cells()),
                Action::Publish(message) => messages.push(message),
                Action::Close(by) => closers.push(*by),
                Action::FromPeer(_) | Action::Deliver(_) | Action::Timer(_) => {}
            }
        }
    }
    let (mut bytes, mut published, mut closed) = (Vec::new(), Vec::new(), Vec::new());
    for effect in effects {
        match effect {
            Effect::Sent(sent) => bytes.extend_from_slice(sent),
            Effect::Published(message) => published.push(message),
            Effect::Closed(by) => closed.push(*by),
        }
    }
    let same_end = |expected: &ClosedBy, by: &ClosedBy| {
        expected == by || *expected == ClosedBy::Gateway || *by == ClosedBy::Gateway
    };
    cells.len() == bytes.len()
        && Pattern::new(cells).first_difference(&bytes, 0).is_none()
        && messages.len() == published.len()
        && messages.iter().zip(&published).all(|(expected, published)| is_fit(expected, published))
        && closers.len() == closed.len()
        && closers.iter().zip(&closed).all(|(expected, by)| same_end(expected, by))
}

#[cfg(test)]
mod tests;
