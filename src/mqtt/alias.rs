//! Topic aliases (MQTT 5.0 section 3.3.2.3.4), those that a peer sets and those that are set for it.

use std::collections::HashMap;

use super::Reason;
use super::decode::DecodeError;

/// The aliases that a peer has set on one connection.
#[derive(Debug, Default)]
pub(crate) struct ReceivedAliases {
    alias_max: u16,
    /// By alias less 1; no longer than the largest alias that has come.
    topics: Vec<Option<Box<str>>>,
}

impl ReceivedAliases {
    /// Takes aliases up to `alias_max`; with 0 it takes none.
    pub(crate) fn new(alias_max: u16) -> Self {
        Self { alias_max, topics: Vec::new() }
    }

    /// Notes or looks up the alias of a PUBLISH; `topic` becomes what it stands for.
    ///
    /// # Errors
    ///
    /// [`Reason::TOPIC_ALIAS_INVALID`] for an alias of 0 or above the maximum, [`Reason::PROTOCOL_ERROR`] for one
    /// that has not been set.
    pub(crate) fn resolve(&mut self, alias: Option<u16>, topic: &mut Box<str>) -> Result<(), DecodeError> {
        let Some(alias) = alias else { return Ok(()) };
        if alias == 0 || alias > self.alias_max {
            let what = "the topic alias is 0 or above the maximum";
            return Err(DecodeError { reason: Reason::TOPIC_ALIAS_INVALID, what });
        }
        let place = usize::from(alias) - 1;
        if !topic.is_empty() {
            if self.topics.len() <= place {
                self.topics.resize(place + 1, None);
            }
            self.topics[place] = Some(topic.clone());
            return Ok(());
        }
        match self.topics.get(place) {
            Some(Some(known)) => {
                *topic = known.clone();
                Ok(())
            }
            _ => Err(DecodeError { reason: Reason::PROTOCOL_ERROR, what: "the topic alias has not been set" }),
        }
    }
}

/// The aliases that are set for a peer: the first topics that are published get one each and keep it.
#[derive(Debug, Default)]
pub(crate) struct SentAliases {
    alias_max: u16,
    aliases: HashMap<Box<str>, u16>,
}

impl SentAliases {
    /// Sets aliases up to the peer's maximum; with 0 it sets none.
    pub(crate) fn new(alias_max: u16) -> Self {
        Self { alias_max, aliases: HashMap::new() }
    }

    /// The alias of a topic, and whether the peer knows it already, so that the topic itself can be left out.
    pub(crate) fn assign(&mut self, topic: &str) -> Option<(u16, Known)> {
        if let Some(&alias) = self.aliases.get(topic) {
            return Some((alias, Known::Yes));
        }
        if self.aliases.len() >= usize::from(self.alias_max) {
            return None;
        }
        let alias = self.aliases.len() as u16 + 1;
        self.aliases.insert(topic.into(), alias);
        Some((alias, Known::No))
    }
}

/// Whether the peer has been sent an alias with its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Yes,
    No,
}
