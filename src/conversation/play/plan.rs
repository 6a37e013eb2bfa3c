//! Plan of a replay: which lines are performed, skipped or refused, decided before the first byte; pure.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::Options;
use crate::conn::SocketKind;
use crate::conversation::run::LocatedStep;
use crate::conversation::{Action, ClosedBy, Conversation, Message};

/// A conversation needs resources that the player was not given: all of them, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplayable(Vec<MissingResource>);

impl Unplayable {
    /// `needs` is not empty.
    pub(super) fn new(needs: Vec<MissingResource>) -> Self {
        Self(needs)
    }

    /// The missing resources, in the order of their lines.
    pub fn needs(&self) -> &[MissingResource] {
        &self.0
    }
}

impl fmt::Display for Unplayable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, need) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            need.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Unplayable {}

/// A missing resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingResource {
    /// A broker: a device cannot publish to itself.
    #[error("line {line}: \"deliver\" needs a broker to publish it at (--mqtt), since line {dependent} answers it")]
    Broker {
        /// The `deliver` line.
        line: u32,
        /// The first line that depends on it.
        dependent: u32,
    },
    /// Time: the device can only be silent until the timer expires.
    #[error(
        "line {line}: {word:?} needs a time to wait for the timer (--timer-wait), since line {dependent} depends on it"
    )]
    Time {
        /// The line that depends on a timer.
        line: u32,
        /// Its first word.
        word: &'static str,
        /// The first line that depends on it.
        dependent: u32,
    },
    /// It was recorded on datagrams and cannot be played on a stream, which does not preserve their boundaries.
    #[error("expected a conversation of a stream (tcp or tls), found \"transport {}\"", .0)]
    Stream(SocketKind),
}

/// The treatment of a stimulus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepPlan {
    Do,
    Skip,
}

/// The plan of each line that is not simply performed.
pub(super) struct Plan {
    skipped: HashSet<u32>,
    /// Lines that wait for a timer.
    patient: HashMap<u32, Duration>,
}

impl Plan {
    /// # Errors
    ///
    /// A line depends on a missing resource.
    pub(super) fn new(
        conversation: &Conversation,
        has_broker: bool,
        timer_wait: Option<Duration>,
    ) -> Result<Self, Unplayable> {
        let stops: Vec<LocatedStep<'_>> = conversation.steps().map(|(line, step)| LocatedStep { line, step }).collect();
        let mut plan = Self { skipped: HashSet::new(), patient: HashMap::new() };
        let mut needs = Vec::new();
        if let kind @ (SocketKind::Udp | SocketKind::Dtls) = conversation.transport() {
            needs.push(MissingResource::Stream(kind));
        }
        let mut own: Vec<&Message> = Vec::new();
        for (index, stop) in stops.iter().enumerate() {
            let line = stop.line;
            let answers = stops.iter().skip(index + 1).take_while(|later| !later.step.action.is_stimulus());
            let seen = answers.filter(|later| has_broker || !matches!(later.step.action, Action::Publish(_)));
            match &stop.step.action {
                Action::Publish(message) => own.push(message),
                Action::Deliver(message) if has_broker => {
                    // The device subscribes to its own topic: the broker returns the message by itself.
                    if let Some(at) = own.iter().position(|published| is_same(published, message)) {
                        own.swap_remove(at);
                        plan.skipped.insert(line);
                    }
                }
                Action::Deliver(_) => match seen.map(|later| later.line).next() {
                    Some(dependent) => needs.push(MissingResource::Broker { line, dependent }),
                    None => drop(plan.skipped.insert(line)),
                },
                Action::Timer(_) => {
                    let dependents: Vec<u32> = seen.map(|later| later.line).collect();
                    match (dependents.first(), timer_wait) {
                        (None, _) => drop(plan.skipped.insert(line)),
                        (Some(_), Some(wait)) => plan.patient.extend(dependents.into_iter().map(|line| (line, wait))),
                        (Some(dependent), None) => {
                            needs.push(MissingResource::Time { line, word: "timer", dependent: *dependent })
                        }
                    }
                }
                Action::Close(ClosedBy::Keepalive | ClosedBy::Idle) => match timer_wait {
                    Some(wait) => drop(plan.patient.insert(line, wait)),
                    // After a timer line that has reported the same missing resource already.
                    None if needs.iter().any(|need| matches!(need, MissingResource::Time { .. })) => {}
                    None => needs.push(MissingResource::Time { line, word: "close", dependent: line }),
                },
                Action::FromPeer(_) | Action::ToPeer(_) | Action::Close(_) => {}
            }
        }
        if needs.is_empty() { Ok(plan) } else { Err(Unplayable::new(needs)) }
    }

    /// The treatment of the stimulus of a line.
    pub(super) fn treatment(&self, line: u32) -> StepPlan {
        if self.skipped.contains(&line) { StepPlan::Skip } else { StepPlan::Do }
    }

    /// The timeout of an expected line.
    pub(super) fn patience(&self, line: u32, options: &Options) -> Duration {
        self.patient.get(&line).copied().unwrap_or(options.timeout)
    }
}

fn is_same(published: &Message, delivered: &Message) -> bool {
    published.topic == delivered.topic && published.payload.difference(&delivered.payload.to_bytes()).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str, has_broker: bool, timer_wait: Option<Duration>) -> Result<Plan, String> {
        let conversation = Conversation::parse("test", text).unwrap();
        Plan::new(&conversation, has_broker, timer_wait).map_err(|unplayable| unplayable.to_string())
    }

    /// Without resources, a line is skipped if nothing depends on it and refused otherwise; all at once.
    #[test]
    fn help_is_asked_for_where_it_is_needed() {
        let harmless = "deliver \"t\" 00\npublish \"t\" 00\ntimer keepalive\npublish \"t\" 00\n> 00\n< 00\n";
        assert_eq!(plan(harmless, false, None).unwrap().skipped, HashSet::from([1, 3]));

        let helpless = "transport udp\ndeliver \"t\" 00\n< 00\ntimer keepalive\n< 01\nclose keepalive\n";
        let unplayable = plan(helpless, false, None).err().unwrap();
        let expected = "expected a conversation of a stream (tcp or tls), found \"transport udp\"\n\
            line 2: \"deliver\" needs a broker to publish it at (--mqtt), since line 3 answers it\n\
            line 4: \"timer\" needs a time to wait for the timer (--timer-wait), since line 5 depends on it";
        assert_eq!(unplayable, expected);

        let idle = plan("> 00\nclose idle\n", false, None).err().unwrap();
        assert_eq!(
            idle,
            "line 2: \"close\" needs a time to wait for the timer (--timer-wait), since line 2 depends on it"
        );
    }

    /// Lines after a timer wait as long as allowed, and all others for the usual timeout.
    #[test]
    fn patience_is_for_timers() {
        let wait = Duration::from_secs(60);
        let plan = plan("> 00\n< 00\ntimer keepalive\n< 01\nclose keepalive\n", false, Some(wait)).unwrap();
        let options = Options::default();
        assert_eq!([2, 4, 5].map(|line| plan.patience(line, &options)), [options.timeout, wait, wait]);
    }

    /// A device that subscribes to its own topic gets its message from the broker once, and not a second time from us.
    #[test]
    fn own_messages_come_back_by_themselves() {
        let text = "> 00\npublish \"t\" json {\"n\": \"*\"}\ndeliver \"t\" json {\"n\": 1}\n< 01\ndeliver \"t\" json {\"n\": 2}\n< 02\n";
        assert_eq!(plan(text, true, None).unwrap().skipped, HashSet::from([3]));
    }
}
